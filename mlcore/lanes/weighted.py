"""The steps that have weights, in lanes: convolution and fully connected layers.

Weights lie as the tiles want them on all three ways (forward, back to the input, and their own gradient), so nothing is
packed when they move: a convolution's as [group, kernel row, channel, kernel column, output], a linear layer's as
[input, output].
"""

from __future__ import annotations

import numpy as np

from mlcore.kernels.lane_kinds import operation
from mlcore.kernels.lane_matrix import ACTIVATIONS, FACTORS, GRADIENTS, WEIGHTS
from mlcore.kernels.lane_tiles import FLOAT_BYTES
from mlcore.kernels.native import this_machine
from mlcore.lanes import layout
from mlcore.lanes.layout import Arena, Parameters, Plane
from mlcore.lanes.stages import Groups, MaxPoolStage, Operations, bias_gradient, sums
from mlcore.layers import Conv2d, Linear
from mlcore.tensor import Array

CACHE_BYTES = 20 << 10  # of gradients that a block of outputs walks at a time, while all channels pass


class ConvStage:
    """Convolution, bias and perhaps ReLU. With `pooled`, only max pooling reads the output, which keeps few rows."""

    def __init__(
        self, name: str, layer: Conv2d, relu: bool, pooled: bool, x: Plane, x_grad: Plane | None, out: Plane,
        arena: Arena, parameters: Parameters,
    ) -> None:  # fmt: skip
        self.name, self.layer, self.relu, self.pooled = name, layer, relu, pooled
        self.x, self.x_grad, self.out = x, x_grad, out
        self.channels, self.outputs = layer.channels // layer.groups, layer.outputs // layer.groups
        shape = (layer.groups, layer.kernel, self.channels, layer.kernel, self.outputs)
        self.weight = parameters.slot(f"{name}.weight", *shape)
        self.bias = parameters.slot(f"{name}.bias", layer.outputs)
        self.zero = parameters.zero
        self._tap = self.outputs * FLOAT_BYTES  # bytes from weight to weight, by what moves
        self._channel = layer.kernel * self._tap
        self._kernel_row = self.channels * self._channel
        self.columns = layout.dots_tiles(self.channels if layer.kernel == 1 else layer.kernel, self.outputs)
        self.strip = max(1, CACHE_BYTES // (self.columns["columns"] * out.width * out.pixel))
        ring = self.strip if pooled and x_grad is None else None
        self.out_grad = arena.plane(layer.outputs, out.height, out.width, *self._borders(), ring=ring)
        self.pool: MaxPoolStage | None = None  # whose gradient is made strip by strip, for nobody else wants it

    def last_needed(self, row: int) -> int:
        layer = self.layer
        return max(0, min(self.x.height, row * layer.stride - layer.padding + layer.kernel) - 1)

    def forward(self, row: int, training: bool) -> Operations:
        layer, x, out = self.layer, self.x, self.out
        top = row * layer.stride - layer.padding
        first, last = max(0, -top), min(layer.kernel, x.height - top)
        for group in range(layer.groups):
            yield operation(
                "correlate", outer=last - first, middle=self.channels, inner=layer.kernel,
                a_base=WEIGHTS, a=self._weight(group, first), a_outer=self._kernel_row, a_middle=self._channel,
                a_inner=self._tap, a_row=FLOAT_BYTES,
                b=x.at(top + first, group * self.channels) - layer.padding * x.pixel, b_outer=x.row_bytes,
                b_middle=x.channel_bytes, b_inner=x.pixel, b_pixel=layer.stride * x.pixel,
                c_base=ACTIVATIONS, c=out.at(row, group * self.outputs), c_row=out.channel_bytes, c_pixel=out.pixel,
                bias_base=WEIGHTS, bias=self.bias.bytes + group * self.outputs * FLOAT_BYTES, bias_row=FLOAT_BYTES,
                relu=int(self.relu), **layout.spread_tiles(self.outputs, out.width),
            )  # fmt: skip

    def backward(self) -> Operations:
        if not self.pooled:
            yield bias_gradient(self.out_grad, self.out, self.relu, self.bias)
        begun: set[tuple[int, int]] = set()
        for start in range(0, self.out.height, self.strip):
            stop = min(self.out.height, start + self.strip)
            if self.pool:
                yield from self.pool.rows_back(self.out_grad, start, stop)
            yield from self._weights_back(start, stop, begun)
        if self.x_grad is not None:
            for row in range(self.x.height):
                yield from self._row_back(row, self.x_grad)

    def gather(self, groups: Groups) -> Operations:
        yield from sums(self.weight, groups)
        yield from sums(self.bias, groups)

    def to_lanes(self, weight: Array, there: Array) -> None:
        there[:] = layout.conv_to_lanes(weight, self.layer.groups)

    def from_lanes(self, there: Array) -> Array:
        return layout.conv_from_lanes(there)

    def _weight(self, group: int, kernel_row: int, kernel_column: int = 0) -> int:
        """Bytes to a weight of channel 0 and output 0."""
        return (
            self.weight.bytes + (group * self.layer.kernel + kernel_row) * self._kernel_row + kernel_column * self._tap
        )

    def _weights_back(self, start: int, stop: int, begun: set[tuple[int, int]]) -> Operations:
        """What the rows from `start` to `stop` add to the weights' gradient, kernel row by kernel row."""
        layer, height = self.layer, self.x.height
        for group in range(layer.groups):
            for kernel_row in range(layer.kernel):
                shift = layer.padding - kernel_row
                first = max(start, -(-shift // layer.stride))
                last = min(stop, (height - 1 + shift) // layer.stride + 1)
                if first < last:
                    yield self._kernel_row_back(group, kernel_row, first, last, int((group, kernel_row) in begun))
                    begun.add((group, kernel_row))

    def _kernel_row_back(self, group: int, kernel_row: int, first: int, last: int, adding: int) -> list[int]:
        layer, x, grad = self.layer, self.x, self.out_grad
        one = layer.kernel == 1  # then channels take the place of taps
        row = first * layer.stride + kernel_row - layer.padding
        return operation(
            "descend", outer=last - first, **self._along_row(),
            x=x.at(row, group * self.channels) - layer.padding * x.pixel, x_outer=layer.stride * x.row_bytes,
            x_row=x.channel_bytes if one else x.pixel, x_channel=x.channel_bytes, channels=1 if one else self.channels,
            y=grad.at(first, group * self.outputs), y_outer=grad.row_bytes, y_column=grad.channel_bytes,
            c=self._weight(group, kernel_row), c_row=self._tap, c_channel=self._channel, adding=adding, **self.columns,
        )  # fmt: skip

    def _along_row(self) -> dict[str, int]:
        """The walk along a row: without a stride, pixels follow one another in both planes."""
        stride, pixel, width = self.layer.stride, self.x.pixel, self.out.width
        vectors, vector = layout.pixel_vectors(), this_machine().lanes * FLOAT_BYTES
        inside = {"x_inner": vector, "y_inner": vector}
        if stride == 1:
            return {"middle": 1, "inner": width * vectors, **inside}
        return {"middle": width, "inner": vectors, "x_middle": stride * pixel, "y_middle": pixel, **inside}

    def _row_back(self, row: int, x_grad: Plane) -> Operations:
        """A row of the input's gradient: with a stride, pixels of one phase after the other, each with its taps."""
        layer, grad = self.layer, self.out_grad
        first_tap = (row + layer.padding) % layer.stride
        newest = (row + layer.padding) // layer.stride  # the output row that the first tap leads to
        skipped = max(0, newest - grad.height + 1)
        last = min(newest, (layer.kernel - 1 - first_tap) // layer.stride)
        kernel_row = first_tap + skipped * layer.stride
        for phase, tap, taps, column, pixels in self._phases():
            for group in range(layer.groups):
                yield operation(
                    "correlate", outer=max(0, last - skipped + 1) if taps else 0, middle=taps, inner=self.outputs,
                    a_base=WEIGHTS, a=self._weight(group, kernel_row, tap), a_outer=layer.stride * self._kernel_row,
                    a_middle=layer.stride * self._tap, a_inner=FLOAT_BYTES, a_row=self._channel,
                    b=grad.at(newest - skipped, group * self.outputs) + column * grad.pixel, b_outer=-grad.row_bytes,
                    b_middle=-grad.pixel, b_inner=grad.channel_bytes, b_pixel=grad.pixel,
                    c_base=ACTIVATIONS, c=x_grad.at(row, group * self.channels) + phase * x_grad.pixel,
                    c_row=x_grad.channel_bytes, c_pixel=layer.stride * x_grad.pixel,
                    bias_base=WEIGHTS, bias=self.zero, **layout.spread_tiles(self.channels, pixels),
                )  # fmt: skip

    def _phases(self) -> Operations:
        """(first pixel, first tap, taps, the output column that it leads to, pixels), of those a stride apart."""
        layer, width = self.layer, self.x.width
        for phase in range(min(layer.stride, width)):
            tap = (phase + layer.padding) % layer.stride
            taps = -(-(layer.kernel - tap) // layer.stride) if tap < layer.kernel else 0
            yield [phase, tap, taps, (phase + layer.padding) // layer.stride, -(-(width - phase) // layer.stride)]

    def _borders(self) -> tuple[int, int]:
        """Columns of zeros that the way back to the input reads left and right of the gradient."""
        if self.x_grad is None:
            return 0, 0
        reach = [(column - taps + 1, column + pixels) for _, _, taps, column, pixels in self._phases() if taps]
        return max(0, -min(low for low, _ in reach)), max(0, max(high for _, high in reach) - self.out.width)


class LinearStage:
    """A fully connected layer, perhaps with ReLU. Its output is a plane of one pixel.

    A group leaves two factors, its inputs and the gradients of its outputs; the weights' gradient is their product over
    all images, made once: it is larger than both, and would come from another thread's cache.
    """

    def __init__(
        self, name: str, layer: Linear, relu: bool, x: Plane, x_grad: Plane | None, out: Plane, arena: Arena,
        factors: Arena, parameters: Parameters,
    ) -> None:  # fmt: skip
        self.name, self.layer, self.relu, self.x, self.x_grad, self.out = name, layer, relu, x, x_grad, out
        self.pitch = layout.linear_pitch(layer.outputs)
        self.weight = parameters.slot(f"{name}.weight", layer.inputs, self.pitch)
        self.bias = parameters.slot(f"{name}.bias", layer.outputs)
        self.zero = parameters.zero
        self.order = x.canonical_order()
        self.out_grad = arena.plane(layer.outputs, 1, 1)
        self.lanes = out.pixel // FLOAT_BYTES
        self.kept = factors.take(layer.inputs * x.pixel)
        self.turned = factors.take(self.lanes * self.pitch * FLOAT_BYTES)

    def last_needed(self, row: int) -> int:
        return self.x.height - 1

    def forward(self, row: int, training: bool) -> Operations:
        layer, x, out = self.layer, self.x, self.out
        yield operation(
            "correlate", outer=1, middle=1, inner=layer.inputs,
            a_base=WEIGHTS, a=self.weight.bytes, a_inner=self.pitch * FLOAT_BYTES, a_row=FLOAT_BYTES,
            b=x.offset, b_inner=x.pixel, c_base=ACTIVATIONS, c=out.offset, c_row=out.pixel,
            bias_base=WEIGHTS, bias=self.bias.bytes, bias_row=FLOAT_BYTES, relu=int(self.relu),
            **layout.spread_tiles(layer.outputs, 1),
        )  # fmt: skip

    def backward(self) -> Operations:
        layer, x, grad, row = self.layer, self.x, self.out_grad, self.pitch * FLOAT_BYTES
        yield bias_gradient(grad, self.out, self.relu, self.bias)
        yield operation("keep", x=x.offset, out=self.kept, count=layer.inputs * self.lanes)
        yield operation("turn", x=grad.offset, out=self.turned, out_row=row, channels=layer.outputs, lanes=self.lanes)
        if self.x_grad is not None:
            yield from self._input_back(self.x_grad)

    def gather(self, groups: Groups) -> Operations:
        row, pixel = self.pitch * FLOAT_BYTES, self.out.pixel
        rows = max(1, layout.PIECE // self.pitch)
        for first in range(0, self.layer.inputs, rows):
            count = min(rows, self.layer.inputs - first)
            yield operation(
                "correlate", outer=groups.count, middle=1, inner=self.lanes,
                a_base=FACTORS, a=self.kept + first * pixel, a_outer=groups.factors_bytes, a_inner=FLOAT_BYTES,
                a_row=pixel, b=self.turned, b_outer=groups.factors_bytes, b_inner=row, b_pixel=pixel,
                c_base=GRADIENTS, c=self.weight.bytes + first * row, c_row=row, c_pixel=pixel,
                bias_base=WEIGHTS, bias=self.zero, **layout.spread_tiles(count, -(-self.layer.outputs // self.lanes)),
            )  # fmt: skip
        yield from sums(self.bias, groups)

    def to_lanes(self, weight: Array, there: Array) -> None:
        there[:, : self.layer.outputs] = weight[:, self.order].T

    def from_lanes(self, there: Array) -> Array:
        weight = np.empty((self.layer.outputs, self.layer.inputs), np.float32)
        weight[:, self.order] = there[:, : self.layer.outputs].T
        return weight

    def _input_back(self, x_grad: Plane) -> Operations:
        """All at once where the gradient has no gaps, else row by row of each channel."""
        if x_grad.is_plain:
            yield self._pixels_back(0, self.layer.inputs, x_grad.offset, x_grad.pixel)
            return
        for row in range(x_grad.height):
            for channel in range(x_grad.channels):
                first = (row * x_grad.channels + channel) * x_grad.width
                yield self._pixels_back(first, x_grad.width, x_grad.at(row, channel), x_grad.pixel)

    def _pixels_back(self, first: int, count: int, there: int, pixel: int) -> list[int]:
        row = self.pitch * FLOAT_BYTES
        return operation(
            "correlate", outer=1, middle=1, inner=self.layer.outputs,
            a_base=WEIGHTS, a=self.weight.bytes + first * row, a_inner=FLOAT_BYTES, a_row=row,
            b=self.out_grad.offset, b_inner=pixel, c_base=ACTIVATIONS, c=there, c_row=pixel,
            bias_base=WEIGHTS, bias=self.zero, **layout.spread_tiles(count, 1),
        )  # fmt: skip
