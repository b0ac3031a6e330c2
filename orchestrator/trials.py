"""What the gate runs for targets: controls that must show nothing, then a trial a seed, each thing once.

A recipe is trained once for all targets of a task that ask for it; comparisons pair their recipes by seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator import datasets, quantities
from orchestrator.datasets import Dataset
from orchestrator.records import Target
from orchestrator.shards import PHOTOGRAPHS


@dataclass(frozen=True)
class Trial:
    """One thing that the gate runs. `overrides` go to the recipe; `control` names what was taken from the data.

    expect: what a control must show: an error at chance, or labels that were not copied.
    """

    name: str
    seed: int
    recipe: str
    dataset: str = ""
    overrides: tuple[str, ...] = ()
    control: datasets.Control | None = None
    expect: Literal["", "chance", "own labels"] = ""
    kind: quantities.Kind = "training"
    minutes: float = 0.0
    targets: str = ""

    @property
    def key(self) -> str:
        file, _, test = self.recipe.partition("::")
        return f"{Path(file).stem}{test and '-'}{test.replace('::', '-')}/{self.name}"


ONE_EPOCH = ("train.epochs=1",)
# What shows that a number comes from learning, by name; the last two fields as in Trial.
CONTROLS: dict[str, tuple[tuple[str, ...], datasets.Control | None, Literal["chance", "own labels"]]] = {
    "zero-steps": (("train.steps=0",), None, "chance"),
    "shuffled-labels": (ONE_EPOCH, "shuffled labels", "chance"),
    "noise-images": (ONE_EPOCH, "noise images", "chance"),
    "changed-labels": (ONE_EPOCH, "changed labels", "own labels"),
}
# Of photographs an epoch may take hours, and ten views of each test photograph minutes. Put before a control's own
# overrides, for later ones win: a control without a step stays one.
SHORTER = ("train.steps=100", "data.views=centre")


def trials(targets: Sequence[Target], commit: str, secret: bytes) -> tuple[Trial, ...]:
    """What the targets take, each thing once: a recipe's controls first, then a trial a seed.

    Seeds follow from the commit and a secret: nobody can choose them. Recipes on one dataset get the same ones.
    """
    found: dict[str, Trial] = {}
    for recipe in dict.fromkeys(recipe for target in targets for recipe in target.recipes):
        asking = [target for target in targets if recipe in target.recipes]
        for trial in _trials_of(recipe, asking, commit, secret):
            found.setdefault(trial.key, trial)
    return tuple(found.values())


def can_run(trial: Trial, dataset: Dataset | None) -> bool:
    """Whether there are data for it."""
    return dataset is None or not dataset.absent


def _trials_of(recipe: str, asking: list[Target], commit: str, secret: bytes) -> Iterable[Trial]:
    dataset = next((target.dataset for target in asking if target.dataset), "")  # of those that need one, the same
    minutes = max(target.minutes for target in asking)
    names = {name for target in asking for name in target.quantity.controls}
    whole = Trial("", 0, recipe, dataset, minutes=minutes, targets=" ".join(target.id for target in asking))
    for name in CONTROLS:
        if name in names:
            overrides, control, expect = CONTROLS[name]
            seed = number(secret, commit, dataset, "control")
            overrides = (*SHORTER, *overrides) if dataset in PHOTOGRAPHS else overrides
            yield replace(whole, name=name, seed=seed, overrides=overrides, control=control, expect=expect)
    for kind in dict.fromkeys(target.quantity.kind for target in asking):
        count = max(target.seeds for target in asking if target.quantity.kind == kind)
        for index in range(count):
            seed = number(secret, commit, dataset, str(index))
            name = f"seed-{seed}" if kind == "training" else f"{kind}-{seed}"
            yield replace(whole, name=name, seed=seed, kind=kind)


def number(secret: bytes, *parts: str) -> int:
    """31 bits from a secret and public parts: repeatable for the harness, not to be foreseen by anyone else."""
    digest = hashlib.sha256(secret + "\n".join(parts).encode()).digest()
    return int(np.frombuffer(digest[:4], "<u4")[0]) >> 1
