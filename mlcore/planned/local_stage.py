"""A locally connected layer on planes, in float32; its windows are one pixel apart.

Legend: S place, B block of V outputs, D = window * window * channels, V columns of a panel, O output, P Q place.
"""

from __future__ import annotations

import numpy as np

from mlcore.kernels import panels, plane_local, planes
from mlcore.kernels.panels import Move
from mlcore.kernels.plane_local import Windows
from mlcore.kernels.planes import CHUNK
from mlcore.layers import LocallyConnected2d
from mlcore.planned import layout
from mlcore.planned.layout import Planes, Pool
from mlcore.planned.stages import NO_FLOOR, Weights
from mlcore.rng import Rng
from mlcore.tensor import Array


class LocalStage:
    """Each place's own weights, biases, and perhaps ReLU. The panels [S, B, D, V] are moved and read as they lie."""

    def __init__(
        self,
        name: str,
        layer: LocallyConnected2d,
        relu: bool,
        x: Planes,
        x_grad: Planes | None,
        out: Planes,
        pool: Pool,
    ) -> None:
        self.name, self.layer, self.relu, self.x, self.x_grad, self.out = name, layer, relu, x, x_grad, out
        self.out_grad = layout.gradient_plane(out, 1, layer.kernel, 1, layer.padding, x, x_grad, pool)
        places, self.run = out.grid.height * out.grid.width, layer.kernel * x.channels
        self.windows = Windows(layer.kernel, x.grid.border - layer.padding)
        self.vectors = layout.panel_vectors(layer.outputs)
        shape = places, *layout.local_panels(layer.outputs, layer.kernel * self.run)
        self.weight, self.velocity, self.slope = (np.zeros(shape, np.float32) for _ in range(3))
        biases = shape[:2] + shape[3:]
        self.bias, self.bias_velocity, self.bias_slope = (np.zeros(biases, np.float32) for _ in range(3))
        self._sums = np.zeros((-(-x.array.shape[1] // CHUNK), layer.outputs), np.float32)
        if x_grad is not None:
            pixels = x_grad.grid.height * x_grad.grid.width
            back = pixels, *layout.local_panels(x.channels, layer.kernel**2 * layer.outputs)
            self.turned, self.nothing = np.zeros(back, np.float32), np.zeros(back[:2] + back[3:], np.float32)

    def forward(self, images: int, rng: Rng | None) -> None:
        tiles, floor = layout.tiles(images, self.vectors), 0.0 if self.relu else NO_FLOOR
        plane_local.forward(
            self.x.array[0], self.windows, self.weight, self.bias, tiles, floor, self.out.array[0], self.out.grid
        )

    def backward(self, images: int) -> None:
        grad, out = self.out_grad, self.out
        if self.relu:
            planes.relu_and_bias_gradient(grad.array, grad.grid, out.array, out.grid, True, self._sums, images)
        tiles = layout.tiles(self.run, self.vectors)
        plane_local.weight_gradient(
            self.x.array[0], self.windows, grad.array[0], grad.grid, tiles, images, self.slope, self.bias_slope
        )
        if self.x_grad is not None:
            layout.clear_border(grad)
            self._gradient_of_input(self.x_grad, images)

    def _gradient_of_input(self, x_grad: Planes, images: int) -> None:
        plane_local.turn_weights(self.weight, self.out.grid.width, self.layer.padding, self.layer.outputs, self.turned)
        tiles = layout.tiles(images, layout.panel_vectors(x_grad.channels))
        plane_local.forward(
            self.out_grad.array[0], Windows(self.layer.kernel, 0), self.turned, self.nothing, tiles, NO_FLOOR,
            x_grad.array[0], x_grad.grid,
        )  # fmt: skip

    def update(self, images: int, moves: dict[str, Move]) -> None:
        self.move(moves)

    def gradients(self, images: int) -> list[Array]:
        return [self.slope, self.bias_slope]

    def move(self, moves: dict[str, Move]) -> None:
        for part, values, velocity, slope in (
            ("weight", self.weight, self.velocity, self.slope),
            ("bias", self.bias, self.bias_velocity, self.bias_slope),
        ):
            panels.move_weights(values.reshape(-1), velocity.reshape(-1), slope.reshape(1, -1), moves[part])

    def take(self, weights: Weights, velocities: Weights) -> None:
        for given, values, biases in (
            (weights, self.weight, self.bias),
            (velocities, self.velocity, self.bias_velocity),
        ):
            values[:] = layout.local_to_plan(given["weight"], values.shape[3])
            biases[:] = layout.local_biases_to_plan(given["bias"], biases.shape[2])

    def give(self) -> tuple[Weights, Weights]:
        shapes = self.layer.weight.shape, self.layer.bias.shape
        weights, velocities = (
            {
                "weight": layout.local_from_plan(values, shapes[0]),
                "bias": layout.local_biases_from_plan(biases, shapes[1]),
            }
            for values, biases in ((self.weight, self.bias), (self.velocity, self.bias_velocity))
        )
        return weights, velocities
