"""The steps of a planned residual network: batch normalisation with a shortcut added, and where a block begins.

Legend: N image, C channel.
"""

from __future__ import annotations

import numpy as np

from mlcore.kernels import plane_norm
from mlcore.kernels.panels import Move
from mlcore.kernels.plane_norm import Scaling
from mlcore.layers import BatchNorm2d
from mlcore.planned import layout
from mlcore.planned.layout import Planes
from mlcore.planned.stages import NO_FLOOR, Bias, Weightless, Weights
from mlcore.rng import Rng
from mlcore.tensor import Array


class BatchNormStage:
    """Batch normalisation; then `side`, the shortcut of a residual block, is added; then perhaps ReLU.

    The running mean and variance are the layer's own, moved in place.
    """

    def __init__(
        self, name: str, layer: BatchNorm2d, relu: bool, x: Planes, x_grad: Planes, side: Planes | None, out: Planes
    ) -> None:
        self.name, self.layer, self.relu, self.x, self.x_grad, self.out = name, layer, relu, x, x_grad, out
        images, shape = x.array.shape[1], (out.channels, out.grid.height, out.grid.width)
        self.side = side or layout.plane(0, *shape, precision=x.precision)
        self.floor = 0.0 if relu else NO_FLOOR
        self.out_grad = layout.plane(images, *shape, precision=x.precision)
        self.weight, self.bias = Bias(layer.channels, 1), Bias(layer.channels, 1)
        self.mean, self.inverse = np.zeros(layer.channels), np.ones(layer.channels)
        self._sums = np.zeros((2, images, layer.channels), np.float32)

    def forward(self, images: int, rng: Rng | None) -> None:
        self.mean, variance = self._running() if rng is None else self._of_batch(images)
        self.inverse = 1 / np.sqrt(variance + self.layer.epsilon)
        scale = self.weight.values * self.inverse
        scaling = Scaling(*self._rows(self.mean, scale, self.bias.values))
        plane_norm.normalise(
            self.x.array, scaling, self.side.array, self.side.grid, self.floor, self.out.array, self.out.grid, images
        )

    def backward(self, images: int) -> None:
        (mean,) = self._rows(self.mean)
        plain, weighed = plane_norm.slopes(
            self.out_grad.array, self.x.array, mean, self.relu, self.out.array, self.out.grid, images, self._sums
        )
        self.bias.sums[0], self.weight.sums[0] = plain, weighed * self.inverse
        values = images * self.x.grid.height * self.x.grid.width
        scale = self.weight.values * self.inverse
        slope = -scale * self.inverse**2 * weighed / values
        shift = -scale * plain / values
        scaling, (row,) = Scaling(*self._rows(self.mean, scale, shift)), self._rows(slope)
        plane_norm.to_input(
            self.out_grad.array, self.x.array, scaling, row, self.x_grad.array, self.x_grad.grid, images
        )

    def update(self, images: int, moves: dict[str, Move]) -> None:
        self.weight.update(1, moves["weight"])
        self.bias.update(1, moves["bias"])

    def gradients(self, images: int) -> list[Array]:
        return [self.weight.gradient(1), self.bias.gradient(1)]

    def move(self, moves: dict[str, Move]) -> None:
        self.update(1, moves)

    def take(self, weights: Weights, velocities: Weights) -> None:
        for part, name in ((self.weight, "weight"), (self.bias, "bias")):
            part.values[:], part.velocity[:] = weights[name], velocities[name]

    def give(self) -> tuple[Weights, Weights]:
        parts = {"weight": self.weight, "bias": self.bias}
        return (
            {name: part.values.copy() for name, part in parts.items()},
            {name: part.velocity.copy() for name, part in parts.items()},
        )

    def _rows(self, *factors_C: Array) -> list[Array]:
        return [plane_norm.along_row(factors, self.x.grid.width) for factors in factors_C]

    def _running(self) -> tuple[Array, Array]:
        return self.layer.running_mean.data.astype(np.float64), self.layer.running_variance.data.astype(np.float64)

    def _of_batch(self, images: int) -> tuple[Array, Array]:
        """The batch's mean and variance, towards which the running ones move."""
        mean, variance = plane_norm.moments(self.x.array, images, self._sums)
        values = images * self.x.grid.height * self.x.grid.width
        unbiased = variance * values / max(values - 1, 1)
        for running, seen in ((self.layer.running_mean, mean), (self.layer.running_variance, unbiased)):
            running.data[:] = (1 - self.layer.momentum) * running.data + self.layer.momentum * seen
        return mean, variance


class BlockStage(Weightless):
    """Where a residual block begins. Going back, the shortcut's gradient `side_grad` joins that of the body."""

    def __init__(self, name: str, x: Planes, x_grad: Planes | None, side_grad: Planes) -> None:
        self.name, self.out, self.x_grad, self.side_grad = name, x, x_grad, side_grad
        self.out_grad = side_grad

    def forward(self, images: int, rng: Rng | None) -> None:
        """Both branches read the same planes."""

    def backward(self, images: int) -> None:
        if self.x_grad is not None:
            side = self.side_grad
            plane_norm.add_planes(side.array, side.grid, self.x_grad.array, self.x_grad.grid, images)
