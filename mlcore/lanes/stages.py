"""The steps of a network in lanes: each knows its planes and which operations take a row forward, and all of it back.

Stages are wired when they are made: one's output is the next one's input, and the gradient comes back into a plane
that the one before has laid out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from mlcore.kernels.lane_kinds import operation
from mlcore.kernels.lane_tiles import FLOAT_BYTES
from mlcore.kernels.simd import LANES
from mlcore.lanes.layout import Arena, Plane, Slot
from mlcore.layers import AvgPool2d, MaxPool2d
from mlcore.tensor import Array

Operations = Iterator[list[int]]


class Stage(Protocol):
    """What the program asks of each stage. `out_grad`: where the next stage puts the gradient."""

    name: str
    out: Plane
    out_grad: Plane

    def last_needed(self, row: int) -> int:
        """The last row of the input that a row of the output needs."""

    def forward(self, row: int, training: bool) -> Operations:
        """Make a row of the output."""

    def backward(self) -> Operations:
        """From the gradient of the output make that of the input, and of the parameters."""


@dataclass(frozen=True)
class Groups:
    """How many groups a batch has; bytes from one's gradients, and factors, to the next one's."""

    count: int
    grads_bytes: int
    factors_bytes: int


class Weighted(Stage, Protocol):
    """A stage with parameters: `weight` and `bias` tell where."""

    weight: Slot
    bias: Slot

    def gather(self, groups: Groups) -> Operations:
        """Bring together what the groups left of the gradient, piece by piece."""

    def to_lanes(self, weight: Array, there: Array) -> None:
        """Put a weight of the library's layout into its slot."""

    def from_lanes(self, there: Array) -> Array:
        """The weight in the library's layout."""


class InputStage:
    """The images themselves."""

    def __init__(self, arena: Arena, shape: tuple[int, ...], border: int) -> None:
        channels, height, width = shape
        self.name, self.out = "", arena.plane(channels, height, width, border, border)

    def forward(self, row: int) -> Operations:
        out = self.out
        yield operation(
            "load", x=out.at(row), x_channel=out.channel_bytes, row=row, channels=out.channels, width=out.width,
            lanes=out.count // out.width,
        )  # fmt: skip


class Pooling:
    """What the two poolings share: windows over the rows of a plane, perhaps a ring, and of its gradient."""

    kind: str

    def __init__(
        self, name: str, layer: MaxPool2d | AvgPool2d, x: Plane, x_grad: Plane | None, out: Plane, arena: Arena
    ) -> None:
        self.name, self.x, self.x_grad, self.out = name, x, x_grad, out
        self.size, self.stride, self.padding = layer.size, layer.stride, layer.padding
        self.out_grad = arena.plane(out.channels, out.height, out.width)

    def last_needed(self, row: int) -> int:
        return min(self.x.height, row * self.stride - self.padding + self.size) - 1

    def forward(self, row: int, training: bool) -> Operations:
        top = row * self.stride - self.padding
        yield operation(
            self.kind, **self._windows(self.x, row), **self.winners(row),
            first=max(0, -top), last=min(self.size, self.x.height - top),
            out=self.out.at(row), out_channel=self.out.channel_bytes,
        )  # fmt: skip

    def backward(self) -> Operations:
        if self.x_grad is not None:
            yield from self.rows_back(self.x_grad, 0, self.x_grad.height)

    def rows_back(self, x_grad: Plane, start: int, stop: int) -> Operations:
        """Make the gradient's rows from `start` to `stop`."""
        if not self._fills(x_grad):
            for row in range(start, stop):
                yield operation(
                    "clear", out=x_grad.at(row), out_channel=x_grad.channel_bytes, channels=x_grad.channels,
                    count=x_grad.count,
                )  # fmt: skip
        for row in range(self.out.height):
            top = row * self.stride - self.padding
            first, last = max(0, start - top), min(self.size, stop - top)
            if first < last:
                yield operation(
                    f"{self.kind} back", **self._windows(x_grad, row), **self.winners(row), first=first, last=last,
                    out=self.out_grad.at(row), out_channel=self.out_grad.channel_bytes,
                    adding=int(self.stride < self.size),
                )  # fmt: skip

    def winners(self, row: int) -> dict[str, int]:
        """Columns about a row's winners."""
        return {}

    def _windows(self, x: Plane, row: int) -> dict[str, int]:
        return {
            "x": x.offset + x.left * x.pixel, "x_ring": x.ring, "x_row": x.row_bytes, "x_channel": x.channel_bytes,
            "width": x.width, "top": row * self.stride - self.padding,
            "size": self.size, "stride": self.stride, "padding": self.padding,
            "columns": self.out.width, "channels": x.channels, "pixel": x.pixel,
        }  # fmt: skip

    def _fills(self, x: Plane) -> bool:
        """Whether each pixel is in exactly one window."""
        whole = (self.out.height * self.size, self.out.width * self.size) == (x.height, x.width)
        return whole and self.stride == self.size and self.padding == 0


class MaxPoolStage(Pooling):
    """The largest of each window."""

    kind = "max pool"

    def __init__(
        self, name: str, layer: MaxPool2d | AvgPool2d, x: Plane, x_grad: Plane | None, out: Plane, arena: Arena,
        winners: Arena,
    ) -> None:  # fmt: skip
        super().__init__(name, layer, x, x_grad, out, arena)
        self.won_channel = out.count
        self.won = winners.take(out.height * out.channels * self.won_channel)

    def winners(self, row: int) -> dict[str, int]:
        return {"won": self.won + row * self.out.channels * self.won_channel, "won_channel": self.won_channel}


class AvgPoolStage(Pooling):
    """The mean of each window."""

    kind = "avg pool"

    def _fills(self, x: Plane) -> bool:
        return False  # shares are always added


class MapStage:
    """An activation of its own: ReLU or tanh."""

    def __init__(self, name: str, kind: str, x: Plane, x_grad: Plane | None, out: Plane, arena: Arena) -> None:
        self.name, self.kind, self.x, self.x_grad, self.out = name, kind, x, x_grad, out
        self.out_grad = arena.plane(out.channels, out.height, out.width)

    def last_needed(self, row: int) -> int:
        return row

    def forward(self, row: int, training: bool) -> Operations:
        yield operation(self.kind, **runs(row, x=self.x, gate=self.x, out=self.out))

    def backward(self) -> Operations:
        if self.x_grad is not None:
            kind = "relu" if self.kind == "relu" else f"{self.kind} back"
            for row in range(self.out.height):
                yield operation(kind, **runs(row, x=self.out_grad, gate=self.out, out=self.x_grad))


class DropoutStage:
    """Dropout: the same mask as the tape's. `constants`: where its limit and scale are, behind those of no dropout."""

    def __init__(
        self, name: str, number: int, constants: int, x: Plane, x_grad: Plane | None, out: Plane, arena: Arena
    ) -> None:
        self.name, self.number, self.constants = name, number, constants
        self.x, self.x_grad, self.out = x, x_grad, out
        self.out_grad = arena.plane(out.channels, out.height, out.width)

    def last_needed(self, row: int) -> int:
        return row

    def forward(self, row: int, training: bool) -> Operations:
        yield self._row(row, self.x, self.out, self.constants if training else 0)

    def backward(self) -> Operations:
        if self.x_grad is not None:
            for row in range(self.out.height):
                yield self._row(row, self.out_grad, self.x_grad, self.constants)

    def _row(self, row: int, x: Plane, out: Plane, constants: int) -> list[int]:
        return operation(
            "dropout", **runs(row, x=x, out=out), constants=constants, number=self.number,
            row=row, height=x.height, width=x.width, lanes=x.count // x.width,
        )  # fmt: skip


class ResponseStage:
    """Local response normalisation across channels. `constants`: where k, the factor and beta are."""

    def __init__(
        self, name: str, size: int, constants: int, x: Plane, x_grad: Plane | None, out: Plane, arena: Arena
    ) -> None:
        self.name, self.size, self.constants = name, size, constants
        self.x, self.x_grad, self.out = x, x_grad, out
        self.out_grad = arena.plane(out.channels, out.height, out.width)
        self.sums = arena.plane(out.channels, out.height, out.width)
        self.pull = arena.plane(out.channels, 1, out.width)
        self.made = 0  # rows; those behind them nobody needs

    def last_needed(self, row: int) -> int:
        return row

    def forward(self, row: int, training: bool) -> Operations:
        self.made = row + 1
        yield operation("respond", **runs(row, x=self.x, out=self.out), **self._scratch(row))

    def backward(self) -> Operations:
        """Rows that were never made have no sums; their gradient stays at the zeros that memory begins with."""
        if self.x_grad is not None:
            for row in range(self.made):
                planes = runs(row, x=self.x, gate=self.out_grad, out=self.x_grad)
                yield operation("respond back", **planes, **self._scratch(row))

    def _scratch(self, row: int) -> dict[str, int]:
        return {
            "size": self.size, "constants": self.constants, "sums": self.sums.at(row), "pull": self.pull.at(0),
            "scratch_channel": self.sums.channel_bytes,
        }  # fmt: skip


def runs(row: int, **planes: Plane) -> dict[str, int]:
    """Columns about one row of each of these planes: x, gate, out."""
    columns = {name: plane.at(row) for name, plane in planes.items()}
    columns |= {f"{name}_channel": plane.channel_bytes for name, plane in planes.items()}
    any_plane = planes["out"]
    return columns | {"channels": any_plane.channels, "count": any_plane.count}


def sums(slot: Slot, groups: Groups) -> Operations:
    """Add up what the groups made of a parameter's gradient."""
    for start, stop in slot.pieces():
        yield operation(
            "sum", x=start * FLOAT_BYTES, x_row=groups.grads_bytes, height=groups.count, out=start * FLOAT_BYTES,
            count=-(-(stop - start) // LANES) * LANES,
        )  # fmt: skip


def bias_gradient(grad: Plane, out: Plane, relu: bool, bias: Slot) -> list[int]:
    """Undo a ReLU in the gradient of its output, and sum up the bias's."""
    return operation(
        "bias gradient", x=grad.at(0), x_row=grad.row_bytes, x_channel=grad.channel_bytes,
        gate=out.at(0), gate_row=out.row_bytes, gate_channel=out.channel_bytes, out=bias.bytes,
        height=grad.height, channels=grad.channels, count=grad.count, relu=int(relu),
    )  # fmt: skip
