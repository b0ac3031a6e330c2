"""What every layer can do, and what those with weights share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

from mlcore.errors import ShapeError
from mlcore.init import Draw, begin, initialiser
from mlcore.rng import Rng
from mlcore.tensor import Tensor

Shape = tuple[int, ...]
Traced = tuple[str, "Layer", Shape, Shape]  # name, layer, its input shape, its output shape


class Layer:
    """What every layer can do. The defaults are those of a layer without parameters that keeps the shape."""

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """The layer's output for a batch. `rng`: this step's stream in training, None in evaluation."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors by dotted name, in the order of the forward pass."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that training changes without a gradient, by dotted name: evaluation needs them."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers: all that makes the layer what it is, as checkpoints keep it."""
        return {**self.parameters(), **self.buffers()}

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of one output example; ShapeError if the layer can't take that input."""
        return input_shape

    def macs(self, input_shape: Shape) -> int:
        """Multiply-accumulates of the forward pass for one example; elementwise work is not counted."""
        return 0

    def unfolded(self, name: str, input_shape: Shape) -> Iterator[Traced]:
        """This layer under `name`; a container gives the layers inside it, by dotted names."""
        yield name, self, input_shape, self.output_shape(input_shape)


def convert(layer: Layer, dtype: DTypeLike) -> None:
    """Turn a layer's parameters and buffers into another float dtype, in place: float64 for gradient checks."""
    for tensor in layer.state().values():
        tensor.data, tensor.grad = tensor.data.astype(dtype), None


def parameter(name: str, shape: Shape, fan_in: int, fan_out: int, init: str, rng: Rng) -> Tensor:
    """A float32 parameter with its first values; ShapeError when it would be empty."""
    if min(shape) < 1:
        raise ShapeError(f"a {name} of shape {list(shape)} has nothing in it", fix="every size is at least 1")
    values = np.zeros(shape, np.float32)
    begin(Draw(values, initialiser(init), fan_in, fan_out, rng.child(name).generator()))
    return Tensor(values, requires_grad=True, name=name)


def want_planes(what: str, got: Shape, channels: int | None) -> None:
    """ShapeError unless `got` is (channels, height, width)."""
    if len(got) != 3 or (channels is not None and got[0] != channels):
        raise ShapeError(f"{what} got {list(got)}", fix=f"it wants [{channels or 'channels'}, height, width]")
