"""How kernels are compiled: once per machine, releasing the GIL, without fast-math.

Fast-math may assume that no NaN exists, and then hides one; the kernels get their speed from `simd` instead.
Compiled code is cached beside the sources (or in NUMBA_CACHE_DIR). Numba only looks at the file a function stands
in before it trusts that cache, but kernels call into one another across files: here any change to any kernel file
(or to one beside the function) makes all of them compile anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import get_num_threads, njit

try:
    import fcntl
except ImportError:  # not on Windows: there, two processes don't compile side by side
    fcntl = None  # type: ignore[assignment]

WORTH_SHARING = 1 << 22


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a serial kernel."""
    return _compile(function, parallel=False)


class SharedKernel:
    """A kernel whose `prange` can share its turns among threads: `shared(work, *arguments)`.

    `work`: about how many multiplications or memory accesses it is. Little work, or one thread, runs serially, since
    waking a thread costs tens of microseconds. Both ways give the same bits, because a turn never depends on who
    takes it: sums go into one slot per turn and are added in order afterwards.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.serial = _compile(function, parallel=False)
        self.parallel = _compile(_twin(function), parallel=True)

    def __call__(self, work: int, *arguments: Any) -> Any:
        chosen = self.serial if work < WORTH_SHARING or get_num_threads() == 1 else self.parallel
        return None if note(chosen, arguments) else chosen(*arguments)


Call = tuple[Any, tuple[Any, ...]]  # a dispatcher of numba's and what it was called with
_noted: list[Call] | None = None


def note(dispatcher: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether calls are noted now; this one then is."""
    if _noted is None:
        return False
    _noted.append((dispatcher, arguments))
    return True


@contextlib.contextmanager
def noting() -> Iterator[list[Call]]:
    """Inside, shared kernels are noted instead of run: what they should have filled is left as it was."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def _twin(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function by another name: numba's cache goes by name and would hand out the serial code for both."""
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    twin.__doc__, twin.__module__ = function.__doc__, function.__module__
    twin.__qualname__ = f"{function.__qualname__}_parallel"
    return twin


def _compile(function: Callable[..., Any], parallel: bool) -> Any:
    how: dict[str, Any] = {"nogil": True, "parallel": parallel, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        dispatcher = njit(**how, cache=True)(function)
    except RuntimeError:  # nowhere to write a cache: compile in every process
        return njit(**how)(function)
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cache_file is not None:
        cache_file._source_stamp = stamp(Path(function.__code__.co_filename).parent)
        cache_file.save = functools.partial(_save_alone, cache_file.save, Path(dispatcher._cache.cache_path))
    return dispatcher


def _save_alone(save: Callable[..., None], folder: Path, key: Any, data: Any) -> None:
    """Save compiled code while no other process does.

    Numba first notes in an index which file will hold the code, then writes the file: two processes at once, with
    different argument types, could note one name for both and then run one's code for the other.
    """
    with _alone_in(folder):
        save(key, data)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((folder / "saving.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None when there is nowhere, or with NUMBA_DISABLE_JIT=1."""
    cache = getattr(_compile(_nothing, parallel=False), "_cache", None)
    path = getattr(cache, "cache_path", None)
    return Path(path) if path else None


def _nothing() -> None:
    """Is never compiled: numba is asked where it would be kept."""


@functools.cache
def stamp(folder: Path) -> tuple[str, ...]:
    """Digests of this folder's files and of those of `folder`: another copy of the same files finds their code."""
    return tuple(_digest(place) for place in dict.fromkeys((Path(__file__).parent, folder)))


@functools.cache
def _digest(folder: Path) -> str:
    """SHA-256 of names and contents of the folder's Python files."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        whole.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return whole.hexdigest()
