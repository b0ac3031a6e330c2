"""The arithmetic: plain arrays in, plain arrays out, compiled by Numba. `reference` holds the slow twin of each.

`prepare` sets a process up for training; nothing here happens at import.
"""

from __future__ import annotations

import ctypes
import os

_KEEP_BYTES = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def prepare(threads: int | None = None) -> int:
    """Set the number of threads and how the process waits and keeps memory; returns the number of threads.

    Call it once, before the first kernel runs. threads: from 1; None or more than the processors give all of those.
    Idle threads sleep instead of spinning, since spinning against another busy process costs milliseconds a step.
    Freed activations stay with the process (on glibc), since every step wants the same ones again.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _keep_freed_memory()
    import numba

    available = int(getattr(numba.config, "NUMBA_NUM_THREADS"))  # noqa: B009  numba sets it as it goes
    chosen = available if threads is None else max(1, min(threads, available))
    numba.set_num_threads(chosen)
    return chosen


def _keep_freed_memory() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
