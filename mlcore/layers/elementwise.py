"""Layers that treat each number by itself, and Flatten, which only looks at them otherwise."""

from __future__ import annotations

import math

from mlcore import ops
from mlcore.errors import RecipeError
from mlcore.layers.base import Layer, Shape
from mlcore.rng import Rng
from mlcore.tensor import Tensor


class ReLU(Layer):
    """max(x, 0)."""

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.relu(x)


class Tanh(Layer):
    """Hyperbolic tangent."""

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.tanh(x)


class Dropout(Layer):
    """Zero a share of the values in training, scale the rest up; the identity in evaluation."""

    def __init__(self, probability: float) -> None:
        if not 0 <= probability < 1:
            raise RecipeError(f"dropout of {probability}", fix="give a number in [0, 1)")
        self.probability = probability

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        return x if rng is None or self.probability == 0 else ops.dropout(x, self.probability, rng)


class Flatten(Layer):
    """[N, C, H, W] to [N, C * H * W]."""

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.flatten(x)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)
