"""From a recipe's optimiser to the pace of every parameter: its multiple of the learning rate, and its decay."""

from __future__ import annotations

from collections.abc import Iterable

from mlcore.config import LayerPace, Optimiser
from mlcore.optim import Pace
from mlcore.options import unknown_name

USUAL = LayerPace()


def paces_of(chosen: Optimiser, parameters: Iterable[str]) -> dict[str, Pace]:
    """By parameter ("fc1.weight"); RecipeError for an entry of `chosen.layers` that no layer with weights is named."""
    layers = {name: name.rpartition(".")[0] for name in parameters}
    for name in chosen.layers:
        if name not in layers.values():
            raise unknown_name("layer", name, list(dict.fromkeys(layers.values())), "optimiser.layers")
    return {name: _pace(chosen, name, chosen.layers.get(layer, USUAL)) for name, layer in layers.items()}


def _pace(chosen: Optimiser, name: str, own: LayerPace) -> Pace:
    if not name.endswith("bias"):
        return Pace(own.rate, _first(own.weight_decay, chosen.weight_decay))
    return Pace(own.rate * _first(own.bias_rate, chosen.bias_rate), _first(own.bias_decay, chosen.bias_decay))


def _first(own: float | None, usual: float) -> float:
    return usual if own is None else own
