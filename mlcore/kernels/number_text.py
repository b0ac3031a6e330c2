"""How LLVM text reads and writes a vector of numbers in memory: float32 as it is, bf16 as the upper halves of floats.

In registers everything is float32. `NUMBERS` is the choice that tiles and transforms share.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlcore.kernels.native import Machine
from mlcore.kernels.precision import NAN

DECLARATIONS = (
    "declare <{lanes} x float> @llvm.masked.load.v{lanes}f32.p0(ptr, i32, <{lanes} x i1>, <{lanes} x float>)",
    "declare <{lanes} x i16> @llvm.masked.load.v{lanes}i16.p0(ptr, i32, <{lanes} x i1>, <{lanes} x i16>)",
    "declare void @llvm.masked.store.v{lanes}f32.p0(<{lanes} x float>, ptr, i32, <{lanes} x i1>)",
    "declare void @llvm.masked.store.v{lanes}i16.p0(<{lanes} x i16>, ptr, i32, <{lanes} x i1>)",
)


def declarations(lanes: int) -> list[str]:
    """Of all that is called here."""
    return [line.format(lanes=lanes) for line in DECLARATIONS]


class Floats:
    """float32."""

    bytes = 4

    def load(self, name: str, pointer: str, mask: str, machine: Machine) -> Iterator[str]:
        """%name = the numbers at `pointer` where `mask` is set, else zeros."""
        lanes, vector = machine.lanes, f"<{machine.lanes} x float>"
        masked = f"@llvm.masked.load.v{lanes}f32.p0(ptr {pointer}, i32 4, <{lanes} x i1> {mask}"
        yield f"%{name} = call {vector} {masked}, {vector} zeroinitializer)"

    def rounded(self, name: str, value: str, machine: Machine) -> Iterator[str]:
        """%kept{name} = `value` as it is kept in memory."""
        yield f"%kept{name} = bitcast <{machine.lanes} x float> {value} to <{machine.lanes} x float>"

    def store(self, name: str, pointer: str, mask: str, machine: Machine) -> str:
        """%kept{name} to `pointer`, where `mask` is set; everywhere if it is "", which some processors do faster."""
        return _store(
            f"<{machine.lanes} x float> %kept{name}", f"v{machine.lanes}f32", self.bytes, pointer, mask, machine
        )


class Halves:
    """bf16: rounded to the nearest, ties to even; a NaN stays one."""

    bytes = 2

    def load(self, name: str, pointer: str, mask: str, machine: Machine) -> Iterator[str]:
        lanes = machine.lanes
        words, halves = f"<{lanes} x i32>", f"<{lanes} x i16>"
        masked = f"@llvm.masked.load.v{lanes}i16.p0(ptr {pointer}, i32 2, <{lanes} x i1> {mask}"
        yield f"%{name}_halves = call {halves} {masked}, {halves} zeroinitializer)"
        yield f"%{name}_wide = zext {halves} %{name}_halves to {words}"
        yield f"%{name}_bits = shl {words} %{name}_wide, splat (i32 16)"
        yield f"%{name} = bitcast {words} %{name}_bits to <{lanes} x float>"

    def rounded(self, name: str, value: str, machine: Machine) -> Iterator[str]:
        lanes = machine.lanes
        words, halves, floats = f"<{lanes} x i32>", f"<{lanes} x i16>", f"<{lanes} x float>"
        yield f"%bits{name} = bitcast {floats} {value} to {words}"
        yield f"%top{name} = lshr {words} %bits{name}, splat (i32 16)"
        yield f"%odd{name} = and {words} %top{name}, splat (i32 1)"
        yield f"%more{name} = add {words} %odd{name}, splat (i32 32767)"
        yield f"%sum_bits{name} = add {words} %bits{name}, %more{name}"
        yield f"%half_bits{name} = lshr {words} %sum_bits{name}, splat (i32 16)"
        yield f"%nan{name} = fcmp uno {floats} {value}, zeroinitializer"
        yield f"%word{name} = select <{lanes} x i1> %nan{name}, {words} splat (i32 {NAN}), {words} %half_bits{name}"
        yield f"%kept{name} = trunc {words} %word{name} to {halves}"

    def store(self, name: str, pointer: str, mask: str, machine: Machine) -> str:
        return _store(
            f"<{machine.lanes} x i16> %kept{name}", f"v{machine.lanes}i16", self.bytes, pointer, mask, machine
        )


def _store(value: str, kind: str, size: int, pointer: str, mask: str, machine: Machine) -> str:
    if not mask:
        return f"store {value}, ptr {pointer}, align {size}"
    return f"call void @llvm.masked.store.{kind}.p0({value}, ptr {pointer}, i32 {size}, <{machine.lanes} x i1> {mask})"


NUMBERS: dict[str, Floats | Halves] = {"fp32": Floats(), "bf16": Halves()}
