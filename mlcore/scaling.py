"""What several processes gain: measured on this machine, and projected to more machines of its kind.

Measured, in turns: a step of one process with N threads, of N ranks with one thread each, and the sums alone of as
many gradients. Projected: each machine is a rank with N threads and a batch of its own; gradients leave when the way
back has made them (measured), one after the other around a ring, and the next step waits for the last.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlcore import kernels
from mlcore.bench import BASE
from mlcore.contender import BY_RANKS, RATE, network_for
from mlcore.engines import planned
from mlcore.errors import MlcoreError, RecipeError
from mlcore.planned.plan import Plan
from mlcore.race import Seen, Tell, race
from mlcore.rng import Rng
from mlcore.tensor import Array

MODELS = ("alexnet", "cuda_convnet", "lenet5")
MACHINES = (2, 8, 32)
GBITS = (1, 10, 25, 100)  # of a network a second
LINE_SHARE = 0.9  # of a network's speed that data get
LATENCY_S = 20e-6  # of each of a ring's 2 (M - 1) steps
STEPS = 9  # that a timeline is the median of


@dataclass(frozen=True)
class Timeline:
    """A step: when each gradient was ready and how large it is, and how long the whole step took."""

    ready_s: tuple[float, ...]
    bytes: tuple[int, ...]
    step_s: float


@dataclass(frozen=True)
class Projection:
    """A step of `machines` over a network, `waiting_s` of it for the sums; of the time that these take, `hidden_pct`
    passes while the way back goes on."""

    machines: int
    gbits: float
    step_s: float
    waiting_s: float
    hidden_pct: float
    images_per_s: float
    efficiency_pct: float


def scaling(model: str, batch: int, ranks: int, rounds: int, tell: Tell) -> dict[str, Any]:
    """Measure and project one network; MlcoreError when mlcore or MPI can't run."""
    seen = race(model, [BASE, *BY_RANKS], [str(batch), str(ranks), "train"], rounds, tell, _by_mpirun(ranks))
    if failed := {name: it.error for name, it in seen.items() if it.error}:
        raise MlcoreError(f"could not run: {failed}", place="mlcore bench --ranks", fix="pip install -e '.[mpi]'")
    tell(f"timing the way back of {model}")
    line = _timeline_apart(model, batch, ranks)
    rows = {name: _row(name, it, batch) for name, it in seen.items()}
    cycles_s = rows[BY_RANKS[1]]["cpu_s"] / ranks / ranks  # of one rank, on as many threads
    return {
        "schema": "mlcore.scaling/1",
        "model": model,
        "batch": batch,
        "ranks": ranks,
        "gradient_bytes": sum(line.bytes),
        "rows": list(rows.values()),
        "timeline": asdict(line),
        "projected": [asdict(project(line, batch, m, gbits, cycles_s)) for gbits in GBITS for m in MACHINES],
    }


def project(line: Timeline, batch: int, machines: int, gbits: float, cycles_s: float = 0.0) -> Projection:
    """A step of so many machines, each with a batch: gradients go round the ring in the order of the way back.

    cycles_s: that sending and adding take from the kernels.
    """
    sums = [ring_s(size, machines, gbits) for size in line.bytes]
    done = 0.0
    for ready, took in zip(line.ready_s, sums, strict=True):
        done = max(done, ready) + took
    waiting = max(0.0, done - line.ready_s[-1])
    step = line.step_s + waiting + cycles_s
    return Projection(
        machines, gbits, step, waiting, max(0.0, 100 * (1 - waiting / sum(sums))), machines * batch / step,
        100 * line.step_s / step,
    )  # fmt: skip


def ring_s(size: int, machines: int, gbits: float) -> float:
    """Seconds of an all-reduce around a ring: each machine sends 2 (M - 1) / M times the numbers.

    Source: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations.
    """
    sent = 2 * (machines - 1) / machines * size
    return sent / (LINE_SHARE * gbits * 1e9 / 8) + 2 * (machines - 1) * LATENCY_S


def _timeline_apart(model: str, batch: int, threads: int) -> Timeline:
    """The same, of a process of its own: what it keeps must not burden the contenders of the next network."""
    argv = [sys.executable, "-m", "mlcore.scaling", model, str(batch), str(threads)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout)
    return Timeline(tuple(said["ready_s"]), tuple(said["bytes"]), said["step_s"])


def timeline(model: str, batch: int, threads: int) -> Timeline:
    """When the gradients of a step are ready, in this process."""
    kernels.prepare(threads)
    network, optimiser, images, labels = network_for(model, batch)
    plan = planned(network, optimiser, batch, images.shape[1:])
    if plan is None:
        raise RecipeError("this network has no plan that pays", place=model, fix="choose another one")
    plan.step(images, labels, RATE, Rng(0))
    lines = [_one(plan, images, labels, number) for number in range(STEPS + 1)][1:]
    ready = np.median([line.ready_s for line in lines], axis=0)
    return Timeline(tuple(ready.tolist()), lines[0].bytes, statistics.median(line.step_s for line in lines))


def _one(plan: Any, images: Array, labels: Array, number: int) -> Timeline:
    began, ready, sizes = time.perf_counter(), list[float](), list[int]()
    plan.forward(images, labels, Rng(number))
    for gradients in plan.backward_by_layer() if isinstance(plan, Plan) else [[plan.gradient(1.0)]]:
        if gradients:
            ready.append(time.perf_counter() - began)
            sizes.append(sum(each.nbytes for each in gradients))
    plan.move(RATE, plan.stages) if isinstance(plan, Plan) else plan.update(RATE)
    return Timeline(tuple(ready), tuple(sizes), time.perf_counter() - began)


def _row(name: str, seen: Seen, batch: int) -> dict[str, Any]:
    quiet, base = ([sample for sample in side if sample.is_quiet] or side for side in (seen.samples, seen.base))
    wall = statistics.median(s.wall_s for s in quiet)
    return {
        "contender": name,
        "wall_s": wall,
        "cpu_s": statistics.median(s.cpu_s for s in quiet),
        "images_per_s": batch / wall,
        "ratio": wall / statistics.median(s.wall_s for s in base),
        "peak_mib": max(s.peak_mib for s in seen.samples),
        "turns": len(seen.samples),
        "quiet": sum(s.is_quiet for s in seen.samples),
    }


def _by_mpirun(ranks: int) -> Any:
    """How contenders are launched: those of several ranks by mpirun, with one thread each."""
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise RecipeError("no mpirun", place="mlcore bench --ranks", fix="pip install -e '.[mpi]'")

    def launch(name: str, argv: list[str]) -> list[str]:
        one_thread = [*argv[:-2], "1", argv[-1]]
        return [mpirun, "-n", str(ranks), *one_thread] if name in BY_RANKS else argv

    return launch


def page(documents: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(_section(document) for document in documents)


def _section(document: dict[str, Any]) -> str:
    ranks, megabytes = document["ranks"], document["gradient_bytes"] / 1e6
    names = {BASE: f"one process, {ranks} threads", BY_RANKS[0]: f"{ranks} ranks, one thread each"}
    names[BY_RANKS[1]] = f"the sums alone ({megabytes:,.1f} MB)"
    measured = [
        (names[row["contender"]], f"{1e3 * row['wall_s']:,.2f}", f"{1e3 * row['cpu_s']:,.2f}", f"{row['ratio']:.2f}",
         "" if row["contender"] == BY_RANKS[1] else f"{row['images_per_s']:,.0f}", f"{row['peak_mib']:,.0f}",
         f"{row['quiet']}/{row['turns']}")
        for row in document["rows"]
    ]  # fmt: skip
    projected = [
        (f"{row['gbits']:g}", str(row["machines"]), f"{1e3 * row['step_s']:,.1f}", f"{row['hidden_pct']:.0f}",
         f"{row['images_per_s']:,.0f}", f"{row['efficiency_pct']:.0f}")
        for row in document["projected"]
    ]  # fmt: skip
    return "\n".join([
        f"### {document['model']}, batch {document['batch']}", "",
        *_table(("a step of", "ms", "CPU ms", "ratio", "images/s", "peak MiB", "quiet turns"), measured), "",
        f"Projected, {ranks} threads and a batch of {document['batch']} on each machine:", "",
        *_table(("Gbit/s", "machines", "ms/step", "% of sums hidden", "images/s", "% of linear"), projected),
    ])  # fmt: skip


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]


if __name__ == "__main__":
    print(json.dumps(asdict(timeline(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
