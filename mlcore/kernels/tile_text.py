"""The text of a tile: LLVM code for one shape, one vector width, and what is read and written.

A tile multiplies words: a float by a float, or a pair of bf16 by a pair, two products added to the float32 sum at once.
On processors without such an instruction the pair is taken apart into floats. `product` is this choice, `numbers` is
what is written; everything else of a tile is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlcore.kernels.native import Machine
from mlcore.kernels.number_text import NUMBERS, Floats, Halves, declarations
from mlcore.kernels.precision import WORD_BYTES

INTEGERS = (
    "outer",  # steps of the outer walk
    "inner",  # steps of the inner walk, at least 1
    "a",  # address of A, and its strides in bytes
    "a_outer",
    "a_inner",
    "a_row",
    "b",  # address of the panel B
    "c",  # address of C, and the bytes from row to row
    "c_row",
    "columns",  # how many columns of C exist, at most vectors * lanes; others are left alone
    "bias",  # address of vectors * lanes numbers to start at; unused when adding
    "adding",  # 1 to start at C, 0 to start at the bias
)


def tile_source(rows: int, vectors: int, machine: Machine, read: str, written: str) -> str:
    """The tile as LLVM text. The sums are local variables here; LLVM keeps them in registers."""
    head = ", ".join(f"i64 %{name}" for name in INTEGERS)
    lanes = machine.lanes
    product = NATIVE if read == "bf16" and machine.has_bf16 else PRODUCTS[read]
    return "\n".join(
        [
            FUSED.format(lanes=lanes),
            *declarations(lanes),
            NATIVE.declaration if product is NATIVE else "",
            f"define void @tile({head}, float %floor) {{",
            *_Tile(rows, vectors, machine, product, NUMBERS[written]).lines(),
            "}",
        ]
    )


FUSED = "declare <{lanes} x float> @llvm.fmuladd.v{lanes}f32(<{lanes} x float>, <{lanes} x float>, <{lanes} x float>)"


class _Floats:
    """sum += a * b, all float32."""

    word = "float"

    def spread_a(self, tile: _Tile, i: int) -> Iterator[str]:
        yield from tile.spread(f"x{i}", "float", f"%a{i}")

    def split_b(self, tile: _Tile, j: int) -> Iterator[str]:
        yield from ()

    def add(self, tile: _Tile, i: int, j: int) -> Iterator[str]:
        yield tile.fused(f"new{i}_{j}", f"%x{i}", f"%b{j}", f"%was{i}_{j}")


class _Pairs:
    """sum += a0 * b0 + a1 * b1 for bf16 pairs, on a processor that knows float32 only: halves become floats."""

    word = "i32"

    def spread_a(self, tile: _Tile, i: int) -> Iterator[str]:
        yield f"%low_a{i} = shl i32 %a{i}, 16"
        yield f"%high_a{i} = and i32 %a{i}, -65536"
        for half in ("low", "high"):
            yield f"%{half}_f{i} = bitcast i32 %{half}_a{i} to float"
            yield from tile.spread(f"{half}_x{i}", "float", f"%{half}_f{i}")

    def split_b(self, tile: _Tile, j: int) -> Iterator[str]:
        words = f"<{tile.lanes} x i32>"
        yield f"%low_w{j} = shl {words} %b{j}, splat (i32 16)"
        yield f"%high_w{j} = and {words} %b{j}, splat (i32 -65536)"
        for half in ("low", "high"):
            yield f"%{half}_b{j} = bitcast {words} %{half}_w{j} to {tile.vector}"

    def add(self, tile: _Tile, i: int, j: int) -> Iterator[str]:
        yield tile.fused(f"half{i}_{j}", f"%low_x{i}", f"%low_b{j}", f"%was{i}_{j}")
        yield tile.fused(f"new{i}_{j}", f"%high_x{i}", f"%high_b{j}", f"%half{i}_{j}")


class _NativePairs:
    """The same by AVX-512's own instruction."""

    word = "i32"
    name = "@llvm.x86.avx512bf16.dpbf16ps.512"
    declaration = f"declare <16 x float> {name}(<16 x float>, <32 x bfloat>, <32 x bfloat>)"

    def spread_a(self, tile: _Tile, i: int) -> Iterator[str]:
        yield from tile.spread(f"words{i}", "i32", f"%a{i}")
        yield f"%x{i} = bitcast <16 x i32> %words{i} to <32 x bfloat>"

    def split_b(self, tile: _Tile, j: int) -> Iterator[str]:
        yield f"%pairs{j} = bitcast <16 x i32> %b{j} to <32 x bfloat>"

    def add(self, tile: _Tile, i: int, j: int) -> Iterator[str]:
        operands = f"<16 x float> %was{i}_{j}, <32 x bfloat> %x{i}, <32 x bfloat> %pairs{j}"
        yield f"%new{i}_{j} = call <16 x float> {self.name}({operands})"


NATIVE = _NativePairs()
PRODUCTS: dict[str, _Floats | _Pairs | _NativePairs] = {"fp32": _Floats(), "bf16": _Pairs()}


class _Tile:
    """Writes the lines of one tile's function."""

    def __init__(
        self,
        rows: int,
        vectors: int,
        machine: Machine,
        product: _Floats | _Pairs | _NativePairs,
        numbers: Floats | Halves,
    ) -> None:
        self.rows, self.vectors, self.machine, self.product, self.numbers = rows, vectors, machine, product, numbers
        self.lanes, self.vector, self.mask = machine.lanes, f"<{machine.lanes} x float>", f"<{machine.lanes} x i1>"
        self.cells = [(i, j) for i in range(rows) for j in range(vectors)]

    def lines(self) -> Iterator[str]:
        yield from self._entry()
        yield from self._start()
        yield from self._walk()
        yield from self._end()

    def _entry(self) -> Iterator[str]:
        yield "entry:"
        for i, j in self.cells:
            yield f"%sum{i}_{j} = alloca {self.vector}"
        yield from (
            "%o = alloca i64",
            "%k = alloca i64",
            "%at_o = alloca i64",
            "%at = alloca i64",
            "%row_b = alloca i64",
        )
        yield from self.spread("counts", "i64", "%columns")
        for j in range(self.vectors):
            numbers = ", ".join(f"i64 {j * self.lanes + lane}" for lane in range(self.lanes))
            yield f"%mask{j} = icmp ult <{self.lanes} x i64> <{numbers}>, %counts"
        yield "%row0 = add i64 %c, 0"
        for i in range(1, self.rows):
            yield f"%row{i} = add i64 %row{i - 1}, %c_row"
        for i, j in self.cells:
            yield f"%cell{i}_{j} = add i64 %row{i}, {j * self.lanes * self.numbers.bytes}"
            yield f"%c{i}_{j} = inttoptr i64 %cell{i}_{j} to ptr"
        yield f"%is_adding = icmp ne i64 %adding, {0 if self.numbers.bytes == WORD_BYTES else '%adding'}"
        yield "br i1 %is_adding, label %at_c, label %at_bias"

    def _start(self) -> Iterator[str]:
        yield "at_c:"
        for i, j in self.cells:
            yield from NUMBERS["fp32"].load(f"old{i}_{j}", f"%c{i}_{j}", f"%mask{j}", self.machine)
            yield f"store {self.vector} %old{i}_{j}, ptr %sum{i}_{j}"
        yield "br label %walk"
        yield "at_bias:"
        for j in range(self.vectors):
            yield f"%bias_at{j} = add i64 %bias, {j * self.lanes * WORD_BYTES}"
            yield f"%bias_ptr{j} = inttoptr i64 %bias_at{j} to ptr"
            yield f"%bias{j} = load {self.vector}, ptr %bias_ptr{j}, align 4"
        for i, j in self.cells:
            yield f"store {self.vector} %bias{j}, ptr %sum{i}_{j}"
        yield "br label %walk"

    def _walk(self) -> Iterator[str]:
        yield "walk:"
        yield from ("store i64 0, ptr %o", "store i64 %a, ptr %at_o", "store i64 %b, ptr %row_b")
        yield "br label %outer_step"
        yield "outer_step:"
        yield from ("%from = load i64, ptr %at_o", "store i64 %from, ptr %at", "store i64 0, ptr %k")
        yield "br label %inner_step"
        yield "inner_step:"
        yield from self._multiply_add()
        yield from self._count("k", "inner", "inner_step", "outer_next")
        yield "outer_next:"
        yield from ("%next_from = add i64 %from, %a_outer", "store i64 %next_from, ptr %at_o")
        yield from self._count("o", "outer", "outer_step", "end")

    def _multiply_add(self) -> Iterator[str]:
        """One step of the walk: a word of A for each row, times a row of B."""
        word = self.product.word
        yield from ("%here = load i64, ptr %at", "%panel = load i64, ptr %row_b")
        for j in range(self.vectors):
            yield f"%b_at{j} = add i64 %panel, {j * self.lanes * WORD_BYTES}"
            yield f"%b_ptr{j} = inttoptr i64 %b_at{j} to ptr"
            yield f"%b{j} = load <{self.lanes} x {word}>, ptr %b_ptr{j}, align 4"
            yield from self.product.split_b(self, j)
        for i in range(self.rows):
            yield f"%skip{i} = mul i64 %a_row, {i}"
            yield f"%a_at{i} = add i64 %here, %skip{i}"
            yield f"%a_ptr{i} = inttoptr i64 %a_at{i} to ptr"
            yield f"%a{i} = load {word}, ptr %a_ptr{i}, align 2"
            yield from self.product.spread_a(self, i)
            for j in range(self.vectors):
                yield f"%was{i}_{j} = load {self.vector}, ptr %sum{i}_{j}"
                yield from self.product.add(self, i, j)
                yield f"store {self.vector} %new{i}_{j}, ptr %sum{i}_{j}"
        yield from ("%next_at = add i64 %here, %a_inner", "store i64 %next_at, ptr %at")
        yield f"%next_b = add i64 %panel, {self.vectors * self.lanes * WORD_BYTES}"
        yield "store i64 %next_b, ptr %row_b"

    def _end(self) -> Iterator[str]:
        yield "end:"
        yield from self.spread("floors", "float", "%floor")
        for i, j in self.cells:
            yield f"%sum_end{i}_{j} = load {self.vector}, ptr %sum{i}_{j}"
            yield f"%below{i}_{j} = fcmp ogt {self.vector} %floors, %sum_end{i}_{j}"
            choice = f"{self.mask} %below{i}_{j}, {self.vector} %floors, {self.vector} %sum_end{i}_{j}"
            yield f"%out{i}_{j} = select {choice}"
            yield from self.numbers.rounded(f"{i}_{j}", f"%out{i}_{j}", self.machine)
        yield f"%is_whole = icmp sge i64 %columns, {self.vectors * self.lanes}"
        yield "br i1 %is_whole, label %store_whole, label %store_part"
        for label, masked in (("store_whole", False), ("store_part", True)):
            yield f"{label}:"
            for i, j in self.cells:
                yield self.numbers.store(f"{i}_{j}", f"%c{i}_{j}", f"%mask{j}" if masked else "", self.machine)
            yield "ret void"

    def _count(self, counter: str, limit: str, again: str, done: str) -> Iterator[str]:
        yield f"%was_{counter} = load i64, ptr %{counter}"
        yield f"%now_{counter} = add i64 %was_{counter}, 1"
        yield f"store i64 %now_{counter}, ptr %{counter}"
        yield f"%more_{counter} = icmp slt i64 %now_{counter}, %{limit}"
        yield f"br i1 %more_{counter}, label %{again}, label %{done}"

    def fused(self, name: str, left: str, right: str, addend: str) -> str:
        """`name` = left * right + addend, lane by lane."""
        operands = ", ".join(f"{self.vector} {operand}" for operand in (left, right, addend))
        return f"%{name} = call {self.vector} @llvm.fmuladd.v{self.lanes}f32({operands})"

    def spread(self, name: str, kind: str, scalar: str) -> Iterator[str]:
        """`name` = a vector that has `scalar` in every lane."""
        vector = f"<{self.lanes} x {kind}>"
        yield f"%{name}_first = insertelement {vector} poison, {kind} {scalar}, i32 0"
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        yield f"%{name} = shufflevector {vector} %{name}_first, {vector} poison, {zeros}"
