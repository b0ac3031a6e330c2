"""Layers made of layers: one after the other, or side by side and summed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from mlcore import ops
from mlcore.autograd import in_layer
from mlcore.errors import RecipeError, ShapeError
from mlcore.layers.base import Layer, Shape, Traced
from mlcore.rng import Rng
from mlcore.tensor import Tensor


class _Container(Layer):
    """Named layers inside a layer. Their names lead those of parameters and buffers ("body.conv1.weight")."""

    def __init__(self, inside: Mapping[str, Layer]) -> None:
        self._inside = inside
        for name, tensor in self.state().items():
            tensor.name = name

    def parameters(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": t for part, layer in self._inside.items() for name, t in layer.parameters().items()}

    def buffers(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": t for part, layer in self._inside.items() for name, t in layer.buffers().items()}

    def _run(self, name: str, x: Tensor, rng: Rng | None) -> Tensor:
        """One of the layers inside, under its name."""
        with in_layer(name):
            return self._inside[name](x, None if rng is None else rng.child(name))


class Sequential(_Container):
    """Named layers, one after the other. Names lead the parameters' ("C1.weight") and every error's place.

    With `input_shape` the whole chain is checked at once: a map that would shrink to 0x0 is an error here.
    """

    def __init__(self, layers: Sequence[tuple[str, Layer]], input_shape: Shape | None = None) -> None:
        self.layers = dict(layers)
        if len(self.layers) != len(layers):
            raise RecipeError(f"two layers share a name: {[name for name, _ in layers]}", fix="rename one")
        super().__init__(self.layers)
        if input_shape is not None:
            self.output_shape(input_shape)

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        for name in self.layers:
            x = self._run(name, x, rng)
        return x

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = input_shape
        for _, _, _, shape in self.trace(input_shape):  # noqa: B007  the last one is what we want
            pass
        return shape

    def trace(self, input_shape: Shape) -> Iterator[Traced]:
        """(name, layer, its input shape, its output shape) of each layer in turn; containers are one layer."""
        for name, layer in self.layers.items():
            output_shape = _output_shape(name, layer, input_shape)
            yield name, layer, input_shape, output_shape
            input_shape = output_shape

    def unfolded(self, name: str, input_shape: Shape) -> Iterator[Traced]:
        for inner, layer, shape, _ in self.trace(input_shape):
            yield from layer.unfolded(f"{name}.{inner}" if name else inner, shape)

    def macs(self, input_shape: Shape) -> int:
        return sum(layer.macs(shape) for _, layer, shape, _ in self.trace(input_shape))


class Residual(_Container):
    """body(x) + shortcut(x): the body learns what is to be added to its input.

    shortcut: the identity unless given; a projection where the body changes the shape. Their parameters are
    "body...." and "shortcut....". Source: He et al. 2015, arXiv:1512.03385, eq. 1 and 2; the ReLU that follows there
    is a layer of its own here.
    """

    def __init__(self, body: Sequential, shortcut: Sequential | None = None) -> None:
        self.body, self.shortcut = body, shortcut or Sequential([])
        super().__init__({"body": self.body, "shortcut": self.shortcut})

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.add(self._run("body", x, rng), self._run("shortcut", x, rng))

    def output_shape(self, input_shape: Shape) -> Shape:
        left, right = (_output_shape(name, side, input_shape) for name, side in self._inside.items())
        if left != right:
            raise ShapeError(
                f"Residual of a body that gives {list(left)} and a shortcut that gives {list(right)}",
                fix="give a shortcut that changes the shape alike, such as a 1x1 convolution of the body's stride",
            )
        return left

    def unfolded(self, name: str, input_shape: Shape) -> Iterator[Traced]:
        """The layers of both sides, then this one, which is only the sum."""
        for inner, side in self._inside.items():
            yield from side.unfolded(f"{name}.{inner}" if name else inner, input_shape)
        yield name, self, input_shape, self.output_shape(input_shape)

    def macs(self, input_shape: Shape) -> int:
        return self.body.macs(input_shape) + self.shortcut.macs(input_shape)


def _output_shape(name: str, layer: Layer, input_shape: Shape) -> Shape:
    """Its output shape; a ShapeError names the layer at fault, in layers of layers by its dotted name."""
    try:
        return layer.output_shape(input_shape)
    except ShapeError as error:
        if inner := re.fullmatch(r"layer '(.*)'", error.place):
            raise ShapeError(error.what, place=f"layer '{name}.{inner[1]}'", fix=error.fix) from None
        raise error.at(f"layer '{name}'") from None
