"""The two innermost loops of networks whose images lie side by side in the vector lanes.

A pixel of one channel is a short run of numbers, one for each image of a group: `vectors` whole vectors. So a weight
meets all images at once, and nothing is ever shuffled but the sums of a weight's gradient.

    spread: C[i, p] = max(bias[i] + sum over the walk of A[i] * B[p], floor)    A a number, B and C pixels
    dots:   C[i, j] (+)= sum over the walk, and over all lanes, of X[i] * Y[j]  X and Y vectors, C numbers

A walk is three loops, each with its own stride in bytes for either operand, so windows of an image, weights turned
round, and the rows of a matrix all are walks. Tiles are LLVM text for one shape and machine, see `native`; nothing
checks bounds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from numba.core import types
from numba.extending import intrinsic as numba_intrinsic

from mlcore.kernels.native import Machine, compiled, emit_call

FLOAT_BYTES = 4
LOOPS = ("outer", "middle", "inner")

SPREAD = (
    *LOOPS,  # steps of each loop; with no outer step C becomes max(bias, floor)
    "a",  # address of A, its strides along the walk, and from row to row
    *(f"a_{loop}" for loop in LOOPS),
    "a_row",
    "b",  # address of B, its strides, and from pixel to pixel
    *(f"b_{loop}" for loop in LOOPS),
    "b_pixel",
    "c",
    "c_row",
    "c_pixel",
    "bias",
    "bias_row",
)
DOTS = (
    *LOOPS,  # steps of each loop, all at least 1
    "x",
    *(f"x_{loop}" for loop in LOOPS),
    "x_row",
    "y",
    *(f"y_{loop}" for loop in LOOPS),
    "y_column",
    "c",  # columns of C stand side by side
    "c_row",
    "adding",  # 1: add to what C holds
)

intrinsic: Any = numba_intrinsic


@functools.cache
def spread_address(rows: int, pixels: int, vectors: int, machine: Machine) -> int:
    """The compiled spread tile of `rows` by `pixels` pixels of `vectors` vectors."""
    return compiled(_Spread(rows, pixels, vectors, machine.lanes).text(), "spread", machine)


@functools.cache
def dots_address(rows: int, columns: int, machine: Machine) -> int:
    """The compiled dots tile of `rows` by `columns` sums; columns: at most as many as a vector has lanes."""
    return compiled(_Dots(rows, columns, machine.lanes).text(), "dots", machine)


class _Tile:
    """What both tiles are made of: sums in local variables (LLVM keeps them in registers) and three nested loops."""

    name: str
    integers: tuple[str, ...]
    operands: tuple[str, str]

    def __init__(self, rows: int, columns: int, lanes: int) -> None:
        self.rows, self.columns, self.lanes = rows, columns, lanes
        self.vector = f"<{lanes} x float>"
        self.cells = [(i, j) for i in range(rows) for j in range(columns)]

    def text(self) -> str:
        head = ", ".join(f"i64 %{name}" for name in self.integers)
        suffix = f"v{self.lanes}f32"
        lines = [
            f"declare {self.vector} @llvm.fmuladd.{suffix}({self.vector}, {self.vector}, {self.vector})",
            f"define void @{self.name}({head}, float %floor) {{",
            "entry:",
            *(f"%sum{i}_{j} = alloca {self.vector}" for i, j in self.cells),
            *(f"%{loop}_at = alloca i64" for loop in LOOPS),
            *(f"%{loop}_{operand} = alloca i64" for loop in LOOPS for operand in self.operands),
            *self.start(),
            "%some = icmp sgt i64 %outer, 0",
            "br i1 %some, label %walk, label %end",
            "walk:",
            *self._loops(),
            "end:",
            *self.end(),
            "ret void",
            "}",
        ]
        return "\n".join(lines)

    def start(self) -> Iterator[str]:
        """Fill the sums."""
        raise NotImplementedError

    def step(self) -> Iterator[str]:
        """One step of the walk; `%here_<operand>` are the addresses."""
        raise NotImplementedError

    def end(self) -> Iterator[str]:
        """Hand out the sums."""
        raise NotImplementedError

    def _loops(self) -> Iterator[str]:
        for operand in self.operands:
            yield f"store i64 %{operand}, ptr %outer_{operand}"
        yield from ("store i64 0, ptr %outer_at", "br label %outer_step")
        yield from self._enter("outer", "middle")
        yield from self._enter("middle", "inner")
        yield "inner_step:"
        for operand in self.operands:
            yield f"%here_{operand} = load i64, ptr %inner_{operand}"
        yield from self.step()
        yield from self._next("inner", "middle_next")
        yield "middle_next:"
        yield from self._next("middle", "outer_next")
        yield "outer_next:"
        yield from self._next("outer", "end")

    def _enter(self, loop: str, inside: str) -> Iterator[str]:
        yield f"{loop}_step:"
        for operand in self.operands:
            yield f"%{loop}_from_{operand} = load i64, ptr %{loop}_{operand}"
            yield f"store i64 %{loop}_from_{operand}, ptr %{inside}_{operand}"
        yield from (f"store i64 0, ptr %{inside}_at", f"br label %{inside}_step")

    def _next(self, loop: str, done: str) -> Iterator[str]:
        for operand in self.operands:
            yield f"%{loop}_was_{operand} = load i64, ptr %{loop}_{operand}"
            yield f"%{loop}_to_{operand} = add i64 %{loop}_was_{operand}, %{operand}_{loop}"
            yield f"store i64 %{loop}_to_{operand}, ptr %{loop}_{operand}"
        yield f"%{loop}_was = load i64, ptr %{loop}_at"
        yield f"%{loop}_now = add i64 %{loop}_was, 1"
        yield f"store i64 %{loop}_now, ptr %{loop}_at"
        yield f"%{loop}_more = icmp slt i64 %{loop}_now, %{loop}"
        yield f"br i1 %{loop}_more, label %{loop}_step, label %{done}"

    def pointer(self, name: str, base: str, stride: str, times: int, more: int = 0) -> Iterator[str]:
        """`name` = pointer to base + stride * times + more."""
        yield f"%{name}_skip = mul i64 {stride}, {times}"
        yield f"%{name}_row = add i64 {base}, %{name}_skip"
        yield f"%{name}_address = add i64 %{name}_row, {more}"
        yield f"%{name} = inttoptr i64 %{name}_address to ptr"

    def everywhere(self, name: str, scalar: str) -> Iterator[str]:
        """`name` = a vector with `scalar` in every lane."""
        yield f"%{name}_one = insertelement {self.vector} poison, float {scalar}, i32 0"
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        yield f"%{name} = shufflevector {self.vector} %{name}_one, {self.vector} poison, {zeros}"

    def multiply_add(self, i: int, j: int, left: str, right: str) -> Iterator[str]:
        yield f"%was{i}_{j} = load {self.vector}, ptr %sum{i}_{j}"
        operands = f"{self.vector} {left}, {self.vector} {right}, {self.vector} %was{i}_{j}"
        yield f"%new{i}_{j} = call {self.vector} @llvm.fmuladd.v{self.lanes}f32({operands})"
        yield f"store {self.vector} %new{i}_{j}, ptr %sum{i}_{j}"


class _Spread(_Tile):
    name, integers, operands = "spread", SPREAD, ("a", "b")

    def __init__(self, rows: int, pixels: int, vectors: int, lanes: int) -> None:
        super().__init__(rows, pixels * vectors, lanes)
        self.vectors = vectors

    def start(self) -> Iterator[str]:
        for i in range(self.rows):
            yield from self.pointer(f"bias{i}", "%bias", "%bias_row", i)
            yield f"%first{i} = load float, ptr %bias{i}, align 4"
            yield from self.everywhere(f"start{i}", f"%first{i}")
            for j in range(self.columns):
                yield f"store {self.vector} %start{i}, ptr %sum{i}_{j}"

    def step(self) -> Iterator[str]:
        for j in range(self.columns):
            yield from self.pointer(f"b_at{j}", "%here_b", "%b_pixel", *self._place(j))
            yield f"%b{j} = load {self.vector}, ptr %b_at{j}, align 4"
        for i in range(self.rows):
            yield from self.pointer(f"a_at{i}", "%here_a", "%a_row", i)
            yield f"%a{i} = load float, ptr %a_at{i}, align 4"
            yield from self.everywhere(f"weight{i}", f"%a{i}")
            for j in range(self.columns):
                yield from self.multiply_add(i, j, f"%weight{i}", f"%b{j}")

    def end(self) -> Iterator[str]:
        yield from self.everywhere("floors", "%floor")
        for i in range(self.rows):
            yield f"%row{i}_skip = mul i64 %c_row, {i}"
            yield f"%row{i} = add i64 %c, %row{i}_skip"
            for j in range(self.columns):
                yield from self.pointer(f"c{i}_{j}", f"%row{i}", "%c_pixel", *self._place(j))
                yield f"%end{i}_{j} = load {self.vector}, ptr %sum{i}_{j}"
                # a NaN is not below the floor: it stays
                yield f"%below{i}_{j} = fcmp ogt {self.vector} %floors, %end{i}_{j}"
                choice = f"<{self.lanes} x i1> %below{i}_{j}, {self.vector} %floors, {self.vector} %end{i}_{j}"
                yield f"%out{i}_{j} = select {choice}"
                yield f"store {self.vector} %out{i}_{j}, ptr %c{i}_{j}, align 4"

    def _place(self, column: int) -> tuple[int, int]:
        """(pixel, bytes into it) of a column of vectors."""
        return column // self.vectors, column % self.vectors * self.lanes * FLOAT_BYTES


class _Dots(_Tile):
    name, integers, operands = "dots", DOTS, ("x", "y")

    def start(self) -> Iterator[str]:
        for i, j in self.cells:
            yield f"store {self.vector} zeroinitializer, ptr %sum{i}_{j}"

    def step(self) -> Iterator[str]:
        for j in range(self.columns):
            yield from self.pointer(f"y_at{j}", "%here_y", "%y_column", j)
            yield f"%y{j} = load {self.vector}, ptr %y_at{j}, align 4"
        for i in range(self.rows):
            yield from self.pointer(f"x_at{i}", "%here_x", "%x_row", i)
            yield f"%x{i} = load {self.vector}, ptr %x_at{i}, align 4"
            for j in range(self.columns):
                yield from self.multiply_add(i, j, f"%x{i}", f"%y{j}")

    def end(self) -> Iterator[str]:
        sums = f"<{self.columns} x float>"
        yield "%is_adding = icmp ne i64 %adding, 0"
        for i in range(self.rows):
            for j in range(self.columns):
                yield f"%last{i}_{j} = load {self.vector}, ptr %sum{i}_{j}"
            yield from self._totals(i)
            yield from self.pointer(f"c{i}", "%c", "%c_row", i)
            yield f"%held{i} = load {sums}, ptr %c{i}, align 4"
            yield f"%old{i} = select i1 %is_adding, {sums} %held{i}, {sums} zeroinitializer"
            yield f"%out{i} = fadd {sums} %old{i}, %total{i}"
            yield f"store {sums} %out{i}, ptr %c{i}, align 4"

    def _totals(self, i: int) -> Iterator[str]:
        """%total<i> = the sums over the lanes of a row's vectors, side by side.

        Neighbouring lanes are added, of two vectors at a time while there are two: a tree, always in the same order.
        """
        count = 1 << (self.columns - 1).bit_length()
        parts = [f"%last{i}_{j}" if j < self.columns else "zeroinitializer" for j in range(count)]
        width, level = self.lanes, 0
        while len(parts) > 1 or width > count:
            pairs = list(zip(parts[::2], parts[1::2], strict=True)) if len(parts) > 1 else [(parts[0], "poison")]
            wide = width if len(parts) > 1 else width // 2
            parts = [f"%fold{i}_{level}_{k}" for k in range(len(pairs))]
            for part, (left, right) in zip(parts, pairs, strict=True):
                operands = f"<{width} x float> {left}, <{width} x float> {right}"
                for name, first in (("even", 0), ("odd", 1)):
                    yield f"{part}{name} = shufflevector {operands}, {_lanes(range(first, first + 2 * wide, 2))}"
                yield f"{part} = fadd <{wide} x float> {part}even, {part}odd"
            width, level = wide, level + 1
        chosen = _lanes(range(self.columns))
        yield f"%total{i} = shufflevector <{width} x float> {parts[0]}, <{width} x float> poison, {chosen}"


def _lanes(numbers: Sequence[int]) -> str:
    return f"<{len(numbers)} x i32> <{', '.join(f'i32 {number}' for number in numbers)}>"


@intrinsic
def run_spread(typing_context: Any, address: Any, integers: Any, floor: Any) -> Any:
    """Inside a kernel: run the spread tile at `address`; `integers` is a tuple as SPREAD says."""
    return types.void(types.int64, types.UniTuple(types.int64, len(SPREAD)), types.float32), _call


@intrinsic
def run_dots(typing_context: Any, address: Any, integers: Any, floor: Any) -> Any:
    """Inside a kernel: run the dots tile at `address`; `integers` is a tuple as DOTS says, floor is not used."""
    return types.void(types.int64, types.UniTuple(types.int64, len(DOTS)), types.float32), _call


def _call(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    address, integers, floor = arguments
    values = [builder.extract_value(integers, k) for k in range(signature.args[1].count)]
    emit_call(builder, address, [*values, floor])
    return context.get_dummy_value()
