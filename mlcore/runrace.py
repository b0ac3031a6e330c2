"""A race over whole runs: `mlcore train RECIPE` and PyTorch training the same recipe, each from its process's start.

Each round has a seed of its own, the same for all; they take turns in it. A round before the first one, which does not
count, fills the caches of both and of the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mlcore.errors import MlcoreError
from mlcore.race import QUIET_SHARE, Tell, busy_s

MLCORE = "from mlcore.cli import main; main()"
BASE = "mlcore"
PEERS = {"torch": "contiguous", "torch channels_last": "channels_last"}


@dataclass(frozen=True)
class Turn:
    """One run: seconds from the process's start to its end, less what only the comparison costs."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    others: float
    test_error_pct: float


@dataclass(frozen=True)
class RunRow:
    """One contender: medians of its turns; `ratio` is its wall time over mlcore's."""

    contender: str
    wall_s: float
    cpu_s: float
    ratio: float
    peak_mib: float
    quiet: int
    test_error_pct: list[float]
    best: bool = False


@dataclass(frozen=True)
class Ended:
    """A process that is over: what it printed, which is JSON, and what it cost."""

    text: str
    wall_s: float
    cpu_s: float
    peak_mib: float
    others: float


def race_runs(recipe: str, seed: int, folder: Path, threads: int, rounds: int, tell: Tell) -> dict[str, Any]:
    """Everyone's runs on the data of `folder`, with seeds from `seed`; MlcoreError when one can't run."""
    taken: dict[str, list[Turn]] = {BASE: [], **{name: [] for name in PEERS}}
    for number in range(-1, rounds):
        for name, turns in taken.items():
            tell(f"round {number + 1} of {rounds}: {name}")
            turn = _turn(name, recipe, folder, threads, (f"seed={seed + max(number, 0)}", f"threads={threads}"))
            if number >= 0:
                turns.append(turn)
    rows = [_row(name, turns, taken[BASE]) for name, turns in taken.items()]
    best = min(rows[1:], key=lambda row: row.wall_s).contender
    return {
        "schema": "mlcore.runrace/1",
        "recipe": recipe,
        "threads": threads,
        "seeds": list(range(seed, seed + rounds)),
        "rows": [{**asdict(row), "best": row.contender == best} for row in rows],
        "share_of_best": next(1 / row.ratio for row in rows if row.contender == best),
        "turns": {name: [asdict(turn) for turn in turns] for name, turns in taken.items()},
    }


def _row(name: str, turns: Sequence[Turn], base: Sequence[Turn]) -> RunRow:
    def middle(key: Callable[[Turn], float], of: Sequence[Turn] = turns) -> float:
        return float(median(map(key, of)))

    wall = middle(lambda turn: turn.wall_s)
    return RunRow(
        contender=name,
        wall_s=wall,
        cpu_s=middle(lambda turn: turn.cpu_s),
        ratio=wall / middle(lambda turn: turn.wall_s, base),
        peak_mib=max(turn.peak_mib for turn in turns),
        quiet=sum(turn.others <= QUIET_SHARE for turn in turns),
        test_error_pct=[turn.test_error_pct for turn in turns],
    )


def _turn(name: str, recipe: str, folder: Path, threads: int, overrides: Sequence[str]) -> Turn:
    if name != BASE:
        how = [recipe, str(folder), str(threads), PEERS[name], *overrides]
        return _counted(_ended(name, ["-m", "mlcore.peer_run", *how]))
    with tempfile.TemporaryDirectory() as place:
        quietly = ["--no-pictures", "--quiet", "--json", "--data", str(folder), "--out", f"{place}/run"]
        return _counted(_ended(name, ["-c", MLCORE, "train", recipe, *overrides, *quietly]))


def _counted(ended: Ended) -> Turn:
    said = json.loads(ended.text)
    wall, cpu = ended.wall_s - said.get("setup_s", 0.0), ended.cpu_s - said.get("setup_cpu_s", 0.0)
    return Turn(wall, cpu, ended.peak_mib, ended.others, said["test_error_pct"])


def _ended(name: str, argv: Sequence[str]) -> Ended:
    """Run Python to its end; MlcoreError with its last words when it fails."""
    busy, wall = busy_s(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as talk:
        process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, stderr=talk, text=True)
        assert process.stdout
        text = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall, busy = time.perf_counter() - wall, busy_s() - busy
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            talk.seek(0)
            last = (talk.read().strip().splitlines() or ["no word"])[-1]
            raise MlcoreError(f"ended with exit code {process.returncode}: {last}", place=name)
    cpu = used.ru_utime + used.ru_stime
    return Ended(text, wall, cpu, used.ru_maxrss / 1024, max(0.0, busy - cpu) / wall)
