"""Layers with weights that are multiplied: linear, convolution, and locally connected.

Legend: N batch, C channel, H W height and width, I input features, O output, P Q output height and width.
"""

from __future__ import annotations

import math

from mlcore import ops
from mlcore.errors import ShapeError
from mlcore.layers.base import Layer, Shape, parameter, want_planes
from mlcore.rng import Rng
from mlcore.tensor import Tensor


class Linear(Layer):
    """x @ weight.T + bias; weight [O, I], bias [O]."""

    def __init__(self, inputs: int, outputs: int, rng: Rng, weights: str = "he", biases: str = "zeros") -> None:
        self.inputs, self.outputs = inputs, outputs
        self.weight = parameter("weight", (outputs, inputs), inputs, outputs, weights, rng)
        self.bias = parameter("bias", (outputs,), inputs, outputs, biases, rng)

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
    """Square cross-correlation; weight [O, C / groups, kernel, kernel], bias [O].

    biases: how they begin; None: there are none, as before a batch normalisation, which would take them away again.
    """

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
        biases: str | None = "zeros",
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
        self.weight = parameter("weight", shape, fan_in, fan_out, weights, rng)
        self.bias = parameter("bias", (outputs,), fan_in, fan_out, biases, rng) if biases else None

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.conv2d(x_NCHW, self.weight, self.bias, self.stride, self.padding, self.groups)

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({"bias": self.bias} if self.bias else {})

    def output_shape(self, input_shape: Shape) -> Shape:
        want_planes("Conv2d", input_shape, self.channels)
        return (self.outputs, *ops.conv_windows(input_shape[1:], self.kernel, self.stride, self.padding))

    def macs(self, input_shape: Shape) -> int:
        return math.prod(self.output_shape(input_shape)) * self.channels // self.groups * self.kernel**2


class LocallyConnected2d(Layer):
    """A convolution whose weights differ at every place; weight [P, Q, O, C, kernel, kernel], bias [O, P, Q].

    It is made for one `input_shape`, (channels, height, width). Source: the unshared "local" layers of Krizhevsky's
    cuda-convnet, whose biases are one per output value too.
    """

    def __init__(
        self,
        input_shape: Shape,
        outputs: int,
        kernel: int,
        rng: Rng,
        *,
        stride: int = 1,
        padding: int = 0,
        weights: str = "he",
        biases: str = "zeros",
    ) -> None:
        want_planes("LocallyConnected2d", input_shape, None)
        self.input_shape, self.outputs, self.kernel = input_shape, outputs, kernel
        self.stride, self.padding = stride, padding
        places = ops.conv_windows(input_shape[1:], kernel, stride, padding)
        fan_in, fan_out = input_shape[0] * kernel**2, outputs * kernel**2
        shape = (*places, outputs, input_shape[0], kernel, kernel)
        self.weight = parameter("weight", shape, fan_in, fan_out, weights, rng)
        self.bias = parameter("bias", (outputs, *places), fan_in, fan_out, biases, rng)

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.local2d(x_NCHW, self.weight, self.bias, self.stride, self.padding)

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape != self.input_shape:
            fix = f"it was made for {list(self.input_shape)}"
            raise ShapeError(f"LocallyConnected2d got {list(input_shape)}", fix=fix)
        return self.bias.shape

    def macs(self, input_shape: Shape) -> int:
        return self.weight.data.size
