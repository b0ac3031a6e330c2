"""Benchmarks of mlcore and PyTorch: the same steps, in turns, each contender in a process of its own.

Only ratios of medians count, since a machine's other work hits all sides alike when they take turns; and turns in which
other processes had more than a tenth of a processor are left out, where enough others remain.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlcore.errors import MlcoreError, RecipeError
from mlcore.race import Sample, Seen, Tell, race

BASE = "mlcore"
FEWEST = 3  # quiet turns that a median is taken of; with fewer, all turns count


@dataclass(frozen=True)
class BenchRow:
    """One contender. Times are medians of a step; `ratio` is its wall time over mlcore's of the same rounds;
    `share_pct` of the peak of its precision, None where that is not known. turns: taken, and how many were quiet."""

    contender: str
    precision: str
    lrn: bool
    turns: int
    quiet: int
    wall_ms: float
    cpu_ms: float
    images_per_s: float
    peak_mib: float
    first_s: float
    ratio: float
    share_pct: float | None
    best: bool = False


@dataclass(frozen=True)
class Order:
    """What to measure: steps of training, or of evaluation with `forward`. rounds: turns of each contender."""

    model: str
    against: Sequence[str]
    batch: int = 128
    threads: int = 2
    rounds: int = 9
    forward: bool = False


def bench(order: Order, tell: Tell) -> dict[str, Any]:
    """Race mlcore and the contenders; RecipeError for names that don't exist, rows of those that could run."""
    from mlcore import kernels
    from mlcore.kernels.peak import measured_peaks
    from mlcore.models import INPUTS

    demand_known(order.model, list(INPUTS))
    names = contenders(order)
    tell("measuring the machine's peak")
    peaks = measured_peaks(kernels.prepare(order.threads))
    how = [str(order.batch), str(order.threads), "forward" if order.forward else "train"]
    seen = race(order.model, names, how, order.rounds, tell)
    if seen[BASE].error:
        raise MlcoreError(f"mlcore itself could not run: {seen[BASE].error}", place="mlcore bench")
    gflop = 2e-9 * _macs(order) * order.batch
    rows = [_row(name, it, order.batch, gflop, peaks) for name, it in seen.items() if it.samples]
    return {
        "schema": "mlcore.bench/2",
        "model": order.model,
        "batch": order.batch,
        "threads": order.threads,
        "forward": order.forward,
        "peak_gflops": peaks,
        "rows": _with_best([asdict(row) for row in rows]),
        "left_out": {name: it.error for name, it in seen.items() if it.error},
    }


def contenders(order: Order) -> list[str]:
    """Full names: mlcore, and those that `against` names or stands for."""
    from mlcore.contender import BY_RANKS, CONTENDERS

    groups: dict[str, Callable[[str], bool]] = {
        "torch": lambda name: name.startswith("torch") and "bf16" not in name,
        "torch-bf16": lambda name: "bf16" in name,
    }
    known = [name for name in CONTENDERS if name not in BY_RANKS]
    known = [name for name in known if "without LRN" not in name or _has_lrn(order.model)]
    names = [BASE]
    for given in order.against:
        if given not in groups:
            demand_known(given, [*dict.fromkeys([*groups, *known])])
        names += [name for name in known if groups[given](name)] if given in groups else [given]
    return list(dict.fromkeys(names))


def demand_known(name: str, known: list[str]) -> None:
    """RecipeError for a name that is none of the known ones."""
    if name not in known:
        raise RecipeError(f"nothing is called '{name}'", place="mlcore bench", fix=f"known: {', '.join(known)}")


def _network(model: str) -> Any:
    from mlcore.models import build
    from mlcore.rng import Rng

    return build(model, {}, Rng(1))


def _has_lrn(model: str) -> bool:
    from mlcore.layers import LocalResponseNorm

    return any(isinstance(layer, LocalResponseNorm) for layer in _network(model).layers.values())


def _macs(order: Order) -> int:
    """Of one image: forward, or three times that, less the gradient of the images, which nobody wants."""
    from mlcore.models import INPUTS

    macs = [layer.macs(shape) for _, layer, shape, _ in _network(order.model).trace(INPUTS[order.model][0])]
    return sum(macs) if order.forward else 3 * sum(macs) - next(filter(None, macs), 0)


def _row(name: str, seen: Seen, batch: int, gflop: float, peaks: dict[str, float]) -> BenchRow:
    precision = "bf16" if "bf16" in name else "fp32"
    wall = _median(seen.samples, "wall_s")
    return BenchRow(
        contender=name,
        precision=precision,
        lrn="without LRN" not in name,
        turns=len(seen.samples),
        quiet=sum(sample.is_quiet for sample in seen.samples),
        wall_ms=1e3 * wall,
        cpu_ms=1e3 * _median(seen.samples, "cpu_s"),
        images_per_s=batch / wall,
        peak_mib=max(sample.peak_mib for sample in seen.samples),
        first_s=seen.first_s,
        ratio=wall / _median(seen.base, "wall_s"),
        share_pct=100 * gflop / wall / peaks[precision] if precision in peaks else None,
    )


def _median(samples: Iterable[Sample], key: str) -> float:
    """Over the quiet ones, if they are enough."""
    every = list(samples)
    quiet = [sample for sample in every if sample.is_quiet]
    return float(statistics.median(getattr(sample, key) for sample in (quiet if len(quiet) >= FEWEST else every)))


def _with_best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark PyTorch's fastest mode of each precision, with the normalisation and without."""
    fastest: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in rows:
        if row["contender"].startswith("torch"):
            kind = (row["precision"], row["lrn"])
            fastest[kind] = min(row, fastest.get(kind, row), key=lambda one: float(one["ratio"]))
    for row in fastest.values():
        row["best"] = True
    return rows
