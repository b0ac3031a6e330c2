"""A small matrix on both sides of a small square of pixels, all channels at once: out = M x M^T, in registers.

What Winograd's convolutions do before and after their products. A transform is written as LLVM code for one matrix,
as the tile of `micro` is for one shape: its numbers are in the code, zeros cost nothing, and two rows that differ in
signs only share their work. It walks over the channels, a vector at a time.

Pixels that don't exist are told by their number: missing ones of x are zeros, missing ones of out are not written.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from numba.core import types
from numba.extending import intrinsic as numba_intrinsic

from mlcore.kernels.cook_toom import Matrix
from mlcore.kernels.native import Machine, compiled, emit_call
from mlcore.kernels.number_text import NUMBERS, Floats, Halves, declarations

FLOAT_BYTES = 4

intrinsic: Any = numba_intrinsic

INTEGERS = (
    "x",  # address of the first pixel, and the bytes from row to row and from column to column
    "x_row",
    "x_column",
    "x_rows",  # how many rows, columns and channels of it exist
    "x_columns",
    "x_channels",
    "out",  # the same of the result
    "out_row",
    "out_column",
    "out_rows",
    "out_columns",
    "out_channels",
    "bias",  # address of a number for each channel of the result; only where the transform has an end
    "nothing",  # address of zeros, one for each channel
    "sink",  # address of a place for channels that nobody wants
)


@functools.cache
def transform_address(
    matrix: Matrix, has_end: bool, machine: Machine, read: str = "fp32", written: str = "fp32"
) -> int:
    """The address of the compiled transform by `matrix`; `run_transform` calls it.

    has_end: add a bias and cut off below a floor. read, written: what x and out are, "fp32" or "bf16".
    """
    return compiled(transform_source(matrix, has_end, machine, read, written), "transform", machine)


def transform_source(matrix: Matrix, has_end: bool, machine: Machine, read: str, written: str) -> str:
    """The transform as LLVM text."""
    head = ", ".join(f"i64 %{name}" for name in INTEGERS)
    vector = f"<{machine.lanes} x float>"
    return "\n".join(
        [
            f"declare {vector} @llvm.fmuladd.v{machine.lanes}f32({vector}, {vector}, {vector})",
            *declarations(machine.lanes),
            f"define void @transform({head}, float %floor) {{",
            *_Transform(matrix, has_end, machine, NUMBERS[read], NUMBERS[written]).lines(),
            "}",
        ]
    )


class _Transform:
    """Writes the lines of one transform's function."""

    def __init__(
        self, matrix: Matrix, has_end: bool, machine: Machine, read: Floats | Halves, written: Floats | Halves
    ) -> None:
        self.matrix, self.has_end, self.machine, self.read, self.written = matrix, has_end, machine, read, written
        self.results, self.pixels = len(matrix), len(matrix[0])
        self.lanes, self.vector, self.mask = machine.lanes, f"<{machine.lanes} x float>", f"<{machine.lanes} x i1>"
        self.names = 0

    def lines(self) -> Iterator[str]:
        yield "entry:"
        yield from self._spread("floors", "float", "%floor")
        yield from self._spread("x_count", "i64", "%x_channels")
        yield from self._spread("out_count", "i64", "%out_channels")
        yield from self._addresses("x", self.pixels, "nothing")
        yield from self._addresses("out", self.results, "sink")
        yield "br label %step"
        yield "step:"
        yield f"%c = phi i64 [ 0, %entry ], [ %next_c, %stored{self.results - 1} ]"
        yield f"%x_skip = mul i64 %c, {self.read.bytes}"
        yield f"%out_skip = mul i64 %c, {self.written.bytes}"
        yield f"%bias_skip = mul i64 %c, {FLOAT_BYTES}"
        yield from self._masks()
        yield from self._vectors()
        yield f"%next_c = add i64 %c, {self.lanes}"
        yield "%more = icmp slt i64 %next_c, %out_channels"
        yield "br i1 %more, label %step, label %done"
        yield "done:"
        yield "ret void"

    def _addresses(self, what: str, side: int, instead: str) -> Iterator[str]:
        """Where each pixel stands, or what stands for it."""
        for i in range(side):
            yield f"%{what}_down{i} = mul i64 %{what}_row, {i}"
            yield f"%{what}_right{i} = mul i64 %{what}_column, {i}"
            yield f"%{what}_at{i} = add i64 %{what}, %{what}_down{i}"
            yield f"%{what}_has_row{i} = icmp sgt i64 %{what}_rows, {i}"
            yield f"%{what}_has_column{i} = icmp sgt i64 %{what}_columns, {i}"
        for i in range(side):
            for j in range(side):
                yield f"%{what}_has{i}_{j} = and i1 %{what}_has_row{i}, %{what}_has_column{j}"
                yield f"%{what}_there{i}_{j} = add i64 %{what}_at{i}, %{what}_right{j}"
                yield f"%{what}{i}_{j} = select i1 %{what}_has{i}_{j}, i64 %{what}_there{i}_{j}, i64 %{instead}"

    def _masks(self) -> Iterator[str]:
        yield from self._spread("cs", "i64", "%c")
        numbers = ", ".join(f"i64 {lane}" for lane in range(self.lanes))
        yield f"%channel = add <{self.lanes} x i64> %cs, <{numbers}>"
        for what in ("x", "out"):
            yield f"%{what}_mask = icmp slt <{self.lanes} x i64> %channel, %{what}_count"
        yield f"%whole_to = add i64 %c, {self.lanes}"
        yield "%is_whole = icmp sle i64 %whole_to, %out_channels"

    def _vectors(self) -> Iterator[str]:
        """One vector of channels: down the columns, then along the rows."""
        columns = []
        for j in range(self.pixels):
            for i in range(self.pixels):
                yield from self._load(f"d{i}_{j}", f"%x{i}_{j}", "x", "x", self.read)
            sums = yield from self._product([f"%d{i}_{j}" for i in range(self.pixels)])
            columns.append(sums)
        if self.has_end:
            yield from self._load("start", "%bias", "bias", "out", NUMBERS["fp32"])
        for i in range(self.results):
            sums = yield from self._product([column[i] for column in columns])
            yield from self._store_row(i, sums)

    def _load(self, name: str, address: str, skip: str, mask: str, numbers: Floats | Halves) -> Iterator[str]:
        yield f"%{name}_at = add i64 {address}, %{skip}_skip"
        yield f"%{name}_ptr = inttoptr i64 %{name}_at to ptr"
        yield from numbers.load(name, f"%{name}_ptr", f"%{mask}_mask", self.machine)

    def _store_row(self, i: int, values: Sequence[str]) -> Iterator[str]:
        places = [f"{i}_{j}" for j in range(len(values))]
        for place, value in zip(places, values, strict=True):
            yield from self._prepare(value, place)
        yield f"br i1 %is_whole, label %whole{i}, label %part{i}"
        for label, mask in ((f"whole{i}", ""), (f"part{i}", "%out_mask")):
            yield f"{label}:"
            for place in places:
                yield self.written.store(place, f"%to{place}", mask, self.machine)
            yield f"br label %stored{i}"
        yield f"stored{i}:"

    def _prepare(self, value: str, place: str) -> Iterator[str]:
        """What is stored, and where."""
        if self.has_end:
            yield f"%sum{place} = fadd {self.vector} {value}, %start"
            yield f"%below{place} = fcmp ogt {self.vector} %floors, %sum{place}"
            choice = f"{self.mask} %below{place}, {self.vector} %floors, {self.vector} %sum{place}"
            yield f"%end{place} = select {choice}"
            value = f"%end{place}"
        yield f"%to{place}_at = add i64 %out{place}, %out_skip"
        yield f"%to{place} = inttoptr i64 %to{place}_at to ptr"
        yield from self.written.rounded(place, value, self.machine)

    def _product(self, x: Sequence[str]) -> Any:
        """Yields the lines of matrix @ x; returns the names of the results."""
        results = [""] * self.results
        for i, twin in _twins(self.matrix):
            row = self.matrix[i]
            if twin is None:
                results[i] = yield from self._sum(row, x)
                continue
            alike = tuple(a if a == b else Fraction(0) for a, b in zip(row, self.matrix[twin], strict=True))
            unlike = tuple(a - b for a, b in zip(row, alike, strict=True))
            even = yield from self._sum(alike, x)
            odd = yield from self._sum(unlike, x)
            results[i] = yield from self._new(f"fadd {self.vector} {even}, {odd}")
            results[twin] = yield from self._new(f"fsub {self.vector} {even}, {odd}")
        return results

    def _sum(self, row: Sequence[Fraction], x: Sequence[str]) -> Any:
        """Yields the lines of the sum of row * x, whole ones first; returns its name."""
        terms = sorted(((c, value) for c, value in zip(row, x, strict=True) if c), key=lambda term: term[0] != 1)
        (first, total), *others = terms
        if first != 1:
            total = yield from self._new(f"fmul {self.vector} {total}, {self._constant(first)}")
        for c, value in others:
            if abs(c) == 1:
                operation = "fadd" if c > 0 else "fsub"
                total = yield from self._new(f"{operation} {self.vector} {total}, {value}")
            else:
                operands = f"{self.vector} {value}, {self.vector} {self._constant(c)}, {self.vector} {total}"
                total = yield from self._new(f"call {self.vector} @llvm.fmuladd.v{self.lanes}f32({operands})")
        return total

    def _new(self, operation: str) -> Any:
        """Yields a line that gives the operation's result a name; returns the name."""
        self.names += 1
        yield f"%v{self.names} = {operation}"
        return f"%v{self.names}"

    def _constant(self, value: Fraction) -> str:
        """A vector of `value`, rounded to float32, in the hexadecimal form in which LLVM reads floats."""
        (rounded,) = struct.unpack("f", struct.pack("f", float(value)))
        bits = struct.pack(">d", rounded).hex().upper()
        return "<" + ", ".join([f"float 0x{bits}"] * self.lanes) + ">"

    def _spread(self, name: str, kind: str, scalar: str) -> Iterator[str]:
        """`name` = a vector that has `scalar` in every lane."""
        vector = f"<{self.lanes} x {kind}>"
        yield f"%{name}_first = insertelement {vector} poison, {kind} {scalar}, i32 0"
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        yield f"%{name} = shufflevector {vector} %{name}_first, {vector} poison, {zeros}"


def _twins(matrix: Matrix) -> Iterator[tuple[int, int | None]]:
    """Each row, with the later one that has the same numbers but for some signs, if there is one."""
    left = list(range(len(matrix)))
    while left:
        i = left.pop(0)
        twin = next((j for j in left if _differ_in_signs(matrix[i], matrix[j])), None)
        if twin is not None:
            left.remove(twin)
        yield i, twin


def _differ_in_signs(row: Sequence[Fraction], other: Sequence[Fraction]) -> bool:
    """Some signs differ and some don't; rows that are opposite as a whole don't count."""
    pairs = [(a, b) for a, b in zip(row, other, strict=True) if a or b]
    return all(abs(a) == abs(b) for a, b in pairs) and len({a == b for a, b in pairs}) == 2


@intrinsic
def run_transform(
    typing_context: Any,
    address: Any,
    x: Any,
    x_row: Any,
    x_column: Any,
    x_rows: Any,
    x_columns: Any,
    x_channels: Any,
    out: Any,
    out_row: Any,
    out_column: Any,
    out_rows: Any,
    out_columns: Any,
    out_channels: Any,
    bias: Any,
    nothing: Any,
    sink: Any,
    floor: Any,
) -> Any:
    """Inside a kernel: run the transform at `address`; the other arguments are INTEGERS and the floor."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_call(builder, arguments[0], arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (1 + len(INTEGERS)), types.float32), emit
