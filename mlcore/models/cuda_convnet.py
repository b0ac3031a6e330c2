"""A. Krizhevsky's quick CIFAR-10 network: 26 % test error in 80 seconds of a 2011 graphics card.

Source: cuda-convnet's published configuration layers-80sec. Three 5x5 convolutions, 32, 32 and 64 maps, each followed
by a pooling of 3x3 windows 2 apart: the first by their maximum, the others by their mean. Its poolings count windows
that stick out at the far edge; here a padding of 1 gives the same 16, 8 and 4 pixels a side. Its own step sizes of the
weights' first values (1e-4, 0.01, 0.01, 0.1, 0.1) belong to inputs of 0..255; here the initialiser is an option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcore.layers import AvgPool2d, Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from mlcore.options import read_options
from mlcore.rng import Rng


@dataclass(frozen=True)
class CudaConvnetOptions:
    """weights: how all weights begin."""

    weights: str = "he"


def cuda_convnet(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """The network for `input_shape` (channels, height, width), usually (3, 32, 32); see CudaConvnetOptions."""
    chosen = read_options(CudaConvnetOptions, options, "model.options")

    def conv(name: str, inputs: int, outputs: int) -> tuple[str, Layer]:
        return name, Conv2d(inputs, outputs, 5, rng.child(name), padding=2, weights=chosen.weights)

    maps: list[tuple[str, Layer]] = [
        conv("conv1", input_shape[0], 32),
        ("pool1", MaxPool2d(3, 2, 1)),
        ("conv1_act", ReLU()),
        conv("conv2", 32, 32),
        ("conv2_act", ReLU()),
        ("pool2", AvgPool2d(3, 2, 1)),
        conv("conv3", 32, 64),
        ("conv3_act", ReLU()),
        ("pool3", AvgPool2d(3, 2, 1)),
        ("flatten", Flatten()),
    ]
    (features,) = Sequential(maps).output_shape(input_shape)
    head: list[tuple[str, Layer]] = [
        ("fc1", Linear(features, 64, rng.child("fc1"), weights=chosen.weights)),
        ("fc1_act", ReLU()),
        ("output", Linear(64, classes, rng.child("output"), weights=chosen.weights)),
    ]
    return Sequential([*maps, *head], input_shape)
