"""Intervals for few observations: Student's, and resampled ones from eight values on."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_SHARES = 6
# Student's t, 97.5 %, by the number of values. Resampled, three values never say more than their lowest and highest,
# which hold a normal distribution's mean in 75 of 100 cases.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447}


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are None where too little was seen to say."""

    value: float
    low: float | None
    high: float | None


def mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean and its 95 % interval. One value, or none, has no interval.

    Fewer than eight values are taken to be normal (Student 1908); of more, means are resampled (Efron 1979).
    """
    if len(values) < 2:
        return Interval(fmean(values) if values else 0.0, None, None)
    middle = fmean(values)
    if len(values) in STUDENT:
        half = STUDENT[len(values)] * stdev(values) / math.sqrt(len(values))
        return Interval(middle, middle - half, middle + half)
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(middle, means[cut], means[-1 - cut])


def of_shares(values: Sequence[float]) -> Interval:
    """The mean of runs' shares, or of their differences: mostly all or nothing, so that a few have no spread to see.

    Fewer than six have no interval: by chance alone five point the same way once in 16 times, six once in 32.
    """
    found = mean(values)
    return found if len(values) >= FEWEST_SHARES else Interval(found.value, None, None)
