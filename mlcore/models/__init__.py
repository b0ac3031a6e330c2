"""The networks, by name. A new one is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlcore.layers import Sequential
from mlcore.models.lenet5 import lenet5
from mlcore.models.mlp import mlp
from mlcore.options import unknown_name
from mlcore.rng import Rng

Builder = Callable[[Mapping[str, Any], Rng, tuple[int, ...], int], Sequential]

MODELS: dict[str, Builder] = {"lenet5": lenet5, "mlp": mlp}


def build(
    name: str,
    options: Mapping[str, Any],
    rng: Rng,
    input_shape: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
) -> Sequential:
    """The network of that name with weights drawn from `rng`; RecipeError for an unknown name or option.

    input_shape: (channels, height, width) of one example. Returns logits [N, classes] when called.
    """
    if name not in MODELS:
        raise unknown_name("model", name, list(MODELS), "model.name")
    return MODELS[name](options, rng, input_shape, classes)
