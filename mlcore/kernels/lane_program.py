"""Runs a network in lanes: one function that takes a group of images through a table of operations, and the update.

A row of the table is one operation on one row of pixels; its first number says which. The order of the rows is the
whole plan: what is made is used while it is still in the cache. Groups are shared among threads; each leaves its
gradients in a slot of its own, of a linear layer the two factors, which are much smaller. Then a second table brings
pieces of the whole batch's gradient together in the order of the groups, so results don't depend on the number of
threads.

Legend: T thread, G group of images, A bytes of activations, F bytes of factors, P parameters, N image, K class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.entries import call_entry
from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.lane_kinds import Batch, Place, Table
from mlcore.kernels.micro import address_of

Array = NDArray[Any]


class Memory(NamedTuple):
    """activations float32 [T, A / 4] and winners uint8 [T, A]: one each per thread; grads float32 [G, P] and factors
    float32 [G, F / 4]: one each per group; weights and slope, the gradient of the batch, float32 [P]; constants
    float64."""

    activations: Array
    winners: Array
    grads: Array
    factors: Array
    weights: Array
    slope: Array
    constants: Array


def run(work: int, table: Table, lanes: int, memory: Memory, batch: Batch) -> None:
    """All groups of a batch through the table, then its pieces of the gradient. work: multiplications, about."""
    images = np.require(batch.images, np.float32, ["C", "A", "W"])  # exactly as the entries were compiled for
    labels = np.require(batch.labels, np.int64, ["C", "A", "W"])
    batch = batch._replace(images=images, labels=labels)
    _run(work, table.rows, table.pieces, table.entries(), lanes, memory, batch)


def update(
    weights: Array, velocity: Array, slope: Array, spans: Array, rates: Array, decays: Array, momentum: float,
    nesterov: bool,
) -> None:  # fmt: skip
    """SGD, in place: spans [S, 2] (from, to) of the weights, each with its rate [S] and decay [S]."""
    ahead, own = (momentum, 1.0) if nesterov else (1.0, 0.0)
    steps = np.float32(momentum), np.float32(ahead), np.float32(own)
    _update(4 * slope.size, weights, velocity, slope, spans, rates.astype(np.float32), decays, *steps)


@SharedKernel
def _run(table: Array, pieces: Array, kernels: Array, lanes: int, memory: Memory, batch: Batch) -> None:
    threads, groups = memory.activations.shape[0], -(-batch.images.shape[0] // lanes)
    for thread in prange(threads):
        own, winners = memory.activations[thread], memory.winners[thread]
        for group in range(thread, groups, threads):
            _run_group(table, kernels, own, winners, memory, group, group * lanes, batch)
    for thread in prange(threads):
        for piece in range(thread, pieces.shape[0], threads):
            _gather(pieces[piece], kernels, memory, batch)


@kernel
def _run_group(
    table: Array, kernels: Array, own: Array, winners: Array, memory: Memory, group: int, first: int, batch: Batch
) -> None:
    """The images from `first` on."""
    slot = min(group, memory.grads.shape[0] - 1)
    grads, factors = memory.grads[slot], memory.factors[slot]
    bases = np.array([address_of(own), address_of(memory.weights), address_of(grads)])
    place = Place(own, winners, grads, factors, bases, memory.constants, batch, np.int64(first))
    for op in table:
        call_entry(kernels[op[0]], op, place)


@kernel
def _gather(op: Array, kernels: Array, memory: Memory, batch: Batch) -> None:
    """One piece of the batch's gradient."""
    own, winners, factors, slope = memory.activations[0], memory.winners[0], memory.factors[0], memory.slope
    bases = np.array([address_of(factors), address_of(memory.weights), address_of(slope), address_of(memory.grads[0])])
    place = Place(own, winners, slope, factors, bases, memory.constants, batch, np.int64(0))
    call_entry(kernels[op[0]], op, place)


@SharedKernel
def _update(
    weights: Array,
    velocity: Array,
    slope: Array,
    spans: Array,
    rates: Array,
    decays: Array,
    momentum: Any,
    ahead: Any,
    own: Any,
) -> None:
    for span in prange(spans.shape[0]):
        part = slice(spans[span, 0], spans[span, 1])
        _move(weights[part], velocity[part], slope[part], decays[span], rates[span], momentum, ahead, own)


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
