"""The steps of a planned network: each owns its weights and buffers and knows the way forward, back, and the update.

Stages are wired when they are made: one's output planes are the next one's input, and the gradient comes back into
planes that the one before has prepared. Calls take how many images of the batch are there.

Legend: N image, I input, O output.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from mlcore.kernels import elementwise, panels, plane_pool, plane_weights, planes
from mlcore.kernels.panels import Move
from mlcore.kernels.planes import CHUNK, Walk
from mlcore.kernels.precision import FP32
from mlcore.kernels.response import Response
from mlcore.layers import Conv2d, Linear
from mlcore.planned import layout
from mlcore.planned.layout import Blocks, Planes, Pool
from mlcore.planned.linear_layout import LinearPanels, LinearRoom
from mlcore.rng import Rng
from mlcore.tensor import Array

Weights = dict[str, Array]
NO_FLOOR = -math.inf


class Stage(Protocol):
    """What the plan asks of each stage."""

    name: str
    out: Planes
    out_grad: Planes

    def forward(self, images: int, rng: Rng | None) -> None:
        """Fill `out`. rng: this step's stream in training, None in evaluation."""

    def backward(self, images: int) -> None:
        """From `out_grad`, fill the gradient of the input and of the weights."""

    def update(self, images: int, moves: dict[str, Move]) -> None:
        """Move the weights; moves are by parameter: weight, bias."""

    def gradients(self, images: int) -> list[Array]:
        """The weights' gradients themselves: what is put there (their sums over several processes) `move` moves by."""

    def move(self, moves: dict[str, Move]) -> None:
        """Move the weights by what `gradients` gave."""

    def take(self, weights: Weights, velocities: Weights) -> None:
        """Load weights and velocities in the library's own layout, by parameter."""

    def give(self) -> tuple[Weights, Weights]:
        """Copies of weights and velocities in the library's own layout."""


class Bias:
    """A bias (or any parameter of one number per channel) with its velocity, and the sums of its gradient per chunk of
    images."""

    def __init__(self, size: int, images: int) -> None:
        self.values, self.velocity = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self.sums = np.zeros((-(-images // CHUNK), size), np.float32)

    def collect(self, out_grad: Planes, out: Planes, relu: bool, images: int) -> None:
        """Undo the ReLU of `out` in its gradient, and sum the gradient over pixels."""
        planes.relu_and_bias_gradient(out_grad.array, out_grad.grid, out.array, out.grid, relu, self.sums, images)

    def gradient(self, images: int) -> Array:
        """The sum over all chunks, in the first one's place: `update` is for one image then."""
        sums = self.sums[: -(-images // CHUNK)]
        sums[0] = np.add.reduce(sums, axis=0)  # chunk after chunk
        first: Array = sums[0]
        return first

    def update(self, images: int, move: Move) -> None:
        panels.move_weights(self.values, self.velocity, self.sums[: -(-images // CHUNK)], move)


class ConvStage:
    """Convolution, bias and perhaps ReLU, on planes."""

    def __init__(
        self,
        name: str,
        layer: Conv2d,
        relu: bool,
        x: Planes,
        x_grad: Planes | None,
        out: Planes,
        pool: Pool | None = None,
    ) -> None:
        self.name, self.layer, self.x, self.x_grad, self.out = name, layer, x, x_grad, out
        images, groups = x.array.shape[1], layer.groups
        self.precision = x.precision
        self.relu, self.channels, self.outputs = relu, layer.channels // groups, layer.outputs // groups
        self.floor = 0.0 if relu else NO_FLOOR
        how = layer.kernel, layer.stride, layer.padding
        self.pool, self.pooled = pool or Pool(), False
        self.out_grad = layout.gradient_plane(out, groups, *how, x, x_grad, self.pool)
        run = layer.kernel * self.channels
        self.weight = np.zeros((groups, layer.kernel, run, self.outputs), np.float32)
        self.velocity = np.zeros_like(self.weight)
        self.slope = np.zeros_like(self.weight)
        self.bias = Bias(layer.outputs, images)
        self._plan_forward(run)
        self.gradient = layout.gradient_blocks(self.outputs, run, self.precision)
        if x_grad is not None:
            self._plan_back(x_grad)

    def _plan_forward(self, run: int) -> None:
        self.blocks = layout.correlation_blocks(self.outputs, self.layer.groups, self.out)
        first = self.x.grid.border - self.layer.padding
        self.walk = self._walk(run, self.layer.stride, first, self.blocks)
        self.panels = layout.conv_panels(self.blocks, self.layer.kernel, run, self.precision)

    def _plan_back(self, x_grad: Planes) -> None:
        run = self.layer.kernel * self.outputs
        self.back = layout.correlation_blocks(self.channels, self.layer.groups, x_grad)
        self.back_walk = self._walk(run, 1, 0, self.back)
        self.back_panels = layout.conv_panels(self.back, self.layer.kernel, run, self.precision)
        self.back_start = np.zeros((len(self.back.spans), self.back.columns), np.float32)

    def _walk(self, run: int, stride: int, first: int, blocks: Blocks) -> Walk:
        kernel, words = self.layer.kernel, self.precision.words(run)
        return Walk(kernel, run, words, stride, first, blocks.together(kernel * words))

    def forward(self, images: int, rng: Rng | None) -> None:
        planes.correlate(
            self.x.array, self.panels, self.start, self.blocks.table, self.walk, self.floor,
            self.out.array, self.out.grid, images,
        )  # fmt: skip

    def backward(self, images: int) -> None:
        if not self.pooled:
            self.collect(self.out_grad, self.out, images)
        sums = self.pool.sums((-(-images // CHUNK), *self.weight.shape))
        self._gradient_of_weights(sums, images)
        np.add.reduce(sums, axis=0, out=self.slope)  # chunk after chunk
        if self.x_grad is not None:
            layout.clear_border(self.out_grad)
            self._gradient_of_input(self.x_grad, images)

    def collect(self, out_grad: Planes, out: Planes, images: int) -> None:
        """Undo the ReLU and sum up the bias's gradient: of the output itself, or of its largest that were pooled."""
        if self.relu or self.layer.bias:
            self.bias.collect(out_grad, out, self.relu, images)

    def _gradient_of_weights(self, sums: Array, images: int) -> None:
        grad = self.out_grad
        plane_weights.weight_gradient(self.x.array, grad.array, grad.grid, self.gradient.table, self.walk, sums, images)

    def _gradient_of_input(self, x_grad: Planes, images: int) -> None:
        planes.correlate(
            self.out_grad.array, self.back_panels, self.back_start, self.back.table, self.back_walk, NO_FLOOR,
            x_grad.array, x_grad.grid, images,
        )  # fmt: skip

    def update(self, images: int, moves: dict[str, Move]) -> None:
        slope = self.slope.reshape(1, -1)
        panels.move_weights(self.weight.reshape(-1), self.velocity.reshape(-1), slope, moves["weight"])
        if self.layer.bias:
            self.bias.update(images, moves["bias"])
        self._pack()

    def gradients(self, images: int) -> list[Array]:
        return [self.slope, self.bias.gradient(images)] if self.layer.bias else [self.slope]

    def move(self, moves: dict[str, Move]) -> None:
        self.update(1, moves)

    def take(self, weights: Weights, velocities: Weights) -> None:
        self.weight[:] = layout.conv_to_plan(weights["weight"], self.layer.groups)
        self.velocity[:] = layout.conv_to_plan(velocities["weight"], self.layer.groups)
        if self.layer.bias:
            self.bias.values[:], self.bias.velocity[:] = weights["bias"], velocities["bias"]
        self._pack()

    def give(self) -> tuple[Weights, Weights]:
        weight, velocity = (layout.conv_from_plan(a, self.channels) for a in (self.weight, self.velocity))
        if not self.layer.bias:
            return {"weight": weight}, {"weight": velocity}
        return (
            {"weight": weight, "bias": self.bias.values.copy()},
            {"weight": velocity, "bias": self.bias.velocity.copy()},
        )

    def _pack(self) -> None:
        """The weights as the kernels read them."""
        planes.pack_panels(self.weight, self.blocks.spans, self.panels)
        self.start = self.blocks.padded(self.bias.values, self.outputs)
        if self.x_grad is not None:
            planes.pack_turned_panels(self.weight, self.channels, self.back.spans, self.back_panels)


class Weightless:
    """What a stage without weights has to do about them."""

    def update(self, images: int, moves: dict[str, Move]) -> None:
        """There is nothing to move."""

    def gradients(self, images: int) -> list[Array]:
        return []

    def move(self, moves: dict[str, Move]) -> None:
        """There is nothing to move."""

    def take(self, weights: Weights, velocities: Weights) -> None:
        """There is nothing to take."""

    def give(self) -> tuple[Weights, Weights]:
        return {}, {}


class MaxPoolStage(Weightless):
    """Local response normalisation (or none) and max pooling in one pass.

    Right behind a convolution, `conv`, its ReLU is undone here, where there are fewer numbers.
    """

    conv: ConvStage | None = None

    def __init__(
        self,
        name: str,
        size: int,
        stride: int,
        padding: int,
        response: Response,
        x: Planes,
        x_grad: Planes | None,
        out: Planes,
        pool: Pool,
    ) -> None:
        self.name, self.size, self.stride, self.padding, self.response = name, size, stride, padding, response
        self.x, self.x_grad, self.out = x, x_grad, out
        images, channels, height, width = x.array.shape[1], out.channels, out.grid.height, out.grid.width
        self.out_grad = layout.pooled_plane(images, channels, height, width, out.precision, x_grad, pool)
        self.winner = np.zeros((images, height, width, channels), np.uint8)

    def forward(self, images: int, rng: Rng | None) -> None:
        plane_pool.max_pool_forward(
            self.x.array,
            self.response,
            self.size,
            self.stride,
            self.padding,
            self.out.array,
            self.out.grid,
            self.winner,
            images,
        )

    def follow(self, before: Stage | None) -> None:
        """Take over what can be done for the stage before."""
        if isinstance(before, ConvStage) and self.response.size == 0:
            self.conv, before.pooled = before, True

    def backward(self, images: int) -> None:
        if self.conv is not None:
            self.conv.collect(self.out_grad, self.out, images)
        if self.x_grad is not None:
            plane_pool.max_pool_backward(
                self.out_grad.array, self.winner, self.x.array, self.response, self.size, self.stride, self.padding,
                self.x_grad.array, self.x_grad.grid, images,
            )  # fmt: skip


class AvgPoolStage(Weightless):
    """Average pooling."""

    def __init__(
        self,
        name: str,
        size: int,
        stride: int,
        padding: int,
        x: Planes,
        x_grad: Planes | None,
        out: Planes,
        pool: Pool,
    ) -> None:
        self.name, self.size, self.stride, self.padding = name, size, stride, padding
        self.x, self.x_grad, self.out = x, x_grad, out
        images = x.array.shape[1]
        shape = out.channels, out.grid.height, out.grid.width
        self.out_grad = layout.pooled_plane(images, *shape, out.precision, x_grad, pool)

    def forward(self, images: int, rng: Rng | None) -> None:
        plane_pool.avg_pool_forward(
            self.x.array, self.size, self.stride, self.padding, self.out.array, self.out.grid, images
        )

    def backward(self, images: int) -> None:
        if self.x_grad is not None:
            plane_pool.avg_pool_backward(
                self.out_grad.array, self.size, self.stride, self.padding, self.x_grad.array, self.x_grad.grid, images
            )


class DropoutStage(Weightless):
    """Dropout, in place: the same mask as the tape's, from the same stream, whatever order the numbers lie in."""

    def __init__(self, name: str, probability: float, x: Planes, x_grad: Planes | None) -> None:
        self.name, self.probability, self.out = name, probability, x
        self.out_grad = x if x_grad is None else x_grad
        self.order, self.seed, self.before = x.canonical_order(), -1, 0

    def forward(self, images: int, rng: Rng | None) -> None:
        self.seed = -1 if rng is None else elementwise.dropout_seed(rng.child(self.name).generator())
        if rng is not None:
            self.before, rows = rng.before, self.out.rows(images)
            elementwise.dropout(rows, rows, self.order, self.probability, self.seed, self.before)

    def backward(self, images: int) -> None:
        rows = self.out_grad.rows(images)
        elementwise.dropout(rows, rows, self.order, self.probability, self.seed, self.before)


class LinearStage:
    """A fully connected layer, perhaps with ReLU. Its output is planes of one pixel; the network's own are float32."""

    def __init__(self, name: str, layer: Linear, relu: bool, x: Planes, x_grad: Planes | None, last: bool) -> None:
        self.name, self.layer, self.relu, self.x, self.x_grad = name, layer, relu, x, x_grad
        images, self.precision = x.array.shape[1], x.precision
        self.floor = 0.0 if relu else NO_FLOOR
        kept = FP32 if last else self.precision
        self.out = layout.plane(images, layer.outputs, 1, 1, precision=kept)
        self.out_grad = layout.plane(images, layer.outputs, 1, 1, precision=kept)
        self.panels = LinearPanels(layer, x.canonical_order(), self.precision)
        self.bias = Bias(layer.outputs, images)
        self._room = LinearRoom(self.panels, images)
        if x_grad is not None:  # a convolution's output wants its gradient within a border
            rows = images, layer.inputs
            self._spread = x_grad.rows(images) if x_grad.is_plain else np.empty(rows, self.precision.dtype)

    def forward(self, images: int, rng: Rng | None) -> None:
        tiles = layout.tiles(images, self.panels.vectors, self.precision)
        out, weight = self.out.rows(images), self.panels.by_input
        sums = out if out.dtype == np.float32 else self._room.sums(images)
        panels.forward(self.x.rows(images), weight, self.start, tiles, self.floor, sums)
        if sums is not out:
            panels.copy_rows(sums, out)

    def backward(self, images: int) -> None:
        self.bias.collect(self.out_grad, self.out, self.relu, images)
        by_output, by_image = self._room.gradients(images)
        panels.pack_gradient(self.out_grad.rows(images), by_output, by_image)
        if self.x_grad is not None:
            slopes, room = self._room.slopes(images), self.panels
            by_word = self._room.words(by_image)
            panels.to_input(room.by_output, by_word, room.tiles, room.nothing, slopes)
            panels.transpose(slopes[: self.layer.inputs], self._spread[:images])
            if not self.x_grad.is_plain:
                self.x_grad.put(self._spread[:images])

    def update(self, images: int, moves: dict[str, Move]) -> None:
        turned, (by_output, _) = self._room.turned(images), self._room.gradients(images)
        panels.transpose(self.x.rows(images), turned)
        self.panels.update(turned, self._room.words(by_output), moves["weight"])
        self.bias.update(images, moves["bias"])
        self._start()

    def gradients(self, images: int) -> list[Array]:
        turned, (by_output, _) = self._room.turned(images), self._room.gradients(images)
        panels.transpose(self.x.rows(images), turned)
        return [self.panels.gradient(turned, self._room.words(by_output)), self.bias.gradient(images)]

    def move(self, moves: dict[str, Move]) -> None:
        self.panels.move(moves["weight"])
        self.bias.update(1, moves["bias"])
        self._start()

    def take(self, weights: Weights, velocities: Weights) -> None:
        self.panels.take(weights["weight"], velocities["weight"])
        self.bias.values[:], self.bias.velocity[:] = weights["bias"], velocities["bias"]
        self._start()

    def give(self) -> tuple[Weights, Weights]:
        weight, velocity = self.panels.give()
        return (
            {"weight": weight, "bias": self.bias.values.copy()},
            {"weight": velocity, "bias": self.bias.velocity.copy()},
        )

    def _start(self) -> None:
        self.start = np.zeros(len(self.panels.weight) * self.panels.columns, np.float32)
        self.start[: self.layer.outputs] = self.bias.values
