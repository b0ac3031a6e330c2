"""From layers to a table of operations: stages are wired in order, then asked for their operations.

Forward, rows are made when somebody needs them: a row is used while it is still in the cache. Back, stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlcore.kernels.lane_kinds import Table, operation
from mlcore.kernels.lane_tiles import FLOAT_BYTES
from mlcore.lanes.layout import Arena, Parameters, Plane
from mlcore.lanes.stages import (
    AvgPoolStage,
    DropoutStage,
    Groups,
    InputStage,
    MapStage,
    MaxPoolStage,
    Operations,
    ResponseStage,
    Stage,
    Weighted,
    bias_gradient,
)
from mlcore.lanes.weighted import ConvStage, LinearStage
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
from mlcore.planned.fuse import Unplannable

Shape = tuple[int, ...]
Named = tuple[str, Layer]
MOST_WINDOW = 15  # a winner is one byte
NO_DROPOUT = (0.0, 1.0)


class PooledStage(MaxPoolStage):
    """Max pooling right behind a convolution: the ReLU is undone here, where there are fewer numbers."""

    def __init__(self, conv: ConvStage, name: str, layer: MaxPool2d, out: Plane, arena: Arena, winners: Arena) -> None:
        super().__init__(name, layer, conv.out, conv.out_grad, out, arena, winners)
        self.conv = conv
        if conv.out_grad.ring < conv.out_grad.height:
            conv.pool = self

    def backward(self) -> Operations:
        yield bias_gradient(self.out_grad, self.out, self.conv.relu, self.conv.bias)
        if self.conv.pool is None:
            yield from super().backward()


@dataclass
class Network:
    """The stages of a network in lanes, and what they need: memory, parameters, numbers, dropouts by name."""

    input: InputStage
    stages: list[Stage] = field(default_factory=list)
    arena: Arena = field(default_factory=Arena)
    winners: Arena = field(default_factory=Arena)
    factors: Arena = field(default_factory=Arena)
    parameters: Parameters = field(default_factory=Parameters)
    constants: list[float] = field(default_factory=lambda: list(NO_DROPOUT))
    dropouts: list[str] = field(default_factory=list)

    @property
    def weighted(self) -> Iterator[Weighted]:
        return (stage for stage in self.stages if isinstance(stage, ConvStage | LinearStage))

    def training(self, groups: int) -> Table:
        """The operations of a step of training with a batch of so many groups."""
        pieces = (piece for stage in self.weighted for piece in self.gather(stage, groups))
        return Table(self.operations(training=True), pieces)

    def evaluation(self) -> Table:
        """The operations of an evaluation."""
        return Table(self.operations(training=False))

    def gather(self, stage: Weighted, groups: int) -> Operations:
        """Of a batch of so many groups, the pieces of a stage's gradient."""
        return stage.gather(Groups(groups, self.parameters.size * FLOAT_BYTES, self.factors.size))

    def operations(self, training: bool) -> list[list[int]]:
        """The rows of the table."""
        return [*self._forward(training), *self._backward()] if training else [*self._forward(training)]

    def _forward(self, training: bool) -> Operations:
        made = [0] * len(self.stages)
        loaded = 0

        def produce(place: int, row: int) -> Operations:
            nonlocal loaded
            if place < 0:
                while loaded <= row:
                    yield from self.input.forward(loaded)
                    loaded += 1
                return
            stage = self.stages[place]
            while made[place] <= row:
                yield from produce(place - 1, stage.last_needed(made[place]))
                yield from stage.forward(made[place], training)
                made[place] += 1

        yield from produce(len(self.stages) - 1, 0)
        yield operation("logits", **self._ends())

    def _backward(self) -> Operations:
        yield operation("loss", **self._ends(), out=self.stages[-1].out_grad.offset)
        for stage in reversed(self.stages):
            yield from stage.backward()

    def _ends(self) -> dict[str, int]:
        out = self.stages[-1].out
        return {"x": out.offset, "x_channel": out.channel_bytes, "channels": out.channels, "lanes": out.count}


def network(model: Sequential, input_shape: Shape) -> Network:
    """The stages of `model` for images of `input_shape` (channels, height, width).

    Unplannable, naming the layer, when there is one that has no form in lanes.
    """
    steps = _steps(list(model.layers.items()))
    arena = Arena()
    made = Network(InputStage(arena, input_shape, _border(steps, 0)), arena=arena)
    for place in range(len(steps)):
        made.stages.append(_stage(made, steps, place))
    if not made.stages or (made.stages[-1].out.height, made.stages[-1].out.width) != (1, 1):
        raise Unplannable("the output is not one number for each class")
    if not made.stages[-1].out_grad.is_plain:  # where the loss leaves its gradient, one number behind the other
        raise Unplannable(f"layer '{steps[-1].name}': a convolution of windows can't be the last layer")
    return made


@dataclass(frozen=True)
class Step:
    """A layer, and whether the ReLU behind it is taken along."""

    name: str
    layer: Layer
    relu: bool = False


def _steps(layers: list[Named]) -> list[Step]:
    """Layers without Flatten (in lanes there is nothing to do), and ReLUs joined to the weights before them."""
    steps: list[Step] = []
    for name, layer in _relu_first([item for item in layers if not isinstance(item[1], Flatten)]):
        before = steps[-1] if steps else None
        if isinstance(layer, ReLU) and before and isinstance(before.layer, Conv2d | Linear) and not before.relu:
            steps[-1] = Step(before.name, before.layer, relu=True)
        else:
            steps.append(Step(name, layer))
    return steps


def _relu_first(layers: list[Named]) -> list[Named]:
    """A ReLU behind max pooling goes before it, where it costs nothing: both are increasing functions."""
    for i in range(len(layers) - 1):
        if isinstance(layers[i][1], MaxPool2d) and isinstance(layers[i + 1][1], ReLU):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return layers


def _stage(made: Network, steps: Sequence[Step], place: int) -> Stage:
    step, arena = steps[place], made.arena
    name, layer = step.name, step.layer
    before = made.stages[-1] if made.stages else None
    x, x_grad = (before.out, before.out_grad) if before else (made.input.out, None)
    pooled = _pools(steps, place + 1)
    out = _out(step, x, arena, _border(steps, place + 1), steps[place + 1].layer if pooled else None)
    if isinstance(layer, Conv2d):
        if layer.bias is None:
            raise Unplannable(f"layer '{name}': it has no biases")
        return ConvStage(name, layer, step.relu, pooled, x, x_grad, out, arena, made.parameters)
    if isinstance(layer, Linear):
        return LinearStage(name, layer, step.relu, x, x_grad, out, arena, made.factors, made.parameters)
    if isinstance(layer, MaxPool2d) and layer.size <= MOST_WINDOW:
        if isinstance(before, ConvStage) and before.pooled:
            return PooledStage(before, name, layer, out, arena, made.winners)
        return MaxPoolStage(name, layer, x, x_grad, out, arena, made.winners)
    if isinstance(layer, AvgPool2d):
        return AvgPoolStage(name, layer, x, x_grad, out, arena)
    if isinstance(layer, ReLU | Tanh):
        return MapStage(name, "relu" if isinstance(layer, ReLU) else "tanh", x, x_grad, out, arena)
    if isinstance(layer, Dropout):
        keep = 1 - layer.probability
        made.dropouts.append(name)
        constants = _constants(made, math.floor(layer.probability * (1 << 32)), 1 / keep)
        return DropoutStage(name, len(made.dropouts) - 1, constants, x, x_grad, out, arena)
    if isinstance(layer, LocalResponseNorm):
        constants = _constants(made, layer.k, layer.factor, layer.beta)
        return ResponseStage(name, layer.size, constants, x, x_grad, out, arena)
    raise Unplannable(f"layer '{name}': there is no {type(layer).__name__} in lanes")


def _constants(made: Network, *numbers: float) -> int:
    """Where these numbers were put."""
    made.constants += numbers
    return len(made.constants) - len(numbers)


def _out(step: Step, x: Plane, arena: Arena, border: int, pool: Layer | None) -> Plane:
    """The plane that a step fills, with the border or the ring that the next one wants."""
    if isinstance(step.layer, Linear):
        return arena.plane(step.layer.outputs, 1, 1)
    shape = step.layer.output_shape((x.channels, x.height, x.width))
    ring = pool.size if isinstance(pool, MaxPool2d) else None
    channels, height, width = shape
    return arena.plane(channels, height, width, border, border, ring)


def _border(steps: Sequence[Step], place: int) -> int:
    """Columns of zeros that the step at `place` wants beside its input."""
    layer = steps[place].layer if place < len(steps) else None
    return layer.padding if isinstance(layer, Conv2d) else 0


def _pools(steps: Sequence[Step], place: int) -> bool:
    layer = steps[place].layer if place < len(steps) else None
    return isinstance(layer, MaxPool2d) and layer.size <= MOST_WINDOW and isinstance(steps[place - 1].layer, Conv2d)
