"""The residual network for small images: 6n + 2 layers, three stages of n blocks with 16, 32 and 64 maps.

Source: He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition", arXiv:1512.03385, sec. 4.2, made for
CIFAR-10: n = 3 is its ResNet-20 (8.75 % test error), n = 1, the default, has 78,042 parameters for 10 classes. Where
this differs from the paper: the two shortcuts that change the shape are projections (a 1x1 convolution of stride 2 with
its batch normalisation, option B of sec. 4.1); on CIFAR the paper pads the new maps with zeros (option A).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcore.errors import RecipeError
from mlcore.layers import BatchNorm2d, Conv2d, GlobalAvgPool, Layer, Linear, ReLU, Residual, Sequential
from mlcore.options import read_options
from mlcore.rng import Rng

MAPS = (16, 32, 64)  # of the three stages; each but the first halves height and width


@dataclass(frozen=True)
class ResNetSmallOptions:
    """n: blocks per stage."""

    n: int = 1


def resnet_small(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """The network for `input_shape` (channels, height, width), usually (3, 32, 32); see ResNetSmallOptions."""
    chosen = read_options(ResNetSmallOptions, options, "model.options")
    if chosen.n < 1:
        raise RecipeError(f"{chosen.n} blocks per stage", place="model.options.n", fix="give at least 1")
    layers = [*_normalised("conv1", input_shape[0], MAPS[0], 3, 1, rng), ("conv1_act", ReLU())]
    channels = MAPS[0]
    for stage, maps in enumerate(MAPS, start=1):
        for number in range(1, chosen.n + 1):
            name, stride = f"stage{stage}_block{number}", 2 if maps != channels else 1
            layers += [(name, _block(channels, maps, stride, rng.child(name))), (f"{name}_act", ReLU())]
            channels = maps
    output = Linear(channels, classes, rng.child("output"), weights="glorot")
    return Sequential([*layers, ("pool", GlobalAvgPool()), ("output", output)], input_shape)


def _block(channels: int, maps: int, stride: int, rng: Rng) -> Residual:
    """Two 3x3 convolutions, and the shortcut round them (fig. 2)."""
    body = Sequential(
        [
            *_normalised("conv1", channels, maps, 3, stride, rng),
            ("conv1_act", ReLU()),
            *_normalised("conv2", maps, maps, 3, 1, rng),
        ]
    )
    same = channels == maps and stride == 1
    return Residual(body, None if same else Sequential(_normalised("projection", channels, maps, 1, stride, rng)))


def _normalised(name: str, channels: int, maps: int, kernel: int, stride: int, rng: Rng) -> list[tuple[str, Layer]]:
    """A convolution and its batch normalisation, which has the biases."""
    conv = Conv2d(channels, maps, kernel, rng.child(name), stride=stride, padding=kernel // 2, biases=None)
    return [(name, conv), (f"{name}_norm", BatchNorm2d(maps))]
