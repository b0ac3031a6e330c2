"""fp32 and bf16: what the numbers of a plan are kept as, and the way from one to the other.

bfloat16 is the upper half of a float32: the same range, 8 bits of precision. NumPy has no such type, so it lives in
uint16 arrays; two of them side by side are one word, which a processor with bf16 instructions multiplies and adds at
once, summing in float32. `widen` and `narrow` let one kernel serve both: on float arrays they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import overload
from numpy.typing import NDArray

INT16, INT32, FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
NAN = 0x7FC0
WORD_BYTES = 4

Array = NDArray[Any]

intrinsic: Any = numba_intrinsic


@dataclass(frozen=True)
class Precision:
    """`dtype` of numbers in memory, `word` of a panel of weights, and how many numbers are one word."""

    name: str
    dtype: Any
    word: Any
    per_word: int

    def words(self, numbers: int) -> int:
        """Words that hold so many numbers."""
        return -(-numbers // self.per_word)


FP32 = Precision("fp32", np.float32, np.float32, 1)
BF16 = Precision("bf16", np.uint16, np.uint32, 2)
PRECISIONS = {each.name: each for each in (FP32, BF16)}


def narrowed(values: Array) -> Array:
    """float32 to bfloat16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(NAN), rounded.astype(np.uint16))


def widened(values: Array) -> Array:
    """bfloat16 to float32, exactly; floats stay as they are."""
    if values.dtype != np.uint16:
        return values
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


def widen(value: Any) -> Any:
    """One number of an array as a float."""
    return widened(np.asarray(value)).item() if isinstance(value, np.uint16) else value


def narrow(value: Any, array: Array) -> Any:
    """A float as `array` keeps it."""
    return narrowed(np.asarray(value))[()] if array.dtype == np.uint16 else value


def join(low: Any, high: Any) -> Any:
    """Two neighbours as they lie in one word; where a number is a word, the first."""
    return np.uint32(low) | np.uint32(high) << np.uint32(16) if isinstance(low, np.uint16) else low


@intrinsic
def _widen(typing_context: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.zext(arguments[0], INT32), ir.Constant(INT32, 16))
        return builder.bitcast(bits, FLOAT)

    return types.float32(types.uint16), emit


@intrinsic
def _narrow(typing_context: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.trunc(_upper_half(builder, arguments[0]), INT16)

    return types.uint16(types.float32), emit


@intrinsic
def _join(typing_context: Any, low: Any, high: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (builder.zext(argument, INT32) for argument in arguments)
        return builder.or_(low, builder.shl(high, ir.Constant(INT32, 16)))

    return types.uint32(types.uint16, types.uint16), emit


def _upper_half(builder: Any, value: Any) -> Any:
    """The bits of a float rounded to bfloat16, in the lower half of 32."""
    sixteen = ir.Constant(INT32, 16)
    bits = builder.bitcast(value, INT32)
    odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(INT32, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, ir.Constant(INT32, 0x7FFF))), sixteen)
    return builder.select(builder.fcmp_unordered("uno", value, value), ir.Constant(INT32, NAN), rounded)


# What a compiled kernel runs for each of the three.


@overload(widen, strict=False, inline="always")
def _compiled_widen(value: Any) -> Callable[..., Any]:
    if value == types.uint16:
        return lambda value: _widen(value)
    return lambda value: value


@overload(narrow, strict=False, inline="always")
def _compiled_narrow(value: Any, array: Any) -> Callable[..., Any]:
    if array.dtype == types.uint16:
        return lambda value, array: _narrow(value)
    return lambda value, array: value


@overload(join, strict=False, inline="always")
def _compiled_join(low: Any, high: Any) -> Callable[..., Any]:
    if low == types.uint16:
        return lambda low, high: _join(low, high)
    return lambda low, high: low
