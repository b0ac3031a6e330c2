"""Trials: trainings of a recipe with some knobs turned, each run once and journaled, whatever kills the search.

A trial is named by what it is (knobs, epochs, seed), so a search that starts over asks for the same trials in the same
order and gets the finished ones from the journal. An unfinished one goes on by mlcore's own `--continue`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import lzma
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from halving import OutOfTime
from recipe_edit import RecipeProblem
from search_space import Knobs

LABELS_OF_TEST = "t10k-labels"  # a file of MNIST's
TEST_BATCH = "test_batch"  # a file of CIFAR-10's: labels, each before its image
RECORD_BYTES, WITHHELD = 3073, 255
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
Clock = Literal["wall", "cpu"]
NOT_FINITE = 4  # mlcore's exit code for a loss that isn't finite: a bad setting, not a bad machine
STATUS = {0: "finished", NOT_FINITE: "not finite", None: "out of time"}  # by exit code; None: stopped by us


class TrainingFailed(Exception):
    """mlcore could not train for a reason that no other setting would mend; `code` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Trial:
    """What was tried and what came of it. `validation_error_pct` is None when the training broke down."""

    knobs: Knobs
    epochs: int
    seed: int
    status: str  # one of STATUS
    validation_error_pct: float | None
    data: str  # the dataset's name by mlcore: mnist, mnist-surrogate, ...
    wall_s: float  # of the whole process: what the budget pays
    epoch_s: float  # of one epoch without start and compilation: what foretells the next trial
    cpu_s: float = 0.0  # of the process and its children, start and compilation included
    train_loss: float | None = None  # mean over the last epoch's batches

    @property
    def error(self) -> float:
        return math.inf if self.validation_error_pct is None else self.validation_error_pct

    @property
    def loss(self) -> float:
        return math.inf if self.train_loss is None else self.train_loss

    def cost_s(self, clock: Clock) -> float:
        return self.cpu_s if clock == "cpu" else self.wall_s

    def epoch_cost_s(self, clock: Clock) -> float:
        return self.cpu_s / self.epochs if clock == "cpu" else self.epoch_s


@dataclass
class Journal:
    """One JSON object a line, fsynced before it counts. A line torn by a crash is cut off."""

    path: Path
    trials: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        whole = 0
        for line in lines[:-1]:
            try:
                entry = json.loads(line)
                key = str(entry.pop("key"))
                self.trials[key] = Trial(**entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            whole += len(line) + 1
        if whole < sum(map(len, lines)) + len(lines) - 1:
            os.truncate(self.path, whole)

    def add(self, key: str, trial: Trial) -> None:
        with self.path.open("ab") as stream:
            stream.write(json.dumps({"key": key, **asdict(trial)}).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.trials[key] = trial

    def spent_s(self, clock: Clock) -> float:
        return sum(trial.cost_s(clock) for trial in self.trials.values())


@dataclass
class Trainer:
    """Trains the recipe in a folder of its own, within a budget of seconds that is kept across restarts.

    clock: whether the budget is of time by the clock or of processors' time.
    """

    recipe: Path
    folder: Path
    data: Path | None
    validation: int
    budget_s: float
    journal: Journal
    clock: Clock = "wall"

    def train(self, knobs: Knobs, epochs: int, seed: int, reserve_epochs: int = 0) -> Trial:
        """Raises OutOfTime before a trial that the budget doesn't hold, TrainingFailed when mlcore can't go on.

        `reserve_epochs` must still fit into the budget after this trial.
        """
        key = trial_key(knobs, epochs, seed)
        if key in self.journal.trials:
            return self.journal.trials[key]
        left_s = self._time_left(epochs + reserve_epochs)
        out = self.folder / key
        say(f"trial {len(self.journal.trials)}: {describe(knobs)}, {epochs} epochs, seed {seed}")
        began, used = time.monotonic(), children_cpu_s()
        code = self._run(self._command(knobs, epochs, seed, out), left_s)
        if code not in STATUS:
            raise TrainingFailed(f"mlcore train stopped with exit {code}; its own words are above", code or 1)
        trial = read_trial(out, knobs, epochs, seed, code, time.monotonic() - began, children_cpu_s() - used)
        self.journal.add(key, trial)
        say(f"  {trial.status}, validation error {trial.error:.2f} %, {trial.wall_s:.0f} s")
        return trial

    def _time_left(self, epochs: int) -> float | None:
        """Seconds that a trial may take; raises OutOfTime if the slowest epoch so far foretells more. None: no limit.

        The first trial has none: a recipe that wasn't trained once can't be judged at all. Nor has any where time of
        processors is paid: on a busy machine the clock says nothing of it.
        """
        done = self.journal.trials.values()
        if not done:
            return None
        left_s = self.budget_s - self.journal.spent_s(self.clock)
        if max(trial.epoch_cost_s(self.clock) for trial in done) * epochs > left_s:
            raise OutOfTime
        return left_s if self.clock == "wall" else None

    def _command(self, knobs: Knobs, epochs: int, seed: int, out: Path) -> list[str]:
        turned = [f"{name}={override(value)}" for name, value in sorted(knobs.items())]
        fixed = [f"train.epochs={epochs}", f"data.validation={self.validation}", f"seed={seed}"]
        where = ["--data", str(self.data)] if self.data else []
        command = ["mlcore", "train", str(self.recipe), *turned, *fixed, *where]
        return [*command, "--out", str(out), "--continue", "--no-pictures", "--quiet"]

    def _run(self, command: list[str], limit_s: float | None) -> int | None:
        """The exit code, None when time was up.

        The trial inherits the search's lock: should the search be killed, the next one waits for it to end.
        """
        with locked(self.folder / "lock") as lock:
            try:
                child = subprocess.Popen(command, stdout=sys.stderr, pass_fds=(lock,))
            except FileNotFoundError:
                raise TrainingFailed("mlcore is not on PATH; install the project first", 127) from None
            try:
                return child.wait(limit_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if child.returncode is None:
                    child.terminate()
                    child.wait()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for a trial that an earlier search left running")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def trial_key(knobs: Knobs, epochs: int, seed: int) -> str:
    digest = hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:10]
    return f"{digest}-e{epochs}-s{seed}"


def children_cpu_s() -> float:
    """Processors' time of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def read_trial(out: Path, knobs: Knobs, epochs: int, seed: int, code: int | None, took_s: float, cpu_s: float) -> Trial:
    """What mlcore's result.json says of training and validation. Nothing in it about the test set is read."""
    loss: float | None = None
    error, name, wall_s, epoch_s = None, "unknown", took_s, took_s / epochs
    try:
        result: Mapping[str, Any] = json.loads((out / "result.json").read_bytes())
        name, wall_s = str(result["data"]["name"]), max(took_s, float(result.get("wall_s") or 0.0))
        epoch_s = float(result.get("train_wall_s") or wall_s) / epochs
        cpu_s = max(cpu_s, float(result.get("cpu_s") or 0.0))  # an earlier sitting's is in it too
        if code == 0:
            loss = None if result.get("train_loss") is None else float(result["train_loss"])
            error = float(result["validation_error_pct"])
            if not math.isfinite(error):
                raise ValueError(f"validation_error_pct is {error}")
    except (OSError, ValueError, TypeError, KeyError) as reason:
        if code == 0:
            raise TrainingFailed(f"{out / 'result.json'}: can't be used ({reason!r})", 2) from reason
    return Trial(knobs, epochs, seed, STATUS[code], error, name, wall_s, epoch_s, cpu_s, loss)


def hide_test_labels(root: Path | None, folder: Path) -> Path | None:
    """`root`, or if labels of a test set lie there, a folder of links to everything under it but these.

    In the sandbox they aren't there anyway; this keeps the promise on a person's own machine too.
    """
    if root is None:
        return None
    if not root.is_dir():
        raise RecipeProblem(f"{root}: no such folder; pass --data DIR or set MLCORE_DATA")
    idx = [path for path in (*root.glob("mnist*/*"), *root.glob("*-ubyte*")) if path.is_file()]
    batches = [path for path in (*root.glob("cifar10/**/*.bin*"), *root.glob("*_batch*.bin*")) if path.is_file()]
    hidden = [path for path in idx if path.name.startswith(LABELS_OF_TEST)]
    labelled = [
        path for path in batches if path.name.startswith(TEST_BATCH) and read_packed(path, 1) != bytes([WITHHELD])
    ]
    if not hidden and not labelled:
        return root
    view = folder / "data"
    for source in (*idx, *batches):
        name = "mnist" if source in idx else "cifar10"
        place = view / (source.parent.name if source in idx and source.parent != root else name)
        place.mkdir(parents=True, exist_ok=True)
        if source in labelled:
            write_withheld(source, place / f"{TEST_BATCH}.bin")
        elif source not in hidden:
            (place / source.name).unlink(missing_ok=True)
            (place / source.name).symlink_to(source.resolve())
    return view


def read_packed(path: Path, count: int = -1) -> bytes:
    with OPENERS.get(path.suffix, open)(path, "rb") as stream:
        content: bytes = stream.read(count)
    return content


def write_withheld(source: Path, target: Path) -> None:
    """A batch with 255 in the place of every label, as mlcore knows withheld ones."""
    records = bytearray(read_packed(source))
    records[::RECORD_BYTES] = bytes([WITHHELD]) * len(range(0, len(records), RECORD_BYTES))
    target.write_bytes(records)


def override(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def describe(knobs: Knobs) -> str:
    return ", ".join(f"{name} {value}" for name, value in knobs.items()) or "the recipe as it stands"


def say(line: str) -> None:
    print(f"tune: {line}", file=sys.stderr, flush=True)
