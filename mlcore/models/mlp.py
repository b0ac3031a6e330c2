"""A multi-layer perceptron: the fully connected networks of LeCun et al. 1998, sec. III.C.4 (300-100: 3.05 % error)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlcore.layers import Dropout, Flatten, Layer, Linear, ReLU, Sequential, Tanh
from mlcore.options import read_options
from mlcore.rng import Rng

ACTIVATIONS: dict[str, Callable[[], Layer]] = {"relu": ReLU, "tanh": Tanh}
WEIGHTS = {"relu": "he", "tanh": "glorot"}


@dataclass(frozen=True)
class MlpOptions:
    hidden: tuple[int, ...] = (300, 100)
    activation: Literal["relu", "tanh"] = "relu"
    dropout: float = 0.0


def mlp(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """Linear layers fc1, fc2, ... with activations (and dropout) between; options as in MlpOptions."""
    chosen = read_options(MlpOptions, options, "model.options")
    layers: list[tuple[str, Layer]] = [("flatten", Flatten())]
    (inputs,) = Flatten().output_shape(input_shape)
    for i, width in enumerate(chosen.hidden, start=1):
        layers += _hidden(f"fc{i}", inputs, width, chosen, rng)
        inputs = width
    layers.append(("output", Linear(inputs, classes, rng.child("output"), weights="glorot")))
    return Sequential(layers, input_shape)


def _hidden(name: str, inputs: int, width: int, chosen: MlpOptions, rng: Rng) -> list[tuple[str, Layer]]:
    linear = Linear(inputs, width, rng.child(name), weights=WEIGHTS[chosen.activation])
    layers: list[tuple[str, Layer]] = [(name, linear), (f"{name}_act", ACTIVATIONS[chosen.activation]())]
    if chosen.dropout:
        layers.append((f"{name}_drop", Dropout(chosen.dropout)))
    return layers
