"""The same networks in PyTorch, to compare with (extra `peers`): same layers, same weights, same options.

PyTorch is imported when a peer is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from mlcore.errors import RecipeError
from mlcore.layers import (
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    Tanh,
)


def torch_module() -> Any:
    """PyTorch; RecipeError says how to get it."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise RecipeError("PyTorch is not installed", fix="pip install -e '.[peers]'") from error


def peer_of(model: Sequential, without: tuple[type[Layer], ...] = ()) -> Any:
    """`model` as a torch.nn.Sequential with copies of its weights. without: kinds of layers to leave out."""
    torch = torch_module()
    layers = [layer for layer in model.layers.values() if not isinstance(layer, without)]
    net = torch.nn.Sequential(*[_peer(torch.nn, layer) for layer in layers])
    parameters = [tensor for layer in layers for tensor in layer.parameters().values()]
    with torch.no_grad():
        for theirs, ours in zip(net.parameters(), parameters, strict=True):
            theirs.copy_(torch.from_numpy(ours.data.copy()))
    return net


def _peer(nn: Any, layer: Layer) -> Any:
    match layer:
        case Conv2d():
            return nn.Conv2d(
                layer.channels, layer.outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups
            )
        case Linear():
            return nn.Linear(layer.inputs, layer.outputs)
        case LocalResponseNorm():
            return nn.LocalResponseNorm(layer.size, layer.factor * layer.size, layer.beta, layer.k)
        case MaxPool2d():
            return nn.MaxPool2d(layer.size, layer.stride, layer.padding)
        case AvgPool2d():
            return nn.AvgPool2d(layer.size, layer.stride, layer.padding)
        case Dropout():
            return nn.Dropout(layer.probability)
        case ReLU():
            return nn.ReLU(inplace=True)
        case Tanh():
            return nn.Tanh()
        case Flatten():
            return nn.Flatten()
    raise RecipeError(f"no peer for a {type(layer).__name__}", fix="compare a network of other layers")
