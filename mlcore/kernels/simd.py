"""Sixteen numbers side by side: the vector type that the kernels compute with.

The functions here work on `LANES` consecutive values of a flat float32 or float64 array. Compiled, each is one or a
few vector instructions on registers, of whatever width the processor has (LLVM splits sixteen lanes as it must);
with NUMBA_DISABLE_JIT=1 the same names run as the NumPy lines below.
Nothing checks bounds: callers give buffers that are padded to whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import overload, register_model
from numpy.typing import NDArray

LANES = 16
INT32 = ir.IntType(32)

Array = NDArray[Any]

intrinsic: Any = numba_intrinsic  # numba passes the typing context itself


def zeros(array: Array) -> Array:
    """Sixteen zeros of the array's dtype."""
    return np.zeros(LANES, array.dtype)


def load(array: Array, offset: int) -> Array:
    """array[offset : offset + LANES]."""
    return array[offset : offset + LANES].copy()


def store(array: Array, offset: int, lanes: Array) -> None:
    """array[offset : offset + LANES] = lanes."""
    array[offset : offset + LANES] = lanes


def spread_add(scalar: Any, lanes: Array, so_far: Array) -> Array:
    """so_far + scalar * lanes."""
    return np.asarray(so_far + scalar * lanes)


def multiply_add(left: Array, right: Array, so_far: Array) -> Array:
    """so_far + left * right, lane by lane."""
    return np.asarray(so_far + left * right)


def total(lanes: Array) -> Any:
    """The sum of the sixteen, halves added to halves: always in the same order."""
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return lanes[0]


class Lanes(types.Type):
    """Numba's type of sixteen values of one float dtype."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """A Lanes is an LLVM vector, so it lives in registers."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(kind.dtype))


def _vector(dtype: types.Float) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType(), LANES)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Pointer to sixteen values at array[offset]."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _vector(array_type.dtype).as_pointer())


@intrinsic
def _zeros(typing_context: Any, array: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_vector(array.dtype), None)

    return Lanes(array.dtype)(array), emit


@intrinsic
def _load(typing_context: Any, array: Any, offset: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = builder.load(_address(context, builder, array, *arguments))
        vector.align = array.dtype.bitwidth // 8
        return vector

    return Lanes(array.dtype)(array, types.intp), emit


@intrinsic
def _store(typing_context: Any, array: Any, offset: Any, lanes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, where, vector = arguments
        stored = builder.store(vector, _address(context, builder, array, values, where))
        stored.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), emit


@intrinsic
def _spread_add(typing_context: Any, scalar: Any, lanes: Any, so_far: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one, vector, addend = arguments
        nothing = ir.Constant(vector.type, ir.Undefined)
        first = builder.insert_element(nothing, one, ir.Constant(INT32, 0))
        everywhere = builder.shuffle_vector(first, nothing, _indices([0] * LANES))
        return _fused(builder, everywhere, vector, addend)

    return lanes(lanes.dtype, lanes, so_far), emit


@intrinsic
def _multiply_add(typing_context: Any, left: Any, right: Any, so_far: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fused(builder, *arguments)

    return left(left, right, so_far), emit


@intrinsic
def _total(typing_context: Any, lanes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (vector,) = arguments
        width = LANES
        while width > 1:
            width //= 2
            low = builder.shuffle_vector(vector, vector, _indices(range(width)))
            high = builder.shuffle_vector(vector, vector, _indices(range(width, 2 * width)))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(INT32, 0))

    return lanes.dtype(lanes), emit


def _fused(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    """left * right + addend, with one rounding where the processor has an instruction for it."""
    kind = addend.type
    bits = 32 if isinstance(kind.element, ir.FloatType) else 64
    signature = ir.FunctionType(kind, [kind] * 3)
    fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{LANES}f{bits}")
    return builder.call(fma, [left, right, addend])


def _indices(lanes: Iterable[int]) -> ir.Constant:
    order = list(lanes)
    return ir.Constant(ir.VectorType(INT32, len(order)), order)


# What a compiled kernel runs for each of the names above.


@overload(zeros, strict=False)
def _compiled_zeros(array: Any) -> Any:
    return lambda array: _zeros(array)


@overload(load, strict=False)
def _compiled_load(array: Any, offset: Any) -> Any:
    return lambda array, offset: _load(array, offset)


@overload(store, strict=False)
def _compiled_store(array: Any, offset: Any, lanes: Any) -> Any:
    return lambda array, offset, lanes: _store(array, offset, lanes)


@overload(spread_add, strict=False)
def _compiled_spread_add(scalar: Any, lanes: Any, so_far: Any) -> Any:
    return lambda scalar, lanes, so_far: _spread_add(scalar, lanes, so_far)


@overload(multiply_add, strict=False)
def _compiled_multiply_add(left: Any, right: Any, so_far: Any) -> Any:
    return lambda left, right, so_far: _multiply_add(left, right, so_far)


@overload(total, strict=False)
def _compiled_total(lanes: Any) -> Any:
    return lambda lanes: _total(lanes)
