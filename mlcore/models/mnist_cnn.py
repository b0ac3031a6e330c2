"""The convolutional network of most libraries' first example: two 3x3 convolutions, pooling, dropout, 128 hidden units.

Source: the Keras and PyTorch examples of that name (conv 32, conv 64, max 2x2, dropout 0.25, fc 128, dropout 0.5).
1,199,882 parameters for 28x28 images and 10 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcore.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from mlcore.options import read_options
from mlcore.rng import Rng


@dataclass(frozen=True)
class MnistCnnOptions:
    """Dropout behind the pooling and behind the hidden layer."""

    map_dropout: float = 0.25
    hidden_dropout: float = 0.5


def mnist_cnn(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """The network for `input_shape` (channels, height, width); options as in MnistCnnOptions."""
    chosen = read_options(MnistCnnOptions, options, "model.options")
    maps: list[tuple[str, Layer]] = [
        ("conv1", Conv2d(input_shape[0], 32, 3, rng.child("conv1"))),
        ("conv1_act", ReLU()),
        ("conv2", Conv2d(32, 64, 3, rng.child("conv2"))),
        ("conv2_act", ReLU()),
        ("pool", MaxPool2d(2)),
        ("pool_drop", Dropout(chosen.map_dropout)),
        ("flatten", Flatten()),
    ]
    (features,) = Sequential(maps).output_shape(input_shape)
    head: list[tuple[str, Layer]] = [
        ("fc1", Linear(features, 128, rng.child("fc1"))),
        ("fc1_act", ReLU()),
        ("fc1_drop", Dropout(chosen.hidden_dropout)),
        ("output", Linear(128, classes, rng.child("output"), weights="glorot")),
    ]
    return Sequential([*maps, *head], input_shape)
