"""A layer of the library between planes: whatever has no planned form of its own runs as on the tape.

So one unusual layer does not cost a network its plan: its input and its gradient are turned into the library's layout
and back, which takes a small part of what a convolution beside it does.
"""

from __future__ import annotations

import contextlib

import numpy as np

from mlcore import autograd, ops
from mlcore.kernels import panels, planes
from mlcore.kernels.panels import Move
from mlcore.layers import Layer
from mlcore.planned import layout
from mlcore.planned.layout import Planes, Pool
from mlcore.planned.stages import Weights
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor


class LibraryStage:
    """`layer`, and perhaps ReLU, on a tape of its own. Its weights and velocities are the library's, moved in place:
    `give` has none."""

    def __init__(
        self, name: str, layer: Layer, relu: bool, x: Planes, x_grad: Planes | None, out: Planes, pool: Pool
    ) -> None:
        self.name, self.layer, self.relu, self.x, self.x_grad, self.out = name, layer, relu, x, x_grad, out
        images, shape = x.array.shape[1], (out.channels, out.grid.height, out.grid.width)
        self.out_grad = layout.pooled_plane(images, *shape, out.precision, x_grad, pool)
        self._velocities: Weights = {}
        self._seen = self._made = Tensor(np.zeros(0, np.float32))

    def forward(self, images: int, rng: Rng | None) -> None:
        self._seen = Tensor(_images(self.x, images), requires_grad=self.x_grad is not None)
        with autograd.in_layer(self.name), contextlib.nullcontext() if rng else autograd.no_grad():
            made = self.layer(self._seen, rng.child(self.name) if rng else None)
            self._made = ops.relu(made) if self.relu else made
        planes.load_images(self._made.data, self.out.array, self.out.grid)

    def backward(self, images: int) -> None:
        for tensor in self.layer.parameters().values():
            tensor.grad = None
        if self._made.node is not None:
            autograd.backward(self._made, _images(self.out_grad, images))
        if self.x_grad is not None:
            assert self._seen.grad is not None, "it was wanted"
            planes.load_images(np.ascontiguousarray(self._seen.grad), self.x_grad.array, self.x_grad.grid)

    def update(self, images: int, moves: dict[str, Move]) -> None:
        for part, slope in zip(self.layer.parameters(), self.gradients(images), strict=True):
            weight, velocity = self.layer.parameters()[part].data, self._velocities[part]
            panels.move_weights(weight.reshape(-1), velocity.reshape(-1), slope.reshape(1, -1), moves[part])

    def gradients(self, images: int) -> list[Array]:
        found = []
        for tensor in self.layer.parameters().values():
            assert tensor.grad is not None, "backward comes first"
            tensor.grad = np.ascontiguousarray(tensor.grad)
            found.append(tensor.grad)
        return found

    def move(self, moves: dict[str, Move]) -> None:
        self.update(1, moves)

    def take(self, weights: Weights, velocities: Weights) -> None:
        self._velocities = velocities

    def give(self) -> tuple[Weights, Weights]:
        return {}, {}


def _images(there: Planes, count: int) -> Array:
    """[N, C, H, W] float32 of the first `count` images of planes."""
    images = np.empty((count, there.channels, there.grid.height, there.grid.width), np.float32)
    planes.unload_images(there.array, there.grid, images)
    return images
