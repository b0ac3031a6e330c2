"""Runs a network in lanes: one function that takes a group of images through a table of operations, and the update.

A row of the table is one operation on one row of pixels; its first number says which. The order of the rows is the
whole plan: what is made is used while it is still in the cache. Groups are shared among threads; each has its own
slot for the gradients of the weights, and slots are added in order, so results don't depend on the number of threads.

Legend: T thread, G group of images, A bytes of activations, P parameters, N image, K class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.lane_ends import ENDS, cross_entropy, load_row, logits_out, turn
from mlcore.kernels.lane_maps import (
    RUNS,
    bias_gradient,
    clear_row,
    dropout_row,
    relu_row,
    respond_back_row,
    respond_row,
    tanh_back_row,
    tanh_row,
)
from mlcore.kernels.lane_matrix import CORRELATE, DESCEND, correlate, descend
from mlcore.kernels.lane_pool import WINDOWS, avg_pool, avg_pool_back, max_pool, max_pool_back
from mlcore.kernels.micro import address_of

KINDS = {
    "correlate": CORRELATE,
    "descend": DESCEND,
    "bias gradient": RUNS,
    "max pool": WINDOWS,
    "max pool back": WINDOWS,
    "avg pool": WINDOWS,
    "avg pool back": WINDOWS,
    "clear": RUNS,
    "relu": RUNS,
    "tanh": RUNS,
    "tanh back": RUNS,
    "dropout": RUNS,
    "respond": RUNS,
    "respond back": RUNS,
    "load": ENDS,
    "logits": ENDS,
    "loss": ENDS,
    "turn": ENDS,
}
(
    CORRELATING, DESCENDING, SUMMING, MAX, MAX_BACK, AVG, AVG_BACK, CLEARING, RELU, TANH, TANH_BACK, DROPPING,
    RESPONDING, RESPONDING_BACK, LOADING, SHOWING, LOSING, TURNING,
) = range(len(KINDS))  # fmt: skip
COLUMNS = max(len(names) for names in KINDS.values())
UPDATE_BLOCK = 1 << 12

Array = NDArray[Any]


class Memory(NamedTuple):
    """activations float32 [T, A / 4] and winners uint8 [T, A]: one each per thread; grads float32 [G, P]."""

    activations: Array
    winners: Array
    weights: Array
    grads: Array
    constants: Array


class Batch(NamedTuple):
    """What goes in (float32 images [N,C,H,W], int64 labels and dropouts' seeds) and comes out: logits, losses [N]."""

    images: Array
    labels: Array
    seeds: Array
    logits: Array
    losses: Array


def operation(kind: str, **columns: int) -> list[int]:
    """A row of a table; columns that are not named are zero."""
    names = KINDS[kind]
    row = [0] * COLUMNS
    row[0] = list(KINDS).index(kind)
    for name, value in columns.items():
        row[names.index(name)] = value
    return row


def run(work: int, table: Array, lanes: int, memory: Memory, batch: Batch) -> None:
    """All groups of a batch through the table. work: multiplications, about."""
    _run(work, table, lanes, memory, batch)


def update(
    weights: Array, velocity: Array, grads: Array, spans: Array, rates: Array, decays: Array, momentum: float,
    nesterov: bool,
) -> None:  # fmt: skip
    """SGD, in place: spans [S, 2] (from, to) of the weights, each with its rate [S] and decay [S]; grads [G, P] are
    added in order."""
    ahead, own = (momentum, 1.0) if nesterov else (1.0, 0.0)
    steps = np.float32(momentum), np.float32(ahead), np.float32(own)
    _update(4 * grads.size, weights, velocity, grads, spans, rates.astype(np.float32), decays, *steps)


@SharedKernel
def _run(table: Array, lanes: int, memory: Memory, batch: Batch) -> None:
    threads, groups = memory.activations.shape[0], -(-batch.images.shape[0] // lanes)
    for thread in prange(threads):
        for group in range(thread, groups, threads):
            _run_group(table, memory.activations[thread], memory.winners[thread], memory, group, group * lanes, batch)


@kernel
def _run_group(table: Array, own: Array, winners: Array, memory: Memory, group: int, first: int, batch: Batch) -> None:
    """The images from `first` on."""
    grads = memory.grads[min(group, memory.grads.shape[0] - 1)]
    base, won = address_of(own), address_of(winners)
    bases = np.array([base, address_of(memory.weights), address_of(grads)])
    for op in table:
        kind = op[0]
        if kind == CORRELATING:
            correlate(op, bases)
        elif kind == DESCENDING:
            descend(op, bases)
        elif kind == SUMMING:
            bias_gradient(op, base, grads)
        elif kind <= AVG_BACK:
            _pool(op, base, won)
        elif kind <= RESPONDING_BACK:
            _map(op, own, memory.constants, batch.seeds, first)
        else:
            _end(op, own, first, batch)


@kernel
def _pool(op: Array, base: int, won: int) -> None:
    kind = op[0]
    if kind == MAX:
        max_pool(op, base, won)
    elif kind == MAX_BACK:
        max_pool_back(op, base, won)
    elif kind == AVG:
        avg_pool(op, base)
    else:
        avg_pool_back(op, base)


@kernel
def _map(op: Array, own: Array, constants: Array, seeds: Array, first: int) -> None:
    kind = op[0]
    if kind == CLEARING:
        clear_row(op, own)
    elif kind == RELU:
        relu_row(op, own)
    elif kind == TANH:
        tanh_row(op, own)
    elif kind == TANH_BACK:
        tanh_back_row(op, own)
    elif kind == DROPPING:
        dropout_row(op, own, seeds, constants, first)
    elif kind == RESPONDING:
        respond_row(op, own, constants)
    else:
        respond_back_row(op, own, constants)


@kernel
def _end(op: Array, own: Array, first: int, batch: Batch) -> None:
    kind = op[0]
    if kind == LOADING:
        load_row(op, own, batch.images, first)
    elif kind == SHOWING:
        logits_out(op, own, first, batch.logits)
    elif kind == LOSING:
        cross_entropy(op, own, first, batch.logits, batch.labels, batch.losses)
    else:
        turn(op, own)


@SharedKernel
def _update(
    weights: Array,
    velocity: Array,
    grads: Array,
    spans: Array,
    rates: Array,
    decays: Array,
    momentum: Any,
    ahead: Any,
    own: Any,
) -> None:
    for span in prange(spans.shape[0]):
        part = slice(spans[span, 0], spans[span, 1])
        slope = grads[0, part].copy()
        for group in range(1, grads.shape[0]):
            more = grads[group, part]
            for i in range(slope.size):
                slope[i] += more[i]
        _move(weights[part], velocity[part], slope, decays[span], rates[span], momentum, ahead, own)


@kernel
def _move(
    weight: Array, velocity: Array, slope: Array, decay: Any, rate: Any, momentum: Any, ahead: Any, own: Any
) -> None:
    """v = momentum v + g + decay w, w -= rate (own g' + ahead v): Nesterov's has own 1 and ahead momentum."""
    for i in range(weight.size):
        steep = slope[i] + decay * weight[i]
        speed = momentum * velocity[i] + steep
        velocity[i] = speed
        weight[i] -= rate * (own * steep + ahead * speed)
