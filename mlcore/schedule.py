"""Learning-rate schedules: pure functions of the place that training has come to.

A schedule gives a factor; a step's rate is `base_rate * schedule(place)`. Its options are the fields of its dataclass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlcore.options import read_options, unknown_name


@dataclass(frozen=True)
class Place:
    """`step` (0-based) of `total`; `epoch` (0-based) that it is in; `drops`: how often the validation error stalled."""

    step: int
    total: int
    epoch: int = 0
    drops: int = 0


class Schedule(Protocol):
    """Gives the factor on the base rate."""

    def __call__(self, place: Place) -> float: ...


@dataclass(frozen=True)
class Constant:
    """1, always."""

    def __call__(self, place: Place) -> float:
        return 1.0


@dataclass(frozen=True)
class Step:
    """`gamma` to the number of drops so far; `drops` equal intervals end in a drop, the last one at the end."""

    gamma: float = 0.1
    drops: int = 3

    def __post_init__(self) -> None:
        _positive(gamma=self.gamma, drops=self.drops)

    def __call__(self, place: Place) -> float:
        return self.gamma ** (place.step * self.drops // max(place.total, 1))


@dataclass(frozen=True)
class Epochs:
    """`factor` for each of the epochs `at` that is done: [120, 130] drops the rate after 120 epochs and after 130."""

    at: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        _positive(factor=self.factor)
        if not self.at or min(self.at) < 1 or list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at is {list(self.at)}: give rising numbers of epochs, such as [120, 130]")

    def __call__(self, place: Place) -> float:
        return self.factor ** sum(epoch <= place.epoch for epoch in self.at)


@dataclass(frozen=True)
class Plateau:
    """`factor` each time that the validation error stalls, `drops` times; when it stalls once more, training ends.

    It stalls when `patience` evaluations running were not lower than the lowest by more than `change` percentage
    points. `Progress` counts. Source: Krizhevsky et al. 2012, sec. 5: divided by 10, three times, by hand.
    """

    factor: float = 0.1
    patience: int = 5
    change: float = 0.0
    drops: int = 3

    def __post_init__(self) -> None:
        _share(factor=self.factor)
        _positive(patience=self.patience)
        if min(self.change, self.drops) < 0:
            raise ValueError("change and drops are not below 0")

    def __call__(self, place: Place) -> float:
        return self.factor**place.drops


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to `floor`. Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5."""

    floor: float = 0.0

    def __post_init__(self) -> None:
        _share(floor=self.floor)

    def __call__(self, place: Place) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * place.step / max(place.total, 1))) / 2


@dataclass(frozen=True)
class OneCycle:
    """Linear from near 0 to 1 over the share `warmup` of the steps, then linear down to `floor`.

    Source: the triangle of Smith 2018, arXiv:1803.09820, without its momentum cycle.
    """

    warmup: float = 0.2
    floor: float = 0.01

    def __post_init__(self) -> None:
        _share(warmup=self.warmup, floor=self.floor)

    def __call__(self, place: Place) -> float:
        rising, falling = self.warmup * place.total, (1 - self.warmup) * place.total
        up = (place.step + 1) / rising if rising > 0 else 1.0
        down = (place.total - place.step) / falling if falling > 0 else 1.0
        return min(1.0, up, max(self.floor, down))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "epochs": Epochs,
    "plateau": Plateau,
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
