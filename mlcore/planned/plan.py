"""A plan: a network's stages, wired for one batch size, that train and evaluate it without a tape.

While a plan lives, it owns the weights: `take` loads them from the model and its optimiser, `give` writes them back.

Legend: N batch, C channel, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numba

from mlcore.kernels import loss, planes
from mlcore.kernels.panels import Move
from mlcore.kernels.precision import PRECISIONS, Precision
from mlcore.layers import Conv2d, Layer, Linear, Sequential
from mlcore.optim import SGD, Optimiser
from mlcore.planned import layout
from mlcore.planned.fuse import AvgPooling, Dropping, MaxPooling, Step, Unplannable, Weighted, fused
from mlcore.planned.layout import Planes, Pool
from mlcore.planned.stages import AvgPoolStage, ConvStage, DropoutStage, LinearStage, MaxPoolStage, Stage, Weights
from mlcore.planned.winograd_stage import DIRECT, Space, WinogradConvStage, chosen
from mlcore.rng import Rng
from mlcore.tensor import Array

Shape = tuple[int, ...]


class Plan:
    """The stages of `model` for batches of up to `batch` images of `input_shape` (channels, height, width).

    precision: "fp32", or "bf16" for activations, gradients and the weights that are multiplied; sums, the weights that
    are moved, loss and logits stay float32. winograd: convolutions with fewer multiplications where that pays, in fp32;
    they lose about two bits. Unplannable when a layer has no planned form or kernels are not compiled.
    """

    def __init__(
        self,
        model: Sequential,
        optimiser: Optimiser,
        batch: int,
        input_shape: Shape,
        precision: str = "fp32",
        winograd: bool = True,
    ) -> None:
        if getattr(numba.config, "DISABLE_JIT"):  # noqa: B009  numba makes its settings at import
            raise Unplannable("the kernels of a plan exist in compiled form only")
        if not isinstance(optimiser, SGD) or optimiser.nesterov:
            raise Unplannable("only SGD with plain momentum has a planned form")
        self.model, self.optimiser, self.batch = model, optimiser, batch
        self.input, self.stages = _wired(
            model, batch, input_shape, PRECISIONS[precision], Space() if winograd and precision == "fp32" else None
        )
        self._count = 0
        self.take()

    def step(self, images_NCHW: Array, labels_N: Array, rate: float, rng: Rng) -> tuple[float, Array]:
        """One step of training: (mean loss, logits [N, K]), both from before the weights moved."""
        seen = self.forward(images_NCHW, labels_N, rng)
        self.backward()
        self.update(rate)
        return seen

    def forward(self, images_NCHW: Array, labels_N: Array, rng: Rng) -> tuple[float, Array]:
        """(mean loss, logits [N, K]); the loss's own gradient is left for `backward`."""
        self._count = len(labels_N)
        logits = self._forward(images_NCHW, rng)
        mean, softmax = loss.cross_entropy_forward(logits, labels_N)
        self.stages[-1].out_grad.rows(self._count)[:] = loss.cross_entropy_backward(1.0, softmax, labels_N)
        return float(mean), logits

    def backward(self) -> None:
        """Gradients of everything, from the last `forward`; linear layers leave theirs to `update`."""
        for stage in reversed(self.stages):
            stage.backward(self._count)

    def update(self, rate: float) -> None:
        """Move the weights by the last `backward`."""
        for stage in self.stages:
            stage.update(self._count, self._moves(stage.name, rate))

    def logits(self, images_NCHW: Array) -> Array:
        """The network's output [N, K], as in evaluation."""
        return self._forward(images_NCHW, None)

    def take(self) -> None:
        """Load weights and velocities from the model and the optimiser."""
        weights = {name: tensor.data for name, tensor in self.model.parameters().items()}
        for stage in self.stages:
            stage.take(_of(stage.name, weights), _of(stage.name, self.optimiser.velocities))

    def give(self) -> None:
        """Write weights and velocities back, in place."""
        parameters, velocities = self.model.parameters(), self.optimiser.velocities
        for stage in self.stages:
            weights, moving = stage.give()
            for part, values in weights.items():
                parameters[f"{stage.name}.{part}"].data[...] = values
                velocities[f"{stage.name}.{part}"][...] = moving[part]

    @property
    def buffer_bytes(self) -> int:
        """What the planes between the stages take."""
        there = [p.array for stage in self.stages for p in (stage.out, stage.out_grad)]
        memory = {
            id(a if a.base is None else a.base): a if a.base is None else a.base for a in (self.input.array, *there)
        }
        return sum(each.nbytes for each in memory.values())

    def _forward(self, images_NCHW: Array, rng: Rng | None) -> Array:
        count = len(images_NCHW)
        planes.load_images(images_NCHW, self.input.array, self.input.grid)
        for stage in self.stages:
            stage.forward(count, rng)
        return self.stages[-1].out.rows(count).copy()

    def _moves(self, layer: str, rate: float) -> dict[str, Move]:
        decay, momentum = self.optimiser.decay, self.optimiser.momentum
        return {part: Move(rate, momentum, decay.get(f"{layer}.{part}", 0.0)) for part in ("weight", "bias")}


def _of(layer: str, arrays: Mapping[str, Array]) -> Weights:
    """One layer's arrays, by parameter."""
    return {name.removeprefix(f"{layer}."): array for name, array in arrays.items() if name.startswith(f"{layer}.")}


def _wired(
    model: Sequential, batch: int, input_shape: Shape, precision: Precision, space: Space | None
) -> tuple[Planes, list[Stage]]:
    """The input's planes and the stages, each made with the planes of its neighbours."""
    shapes = {name: (got, out) for name, _, got, out in model.trace(input_shape)}
    steps = fused(list(model.layers.items()))
    if not steps or not isinstance(steps[-1], Weighted) or not isinstance(steps[-1].layer, Linear):
        raise Unplannable("the last layer with an effect must be Linear")
    channels, height, width = input_shape
    x = first = layout.plane(batch, channels, height, width, *_wish(steps[0], channels), precision)
    x_grad: Planes | None = None
    stages: list[Stage] = []
    pool = Pool()
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        stage = _stage(step, following, batch, shapes[step.name][1], x, x_grad, pool, space)
        stages.append(stage)
        x, x_grad = stage.out, stage.out_grad
    return first, stages


def _stage(
    step: Step,
    following: Step | None,
    batch: int,
    out_shape: Shape,
    x: Planes,
    x_grad: Planes | None,
    pool: Pool,
    space: Space | None,
) -> Stage:
    if isinstance(step, Weighted) and isinstance(step.layer, Linear):
        return LinearStage(step.name, step.layer, step.relu, x, x_grad, last=following is None)
    if isinstance(step, Dropping):
        if not x.is_plain or x_grad is None or not x_grad.is_plain:
            raise Unplannable(f"layer '{step.name}': dropout needs plain planes, as before a linear layer")
        return DropoutStage(step.name, step.probability, x, x_grad)
    if isinstance(step, MaxPooling):
        sides = (x.grid.height + 2 * step.padding, x.grid.width + 2 * step.padding)
        out_shape = (x.channels, *(1 + (side - step.size) // step.stride for side in sides))
    channels, height, width = out_shape
    out = layout.plane(batch, channels, height, width, *_wish(following, channels), x.precision)
    if isinstance(step, MaxPooling):
        return MaxPoolStage(step.name, step.size, step.stride, step.padding, step.response, x, x_grad, out, pool)
    if isinstance(step, AvgPooling):
        return AvgPoolStage(step.name, step.size, step.stride, step.padding, x, x_grad, out, pool)
    assert isinstance(step.layer, Conv2d)
    if space is not None and (choice := chosen(step.layer, height, width)) != DIRECT:
        return WinogradConvStage(step.name, step.layer, step.relu, x, x_grad, out, choice, space, pool)
    return ConvStage(step.name, step.layer, step.relu, x, x_grad, out, pool)


def _wish(step: Step | None, channels: int) -> tuple[int, int]:
    """(groups, border) of the planes that a step wants to read."""
    layer: Layer | None = step.layer if isinstance(step, Weighted) else None
    return (layer.groups, layer.padding) if isinstance(layer, Conv2d) else (1, 0)
