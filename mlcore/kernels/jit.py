"""How kernels are compiled: once per machine, releasing the GIL, without fast-math.

Fast-math may assume that no NaN exists, and then hides one; the kernels get their speed from `simd` instead.
Compiled code is cached beside the sources (or in NUMBA_CACHE_DIR). Numba only looks at the file a function stands
in before it trusts that cache, but kernels call into one another across files: here any change to any kernel file
makes all of them compile anew.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import get_num_threads, njit

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
        if work < WORTH_SHARING or get_num_threads() == 1:
            return self.serial(*arguments)
        return self.parallel(*arguments)


def _twin(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function by another name: numba's cache goes by name and would hand out the serial code for both."""
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    twin.__doc__, twin.__module__ = function.__doc__, function.__module__
    twin.__qualname__ = f"{function.__qualname__}_parallel"
    return twin


def _compile(function: Callable[..., Any], parallel: bool) -> Any:
    try:
        dispatcher = njit(nogil=True, parallel=parallel, error_model="numpy", cache=True, no_cfunc_wrapper=True)(function)
    except RuntimeError:  # nowhere to write a cache: compile in every process
        return njit(nogil=True, parallel=parallel, error_model="numpy")(function)
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cache_file is not None:
        cache_file._source_stamp = _stamp()
    return dispatcher


@functools.cache
def _stamp() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file in this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
