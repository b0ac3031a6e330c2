"""How a step of training is run: on the tape, or on a plan where the network has one that pays.

There are two kinds of plan: in lanes, where small networks run fastest, and on planes, for the wide ones. A plan owns
the weights while it trains; `give` brings the session's model and optimiser up to date, before they are saved or
looked at.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np

from mlcore.config import Precision, Recipe
from mlcore.data.loader import Batch
from mlcore.errors import RecipeError
from mlcore.evaluate import on_tape
from mlcore.finite import all_finite
from mlcore.lanes.layout import group_images
from mlcore.lanes.plan import LanePlan
from mlcore.layers import Conv2d, Sequential
from mlcore.optim import Optimiser
from mlcore.peers import torch_module
from mlcore.planned.fuse import Unplannable
from mlcore.planned.plan import Plan
from mlcore.planned.winograd_stage import DIRECT, chosen
from mlcore.session import Session, forward_backward
from mlcore.tensor import Array
from mlcore.torch_engine import TorchEngine

AnyPlan: TypeAlias = Plan | LanePlan

LANES_BYTES = 24 << 20  # of a group's activations, up to which lanes were measured to beat planes
WIDE = 32  # maps of a convolution from which on planes were measured to beat the tape


class Engine(Protocol):
    """Runs a session's steps."""

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        """Loss and logits [N, classes] of a batch, and all that leads up to moving the weights."""

    def is_finite(self) -> bool:
        """Whether the gradients of the last step are, as far as the loss does not tell."""

    def move(self, rate: float) -> None:
        """Finish the step: move the weights at this learning rate."""

    def logits(self, images: Array) -> Array:
        """The network's output [N, classes] in evaluation, by the present weights."""

    def give(self) -> None:
        """Bring the session's model and optimiser up to date."""

    def take(self) -> None:
        """Go on from the session's model and optimiser as they are now."""


class TapeEngine:
    """The tape: any network."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        return forward_backward(self.session, batch, number)

    def is_finite(self) -> bool:
        parameters = self.session.model.parameters().values()
        return all(tensor.grad is None or all_finite(tensor.grad) for tensor in parameters)

    def move(self, rate: float) -> None:
        self.session.optimiser.step(rate)

    def logits(self, images: Array) -> Array:
        return on_tape(self.session.model)(images)

    def give(self) -> None:
        """The model is what was trained."""

    def take(self) -> None:
        """The model is what is trained."""


class PlanEngine:
    """A plan. A step whose loss is not finite leaves the weights as they were."""

    def __init__(self, session: Session, plan: AnyPlan) -> None:
        self.session, self.plan = session, plan

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        loss, logits = self.plan.forward(batch.images, batch.labels, self.session.rng.child("step", number))
        if np.isfinite(loss):
            self.plan.backward()
        else:
            self.plan.give()
        return loss, logits

    def is_finite(self) -> bool:
        """A plan leaves its gradients where it needs them; what they break is seen in the next step's loss."""
        return True

    def move(self, rate: float) -> None:
        self.plan.update(rate)

    def logits(self, images: Array) -> Array:
        starts = range(0, len(images), self.plan.batch)
        return np.concatenate([self.plan.logits(images[start : start + self.plan.batch]) for start in starts])

    def give(self) -> None:
        self.plan.give()

    def take(self) -> None:
        self.plan.take()


def demand_engine(recipe: Recipe, ranks: int = 1) -> None:
    """RecipeError for a recipe of PyTorch's that can't be run so, before anything is read."""
    if recipe.engine is None:
        return
    wrong = {
        "several ranks": ranks > 1,
        f'optimiser.name = "{recipe.optimiser.name}"': recipe.optimiser.name != "sgd",
        f'precision = "{recipe.precision}"': recipe.precision != "fp32",
    }
    for what, is_so in wrong.items():
        if is_so:
            fix = "it runs sgd in fp32 in one process; change that, or drop engine"
            raise RecipeError(f"no {what} with PyTorch", place="engine", fix=fix)
    torch_module()


def engine_for(session: Session, batch: int | None = None) -> Engine:
    """The plan, where it pays, holding the session's present weights; else the tape. batch: None, the recipe's.

    PyTorch, where the recipe says so.
    """
    recipe = session.recipe
    if recipe.engine == "torch":
        return TorchEngine(session)
    batch = batch or recipe.train.batch
    plan = planned(session.model, session.optimiser, batch, session.input_shape, recipe.precision)
    return PlanEngine(session, plan) if plan else TapeEngine(session)


def planned(
    model: Sequential, optimiser: Optimiser, batch: int, input_shape: tuple[int, ...], precision: Precision = "fp32"
) -> AnyPlan | None:
    """A plan, if there is one and it pays. bf16 has no other form: RecipeError where planes have none."""
    if precision == "bf16":
        return _in_bf16(model, optimiser, batch, input_shape)
    ways = (_on_planes, _in_lanes) if _saves_on_planes(model, input_shape) else (_in_lanes, _on_planes)
    plans = (way(model, optimiser, batch, input_shape) for way in ways)
    return next((plan for plan in plans if plan), None)


def _saves_on_planes(model: Sequential, input_shape: tuple[int, ...]) -> bool:
    """Whether a convolution has a way with fewer multiplications, which only planes go.

    Milliseconds of a step, batch 128, two threads, lanes against planes: mnist_cnn 60 and 43, cuda_convnet 44 and 32.
    """
    layers = [(layer, out) for _, layer, _, out in model.unfolded("", input_shape)]
    return any(chosen(layer, out[1], out[2]) != DIRECT for layer, out in layers if isinstance(layer, Conv2d))


def _in_bf16(model: Sequential, optimiser: Optimiser, batch: int, input_shape: tuple[int, ...]) -> Plan:
    try:
        return Plan(model, optimiser, batch, input_shape, "bf16")
    except Unplannable as error:
        raise RecipeError(f"no training in bf16: {error}", place="precision", fix='set precision = "fp32"') from error


def _in_lanes(model: Sequential, optimiser: Optimiser, batch: int, input_shape: tuple[int, ...]) -> LanePlan | None:
    """Where a batch fills the lanes, and the activations of a group stay near the processor."""
    if batch < group_images():
        return None
    try:
        plan = LanePlan(model, optimiser, batch, input_shape)
    except Unplannable:
        return None
    return plan if plan.group_bytes <= LANES_BYTES else None


def _on_planes(model: Sequential, optimiser: Optimiser, batch: int, input_shape: tuple[int, ...]) -> Plan | None:
    layers = [layer for _, layer, _, _ in model.unfolded("", input_shape)]
    if not any(isinstance(layer, Conv2d) and layer.outputs >= WIDE for layer in layers):
        return None
    try:
        return Plan(model, optimiser, batch, input_shape)
    except Unplannable:
        return None
