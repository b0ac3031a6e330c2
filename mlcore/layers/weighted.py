"""Layers with weights that are multiplied: linear and convolution.

Legend: N batch, C channel, H W height and width, I input features, O output.
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
