"""Where a step in lanes goes: its operations, sorted by layer and direction, each part run as a table of its own.

In training all parts run group by group in one region; here each runs over all groups by itself, so its data come from
further away and the parts may take longer than the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mlcore.kernels import lane_program
from mlcore.kernels.lane_kinds import KINDS, Batch, Table
from mlcore.lanes.plan import LanePlan
from mlcore.lanes.stages import Operations, Stage
from mlcore.tensor import Array

Key = tuple[str, str]
FORWARD, INPUT, WEIGHTS, UPDATE = "forward", "to input", "weights", "update"
OF_WEIGHTS = ("descend", "bias gradient", "keep", "turn")


def seconds_by_part(plan: LanePlan, images_NCHW: Array, labels_N: Array, rest: Key) -> dict[Key, float]:
    """Seconds of each part of a step of training, behind a whole one; `rest`: what belongs to no layer."""
    seeds = np.append(np.arange(len(plan.network.dropouts)), 0)
    logits = np.empty((len(images_NCHW), plan.network.stages[-1].out.channels), np.float32)
    batch = Batch(images_NCHW, labels_N, seeds, logits, np.empty(len(labels_N)))
    work, groups = len(labels_N) * plan.work, -(-len(labels_N) // plan.lanes)

    def run(table: Table) -> None:
        lane_program.run(work, table, plan.lanes, plan.memory, batch)

    seen = {key: _timed(partial(run, table)) for key, table in _parts(plan, groups, rest).items()}
    return seen | {("(optimiser)", UPDATE): _timed(partial(plan.update, 0.0))}


def _parts(plan: LanePlan, groups: int, rest: Key) -> dict[Key, Table]:
    """The tables of operations for a batch of so many groups, in the order of the network."""
    found: dict[int, Key] = {}
    kept: list[list[int]] = []

    def noted(stage: Stage, method: Callable[..., Operations], direction: str | None) -> Callable[..., Operations]:
        def call(*arguments: Any) -> Operations:
            for op in method(*arguments):
                of = WEIGHTS if list(KINDS)[op[0]] in OF_WEIGHTS else INPUT
                found.setdefault(id(op), (stage.name, direction or of))
                kept.append(op)
                yield op

        return call

    before = [(stage, stage.forward, stage.backward) for stage in plan.network.stages]
    try:
        for stage, forward, backward in before:
            stage.forward = noted(stage, forward, FORWARD)  # type: ignore[method-assign]
            stage.backward = noted(stage, backward, None)  # type: ignore[method-assign]
        operations = plan.network.operations(training=True)
    finally:
        for stage, _, _ in before:
            del stage.forward, stage.backward
    parts: dict[Key, list[list[int]]] = {}
    for op in operations:
        parts.setdefault(found.get(id(op), rest), []).append(op)
    pieces = {(stage.name, WEIGHTS): list(plan.network.gather(stage, groups)) for stage in plan.network.weighted}
    return {key: Table(rows, pieces.get(key, ())) for key, rows in parts.items()}


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
