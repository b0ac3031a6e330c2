"""From steps to stages: each is made with the planes of its neighbours, so that nothing is copied between them.

A step's reader says how it wants to read (groups, border), the step makes its output so; where its gradient is wanted,
the step says, and the reader puts it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlcore.kernels.precision import FP32, Precision
from mlcore.layers import Conv2d, Linear, LocallyConnected2d, Sequential
from mlcore.planned import layout
from mlcore.planned.fuse import (
    AvgPooling,
    Block,
    Dropping,
    GlobalPooling,
    Local,
    MaxPooling,
    Normalising,
    Step,
    Unfused,
    Unplannable,
    Weighted,
    fused,
)
from mlcore.planned.layout import Planes, Pool
from mlcore.planned.library_stage import LibraryStage
from mlcore.planned.local_stage import LocalStage
from mlcore.planned.norm_stages import BatchNormStage, BlockStage
from mlcore.planned.stages import AvgPoolStage, ConvStage, DropoutStage, LinearStage, MaxPoolStage, Stage
from mlcore.planned.winograd_stage import DIRECT, Space, WinogradConvStage, chosen

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ends:
    """What a step begins with: the planes that it reads, where their gradient goes, and what it adds (a shortcut)."""

    x: Planes
    x_grad: Planes | None
    side: Planes | None = None


def wired(
    model: Sequential, batch: int, input_shape: Shape, precision: Precision, winograd: bool
) -> tuple[Planes, list[Stage]]:
    """The input's planes, and the stages in the order of the way forward. winograd: where it pays."""
    shapes = {name: out for name, _, _, out in model.unfolded("", input_shape)}
    steps = fused(list(model.layers.items()))
    if not steps or not isinstance(steps[-1], Weighted) or not isinstance(steps[-1].layer, Linear):
        raise Unplannable("the last layer with an effect must be Linear")
    channels, height, width = input_shape
    first = layout.plane(batch, channels, height, width, *_wish(steps[0]), precision)
    pool = Pool(chain=not any(isinstance(step, Block) for step in steps))
    space = Space() if winograd else None
    return first, _Wiring(batch, shapes, pool, space).chain(steps, Ends(first, None), None)


@dataclass(frozen=True)
class _Wiring:
    """Makes stages for a batch; shapes: of each layer's output; space: room for Winograd's points, None for the direct
    way."""

    batch: int
    shapes: dict[str, Shape]
    pool: Pool
    space: Space | None

    def chain(self, steps: Sequence[Step], ends: Ends, following: Step | None) -> list[Stage]:
        """The stages of steps one after the other; the last of them adds `ends.side`, if there is one."""
        stages: list[Stage] = []
        for step, after in zip(steps, [*steps[1:], following], strict=True):
            here = replace(ends, side=ends.side if step is steps[-1] else None)
            made = self._block(step, here, after) if isinstance(step, Block) else [self._stage(step, here, after)]
            if isinstance(made[0], MaxPoolStage):
                made[0].follow(stages[-1] if stages else None)
            stages += made
            ends = replace(ends, x=stages[-1].out, x_grad=stages[-1].out_grad)
        return stages

    def _block(self, step: Block, ends: Ends, following: Step | None) -> list[Stage]:
        """Going back, the body comes first; it leaves the gradient of the sum for the shortcut."""
        if not step.side:
            body = self.chain(step.body, replace(ends, side=ends.x), following)
            return [BlockStage(step.name, ends.x, ends.x_grad, body[-1].out_grad), *body]
        x = ends.x
        side_grad = layout.plane(self.batch, x.channels, x.grid.height, x.grid.width, precision=x.precision)
        side = self.chain(step.side, Ends(x, side_grad), None)
        body = self.chain(step.body, replace(ends, side=side[-1].out), following)
        side[-1].out_grad = body[-1].out_grad
        return [BlockStage(step.name, x, ends.x_grad, side_grad), *side, *body]

    def _stage(self, step: Step, ends: Ends, following: Step | None) -> Stage:
        x, x_grad = ends.x, ends.x_grad
        if isinstance(step, Dropping):
            if not x.is_plain or x_grad is None or not x_grad.is_plain:
                raise Unplannable(f"layer '{step.name}': dropout needs plain planes, as before a linear layer")
            return DropoutStage(step.name, step.probability, x, x_grad)
        if isinstance(step, Weighted) and isinstance(step.layer, Linear):
            return LinearStage(step.name, step.layer, step.relu, x, x_grad, last=following is None)
        out = layout.plane(self.batch, *self._out_shape(step, x), *_wish(following), x.precision)
        if isinstance(step, MaxPooling):
            return MaxPoolStage(
                step.name, step.size, step.stride, step.padding, step.response, x, x_grad, out, self.pool
            )
        if isinstance(step, AvgPooling):
            return AvgPoolStage(step.name, step.size, step.stride, step.padding, x, x_grad, out, self.pool)
        if isinstance(step, GlobalPooling):
            return AvgPoolStage(step.name, _side(step, x), 1, 0, x, x_grad, out, self.pool)
        if isinstance(step, Local):
            kind = LocalStage if _is_plannable(step.layer, ends, out) else LibraryStage
            return kind(step.name, step.layer, step.relu, x, x_grad, out, self.pool)
        if isinstance(step, Unfused):
            return LibraryStage(step.name, step.layer, False, x, x_grad, out, self.pool)
        if isinstance(step, Normalising):
            if x_grad is None or not x.is_plain or x_grad.groups > 1 or out.groups > 1:
                raise Unplannable(f"layer '{step.name}': BatchNorm2d needs layers of one group around it")
            return BatchNormStage(step.name, step.layer, step.relu, x, x_grad, ends.side, out)
        assert isinstance(step, Weighted), "all other steps are above"
        assert isinstance(step.layer, Conv2d), "linear layers are above"
        return self._conv(step, step.layer, ends, out)

    def _conv(self, step: Weighted, layer: Conv2d, ends: Ends, out: Planes) -> Stage:
        x, x_grad = ends.x, ends.x_grad
        if x.groups != layer.groups or x.grid.border < layer.padding:  # behind dropout, which hands on what it reads
            raise Unplannable(f"layer '{step.name}': its input is laid out for another layer")
        choice = chosen(layer, out.grid.height, out.grid.width, x.precision)
        if self.space is None or choice == DIRECT or x.grid.border != layer.padding:
            return ConvStage(step.name, layer, step.relu, x, x_grad, out, self.pool)
        return WinogradConvStage(step.name, layer, step.relu, x, x_grad, out, choice, self.space, self.pool)

    def _out_shape(self, step: Step, x: Planes) -> tuple[int, int, int]:
        if isinstance(step, MaxPooling):  # its name is the normalisation's before it
            sides = (x.grid.height + 2 * step.padding, x.grid.width + 2 * step.padding)
            height, width = (1 + (side - step.size) // step.stride for side in sides)
            return x.channels, height, width
        shape = self.shapes[step.name]
        if isinstance(step, Unfused):  # it may have changed places with the pooling before it
            shape = step.layer.output_shape((x.channels, x.grid.height, x.grid.width))
        channels, height, width = (*shape, 1, 1)[:3]
        return channels, height, width


def _is_plannable(layer: LocallyConnected2d, ends: Ends, out: Planes) -> bool:
    """Whether the kernels of local layers know this; else it runs as on the tape."""
    whole = out.groups == 1 and (ends.x_grad is None or ends.x_grad.groups == 1)
    roomy = layer.padding < layer.kernel and layer.padding <= ends.x.grid.border
    return layer.stride == 1 and roomy and out.precision is FP32 and whole


def _side(step: GlobalPooling, x: Planes) -> int:
    if x.grid.height != x.grid.width:
        raise Unplannable(f"layer '{step.name}': global pooling is planned for square maps")
    return x.grid.height


def _wish(step: Step | None) -> tuple[int, int]:
    """(groups, border) of the planes that a step wants to read."""
    if isinstance(step, Block):
        wishes = [_wish(branch[0]) for branch in (step.body, step.side) if branch]
        if any(groups > 1 for groups, _ in wishes):
            raise Unplannable(f"layer '{step.name}': a planned block begins with a convolution of one group")
        return 1, max(border for _, border in wishes)
    if isinstance(step, Local):
        return 1, step.layer.padding
    layer = step.layer if isinstance(step, Weighted) else None
    return (layer.groups, layer.padding) if isinstance(layer, Conv2d) else (1, 0)
