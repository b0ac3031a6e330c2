"""Convolutions of a plan that go Winograd's way, in the directions in which it pays.

`chosen` is the rule, with the numbers behind it; `WinogradConvStage` is a ConvStage that follows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numba
import numpy as np

from mlcore.kernels import winograd
from mlcore.kernels.cook_toom import algorithm, transposed
from mlcore.kernels.panels import Tiles
from mlcore.kernels.planes import CHUNK, Grid
from mlcore.kernels.precision import BF16, FP32, Precision
from mlcore.kernels.winograd import Cut, Ways
from mlcore.layers import Conv2d
from mlcore.planned import layout
from mlcore.planned.layout import Blocks, Planes, Pool
from mlcore.planned.stages import NO_FLOOR, ConvStage
from mlcore.rng import Rng
from mlcore.tensor import Array

# Points at which polynomials meet, by how many there are with infinity. Of the many that were tried, these keep most
# digits: against the usual 0, 1, -1, 2, -2 the largest error falls from 1.3e-5 of the maximum to 4e-6. Of the eight,
# eleven choices were tried.
HALF = Fraction(1, 2)
POINTS = {
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(1), Fraction(-1), HALF, Fraction(-2)),
    7: (Fraction(0), Fraction(1), Fraction(-1), HALF, Fraction(-2, 3), Fraction(3)),
    8: (Fraction(0), Fraction(1), Fraction(-1), HALF, -HALF, Fraction(2), Fraction(-2)),
}
TILES = 64  # in a turn, forward: enough to use the weights' points for, few enough to stay in the cache
TOGETHER = 2  # blocks of panels in a turn: no slower than 4, and takes less memory
# Of either side of a group, by kernel. alexnet_small's conv2, of 24 channels to 64, takes 32 to 35 ms instead of 50; a
# step of resnet_small, which begins with sixteen, would take 1.27 times as long (batch 64 and 128, two threads, AVX2).
LEAST_CHANNELS = {3: 32, 5: 24}
LEAST_SAVING = 1.7  # times fewer multiplications: a guess as well


@dataclass(frozen=True)
class Choice:
    """Outputs along a tile's side in each direction, 0: the direct way; and what points are multiplied as."""

    forward: int = 0
    to_input: int = 0
    to_weights: int = 0
    points: Precision = FP32


DIRECT = Choice()

# By kernel. How many times faster than the direct way (forward, to the input, to the weights), 16 images, one thread
# (best of some turns on a busy machine, and before some of these settings were final: a tenth or two either way):
# conv2 of AlexNet (by three outputs) 3.1, 4.0, 3.0; conv3 2.2, 2.2, 2.4; conv4 2.1, 1.5, 2.1; conv5 1.8, 1.9, 2.1.
# Largest error of conv2 to conv5 in parts of the largest value: forward 4e-6, to the input 6e-6, to the weights 4e-6
# (direct: 1e-6, 2e-6, 1e-6). Five outputs for kernels of three lose too many digits, but in sums over many pixels.
# On planes of bf16, points of kernels of three are rounded to bf16 too. Only two outputs are exact enough then: of the
# outputs' deviation the error's is 3.3e-3 (direct 1.6e-3; three outputs 1.1e-2 and four 1.4e-2, whatever the points).
# Kernels of five keep float32 points. AlexNet's step in bf16, ms of all directions: conv2 from 410 to 239, conv3 289 to
# 211, conv4 215 to 160, conv5 148 to 105.
BY_KERNEL = {
    "fp32": {3: Choice(4, 4, 5), 5: Choice(4, 4, 4)},
    "bf16": {3: Choice(2, 2, 2, BF16), 5: Choice(4, 4, 4)},
}


def chosen(layer: Conv2d, height: int, width: int, precision: Precision = FP32) -> Choice:
    """The way for a convolution whose output is height x width."""
    channels, outputs = layer.channels // layer.groups, layer.outputs // layer.groups
    usual = BY_KERNEL[precision.name].get(layer.kernel)
    if usual is None or layer.stride != 1 or min(channels, outputs) < LEAST_CHANNELS[layer.kernel]:
        return DIRECT
    sides = height, width
    back = height + layer.kernel - 1 - 2 * layer.padding, width + layer.kernel - 1 - 2 * layer.padding
    least = LEAST_SAVING * precision.per_word / usual.points.per_word  # pairs are multiplied as fast as floats
    choice = Choice(
        usual.forward if _saving(usual.forward, layer.kernel, *sides) >= least else 0,
        usual.to_input if _saving(usual.to_input, layer.kernel, *back) >= least else 0,
        usual.to_weights if _saving(usual.to_weights, layer.kernel, *sides) >= least else 0,
        usual.points,
    )
    return choice if choice.forward or choice.to_input or choice.to_weights else DIRECT


def _saving(outputs: int, kernel: int, height: int, width: int) -> float:
    """How many times fewer multiplications."""
    tiles = -(-height // outputs) * -(-width // outputs)
    return height * width * kernel**2 / (tiles * (outputs + kernel - 1) ** 2)


class Space:
    """Room for points: of the weights, and of images, where each thread has its own.

    All stages of a plan share it, since one works at a time; points of the weights are made when they are needed.
    """

    def __init__(self) -> None:
        self._size, self._images = 0, np.empty((0, 0), np.float32)
        self._weights = np.empty(0, np.float32)

    def ask(self, numbers: int, weights: int = 0) -> None:
        """Each thread will need so many numbers for images, all together so many for weights."""
        self._size = max(self._size, numbers)
        if weights > self._weights.size:
            self._weights = np.empty(weights, np.float32)

    @property
    def images(self) -> Array:
        """[threads, numbers]"""
        shape = numba.get_num_threads(), self._size
        if self._images.shape != shape:
            self._images = np.empty(shape, np.float32)
        return self._images

    def weights(self, shape: tuple[int, ...]) -> Array:
        return self._weights[: math.prod(shape)].reshape(shape)


def _transform(outputs: int, taps: int, which: str, read: Precision = FP32, written: Precision = FP32) -> int:
    """One transform of F(outputs, taps), compiled when it is first asked for."""
    known = algorithm(outputs, POINTS[outputs + taps - 1], taps)
    matrix = {
        "image": known.inputs,
        "weight": known.taps,
        "output": known.outputs,
        "gradient": transposed(known.outputs),
        "taps": transposed(known.taps),
    }[which]
    return layout.transform(matrix, which == "output", read, written)


class _Correlation:
    """A convolution from planes to planes."""

    def __init__(
        self, outputs: int, kernel: int, points: Precision, blocks: Blocks, x: Planes, out: Grid, space: Space
    ) -> None:
        side, words = outputs + kernel - 1, points.words(x.per_group)
        down, across = -(-out.height // outputs), -(-out.width // outputs)
        together = min(TOGETHER, len(blocks.spans) // x.groups)
        self.kernel, self.precision, self.blocks, self.x = kernel, points, blocks, x
        self.cut = Cut(side, outputs, down, across, -(-TILES // across), together, points.per_word)
        self.points = side**2, len(blocks.spans), words, blocks.columns
        self.space = space
        space.ask(winograd.correlation_room(self.cut, words, blocks.columns), math.prod(self.points))
        self.into_weight = _transform(outputs, kernel, "weight", written=points)
        into = _transform(outputs, kernel, "image", x.precision, points)
        self.ways = Ways(into, _transform(outputs, kernel, "output", written=x.precision))

    def run(self, panels: Array, start: Array, floor: float, out: Planes, images: int) -> None:
        points = self.space.weights(self.points).view(self.precision.word)
        winograd.weight_points(panels, self.kernel, self.into_weight, self.precision, points)
        rows = images * self.cut.down
        whole, rest = (self._tiles(count) for count in (self.cut.rows, rows % self.cut.rows or self.cut.rows))
        winograd.convolve(
            self.x.array, points, start, self.blocks.table, self.cut, self.ways, whole, rest, floor,
            out.array, out.grid, self.space.images, images,
        )  # fmt: skip

    def _tiles(self, rows: int) -> Tiles:
        return layout.tiles(rows * self.cut.across, self.blocks.vectors, self.precision)


class _WeightGradient:
    """The direction from planes and gradients to weights."""

    def __init__(
        self, outputs: int, kernel: int, points: Precision, blocks: Blocks, x: Planes, grad: Planes, space: Space
    ) -> None:
        side, grid = outputs + kernel - 1, grad.grid
        down, across = -(-grid.height // outputs), -(-grid.width // outputs)
        # A turn reads and writes points of both sides once for each tile, and of the product once in all.
        tiles = 2 * x.per_group * grad.per_group // (x.per_group + grad.per_group)
        rows = min(CHUNK * down, -(-tiles // across))
        self.blocks, self.x, self.grad = blocks, x, grad
        together = min(TOGETHER, len(blocks.spans))
        self.cut = Cut(side, outputs, down, across, rows, together, points.per_word)
        self.space = space
        space.ask(winograd.gradient_room(self.cut, x.per_group, blocks.columns))
        self.tiles = layout.tiles(x.per_group, blocks.vectors, points)
        into = _transform(outputs, kernel, "image", x.precision, points)
        self.ways = Ways(into, _transform(outputs, kernel, "taps"))
        self.grad_into = _transform(outputs, kernel, "gradient", grad.precision, points)

    def run(self, sums: Array, images: int) -> None:
        winograd.weight_gradient(
            self.x.array, self.grad.array, self.grad.grid, self.blocks.table, self.cut, self.ways, self.grad_into,
            self.tiles, self.blocks.columns, sums, self.space.images, images,
        )  # fmt: skip


class WinogradConvStage(ConvStage):
    """Convolution, bias and perhaps ReLU; `choice` says which directions go Winograd's way."""

    def __init__(
        self,
        name: str,
        layer: Conv2d,
        relu: bool,
        x: Planes,
        x_grad: Planes | None,
        out: Planes,
        choice: Choice,
        space: Space,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(name, layer, relu, x, x_grad, out, pool)
        how = layer.kernel, choice.points
        self.space, self.ahead, self.back_to_input, self.to_weights = space, None, None, None
        if choice.forward:
            self.ahead = _Correlation(choice.forward, *how, self.blocks, x, out.grid, space)
            self.panels = self._float_panels(self.blocks, self.channels)
        if choice.to_input and x_grad is not None:
            self.back_to_input = _Correlation(choice.to_input, *how, self.back, self.out_grad, x_grad.grid, space)
            self.back_panels = self._float_panels(self.back, self.outputs)
        if choice.to_weights:
            self.to_weights = _WeightGradient(choice.to_weights, *how, self.gradient, x, self.out_grad, space)

    def _float_panels(self, blocks: Blocks, channels: int) -> Array:
        """Weights before they are made into points are not rounded."""
        return layout.conv_panels(blocks, self.layer.kernel, self.layer.kernel * channels, FP32)

    def forward(self, images: int, rng: Rng | None) -> None:
        if self.ahead is None:
            super().forward(images, rng)
        else:
            self.ahead.run(self.panels, self.start, self.floor, self.out, images)

    def _gradient_of_weights(self, sums: Array, images: int) -> None:
        if self.to_weights is None:
            super()._gradient_of_weights(sums, images)
        else:
            self.to_weights.run(sums, images)

    def _gradient_of_input(self, x_grad: Planes, images: int) -> None:
        if self.back_to_input is None:
            super()._gradient_of_input(x_grad, images)
        else:
            self.back_to_input.run(self.back_panels, self.back_start, NO_FLOOR, x_grad, images)
