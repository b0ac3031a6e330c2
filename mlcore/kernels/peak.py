"""How fast this machine can multiply and add: the innermost loop alone, on data that never leave the first cache."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel
from mlcore.kernels.micro import address_of, run_tile, tile_address
from mlcore.kernels.native import compiled, this_machine

VECTORS, DEPTH, REPEATS, TRIES = 2, 256, 4000, 15
PAIR_SUMS, PAIR_STEPS = 24, 1 << 18  # bf16 instructions in flight, and how often
PAIR_FLOPS = 64  # of one of them: 16 sums of 2 products

Array = NDArray[Any]


def measured_peaks(threads: int) -> dict[str, float]:
    """GFLOP/s by precision: the fastest that multiply-adds were seen to run, on data that never leave the core."""
    bf16 = bf16_gflops(threads)
    return {"fp32": tile_gflops(threads)} | ({"bf16": bf16} if bf16 else {})


def tile_gflops(threads: int) -> float:
    """GFLOP/s of `threads` threads together: the best of some short tries, about 0.2 s in all."""
    machine = this_machine()
    rows, columns = machine.rows(VECTORS), VECTORS * machine.lanes
    tile = tile_address(rows, VECTORS, machine)
    a, b = np.ones((threads, DEPTH, rows), np.float32), np.ones((threads, DEPTH, columns), np.float32)
    c = np.zeros((threads, rows, columns), np.float32)
    work = 2 * rows * columns * DEPTH * REPEATS * threads
    best = float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        _repeat(work, tile, REPEATS, a, b, c)
        best = min(best, time.perf_counter() - began)
    return work / best / 1e9


@SharedKernel
def _repeat(tile: int, repeats: int, a: Array, b: Array, c: Array) -> None:
    for thread in prange(a.shape[0]):
        _, depth, rows = a.shape
        for _ in range(repeats):
            run_tile(
                tile, 1, depth, address_of(a[thread]), 0, 4 * rows, 4, address_of(b[thread]), address_of(c[thread]),
                4 * c.shape[2], c.shape[2], address_of(b[thread]), 0, np.float32(-np.inf),
            )  # fmt: skip


def bf16_gflops(threads: int) -> float | None:
    """GFLOP/s of bf16 pair products in registers; None where the processor has no instruction for them."""
    machine = this_machine()
    if not machine.has_bf16:
        return None
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(compiled(_pairs_source(), "pairs", machine))
    work = PAIR_FLOPS * PAIR_SUMS * PAIR_STEPS * threads
    return work / min(_together(run, threads) for _ in range(TRIES)) / 1e9


def _together(run: Any, threads: int) -> float:
    """Seconds until all threads have run it once."""
    sinks = np.zeros((threads, 16), np.float32)
    crew = [threading.Thread(target=run, args=(PAIR_STEPS, sink.ctypes.data)) for sink in sinks]
    began = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return time.perf_counter() - began


def _pairs_source() -> str:
    """A loop of independent bf16 products, as LLVM text; the sum of all is stored, so that nothing is left out."""
    sums, dot = "<16 x float>", "@llvm.x86.avx512bf16.dpbf16ps.512"
    names = range(PAIR_SUMS)
    starts = [f"%s{i} = phi {sums} [ zeroinitializer, %entry ], [ %t{i}, %loop ]" for i in names]
    steps = [f"%t{i} = call {sums} {dot}({sums} %s{i}, <32 x bfloat> %ones, <32 x bfloat> %ones)" for i in names]
    totals = [f"%u{i} = fadd {sums} %t{i}, {f'%u{i - 1}' if i else 'zeroinitializer'}" for i in names]
    return "\n".join(
        [
            f"declare {sums} {dot}({sums}, <32 x bfloat>, <32 x bfloat>)",
            "define void @pairs(i64 %count, ptr %sink) {",
            "entry:",
            "%first = insertelement <32 x bfloat> poison, bfloat 1.0, i32 0",
            "%ones = shufflevector <32 x bfloat> %first, <32 x bfloat> poison, <32 x i32> zeroinitializer",
            "br label %loop",
            "loop:",
            "%n = phi i64 [ 0, %entry ], [ %next, %loop ]",
            *starts,
            *steps,
            "%next = add i64 %n, 1",
            "%more = icmp slt i64 %next, %count",
            "br i1 %more, label %loop, label %end",
            "end:",
            *totals,
            f"store {sums} %u{PAIR_SUMS - 1}, ptr %sink, align 4",
            "ret void",
            "}",
        ]
    )
