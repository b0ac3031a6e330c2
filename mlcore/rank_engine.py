"""How a step is run by several ranks: each does its part of the batch, and moves the weights by everyone's gradients.

The parts of the loss and of its gradient are weighted by how many images a rank has, so that their sums are those of
the whole batch, however it divides. On the tape and on planes the sums travel while the way back goes on; in lanes,
where all gradients are made at once, after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from mlcore import autograd, ops
from mlcore.buckets import Buckets
from mlcore.data.loader import Batch
from mlcore.engines import Engine, PlanEngine, TapeEngine, engine_for
from mlcore.errors import RecipeError
from mlcore.lanes.plan import LanePlan
from mlcore.layers import Sequential
from mlcore.optim import Optimiser
from mlcore.parallel import Ranks, Team
from mlcore.planned.plan import Plan
from mlcore.result import weights_sha256
from mlcore.rng import Rng
from mlcore.session import Session
from mlcore.tensor import Array, Tensor


class Part(Protocol):
    """One rank's work on its part of a batch. `share`: of the whole batch's images."""

    def forward(self, images: Array, labels: Array, rng: Rng, share: float) -> tuple[float, Array]:
        """The mean loss of the part, and its logits [N, K]."""

    def backward(self, buckets: Buckets) -> None:
        """Gradients of `share` times the loss, each added to the buckets when it is final."""

    def move(self, rate: float, buckets: Buckets) -> None:
        """Move the weights by what has arrived."""


class Trained(Protocol):
    """What of a session the ranks need."""

    @property
    def rng(self) -> Rng: ...

    @property
    def model(self) -> Sequential: ...

    @property
    def optimiser(self) -> Optimiser: ...

    def arrays(self) -> dict[str, Array]:
        """All that has to be the same on all ranks."""


def team_engine(team: Team, session: Session) -> Engine:
    """What runs the steps: a rank's engine among several, else the usual one."""
    if not isinstance(team, Ranks):
        return engine_for(session)
    if kept := next(iter(session.model.buffers()), None):
        raise RecipeError(
            "batch normalisation among several ranks: each would normalise by its own part of the batch",
            place=f"layer '{kept.rpartition('.')[0]}'", fix="train this network in one process",
        )  # fmt: skip
    session.loader.only(team.slice_of)
    return RankEngine(team, session, engine_for(session, -(-session.recipe.train.batch // team.size)))


class RankEngine:
    """Runs a session's steps together with the other ranks; all get the same losses, logits and weights.

    own: what runs this rank's part of a batch. MlcoreError when ranks have other engines or first weights.
    """

    def __init__(self, ranks: Ranks, session: Trained, own: Engine) -> None:
        self.ranks, self.session, self.own, self.buckets = ranks, session, own, Buckets(ranks)
        self.part = _part(self.own, session)
        ranks.same("way to run the steps", type(self.part).__name__)
        self.demand_same_weights()

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        count, mine = len(batch.labels), self.ranks.slice_of(len(batch.labels))
        share = self.ranks.counts(count)[self.ranks.rank] / count
        rng = self.session.rng.child("step", number).behind(mine.start)
        loss, logits = self.part.forward(batch.images[mine], batch.labels[mine], rng, share)
        total = self.ranks.mean_loss(number, loss * share)
        if np.isfinite(total):
            self.part.backward(self.buckets)
        else:
            self.own.give()
        return total, self.ranks.rows(logits, count)

    def is_finite(self) -> bool:
        if isinstance(self.part, TapePart):
            self.buckets.settle()
        return self.own.is_finite()

    def move(self, rate: float) -> None:
        self.part.move(rate, self.buckets)
        self.buckets.settle()

    def logits(self, images: Array) -> Array:
        return self.ranks.rows(self.own.logits(images[self.ranks.slice_of(len(images))]), len(images))

    def give(self) -> None:
        self.own.give()
        self.demand_same_weights()

    def take(self) -> None:
        self.own.take()

    def demand_same_weights(self) -> None:
        """MlcoreError where ranks have other weights than the first."""
        self.ranks.same("set of weights", weights_sha256(self.session.arrays()))


class TapePart:
    """On the tape. A weight's gradient is final when the next one is made."""

    def __init__(self, engine: TapeEngine, session: Trained) -> None:
        self.engine, self.session = engine, session

    def forward(self, images: Array, labels: Array, rng: Rng, share: float) -> tuple[float, Array]:
        self.session.optimiser.zero_grad()
        logits = self.session.model(Tensor(images), rng)
        scores = logits.data
        self.loss, self.share = ops.cross_entropy(logits, labels), share
        return self.loss.item(), scores

    def backward(self, buckets: Buckets) -> None:
        made: list[Tensor] = []

        def watch(_: autograd.Node, tensor: Tensor, __: Array) -> None:
            self._add(made, buckets)
            if tensor.node is None:
                assert tensor.grad is None, "a weight that is used twice has two gradients"
                made.append(tensor)

        autograd.backward(self.loss, np.array(self.share), watch)
        self._add(made, buckets)

    def move(self, rate: float, buckets: Buckets) -> None:
        self.engine.move(rate)

    def _add(self, made: list[Tensor], buckets: Buckets) -> None:
        for tensor in made:
            assert tensor.grad is not None, "it was delivered behind the watch"
            tensor.grad = np.ascontiguousarray(tensor.grad)
            buckets.add(tensor.grad)
        made.clear()


class PlanPart:
    """On planes: the last layer's weights are moved while those of the first are still on their way."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.layers = plan, list[list[Array]]()

    def forward(self, images: Array, labels: Array, rng: Rng, share: float) -> tuple[float, Array]:
        return self.plan.forward(images, labels, rng, share)

    def backward(self, buckets: Buckets) -> None:
        self.layers = []
        for gradients in self.plan.backward_by_layer():
            self.layers.append(gradients)
            for each in gradients:
                buckets.add(each)

    def move(self, rate: float, buckets: Buckets) -> None:
        self.plan.move(rate, self._arriving(buckets))

    def _arriving(self, buckets: Buckets) -> Iterator[None]:
        for gradients in self.layers:
            for each in gradients:
                buckets.arrived(each)
            yield


class LanePart:
    """In lanes."""

    def __init__(self, plan: LanePlan) -> None:
        self.plan, self.share = plan, 1.0

    def forward(self, images: Array, labels: Array, rng: Rng, share: float) -> tuple[float, Array]:
        self.share = share
        return self.plan.forward(images, labels, rng)

    def backward(self, buckets: Buckets) -> None:
        buckets.add(self.plan.gradient(self.share))

    def move(self, rate: float, buckets: Buckets) -> None:
        buckets.settle()
        self.plan.update(rate)


def _part(engine: Engine, session: Trained) -> Part:
    if isinstance(engine, PlanEngine):
        plan = engine.plan
        return PlanPart(plan) if isinstance(plan, Plan) else LanePart(plan)
    assert isinstance(engine, TapeEngine), "there are no other engines"
    return TapePart(engine, session)
