"""One side of a benchmark: a process that is ready for training steps and runs one for each line it reads.

    python -m mlcore.contender MODEL CONTENDER BATCH THREADS

It writes one JSON line when it is ready and one after each step: {"wall_s", "cpu_s", "loss"}.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from mlcore import kernels, models, ops
from mlcore.engines import AnyPlan, planned
from mlcore.layers import LocalResponseNorm, Sequential
from mlcore.optim import SGD
from mlcore.peers import peer_of, torch_module
from mlcore.planned.plan import Plan
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor

RATE, MOMENTUM, DECAY = 1e-4, 0.9, 5e-4
Step = Callable[[int], float]


def chosen_step(model: Sequential, x: Array, labels: Array, threads: int) -> Step:
    """mlcore as it trains: on the plan that pays, else on the tape."""
    kernels.prepare(threads)
    plan = planned(model, SGD(model.parameters(), MOMENTUM, DECAY), len(x), x.shape[1:])
    return _planned_step(plan, x, labels) if plan else tape_step(model, x, labels, threads)


def planes_step(model: Sequential, x: Array, labels: Array, threads: int) -> Step:
    """mlcore on planes, whether they pay or not."""
    kernels.prepare(threads)
    return _planned_step(Plan(model, SGD(model.parameters(), MOMENTUM, DECAY), len(x), x.shape[1:]), x, labels)


def _planned_step(plan: AnyPlan, x: Array, labels: Array) -> Step:
    return lambda number: plan.step(x, labels, RATE, Rng(number))[0]


def tape_step(model: Sequential, x: Array, labels: Array, threads: int) -> Step:
    """mlcore on its tape."""
    kernels.prepare(threads)
    optimiser = SGD(model.parameters(), MOMENTUM, DECAY)

    def step(number: int) -> float:
        optimiser.zero_grad()
        loss = ops.cross_entropy(model(Tensor(x), Rng(number)), labels)
        loss.backward()
        optimiser.step(RATE)
        return loss.item()

    return step


def torch_step(
    model: Sequential,
    x: Array,
    labels: Array,
    threads: int,
    last: bool = False,
    lrn: bool = True,
    compiled: bool = False,
) -> Step:
    """PyTorch. last: channels_last; lrn: with the normalisation; compiled: by torch.compile."""
    torch = torch_module()
    torch.set_num_threads(threads)
    net = peer_of(model, () if lrn else (LocalResponseNorm,))
    images, classes = torch.from_numpy(x), torch.from_numpy(labels)
    if last:
        net, images = net.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    run = torch.compile(net) if compiled else net

    def step(number: int) -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(run(images), classes)
        loss.backward()
        optimiser.step()
        return float(loss.item())

    return step


CONTENDERS: dict[str, Callable[[Sequential, Array, Array, int], Step]] = {
    "mlcore": chosen_step,
    "mlcore tape": tape_step,
    "torch": torch_step,
    "torch channels_last": partial(torch_step, last=True),
    "torch without LRN": partial(torch_step, last=True, lrn=False),
    "torch compiled": partial(torch_step, compiled=True),
    "mlcore planes": planes_step,
}


def serve(model: str, contender: str, batch: int, threads: int) -> None:
    """Make the network, run two steps to warm up, then one per line on stdin."""
    shape, classes = models.INPUTS[model]
    x = Rng(1).child("images").generator().standard_normal((batch, *shape), np.float32)
    step = CONTENDERS[contender](models.build(model, {}, Rng(1)), x, np.arange(batch) % classes, threads)
    began = time.perf_counter()
    step(0)
    first_s = time.perf_counter() - began
    step(1)
    _say({"ready": True, "first_s": first_s})
    for number, _ in enumerate(sys.stdin):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step(number + 2)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        _say({"wall_s": wall, "cpu_s": cpu, "loss": loss, "peak_mib": peak})


def _say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
