"""Intervals for few observations: exact ones for shares; for means Student's, and resampled ones from eight values on.

Legend: n observations, k of them successes; low and high bound the value with the confidence that is asked for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean, stdev

CONFIDENCE = 0.95
RESAMPLES = 10_000
STEPS = 60  # halvings of [0, 1]: past the last bit that matters
# Student's t, 97.5 %, by the number of values. Resampled, three values never say more than their lowest and highest,
# which hold a normal distribution's mean in 75 of 100 cases.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447}


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are None where too little was seen to say."""

    value: float
    low: float | None
    high: float | None


def share(k: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """k of n, with the exact binomial interval. Source: Clopper and Pearson 1934."""
    if n == 0:
        return Interval(0.0, None, None)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else _root(lambda p: _at_least(k, n, p) - tail)
    high = 1.0 if k == n else _root(lambda p: tail - (1 - _at_least(k + 1, n, p)))
    return Interval(k / n, low, high)


def share_difference(k: int, n: int, other_k: int, other_n: int, confidence: float = CONFIDENCE) -> Interval:
    """One share minus another. Two exact intervals, each wide enough that both hold at once: sure, and a bit wide."""
    each = 1 - (1 - confidence) / 2
    one, other = share(k, n, each), share(other_k, other_n, each)
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Interval(one.value - other.value, None, None)
    return Interval(one.value - other.value, one.low - other.high, one.high - other.low)


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


def _at_least(k: int, n: int, p: float) -> float:
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
