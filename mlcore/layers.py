"""Layers: parameters, and the operation they go into.

A layer is called with a batch and an Rng (training) or None (evaluation: no dropout). Shapes given to and got from
`output_shape` leave the batch axis out: (channels, height, width) or (features,).

Legend: N batch, C channel, H W height and width, I input features, O output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from mlcore import ops
from mlcore.autograd import in_layer
from mlcore.errors import RecipeError, ShapeError
from mlcore.init import initialiser
from mlcore.rng import Rng
from mlcore.tensor import Tensor

Shape = tuple[int, ...]


class Layer:
    """What every layer can do. The defaults are those of a layer without parameters that keeps the shape."""

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        """The layer's output for a batch. `rng`: this step's stream in training, None in evaluation."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors by dotted name, in the order of the forward pass."""
        return {}

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of one output example; ShapeError if the layer can't take that input."""
        return input_shape

    def macs(self, input_shape: Shape) -> int:
        """Multiply-accumulates of the forward pass for one example; elementwise work is not counted."""
        return 0


class Linear(Layer):
    """x @ weight.T + bias; weight [O, I], bias [O]."""

    def __init__(self, inputs: int, outputs: int, rng: Rng, weights: str = "he", biases: str = "zeros") -> None:
        self.inputs, self.outputs = inputs, outputs
        self.weight = _parameter("weight", (outputs, inputs), inputs, outputs, weights, rng)
        self.bias = _parameter("bias", (outputs,), inputs, outputs, biases, rng)

    def __call__(self, x_NI: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.linear(x_NI, self.weight, self.bias)

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape != (self.inputs,):
            hint = ": put a Flatten before it" if math.prod(input_shape) == self.inputs else ""
            raise ShapeError(f"Linear got {list(input_shape)}", fix=f"it wants [{self.inputs}]{hint}")
        return (self.outputs,)

    def macs(self, input_shape: Shape) -> int:
        return self.inputs * self.outputs


class Conv2d(Layer):
    """Square cross-correlation; weight [O, C / groups, kernel, kernel], bias [O]."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel: int,
        rng: Rng,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        weights: str = "he",
        biases: str = "zeros",
    ) -> None:
        if groups < 1 or channels % groups or outputs % groups:
            raise ShapeError(
                f"Conv2d of {channels} to {outputs} channels can't be split in {groups} groups",
                fix="choose a number of groups that divides both",
            )
        self.channels, self.outputs, self.kernel = channels, outputs, kernel
        self.stride, self.padding, self.groups = stride, padding, groups
        fan_in, fan_out = channels // groups * kernel**2, outputs // groups * kernel**2
        shape = (outputs, channels // groups, kernel, kernel)
        self.weight = _parameter("weight", shape, fan_in, fan_out, weights, rng)
        self.bias = _parameter("bias", (outputs,), fan_in, fan_out, biases, rng)

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.conv2d(x_NCHW, self.weight, self.bias, self.stride, self.padding, self.groups)

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def output_shape(self, input_shape: Shape) -> Shape:
        _want_planes("Conv2d", input_shape, self.channels)
        return (self.outputs, *ops.conv_windows(input_shape[1:], self.kernel, self.stride, self.padding))

    def macs(self, input_shape: Shape) -> int:
        return math.prod(self.output_shape(input_shape)) * self.channels // self.groups * self.kernel**2


class _Pool(Layer):
    """What the two poolings share: square windows, `stride` equal to `size` unless given."""

    def __init__(self, size: int, stride: int | None = None, padding: int = 0) -> None:
        self.size, self.stride, self.padding = size, stride or size, padding

    def output_shape(self, input_shape: Shape) -> Shape:
        name = type(self).__name__
        _want_planes(name, input_shape, None)
        return (
            input_shape[0],
            *ops.pool_windows(name, input_shape[1:], self.size, self.stride, self.padding),
        )


class MaxPool2d(_Pool):
    """The largest value of each window."""

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.max_pool2d(x_NCHW, self.size, self.stride, self.padding)


class AvgPool2d(_Pool):
    """The mean of each window; padding counts as zeros."""

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.avg_pool2d(x_NCHW, self.size, self.stride, self.padding)


class LocalResponseNorm(Layer):
    """Damp each activation by its neighbouring channels: x / (k + factor * sum of x^2) ^ beta.

    size: channels wide, odd. alpha: the paper's factor; with `divided`, the convention of cuda-convnet, Caffe and
    PyTorch, in which the factor is alpha / size. Source: Krizhevsky et al. 2012, sec. 3.3.
    """

    def __init__(self, size: int, k: float, alpha: float, beta: float, divided: bool = False) -> None:
        if size < 1 or size % 2 == 0:
            raise RecipeError(f"a normalisation across {size} channels", fix="give an odd number")
        self.size, self.k, self.beta = size, k, beta
        self.factor = alpha / size if divided else alpha

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.local_response_norm(x_NCHW, self.size, self.k, self.factor, self.beta)

    def output_shape(self, input_shape: Shape) -> Shape:
        _want_planes("LocalResponseNorm", input_shape, None)
        return input_shape


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


class Sequential(Layer):
    """Named layers, one after the other. Names lead the parameters' ("C1.weight") and every error's place.

    With `input_shape` the whole chain is checked at once: a map that would shrink to 0x0 is an error here.
    """

    def __init__(self, layers: Sequence[tuple[str, Layer]], input_shape: Shape | None = None) -> None:
        self.layers = dict(layers)
        if len(self.layers) != len(layers):
            raise RecipeError(f"two layers share a name: {[name for name, _ in layers]}", fix="rename one")
        for layer_name, layer in self.layers.items():
            for name, tensor in layer.parameters().items():
                tensor.name = f"{layer_name}.{name}"
        if input_shape is not None:
            self.output_shape(input_shape)

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        for name, layer in self.layers.items():
            with in_layer(name):
                x = layer(x, None if rng is None else rng.child(name))
        return x

    def parameters(self) -> dict[str, Tensor]:
        return {
            f"{layer_name}.{name}": tensor
            for layer_name, layer in self.layers.items()
            for name, tensor in layer.parameters().items()
        }

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = input_shape
        for _, _, _, shape in self.trace(input_shape):  # noqa: B007  the last one is what we want
            pass
        return shape

    def trace(self, input_shape: Shape) -> Iterator[tuple[str, Layer, Shape, Shape]]:
        """(name, layer, its input shape, its output shape) of each layer in turn."""
        for name, layer in self.layers.items():
            try:
                output_shape = layer.output_shape(input_shape)
            except ShapeError as error:
                raise error.at(f"layer '{name}'") from None
            yield name, layer, input_shape, output_shape
            input_shape = output_shape

    def macs(self, input_shape: Shape) -> int:
        return sum(layer.macs(shape) for _, layer, shape, _ in self.trace(input_shape))


def convert(layer: Layer, dtype: DTypeLike) -> None:
    """Turn a layer's parameters into another float dtype, in place: float64 for gradient checks."""
    for tensor in layer.parameters().values():
        tensor.data, tensor.grad = tensor.data.astype(dtype), None


def _parameter(name: str, shape: Shape, fan_in: int, fan_out: int, init: str, rng: Rng) -> Tensor:
    if min(shape) < 1:
        raise ShapeError(f"a {name} of shape {list(shape)} has nothing in it", fix="every size is at least 1")
    values = initialiser(init)(shape, fan_in, fan_out, rng.child(name).generator())
    return Tensor(values.astype(np.float32), requires_grad=True, name=name)


def _want_planes(what: str, got: Shape, channels: int | None) -> None:
    if len(got) != 3 or (channels is not None and got[0] != channels):
        raise ShapeError(f"{what} got {list(got)}", fix=f"it wants [{channels or 'channels'}, height, width]")
