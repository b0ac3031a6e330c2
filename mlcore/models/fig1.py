"""A four-layer convolutional network with ReLU or tanh, for the comparison of Krizhevsky et al. 2012, fig. 1.

The paper says "a four-layer convolutional network" on CIFAR-10, without regularisation, and no more. Chosen here: 5x5
convolutions of 32, 32 and 64 maps, each with maximum pooling of 3x3 windows 2 apart, and a linear output; 89,578
parameters. The activation follows on the pooling: both rise, so the order changes nothing but their cost, and tanh is
computed for a quarter of the places. Weights begin by Glorot unless told otherwise: the largest of nine is larger than
one, so that He's factor for ReLU lets the activations grow from layer to layer, and training breaks down at a rate of
0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlcore.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential, Tanh
from mlcore.options import read_options
from mlcore.rng import Rng

ACTIVATIONS: dict[str, Callable[[], Layer]] = {"relu": ReLU, "tanh": Tanh}
MAPS = (32, 32, 64)


@dataclass(frozen=True)
class Fig1Options:
    """activation: behind each convolution's pooling. weights: how all weights begin."""

    activation: Literal["relu", "tanh"] = "relu"
    weights: str = "glorot"


def fig1(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """The network for `input_shape` (channels, height, width), usually (3, 32, 32); options as in Fig1Options."""
    chosen = read_options(Fig1Options, options, "model.options")
    act = ACTIVATIONS[chosen.activation]
    layers: list[tuple[str, Layer]] = []
    for number, (channels, maps) in enumerate(zip((input_shape[0], *MAPS[:-1]), MAPS, strict=True), start=1):
        name = f"conv{number}"
        layers += [
            (name, Conv2d(channels, maps, 5, rng.child(name), padding=2, weights=chosen.weights)),
            (f"pool{number}", MaxPool2d(3, 2, 1)),
            (f"{name}_act", act()),
        ]
    layers.append(("flatten", Flatten()))
    (features,) = Sequential(layers).output_shape(input_shape)
    layers.append(("output", Linear(features, classes, rng.child("output"), weights=chosen.weights)))
    return Sequential(layers, input_shape)
