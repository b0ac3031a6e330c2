"""How fast this machine can multiply and add: the innermost loop alone, on data that never leave the first cache."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel
from mlcore.kernels.micro import address_of, run_tile, tile_address
from mlcore.kernels.native import this_machine
from mlcore.kernels.precision import BF16, FP32, Precision

VECTORS, DEPTH, REPEATS, TRIES = 2, 256, 4000, 15

Array = NDArray[Any]


def measured_peaks(threads: int) -> dict[str, float]:
    """GFLOP/s by precision: the fastest that multiply-adds were seen to run; bf16 where the processor multiplies it."""
    known = (FP32, BF16) if this_machine().has_bf16 else (FP32,)
    return {precision.name: tile_gflops(threads, precision) for precision in known}


def tile_gflops(threads: int, precision: Precision = FP32) -> float:
    """GFLOP/s of `threads` threads together: the best of some short tries, about 0.2 s in all."""
    machine = this_machine()
    rows, columns = machine.rows(VECTORS), VECTORS * machine.lanes
    tile = tile_address(rows, VECTORS, machine, precision.name)
    a, b = np.ones((threads, DEPTH, rows), np.float32), np.ones((threads, DEPTH, columns), np.float32)
    c = np.zeros((threads, rows, columns), np.float32)
    words = rows * columns * DEPTH * REPEATS * threads
    best = float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        _repeat(2 * words, tile, REPEATS, a, b, c)
        best = min(best, time.perf_counter() - began)
    return 2 * precision.per_word * words / best / 1e9


@SharedKernel
def _repeat(tile: int, repeats: int, a: Array, b: Array, c: Array) -> None:
    for thread in prange(a.shape[0]):
        _, depth, rows = a.shape
        for _ in range(repeats):
            run_tile(
                tile, 1, depth, address_of(a[thread]), 0, 4 * rows, 4, address_of(b[thread]), address_of(c[thread]),
                4 * c.shape[2], c.shape[2], address_of(b[thread]), 0, np.float32(-np.inf),
            )  # fmt: skip
