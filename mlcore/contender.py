"""One side of a benchmark: a process that is ready for steps and runs as many as each line it reads says.

    python -m mlcore.contender MODEL CONTENDER BATCH THREADS train|forward

It writes one JSON line when it is ready ({"first_s", "step_s", "peak_mib"}, or {"error"} when it can't be) and one
after each turn: {"wall_s", "cpu_s", "peak_mib"}, the times of one step.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlcore import kernels, models, ops
from mlcore.autograd import no_grad
from mlcore.buckets import Buckets
from mlcore.config import Precision
from mlcore.data.loader import Batch
from mlcore.engines import AnyPlan, PlanEngine, planned
from mlcore.errors import RecipeError
from mlcore.layers import LocalResponseNorm, Sequential
from mlcore.optim import SGD
from mlcore.parallel import Ranks, Team, join
from mlcore.peers import peer_of, torch_module
from mlcore.planned.plan import Plan
from mlcore.rank_engine import RankEngine
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor

RATE, MOMENTUM, DECAY = 1e-4, 0.9, 5e-4
Step = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Task:
    """What every side does: steps of training, or with `forward` evaluations, on one batch."""

    model: Sequential
    images: Array
    labels: Array
    threads: int
    forward: bool
    team: Team


def chosen_step(task: Task, precision: Precision = "fp32") -> Step:
    """mlcore as it trains: on the plan that pays, else on the tape."""
    kernels.prepare(task.threads)
    plan = planned(task.model, _optimiser(task), len(task.images), task.images.shape[1:], precision)
    return _planned_step(plan, task) if plan else tape_step(task)


def planes_step(task: Task) -> Step:
    """mlcore on planes, whether they pay or not."""
    kernels.prepare(task.threads)
    return _planned_step(Plan(task.model, _optimiser(task), len(task.images), task.images.shape[1:]), task)


def _planned_step(plan: AnyPlan, task: Task) -> Step:
    if task.forward:
        return lambda number: plan.logits(task.images)
    return lambda number: plan.step(task.images, task.labels, RATE, Rng(number))


def network_for(model: str, batch: int) -> tuple[Sequential, SGD, Array, Array]:
    """What is measured: the network with its first weights, its optimiser, one batch of images and labels."""
    shape, classes = models.INPUTS[model]
    network = models.build(model, {}, Rng(1))
    images = Rng(1).child("images").generator().standard_normal((batch, *shape), np.float32)
    return network, SGD(network.parameters(), MOMENTUM, DECAY), images, np.arange(batch) % classes


def _optimiser(task: Task) -> SGD:
    return SGD(task.model.parameters(), MOMENTUM, DECAY)


def tape_step(task: Task) -> Step:
    """mlcore on its tape."""
    kernels.prepare(task.threads)
    optimiser = _optimiser(task)

    def forward(number: int) -> None:
        with no_grad():
            task.model(Tensor(task.images), None)

    def step(number: int) -> None:
        optimiser.zero_grad()
        ops.cross_entropy(task.model(Tensor(task.images), Rng(number)), task.labels).backward()
        optimiser.step(RATE)

    return forward if task.forward else step


@dataclass(frozen=True)
class _Steady:
    """As much of a session as ranks need."""

    model: Sequential
    optimiser: SGD
    rng: Rng

    def arrays(self) -> dict[str, Array]:
        return {name: tensor.data for name, tensor in self.model.state().items()}


def ranks_step(task: Task) -> Step:
    """mlcore among the ranks that mpirun started, each with its part of the batch."""
    kernels.prepare(task.threads)
    ranks, optimiser = _ranks(task), _optimiser(task)
    plan = planned(task.model, optimiser, -(-len(task.images) // ranks.size), task.images.shape[1:])
    if plan is None:
        raise RecipeError("this network has no plan that pays", place="mlcore bench --ranks", fix="choose another one")
    session: Any = _Steady(task.model, optimiser, Rng(1))
    engine = RankEngine(ranks, session, PlanEngine(session, plan))
    batch = Batch(task.images, task.labels, task.labels)

    def step(number: int) -> None:
        engine.step(batch, number)
        engine.move(RATE)

    return step


def sums_step(task: Task) -> Step:
    """Only the sums of as many gradients as the network has weights."""
    buckets = Buckets(_ranks(task))
    gradient = np.zeros(sum(tensor.data.size for tensor in task.model.parameters().values()), np.float32)

    def step(number: int) -> None:
        buckets.add(gradient)
        buckets.settle()

    return step


def _ranks(task: Task) -> Ranks:
    if not isinstance(task.team, Ranks):
        raise RecipeError("not started by mpirun", place="mlcore.contender", fix="mlcore bench MODEL --ranks 2")
    return task.team


def torch_step(task: Task, bf16: bool, compiled: bool, last: bool, lrn: bool) -> Step:
    """PyTorch. bf16: by autocast; compiled: by torch.compile; last: channels_last; lrn: with the normalisation."""
    torch = torch_module()
    torch.set_num_threads(task.threads)
    net = peer_of(task.model, () if lrn else (LocalResponseNorm,))
    images, classes = torch.from_numpy(task.images), torch.from_numpy(task.labels)
    if last:
        net, images = net.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY, fused=True)
    net.train(not task.forward)
    run = torch.compile(net) if compiled else net

    def cast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()

    def forward(number: int) -> None:
        with torch.inference_mode(), cast():
            run(images)

    def step(number: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        with cast():
            loss = torch.nn.functional.cross_entropy(run(images), classes)
        loss.backward()
        optimiser.step()

    return forward if task.forward else step


def _torch_modes() -> dict[str, Callable[[Task], Step]]:
    """PyTorch in every combination, by names such as "torch bf16 compiled channels_last without LRN"."""
    words = ("bf16", "compiled", "channels_last", "without LRN")
    modes: dict[str, Callable[[Task], Step]] = {}
    for chosen in itertools.product((False, True), repeat=len(words)):
        bf16, compiled, last, without = chosen
        name = " ".join(["torch", *itertools.compress(words, chosen)])
        modes[name] = partial(torch_step, bf16=bf16, compiled=compiled, last=last, lrn=not without)
    return modes


CONTENDERS: dict[str, Callable[[Task], Step]] = {
    "mlcore": chosen_step,
    "mlcore bf16": partial(chosen_step, precision="bf16"),
    "mlcore planes": planes_step,
    "mlcore tape": tape_step,
    "mlcore ranks": ranks_step,
    "all-reduce": sums_step,
    **_torch_modes(),
}
BY_RANKS = ("mlcore ranks", "all-reduce")  # of these, started by mpirun


def serve(model: str, contender: str, batch: int, threads: int, forward: bool) -> None:
    """Make the network, run two steps to warm up, then as many as each line on stdin says."""
    team = join()
    network, _, images, labels = network_for(model, batch)
    task = Task(network, images, labels, threads, forward, team)
    try:
        began = time.perf_counter()
        step = CONTENDERS[contender](task)
        step(0)
        first_s = time.perf_counter() - began
        step_s = _timed(step, 1, 1, team)["wall_s"]
    except Exception as error:  # whatever keeps PyTorch or its compiler from running here
        _say({"error": f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"}, team)
        return
    _say({"first_s": first_s, "step_s": step_s, "peak_mib": _of_all(team, _peak_mib())}, team)
    done = 2
    while count := int(team.told(sys.stdin.readline) or 0):
        _say(_timed(step, done, count, team), team)
        done += count


def _timed(step: Step, first: int, count: int, team: Team) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(first, first + count):
        step(number)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall / count, "cpu_s": _of_all(team, cpu / count), "peak_mib": _of_all(team, _peak_mib())}


def _of_all(team: Team, number: float) -> float:
    """The sum over the processes that are one contender."""
    return float(team.everyones(np.array([number])).sum()) if isinstance(team, Ranks) else number


def _peak_mib() -> float:
    """The most memory that this process had; Linux's ru_maxrss would count what the one that started it had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _say(document: dict[str, Any], team: Team) -> None:
    if not team.leads:
        return
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "forward")
