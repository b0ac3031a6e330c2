"""From layers to the steps of a plan: which layers become one step, and which networks have no plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlcore.kernels.response import NO_RESPONSE, Response
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
    MaxPool2d,
    ReLU,
    Residual,
)

Named = tuple[str, Layer]


class Unplannable(Exception):
    """This network has no plan; the message says which layer is in the way. The tape runs it."""


@dataclass(frozen=True)
class Weighted:
    """A convolution or a linear layer, with the ReLU behind it or without."""

    name: str
    layer: Conv2d | Linear
    relu: bool


@dataclass(frozen=True)
class Local:
    """A locally connected layer, with the ReLU behind it or without."""

    name: str
    layer: LocallyConnected2d
    relu: bool


@dataclass(frozen=True)
class MaxPooling:
    """Max pooling, with the normalisation before it or without."""

    name: str
    size: int
    stride: int
    padding: int
    response: Response


@dataclass(frozen=True)
class AvgPooling:
    """Average pooling."""

    name: str
    size: int
    stride: int
    padding: int


@dataclass(frozen=True)
class Dropping:
    """Dropout."""

    name: str
    probability: float


@dataclass(frozen=True)
class GlobalPooling:
    """The mean of each map."""

    name: str


@dataclass(frozen=True)
class Normalising:
    """Batch normalisation, with the ReLU behind it or without."""

    name: str
    layer: BatchNorm2d
    relu: bool


@dataclass(frozen=True)
class Block:
    """A residual block: `body` ends in a batch normalisation, to which `side` (nothing: the input itself) is added."""

    name: str
    body: tuple[Step, ...]
    side: tuple[Step, ...]


@dataclass(frozen=True)
class Unfused:
    """A layer that runs as on the tape, between planes."""

    name: str
    layer: Layer


Step = Unfused | Weighted | Local | MaxPooling | AvgPooling | Dropping | GlobalPooling | Normalising | Block


def fused(layers: Sequence[Named]) -> list[Step]:
    """The steps of these layers; Unplannable names the first layer that fits none."""
    rest, steps = _relu_first(layers), list[Step]()
    while rest:
        step, used = _first_step(rest)
        steps += [step] if step else []
        rest = rest[used:]
    return steps


def _first_step(layers: list[Named]) -> tuple[Step | None, int]:
    """The step that the list begins with, and how many layers it takes."""
    name, layer = layers[0]
    following = layers[1][1] if len(layers) > 1 else None
    if isinstance(layer, Conv2d | Linear):
        return _weighted(name, layer, layers[1:])
    if isinstance(layer, LocallyConnected2d):
        relu = isinstance(following, ReLU)
        return Local(name, layer, relu), 2 if relu else 1
    if isinstance(layer, LocalResponseNorm):
        response = Response(layer.size, layer.k, layer.factor, layer.beta)
        if isinstance(following, MaxPool2d) and _is_small(following):
            return MaxPooling(name, following.size, following.stride, following.padding, response), 2
        return MaxPooling(name, 1, 1, 0, response), 1
    if isinstance(layer, MaxPool2d) and _is_small(layer):
        return MaxPooling(name, layer.size, layer.stride, layer.padding, NO_RESPONSE), 1
    if isinstance(layer, AvgPool2d):
        return AvgPooling(name, layer.size, layer.stride, layer.padding), 1
    if isinstance(layer, Dropout):
        return Dropping(name, layer.probability), 1
    if isinstance(layer, Flatten):
        return None, 1
    if isinstance(layer, GlobalAvgPool):
        return GlobalPooling(name), 1
    if isinstance(layer, BatchNorm2d):
        relu = isinstance(following, ReLU)
        return Normalising(name, layer, relu), 2 if relu else 1
    if isinstance(layer, Residual):
        relu = isinstance(following, ReLU)
        return _block(name, layer, relu), 2 if relu else 1
    if layer.buffers() or any("." in part for part in layer.parameters()):
        raise Unplannable(f"layer '{name}': there is no planned {type(layer).__name__} at this place")
    return Unfused(name, layer), 1


def _weighted(name: str, layer: Conv2d | Linear, following: list[Named]) -> tuple[Step, int]:
    if isinstance(layer, Conv2d) and layer.padding >= layer.kernel:
        raise Unplannable(f"layer '{name}': a padding of {layer.padding} is wider than its window")
    relu = bool(following) and isinstance(following[0][1], ReLU)
    return Weighted(name, layer, relu), 2 if relu else 1


def _block(name: str, layer: Residual, relu: bool) -> Block:
    """The ReLU behind the sum goes to the normalisation that the sum is fused with."""
    body, side = (
        fused([(f"{name}.{part}.{inner}", each) for inner, each in branch.layers.items()])
        for part, branch in (("body", layer.body), ("shortcut", layer.shortcut))
    )
    for branch in (body, side) if side else (body,):
        if not branch or not isinstance(branch[-1], Normalising) or branch[-1].relu or not _is_conv(branch[0]):
            raise Unplannable(f"layer '{name}': a planned block begins with a convolution and ends in a BatchNorm2d")
    last = body[-1]
    assert isinstance(last, Normalising), "checked above"
    return Block(name, (*body[:-1], Normalising(last.name, last.layer, relu)), tuple(side))


def _is_conv(step: Step) -> bool:
    return isinstance(step, Weighted) and isinstance(step.layer, Conv2d)


def _relu_first(layers: Sequence[Named]) -> list[Named]:
    """A ReLU behind max pooling may go before it, where it costs nothing: both are increasing functions."""
    order = list(layers)
    for i in range(len(order) - 1):
        if isinstance(order[i][1], MaxPool2d) and isinstance(order[i + 1][1], ReLU):
            order[i], order[i + 1] = order[i + 1], order[i]
    return order


def _is_small(pool: MaxPool2d) -> bool:
    return pool.size <= 15  # a winner is one byte
