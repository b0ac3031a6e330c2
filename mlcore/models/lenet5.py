"""LeNet-5, layer by layer in the paper's names.

Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", sec. II.B.
Where this differs from the paper:
- C3 sees all six maps of S2; the paper connects each of its maps to a subset (Table I). 61,706 parameters here,
  about 60,000 there.
- S2 and S4 have no trainable scale and bias, and no squashing of their own; `pool` is their maximum or average.
- the output is a plain linear layer under softmax cross-entropy; the paper's is a set of RBF units under its own loss.
- activations are ReLU or tanh; the paper's is 1.7159 tanh(2x / 3).
- 28x28 images get a padding of 2 in C1, which gives the paper's 32x32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlcore.layers import AvgPool2d, Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential, Tanh
from mlcore.options import read_options
from mlcore.rng import Rng

ACTIVATIONS: dict[str, Callable[[], Layer]] = {"relu": ReLU, "tanh": Tanh}
POOLS: dict[str, Callable[[int], Layer]] = {"max": MaxPool2d, "avg": AvgPool2d}
WEIGHTS = {"relu": "he", "tanh": "glorot"}


@dataclass(frozen=True)
class LeNet5Options:
    activation: Literal["relu", "tanh"] = "relu"
    pool: Literal["max", "avg"] = "max"


def lenet5(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """LeNet-5 for `input_shape` (channels, height, width); options as in LeNet5Options."""
    chosen = read_options(LeNet5Options, options, "model.options")
    act, pool, init = ACTIVATIONS[chosen.activation], POOLS[chosen.pool], WEIGHTS[chosen.activation]
    c1 = Conv2d(input_shape[0], 6, 5, rng.child("C1"), padding=2, weights=init)
    c3 = Conv2d(6, 16, 5, rng.child("C3"), weights=init)
    features = Sequential([("C1", c1), ("S2", pool(2)), ("C3", c3), ("S4", pool(2)), ("flat", Flatten())])
    (inputs,) = features.output_shape(input_shape)
    layers: list[tuple[str, Layer]] = [
        ("C1", c1),
        ("C1_act", act()),
        ("S2", pool(2)),
        ("C3", c3),
        ("C3_act", act()),
        ("S4", pool(2)),
        ("flatten", Flatten()),
        ("C5", Linear(inputs, 120, rng.child("C5"), weights=init)),
        ("C5_act", act()),
        ("F6", Linear(120, 84, rng.child("F6"), weights=init)),
        ("F6_act", act()),
        ("output", Linear(84, classes, rng.child("output"), weights="glorot")),
    ]
    return Sequential(layers, input_shape)
