"""Several processes that train one network together, over MPI: who takes part, and how they wait for one another.

`mpirun -n N mlcore train ...` starts N ranks. All run the same program on the same numbers, so that they decide alike;
only what a clock or a signal says is agreed on. Rank 0 leads: it alone reads and writes the run's files. mpi4py is
imported where the environment says that mpirun started others too, nowhere else.

No rank waits for ever: one that does not answer in time, or fails alone, ends all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mlcore.errors import MlcoreError, RankLost, RecipeError
from mlcore.tensor import Array

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE")  # what MPICH's and Open MPI's mpirun set
TIMEOUT = "MLCORE_MPI_TIMEOUT_S"
TIMEOUT_S = 20.0  # within a step
PATIENCE_S = 900.0  # while one rank compiles, saves or draws and others have nothing to do
FAREWELL_S = 4.0  # for the others to fail too, when a rank does
EAGER_S = 0.5  # of waiting without sleep, in a step: between processes of a machine, data move while both are awake
NAP_S, LONG_NAP_S, NAP_SHARE = 1e-4, 5e-3, 0.02  # a nap is a share of what was waited so far
BREATH_S = 1.0  # of waiting that counts at a time: a machine may have been put to sleep, with all its ranks

T = TypeVar("T")


class Team:
    """A process by itself: it leads, agrees with itself and waits for nobody."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Inside, whoever fails alone ends all; outside, only the leader goes on."""
        yield

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do what fills a cache on a machine: one process of each first, then the others."""
        return work()

    def told(self, make: Callable[[], str]) -> str:
        """The leader's text."""
        return make()

    def same(self, what: str, text: str) -> None:
        """MlcoreError unless all have the same text."""

    def copy(self, array: Array) -> None:
        """The leader's numbers, in place."""

    def meet(self) -> None:
        """Go on when all are here."""

    def agree(self, signal: int | None, due: bool) -> tuple[int | None, bool]:
        """One answer for all: what signal anyone got, and whether the leader's clock says that something is due."""
        return signal, due

    def threads(self, wanted: int, environ: Mapping[str, str] = os.environ) -> int:
        """How many threads to use where a recipe wants so many; 0: whatever there is."""
        return wanted


def join(environ: Mapping[str, str] = os.environ) -> Team:
    """The ranks that mpirun started this process among; a team of one elsewhere.

    RecipeError when mpirun started several and MPI can't be used.
    """
    if ranks_started(environ) < 2:
        return Team()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"no MPI ({reason})", place="mpirun", fix="pip install -e '.[mpi]'") from error
    return Ranks(MPI, _seconds(environ.get(TIMEOUT, "")))


def ranks_started(environ: Mapping[str, str] = os.environ) -> int:
    """How many processes mpirun started together with this one."""
    return max((int(text) for name in SIZES if (text := environ.get(name, "")).isdigit()), default=1)


def _seconds(text: str) -> float:
    try:
        seconds = float(text or TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise RecipeError(f"{text!r} is no time", place=TIMEOUT, fix="give seconds above 0")
    return seconds


class Ranks(Team):
    """Processes that mpirun started together."""

    def __init__(self, mpi: Any, timeout_s: float) -> None:
        self.mpi, self.timeout_s = mpi, timeout_s
        self.world, self._farewell = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.world.rank, self.world.size
        machine = self.world.Split_type(mpi.COMM_TYPE_SHARED)
        self._beside, self._is_first_here = machine.size, machine.rank == 0
        self._wish, self._agreed = (0, False), (0, False)
        self._is_patient = True  # until the first step was taken together
        self.progress = Progress(self.world, mpi.Query_thread() == mpi.THREAD_MULTIPLE)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            codes = self._leave(error)
            if self.leads:
                raise
            sys.exit(codes[0])
        self._leave(None)
        if not self.leads:
            sys.exit(0)

    def in_turn(self, work: Callable[[], T]) -> T:
        if not self._is_first_here:
            self.meet()
            return work()
        try:
            return work()
        finally:
            self.meet()

    def told(self, make: Callable[[], str]) -> str:
        text = b""
        if self.leads:
            try:
                text = make().encode()
            except BaseException:
                self.copy(np.array([-1]))
                raise
        length = np.array([len(text)])
        self.copy(length)
        if length[0] < 0:
            raise RankLost("rank 0 failed", fix="see what it says")
        characters = np.frombuffer(text, np.uint8).copy() if self.leads else np.empty(length[0], np.uint8)
        self.copy(characters)
        return characters.tobytes().decode()

    def same(self, what: str, text: str) -> None:
        words = np.array([hash_of(text)])
        every = self.everyones(words)[:, 0]
        others = np.flatnonzero(every != every[0])
        if others.size:
            raise MlcoreError(
                f"another {what} than rank 0", place=f"rank {others[0]}",
                fix="give all machines the same code, packages, data and kind of processor",
            )  # fmt: skip

    def copy(self, array: Array) -> None:
        self.wait([self.world.Ibcast(array, root=0)], PATIENCE_S)

    def meet(self) -> None:
        self.wait([self.world.Ibarrier()], PATIENCE_S)

    def agree(self, signal: int | None, due: bool) -> tuple[int | None, bool]:
        """What was wished before the last step: wishes travel with the next one's loss, so that they cost nothing."""
        self._wish = (signal or 0, due and not self._agreed[1])  # what is done now is not wished for again
        return self._agreed[0] or None, self._agreed[1]

    def threads(self, wanted: int, environ: Mapping[str, str] = os.environ) -> int:
        if wanted or environ.get("MLCORE_THREADS"):
            return wanted
        return max(1, min(len(os.sched_getaffinity(0)), (os.cpu_count() or 1) // int(self._beside)))

    def slice_of(self, count: int) -> slice:
        """This rank's part of so many images. Where there are fewer than ranks, some take the first one for nothing."""
        start, stop = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(start, stop) if stop > start else slice(0, 1)

    def counts(self, count: int) -> list[int]:
        """How many images each rank answers for."""
        edges = [count * rank // self.size for rank in range(self.size + 1)]
        return [stop - start for start, stop in itertools.pairwise(edges)]

    def mean_loss(self, number: int, part: float) -> float:
        """The sum of the ranks' parts of a step's loss, in their order. RankLost when one is at another step."""
        seen = self.everyones(np.array([number, part, *self._wish]))
        if np.ptp(seen[:, 0]):
            raise RankLost(f"ranks have gone apart: they are at steps {seen[:, 0].astype(int).tolist()}")
        self._agreed = int(seen[:, 2].max()), bool(seen[0, 3])
        self._is_patient = False
        return float(sum(seen[:, 1].tolist()))

    def rows(self, mine: Array, count: int) -> Array:
        """Everyone's rows one after the other: [count, K]."""
        width, counts = mine.shape[1], self.counts(count)
        every = np.empty((count, width), mine.dtype)
        sizes = [width * rows for rows in counts]
        kept = np.ascontiguousarray(mine[: counts[self.rank]])
        self.wait([self.world.Iallgatherv(kept, [every, sizes])])
        return every

    def sum_in_place(self, numbers: Array) -> Any:
        """Begin to replace them by everyone's sums; gives the request to wait for."""
        return self.world.Iallreduce(self.mpi.IN_PLACE, numbers)

    def everyones(self, mine: Array) -> Array:
        """The same few numbers of each rank: [size, K]."""
        every = np.empty((self.size, mine.size), mine.dtype)
        self.wait([self.world.Iallgather(mine, every)])
        return every

    def wait(self, requests: Sequence[Any], limit_s: float | None = None) -> None:
        """Until they are done; RankLost when that takes longer than the limit (None: that of a step)."""
        limit = limit_s or (PATIENCE_S if self._is_patient else self.timeout_s)
        eager = 0.0 if limit_s else EAGER_S
        waited, last = 0.0, time.monotonic()
        while not self.mpi.Request.Testall(requests):
            now = time.monotonic()
            waited, last = waited + min(now - last, BREATH_S), now
            if waited > limit:
                raise RankLost(
                    f"no answer from the others for {limit:.0f} s", place=f"rank {self.rank}",
                    fix=f"a rank hangs or its machine is gone; {TIMEOUT} sets how long to wait",
                )  # fmt: skip
            os.sched_yield() if waited < eager else time.sleep(max(NAP_S, min(waited * NAP_SHARE, LONG_NAP_S)))

    def _leave(self, error: BaseException | None) -> list[int]:
        """Wait for the others to come to the same end, and give their exit codes; if they don't, end them."""
        mine = np.array([_code_of(error)])
        every = np.empty(self.size, mine.dtype)
        try:
            self.wait([self._farewell.Iallgather(mine, every)], FAREWELL_S if error else PATIENCE_S)
        except RankLost as lost:
            self._abort(error or lost)
        if not error and every.any():
            self._abort(RankLost(f"rank {np.flatnonzero(every)[0]} failed"))
        return [int(code) for code in every]

    def _abort(self, error: BaseException) -> None:
        """End all ranks, at once."""
        said = f"{type(error).__name__}: {error}" if not isinstance(error, MlcoreError) else str(error)
        print(f"error: rank {self.rank} ends all {self.size} ranks: {said}", file=sys.stderr, flush=True)
        threading.Timer(FAREWELL_S, os._exit, [_code_of(error)]).start()  # mpirun ends all when one goes like this
        self.world.Abort(_code_of(error))


class Progress:
    """A thread that keeps MPI going while the kernels compute: without it, data move only inside of MPI's calls."""

    def __init__(self, world: Any, is_allowed: bool) -> None:
        self._world, self._wanted = world.Dup(), threading.Event()
        if is_allowed:
            threading.Thread(target=self._run, daemon=True).start()

    def on(self) -> None:
        self._wanted.set()

    def off(self) -> None:
        self._wanted.clear()

    def _run(self) -> None:
        while self._wanted.wait():
            self._world.Iprobe()
            time.sleep(NAP_S)


def hash_of(text: str) -> int:
    """63 bits of its SHA-256."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _code_of(error: BaseException | None) -> int:
    """The exit code that a process ends with."""
    if error is None:
        return 0
    if isinstance(error, MlcoreError):
        return error.exit_code
    return 128 + getattr(error, "number", 2) if isinstance(error, KeyboardInterrupt) else 1
