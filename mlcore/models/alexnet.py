"""AlexNet, the network that won ILSVRC 2012, on one machine instead of two GPUs: the groups keep the two halves apart.

Source: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks", sec. 3
and 5. 60,965,224 parameters for 1000 classes, as the paper's 60 million. The input is 227x227: the text says 224, which
its own map sizes contradict.

alexnet_small is the same design for images of 64x64 and fewer classes; its sizes are this library's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlcore.layers import (
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
)
from mlcore.options import read_options
from mlcore.rng import Rng


@dataclass(frozen=True)
class AlexNetOptions:
    """alpha: "paper" takes 1e-4 as the factor of the sum of squares; "divided" divides it by the 5 channels, as the
    author's own program, Caffe and PyTorch do. dropout: of what the two hidden fully connected layers give (sec. 4.2).
    hidden: the width of these two. weights: an initialiser; the paper's is "normal", N(0, 0.01^2). norm: False leaves
    response normalisation away (sec. 3.3). pool: "overlapping" is 3x3 every 2 pixels, "apart" 2x2 every 2, which gives
    maps of the same size for images of 227 and 64 pixels (sec. 3.4)."""

    alpha: Literal["paper", "divided"] = "paper"
    dropout: float = 0.5
    hidden: int = 4096
    weights: str = "normal"
    norm: bool = True
    pool: Literal["overlapping", "apart"] = "overlapping"


@dataclass(frozen=True)
class AlexNetSmallOptions(AlexNetOptions):
    """As AlexNetOptions. The paper's weights, N(0, 0.01^2), fade in layers this narrow: the default is He's."""

    hidden: int = 1024
    weights: str = "he"


@dataclass(frozen=True)
class Sizes:
    """The first convolution's window, and how many maps the five convolutions have."""

    kernel: int
    stride: int
    padding: int
    maps: tuple[int, int, int, int, int]


PAPER = Sizes(11, 4, 0, (96, 256, 384, 384, 256))
SMALL = Sizes(5, 2, 1, (48, 128, 192, 192, 128))  # 64 pixels become 31, 15, 7 and 3, by either pooling


def alexnet(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """AlexNet for `input_shape` (channels, height, width), at its best (3, 227, 227); options as in AlexNetOptions."""
    return _network(PAPER, read_options(AlexNetOptions, options, "model.options"), rng, input_shape, classes)


def alexnet_small(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """The small one for `input_shape`, at its best (3, 64, 64), 10 to 1000 classes; see AlexNetSmallOptions."""
    return _network(SMALL, read_options(AlexNetSmallOptions, options, "model.options"), rng, input_shape, classes)


def _network(sizes: Sizes, chosen: AlexNetOptions, rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    maps = _maps(sizes, input_shape[0], chosen, rng)
    (features,) = Sequential([*maps, ("flatten", Flatten())]).output_shape(input_shape)

    def hidden(name: str, inputs: int) -> list[tuple[str, Layer]]:
        linear = Linear(inputs, chosen.hidden, rng.child(name), weights=chosen.weights, biases="ones")
        return [(name, linear), (f"{name}_act", ReLU()), (f"{name}_drop", Dropout(chosen.dropout))]

    output = Linear(chosen.hidden, classes, rng.child("fc8"), weights=chosen.weights)
    layers = [*maps, ("flatten", Flatten()), *hidden("fc6", features), *hidden("fc7", chosen.hidden), ("fc8", output)]
    return Sequential(layers, input_shape)


def _maps(sizes: Sizes, channels: int, chosen: AlexNetOptions, rng: Rng) -> list[tuple[str, Layer]]:
    """The five convolutions with what stands between them; biases begin at 1 in conv2, conv4 and conv5 (sec. 5)."""

    def conv(name: str, inputs: int, outputs: int, kernel: int, biases: str, **how: int) -> list[tuple[str, Layer]]:
        layer = Conv2d(inputs, outputs, kernel, rng.child(name), weights=chosen.weights, biases=biases, **how)
        return [(name, layer), (f"{name}_act", ReLU())]

    def norm(name: str) -> list[tuple[str, Layer]]:
        layer = LocalResponseNorm(5, 2.0, 1e-4, 0.75, divided=chosen.alpha == "divided")
        return [(name, layer)] if chosen.norm else []

    def pool() -> MaxPool2d:
        return MaxPool2d(3, 2) if chosen.pool == "overlapping" else MaxPool2d(2, 2)

    one, two, three, four, five = sizes.maps
    return [
        *conv("conv1", channels, one, sizes.kernel, "zeros", stride=sizes.stride, padding=sizes.padding),
        *norm("norm1"),
        ("pool1", pool()),
        *conv("conv2", one, two, 5, "ones", padding=2, groups=2),
        *norm("norm2"),
        ("pool2", pool()),
        *conv("conv3", two, three, 3, "zeros", padding=1),
        *conv("conv4", three, four, 3, "ones", padding=1, groups=2),
        *conv("conv5", four, five, 3, "ones", padding=1, groups=2),
        ("pool5", pool()),
    ]
