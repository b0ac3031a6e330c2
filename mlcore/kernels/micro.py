"""The innermost loop of all planned matrix work: one tile of C (+)= A @ B, held in vector registers from start to end.

    for o in range(outer): for k in range(inner): C[i, :] += A[o * a_outer + k * a_inner + i * a_row] * B[next row]

A is read one word at a time (a float, or a pair of bf16), so any walk that two strides can describe will do: windows of
a padded image, a panel of weights, a transposed batch. B is a panel: rows of `vectors` vectors, one after the other, in
the order of the walk.
The tile starts at a bias or at C itself, and ends at a floor (0 is ReLU, -inf nothing; a NaN stays a NaN).

A tile is written as LLVM code (`tile_text`) for one shape and this machine's vectors (AVX-512, AVX2, else 128 bits),
compiled in some hundredths of a second when a plan first asks for its shape, and reached by its address: so one driver
serves all shapes and widths. Nothing checks bounds.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as numba_intrinsic
from numpy.typing import NDArray

from mlcore.kernels.native import Machine, compiled, emit_call
from mlcore.kernels.tile_text import INTEGERS, tile_source

Array = NDArray[Any]

intrinsic: Any = numba_intrinsic


@functools.cache
def tile_address(rows: int, vectors: int, machine: Machine, read: str = "fp32", written: str = "fp32") -> int:
    """The address of the compiled tile of `rows` by `vectors` vectors; `run_tile` calls it.

    read: what A and B are, "fp32" or "bf16"; written: what C becomes. A tile that writes bf16 can't start at C.
    """
    return compiled(tile_source(rows, vectors, machine, read, written), "tile", machine)


@intrinsic
def address_of(typing_context: Any, array: Any) -> Any:
    """Inside a kernel: the address of an array's first number, as an integer."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), emit


@intrinsic
def run_tile(
    typing_context: Any,
    address: Any,
    outer: Any,
    inner: Any,
    a: Any,
    a_outer: Any,
    a_inner: Any,
    a_row: Any,
    b: Any,
    c: Any,
    c_row: Any,
    columns: Any,
    bias: Any,
    adding: Any,
    floor: Any,
) -> Any:
    """Inside a kernel: run the tile at `address`; the other arguments are INTEGERS and the floor."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_call(builder, arguments[0], arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (1 + len(INTEGERS)), types.float32), emit


def cover(length: int, most: int) -> tuple[int, int, int, int]:
    """Tiles that make up `length` as evenly as can be: (rows, how many, rows, how many), each at most `most` rows."""
    tiles = -(-length // most)
    short, longer = divmod(length, tiles)
    return (short + 1, longer, short, tiles - longer) if longer else (short, tiles, short, 0)
