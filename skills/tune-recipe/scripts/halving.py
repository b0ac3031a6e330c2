"""Successive halving: many candidates briefly, the best third longer, until one is left at full length.

Source: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization", sec. 3.
A survivor is trained again from the start at each rung: its schedule depends on how long it will run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from search_space import Knobs

KEEP = 3  # one in three goes on, and is trained three times as long
Score = Callable[[Knobs, int, int], float]  # (knobs, epochs, seed) -> how bad; infinite when it broke down


class OutOfTime(Exception):
    """The budget doesn't hold another trial."""


def rungs(epochs: int, candidates: int, least: int = 1) -> list[int]:
    """Epochs of each rung, the last at full length, none below `least`: 9 candidates and 12 epochs give 2, 4, 12."""
    count = max(1, math.ceil(math.log(max(candidates, 1), KEEP) - 1e-9)) + 1
    return sorted({max(min(least, epochs), math.ceil(epochs / KEEP**k)) for k in range(count)})


def champion(score: Score, contenders: list[Knobs], epochs: int, seed: int, least: int = 1) -> Knobs | None:
    """The candidate that is left, or None when none could be trained. The last rung is left to `beats`, if there is
    one before it.

    When time runs out in a rung, the best so far of that rung if it is the first, else the best of the rung before.
    Raises OutOfTime when there wasn't even time for one.
    """
    alive = list(contenders)
    lengths = rungs(epochs, len(contenders), least)
    for rung, length in enumerate(lengths[:-1] or lengths):
        tried: list[tuple[float, Knobs]] = []
        late = False
        try:
            for knobs in alive:
                tried.append((score(knobs, length, seed), knobs))
        except OutOfTime:
            late = True
        if late and rung:
            break
        if late and not tried:
            raise OutOfTime
        able = sorted((pair for pair in tried if math.isfinite(pair[0])), key=lambda pair: pair[0])
        alive = [knobs for _, knobs in able[: max(1, math.ceil(len(alive) / KEEP))]]
        if late:
            break
    return alive[0] if alive else None


def beats(score: Score, challenger: Knobs, epochs: int, seeds: list[int]) -> bool:
    """Whether the challenger's mean score at full length is below the recipe's as it stands, over the same seeds.

    Raises OutOfTime when not even the first seed fits; later seeds are left out if they don't.
    """
    pairs: list[tuple[float, float]] = []
    try:
        for seed in seeds:
            pairs.append((score(challenger, epochs, seed), score({}, epochs, seed)))
    except OutOfTime:
        if not pairs:
            raise
    return sum(new for new, _ in pairs) < sum(old for _, old in pairs)
