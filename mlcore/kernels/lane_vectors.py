"""Vectors of sixteen images at an address: what the kernels of networks in lanes do to pixels.

Each is an instruction or a few, of whatever width the processor has. The vector type is `simd`'s. Which of a
window's numbers won is kept in lanes as a float, and in memory as a byte. Compiled only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from mlcore.kernels.simd import LANES, Lanes, intrinsic

SIXTEEN = Lanes(types.float32)
VECTOR = ir.VectorType(ir.FloatType(), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)


@intrinsic
def load_at(typing_context: Any, address: Any) -> Any:
    """The sixteen floats at an address."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _loaded(builder, arguments[0], VECTOR, 4)

    return SIXTEEN(types.int64), emit


@intrinsic
def store_at(typing_context: Any, address: Any, lanes: Any) -> Any:
    """Put sixteen floats there."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, vector = arguments
        builder.store(vector, builder.inttoptr(address, VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, SIXTEEN), emit


@intrinsic
def load_bytes_at(typing_context: Any, address: Any) -> Any:
    """Sixteen bytes, as floats."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.uitofp(_loaded(builder, arguments[0], BYTES, 1), VECTOR)

    return SIXTEEN(types.int64), emit


@intrinsic
def store_bytes_at(typing_context: Any, address: Any, lanes: Any) -> Any:
    """Put sixteen floats that are whole numbers below 256 there as bytes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, vector = arguments
        whole = builder.fptoui(vector, ir.VectorType(ir.IntType(32), LANES))
        builder.store(builder.trunc(whole, BYTES), builder.inttoptr(address, BYTES.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, SIXTEEN), emit


@intrinsic
def spread(typing_context: Any, number: Any) -> Any:
    """A number in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _everywhere(builder, arguments[0])

    return SIXTEEN(types.float32), emit


@intrinsic
def plus(typing_context: Any, left: Any, right: Any) -> Any:
    """left + right."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return SIXTEEN(SIXTEEN, SIXTEEN), emit


@intrinsic
def times(typing_context: Any, left: Any, right: Any) -> Any:
    """left * right."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments)

    return SIXTEEN(SIXTEEN, SIXTEEN), emit


@intrinsic
def where_above(typing_context: Any, value: Any, than: Any, then: Any, otherwise: Any) -> Any:
    """`then` where value is above `than`, or is a NaN; else `otherwise`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, than, then, otherwise = arguments
        above = builder.fcmp_ordered(">", value, than)
        no_number = builder.fcmp_unordered("uno", value, value)
        return builder.select(builder.or_(above, no_number), then, otherwise)

    return SIXTEEN(SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN), emit


@intrinsic
def where_equal(typing_context: Any, left: Any, right: Any, then: Any) -> Any:
    """`then` where left equals right, else zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, then = arguments
        return builder.select(builder.fcmp_ordered("==", left, right), then, ir.Constant(VECTOR, None))

    return SIXTEEN(SIXTEEN, SIXTEEN, SIXTEEN), emit


@intrinsic
def unless_floored(typing_context: Any, out: Any, then: Any) -> Any:
    """Zero where a ReLU's output was not above zero, else `then`; a NaN counts as above."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, then = arguments
        zeros = ir.Constant(VECTOR, None)
        return builder.select(builder.fcmp_ordered("<=", out, zeros), zeros, then)

    return SIXTEEN(SIXTEEN, SIXTEEN), emit


def _loaded(builder: Any, address: Any, kind: ir.VectorType, align: int) -> Any:
    vector = builder.load(builder.inttoptr(address, kind.as_pointer()))
    vector.align = align
    return vector


def _everywhere(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))
