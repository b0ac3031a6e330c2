"""Races between mlcore and PyTorch: the same training step, in turns, each side in a process of its own.

A machine's other work hits both sides alike when they take turns; so the ratios of medians count, not the times.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from mlcore.errors import MlcoreError, RecipeError

TRAINING = 3  # a training step is about three times the multiplications of a forward pass


@dataclass(frozen=True)
class BenchRow:
    """One contender. Times are medians; `ratio` is its wall time over mlcore's; `share_pct` of the measured peak."""

    contender: str
    steps: int
    wall_ms: float
    cpu_ms: float
    images_per_s: float
    peak_mib: float
    first_s: float
    ratio: float
    share_pct: float


def bench(model: str, contenders: Sequence[str], batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Race the contenders ("mlcore" is always one); RecipeError for names that don't exist."""
    from mlcore.contender import CONTENDERS
    from mlcore.models import INPUTS

    names = list(dict.fromkeys(["mlcore", *contenders]))
    _demand_known(model, list(INPUTS))
    for name in names:
        _demand_known(name, list(CONTENDERS))
    peak = peak_gflops(threads)
    seen = _race(model, names, batch, threads, rounds)
    gflop = 2e-9 * TRAINING * _macs(model) * batch
    base = statistics.median(step["wall_s"] for step in seen["mlcore"])
    rows = [_row(name, steps, batch, base, gflop, peak) for name, steps in seen.items()]
    return {
        "schema": "mlcore.bench/1",
        "model": model,
        "batch": batch,
        "threads": threads,
        "peak_gflops": peak,
        "rows": [asdict(row) for row in rows],
    }


def _demand_known(name: str, known: list[str]) -> None:
    if name not in known:
        raise RecipeError(f"nothing is called '{name}'", place="mlcore bench", fix=f"known: {', '.join(known)}")


def peak_gflops(threads: int) -> float:
    """The fastest the machine's multiply-adds were seen to run: the best of some tiles on data in the first cache."""
    from mlcore import kernels
    from mlcore.kernels.peak import tile_gflops

    return tile_gflops(kernels.prepare(threads))


def _race(model: str, names: Sequence[str], batch: int, threads: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each contender said after each of its steps."""
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_contender(model, name, batch, threads)) for name in names}
        firsts = {name: _answer(name, side)["first_s"] for name, side in sides.items()}
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, side in sides.items():
                assert side.stdin is not None
                side.stdin.write("step\n")
                side.stdin.flush()
                seen[name].append({**_answer(name, side), "first_s": firsts[name]})
                time.sleep(0.05)  # let the other side's idle threads stop spinning
        return seen


@contextmanager
def _contender(model: str, name: str, batch: int, threads: int) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "mlcore.contender", model, name, str(batch), str(threads)]
    side = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield side
    finally:
        if side.stdin is not None:
            side.stdin.close()
        side.wait()


def _answer(name: str, side: subprocess.Popen[str]) -> dict[str, Any]:
    assert side.stdout is not None
    line = side.stdout.readline()
    if not line:
        raise MlcoreError(f"'{name}' ended before its turn", place="mlcore bench", fix="its own message is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _macs(model: str) -> int:
    """Of one example's forward pass."""
    from mlcore.models import INPUTS, build
    from mlcore.rng import Rng

    return build(model, {}, Rng(1)).macs(INPUTS[model][0])


def _row(name: str, steps: list[dict[str, Any]], batch: int, base: float, gflop: float, peak: float) -> BenchRow:
    wall, cpu = (statistics.median(step[key] for step in steps) for key in ("wall_s", "cpu_s"))
    return BenchRow(
        contender=name,
        steps=len(steps),
        wall_ms=1e3 * wall,
        cpu_ms=1e3 * cpu,
        images_per_s=batch / wall,
        peak_mib=max(step["peak_mib"] for step in steps),
        first_s=steps[0]["first_s"],
        ratio=wall / base,
        share_pct=100 * gflop / wall / peak,
    )
