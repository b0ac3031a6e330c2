"""What several ranks do together, against what one does with whole batches; run by mpirun, judged by test_parallel.

    mpirun -n N python -m tests.mlcore.rank_cases

Rank 0 prints {case: {"loss", "weights", "logits": relative errors, "repeats": the same bits again}}.
"""

import json
from collections.abc import Callable

import numpy as np

from mlcore.engines import Engine, PlanEngine, TapeEngine
from mlcore.lanes.plan import LanePlan
from mlcore.parallel import Ranks, join
from mlcore.planned.plan import Plan
from mlcore.rank_engine import RankEngine
from mlcore.session import Session, assemble, use_threads
from mlcore.tensor import Array
from mlcore.train import fit
from tests.mlcore.drawn import surrogate, tiny

Make = Callable[[Session, int], Engine]
SHAPE = (1, 28, 28)
# With three ranks one has nothing to do in the last batch of each epoch: 9, 9 and 2 images.
# Sums round in another order: seed 1 has a maximum of pooling that changes places by that, this one has none.
RAGGED = (
    "seed=2",
    "train.batch=9",
    "data.limit=20",
    "data.validation=30",
    "optimiser.rate=0.02",
    "optimiser.weight_decay=0.01",
)
DROPOUT = ("model.options.dropout=0.3",)


def on_tape(session: Session, batch: int) -> Engine:
    return TapeEngine(session)


def on_planes(session: Session, batch: int) -> Engine:
    return PlanEngine(session, Plan(session.model, session.optimiser, batch, SHAPE, session.recipe.precision))


def in_lanes(session: Session, batch: int) -> Engine:
    return PlanEngine(session, LanePlan(session.model, session.optimiser, batch, SHAPE))


CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "tape": (on_tape, ('model={name="lenet5"}',)),
    "tape, dropout": (on_tape, ('optimiser.name="adam"', "optimiser.rate=0.001", *DROPOUT)),
    "planes": (on_planes, ('model={name="mnist_cnn"}',)),
    "planes, dropout": (on_planes, DROPOUT),
    "planes in bf16": (on_planes, ('precision="bf16"', 'model={name="mnist_cnn"}')),
    "lanes": (in_lanes, ('model={name="lenet5"}',)),
    "lanes, dropout": (in_lanes, DROPOUT),
}


def trained(make: Callable[[Session], Engine], overrides: tuple[str, ...]) -> tuple[Array, Array, Array]:
    """The losses of two epochs, all weights, and some logits."""
    session = assemble(tiny(*RAGGED, *overrides), surrogate(60, 20))
    engine = make(session)
    losses = np.array([step.loss for step in fit(session, 0, engine)])
    engine.give()
    weights = np.concatenate([tensor.data.reshape(-1) for tensor in session.model.state().values()])
    return losses, weights, engine.logits(session.loader.take(session.loader.part.index[:7]).images)


def case(ranks: Ranks, make: Make, overrides: tuple[str, ...]) -> dict[str, float | bool]:
    def shared(session: Session) -> Engine:
        return RankEngine(ranks, session, make(session, -(-session.recipe.train.batch // ranks.size)))

    together, again = trained(shared, overrides), trained(shared, overrides)
    alone = trained(lambda session: make(session, session.recipe.train.batch), overrides)
    names = ("loss", "weights", "logits")
    return {
        **{name: _error(*sides) for name, *sides in zip(names, together, alone, strict=True)},
        "repeats": all(bool((one == other).all()) for one, other in zip(together, again, strict=True)),
    }


def _error(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def main() -> None:
    team = join()
    with team.together():
        assert isinstance(team, Ranks)
        use_threads(1)
        seen = {name: case(team, *how) for name, how in CASES.items()}
        if team.leads:
            print(json.dumps(seen))


if __name__ == "__main__":
    main()
