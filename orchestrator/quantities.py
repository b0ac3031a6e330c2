"""What a target can be about: each quantity with its unit, how a receipt gives it, and which controls guard it.

A receipt holds every number that could be measured of one training; a quantity picks its own. All of it is pure, so
that a verdict can be repeated from receipts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Name = Literal[
    "test_error_pct",
    "test_top5_error_pct",
    "views_gain",
    "parameters",
    "epochs_to",
    "train_wall_s",
    "images_per_s",
    "failed_tests",
]
Kind = Literal["training", "untrained", "timing", "tests"]  # what the gate has to run for it
Values = Mapping[str, float]  # of a receipt

SNAPSHOT = "train_error_pct_"  # + epoch: the error on the training images when that epoch had ended
ILSVRC_IMAGES, ILSVRC_EPOCHS = 1_281_167, 90
LEARNING = ("zero-steps", "shuffled-labels", "noise-images")


@dataclass(frozen=True)
class Quantity:
    """unit: written behind a number, its blank included. level: of a target, e.g. the training error to be reached."""

    unit: str
    digits: int
    of: Callable[[Values, float], float | None]
    controls: tuple[str, ...] = ()
    kind: Kind = "training"
    means: Callable[[float], str] = lambda value: ""  # words that a report adds


def epochs_to(values: Values, level: float) -> float | None:
    """Epochs until the training error had fallen to `level`, by a straight line between the two snapshots around it.

    None when it was never seen there. The first snapshot of all is taken as it stands.
    """
    before: tuple[int, float] | None = None
    for epoch, error in snapshots(values):
        if error <= level:
            if before is None:
                return float(epoch)
            return before[0] + (epoch - before[0]) * (before[1] - level) / (before[1] - error)
        before = (epoch, error)
    return None


def snapshots(values: Values) -> list[tuple[int, float]]:
    """(epoch, training error in percent) of every snapshot, in order."""
    return sorted((int(name.removeprefix(SNAPSHOT)), error) for name, error in values.items() if _is_snapshot(name))


def _is_snapshot(name: str) -> bool:
    return name.startswith(SNAPSHOT) and name.removeprefix(SNAPSHOT).isdigit()


def days_for_ilsvrc(images_per_s: float) -> str:
    """What the paper's training would take at this pace (sec. 5: roughly 90 cycles through 1.2 million images)."""
    days = ILSVRC_EPOCHS * ILSVRC_IMAGES / max(images_per_s, 1e-9) / 86400
    return f"; {ILSVRC_EPOCHS} epochs of {ILSVRC_IMAGES:,} images would take {days:.1f} days at this pace"


def failed_tests(values: Values, level: float) -> float | None:
    """None when none ran to its end: what they compare with is not installed."""
    return values.get("failed", 0.0) if values.get("passed", 0.0) + values.get("failed", 0.0) else None


def views_gain(values: Values, level: float) -> float | None:
    """By how many points the average over several views errs less than the centre alone, with the same weights."""
    centre, several = values.get("test_centre_error_pct"), values.get("test_error_pct")
    return None if centre is None or several is None else centre - several


def _named(name: str) -> Callable[[Values, float], float | None]:
    return lambda values, level: values.get(name)


QUANTITIES: dict[Name, Quantity] = {
    "test_error_pct": Quantity(" %", 2, _named("test_error_pct"), LEARNING),
    "test_top5_error_pct": Quantity(" %", 2, _named("test_top5_error_pct"), LEARNING),
    "views_gain": Quantity(" points", 2, views_gain, LEARNING),
    "parameters": Quantity("", 0, _named("parameters"), kind="untrained"),
    "epochs_to": Quantity(" epochs", 2, epochs_to, ("zero-steps", "changed-labels")),
    "train_wall_s": Quantity(" s", 0, _named("train_wall_s")),
    "images_per_s": Quantity(" images/s", 1, _named("images_per_s"), kind="timing", means=days_for_ilsvrc),
    "failed_tests": Quantity(" failed", 0, failed_tests, kind="tests"),
}
