"""Learning-rate schedules: pure functions of the step and the number of steps.

A schedule gives a factor; the rate of step `s` (0-based) is `base_rate * schedule(s, total)`. Its options are the
fields of its dataclass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlcore.options import read_options, unknown_name


class Schedule(Protocol):
    """Called with (step, total_steps), gives the factor on the base rate."""

    def __call__(self, step: int, total: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """1, always."""

    def __call__(self, step: int, total: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step:
    """`gamma` to the number of drops so far; `drops` equal intervals end in a drop, the last one at the end."""

    gamma: float = 0.1
    drops: int = 3

    def __post_init__(self) -> None:
        _positive(gamma=self.gamma, drops=self.drops)

    def __call__(self, step: int, total: int) -> float:
        return self.gamma ** (step * self.drops // max(total, 1))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to `floor`. Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5."""

    floor: float = 0.0

    def __post_init__(self) -> None:
        _share(floor=self.floor)

    def __call__(self, step: int, total: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * step / max(total, 1))) / 2


@dataclass(frozen=True)
class OneCycle:
    """Linear from near 0 to 1 over the share `warmup` of the steps, then linear down to `floor`.

    Source: the triangle of Smith 2018, arXiv:1803.09820, without its momentum cycle.
    """

    warmup: float = 0.2
    floor: float = 0.01

    def __post_init__(self) -> None:
        _share(warmup=self.warmup, floor=self.floor)

    def __call__(self, step: int, total: int) -> float:
        rising, falling = self.warmup * total, (1 - self.warmup) * total
        up = (step + 1) / rising if rising > 0 else 1.0
        down = (total - step) / falling if falling > 0 else 1.0
        return min(1.0, up, max(self.floor, down))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "one_cycle": OneCycle,
}


def build(name: str, options: Mapping[str, Any] | None = None) -> Schedule:
    """The schedule of that name; RecipeError for an unknown name or option."""
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, list(SCHEDULES), "schedule.name")
    return read_options(SCHEDULES[name], options or {}, "schedule")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} is {value}: give a number above 0")


def _share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: give a share between 0 and 1")
