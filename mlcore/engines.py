"""How a step of training is run: on the tape, or on a plan where the network has one that pays.

A plan owns the weights while it trains; `give` brings the session's model and optimiser up to date, before they are
saved, evaluated or looked at.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mlcore.data.loader import Batch
from mlcore.layers import Conv2d, Sequential
from mlcore.optim import Optimiser
from mlcore.planned.fuse import Unplannable
from mlcore.planned.plan import Plan
from mlcore.rng import Rng
from mlcore.session import Session, forward_backward
from mlcore.tensor import Array

WIDE = 32  # maps of a convolution from which on a plan was measured to beat the tape


class Engine(Protocol):
    """Runs a session's steps."""

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        """Loss and logits [N, classes] of a batch, and all that leads up to moving the weights."""

    def move(self, number: int) -> None:
        """Finish the step: move the weights."""

    def give(self) -> None:
        """Bring the session's model and optimiser up to date."""


class TapeEngine:
    """The tape: any network."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        return forward_backward(self.session, batch, number)

    def move(self, number: int) -> None:
        self.session.optimiser.step(self.session.rate(number))

    def give(self) -> None:
        """The model is what was trained."""


class PlanEngine:
    """A plan. A step whose loss is not finite leaves the weights as they were."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self.session, self.plan = session, plan

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        loss, logits = self.plan.forward(batch.images, batch.labels, self.session.rng.child("step", number))
        if np.isfinite(loss):
            self.plan.backward()
        else:
            self.plan.give()
        return loss, logits

    def move(self, number: int) -> None:
        self.plan.update(self.session.rate(number))

    def give(self) -> None:
        self.plan.give()


def engine_for(session: Session) -> Engine:
    """The plan, where it pays, holding the session's present weights; else the tape."""
    shape = session.loader.take(session.loader.part.index[:1]).images.shape[1:]
    plan = planned(session.model, session.optimiser, session.recipe.train.batch, shape)
    return PlanEngine(session, plan) if plan else TapeEngine(session)


def planned(model: Sequential, optimiser: Optimiser, batch: int, input_shape: tuple[int, ...]) -> Plan | None:
    """A plan, if there is one and it pays."""
    if not any(isinstance(layer, Conv2d) and layer.outputs >= WIDE for layer in model.layers.values()):
        return None
    try:
        return Plan(model, optimiser, batch, input_shape)
    except Unplannable:
        return None


def compile_plan(model: Sequential, optimiser: Optimiser, batch: int, input_shape: tuple[int, ...]) -> None:
    """Run one step on blank images with a network that is thrown away, so that training starts compiled."""
    if plan := planned(model, optimiser, batch, input_shape):
        plan.step(np.zeros((batch, *input_shape), np.float32), np.zeros(batch, np.int64), 0.0, Rng(0))
