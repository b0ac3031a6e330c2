"""The same networks in PyTorch, to compare with (extra `peers`): same layers, same weights, same options.

PyTorch is imported when a peer is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mlcore.errors import RecipeError
from mlcore.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    Linear,
    LocallyConnected2d,
    LocalResponseNorm,
    MapResponseNorm,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Tanh,
)
from mlcore.optim import Pace, Paces


def torch_module() -> Any:
    """PyTorch; RecipeError says how to get it."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise RecipeError("PyTorch is not installed", fix="pip install -e '.[peers]'") from error


def peer_of(model: Layer, without: tuple[type[Layer], ...] = ()) -> Any:
    """`model` as a torch.nn.Module with copies of its weights. without: kinds of layers to leave out."""
    torch = torch_module()
    if isinstance(model, Sequential):
        kept = [layer for layer in model.layers.values() if not isinstance(layer, without)]
        return torch.nn.Sequential(*[peer_of(layer, without) for layer in kept])
    if isinstance(model, Residual):
        return _sum_of(torch.nn, peer_of(model.body, without), peer_of(model.shortcut, without))
    ours = list(model.state().values())
    peer = _peer(torch, model).to(torch.from_numpy(ours[0].data).dtype if ours else torch.float32)
    theirs = [*peer.parameters(), *_running(peer)]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.copy_(torch.from_numpy(mine.data.copy()))
    return peer


def grouped(named: Mapping[str, Any], paces: Paces) -> list[dict[str, Any]]:
    """Parameters of one pace together, as torch.optim wants them; "pace" is what multiplies their rate."""
    groups: dict[Pace, list[Any]] = {}
    for name, parameter in named.items():
        groups.setdefault(paces[name], []).append(parameter)
    return [{"params": of, "weight_decay": pace.decay, "pace": pace.rate} for pace, of in groups.items()]


def _running(peer: Any) -> list[Any]:
    """A batch normalisation's running statistics."""
    return [buffer for name, buffer in peer.named_buffers() if name.startswith("running")]


def _sum_of(nn: Any, body: Any, shortcut: Any) -> Any:
    """body(x) + shortcut(x) as a module."""

    class Sum(nn.Module):  # type: ignore[misc]  # its base is known only once PyTorch is imported
        def __init__(self) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.shortcut(x)

    return Sum()


def _local(torch: Any, layer: LocallyConnected2d) -> Any:
    """A locally connected layer, which PyTorch doesn't have: windows unfolded, one product per place."""

    class Local(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape))
            self.bias = torch.nn.Parameter(torch.zeros(layer.bias.shape))

        def forward(self, x: Any) -> Any:
            windows_NDS = torch.nn.functional.unfold(x, layer.kernel, 1, layer.padding, layer.stride)
            weight_SOD = self.weight.flatten(0, 1).flatten(2)
            out_NOS = torch.einsum("nds,sod->nos", windows_NDS, weight_SOD)
            return out_NOS.unflatten(2, self.bias.shape[1:]) + self.bias

    return Local()


def _map_response(torch: Any, layer: MapResponseNorm) -> Any:
    """Response normalisation within maps, by an average pooling of the squares."""

    class MapResponse(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            means = torch.nn.functional.avg_pool2d(x * x, layer.size, 1, layer.size // 2)
            return x * (layer.k + layer.factor * layer.size**2 * means) ** -layer.beta

    return MapResponse()


def _peer(torch: Any, layer: Layer) -> Any:
    nn = torch.nn
    match layer:
        case Conv2d():
            sizes = (layer.channels, layer.outputs, layer.kernel, layer.stride, layer.padding)
            return nn.Conv2d(*sizes, groups=layer.groups, bias=layer.bias is not None)
        case Linear():
            return nn.Linear(layer.inputs, layer.outputs)
        case LocallyConnected2d():
            return _local(torch, layer)
        case MapResponseNorm():
            return _map_response(torch, layer)
        case LocalResponseNorm():
            return nn.LocalResponseNorm(layer.size, layer.factor * layer.size, layer.beta, layer.k)
        case BatchNorm2d():
            return nn.BatchNorm2d(layer.channels, layer.epsilon, layer.momentum)
        case MaxPool2d():
            return nn.MaxPool2d(layer.size, layer.stride, layer.padding)
        case AvgPool2d():
            return nn.AvgPool2d(layer.size, layer.stride, layer.padding)
        case GlobalAvgPool():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case Dropout():
            return nn.Dropout(layer.probability)
        case ReLU():
            return nn.ReLU(inplace=True)
        case Tanh():
            return nn.Tanh()
        case Flatten():
            return nn.Flatten()
    raise RecipeError(f"no peer for a {type(layer).__name__}", fix="compare a network of other layers")
