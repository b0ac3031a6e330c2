"""The kinds of operations that a table of a network in lanes is made of: each one's columns, and the kernel behind it.

Each kernel is an entry of its own, so a network compiles those that it has. Their first argument is a row of the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.entries import Entry
from mlcore.kernels.jit import kernel
from mlcore.kernels.lane_ends import ENDS, cross_entropy, load_row, logits_out, turn
from mlcore.kernels.lane_maps import (
    RUNS,
    bias_gradient,
    clear_row,
    dropout_row,
    keep,
    relu_row,
    respond_back_row,
    respond_row,
    sum_groups,
    tanh_back_row,
    tanh_row,
)
from mlcore.kernels.lane_matrix import CORRELATE, DESCEND, GRADIENTS, GROUPS, correlate, descend
from mlcore.kernels.lane_pool import WINDOWS, avg_pool, avg_pool_back, max_pool, max_pool_back
from mlcore.kernels.micro import address_of

Array = NDArray[Any]


class Batch(NamedTuple):
    """What goes in (float32 images [N,C,H,W], int64 labels and dropouts' seeds) and comes out: logits float32 [N,K],
    losses float64 [N]."""

    images: Array
    labels: Array
    seeds: Array
    logits: Array
    losses: Array


class Place(NamedTuple):
    """Where an operation works: a thread's activations (float32) and winners (uint8), a group's gradients and factors,
    what addresses count from (int64), a network's constants (float64), and a batch from its image `first` on."""

    own: Array
    winners: Array
    grads: Array
    factors: Array
    bases: Array
    constants: Array
    batch: Batch
    first: Any  # int64


@kernel
def _correlate(op: Array, place: Place) -> None:
    correlate(op, place.bases)


@kernel
def _descend(op: Array, place: Place) -> None:
    descend(op, place.bases)


@kernel
def _bias_gradient(op: Array, place: Place) -> None:
    bias_gradient(op, address_of(place.own), place.grads)


@kernel
def _max_pool(op: Array, place: Place) -> None:
    max_pool(op, address_of(place.own), address_of(place.winners))


@kernel
def _max_pool_back(op: Array, place: Place) -> None:
    max_pool_back(op, address_of(place.own), address_of(place.winners))


@kernel
def _avg_pool(op: Array, place: Place) -> None:
    avg_pool(op, address_of(place.own))


@kernel
def _avg_pool_back(op: Array, place: Place) -> None:
    avg_pool_back(op, address_of(place.own))


@kernel
def _clear(op: Array, place: Place) -> None:
    clear_row(op, place.own)


@kernel
def _relu(op: Array, place: Place) -> None:
    relu_row(op, place.own)


@kernel
def _tanh(op: Array, place: Place) -> None:
    tanh_row(op, place.own)


@kernel
def _tanh_back(op: Array, place: Place) -> None:
    tanh_back_row(op, place.own)


@kernel
def _dropout(op: Array, place: Place) -> None:
    dropout_row(op, place.own, place.batch.seeds, place.constants, place.first)


@kernel
def _respond(op: Array, place: Place) -> None:
    respond_row(op, place.own, place.constants)


@kernel
def _respond_back(op: Array, place: Place) -> None:
    respond_back_row(op, place.own, place.constants)


@kernel
def _load(op: Array, place: Place) -> None:
    load_row(op, place.own, place.batch.images, place.first)


@kernel
def _logits(op: Array, place: Place) -> None:
    logits_out(op, place.own, place.first, place.batch.logits)


@kernel
def _loss(op: Array, place: Place) -> None:
    cross_entropy(op, place.own, place.first, place.batch.logits, place.batch.labels, place.batch.losses)


@kernel
def _turn(op: Array, place: Place) -> None:
    turn(op, place.own, place.factors)


@kernel
def _keep(op: Array, place: Place) -> None:
    keep(op, place.own, place.factors)


@kernel
def _sum(op: Array, place: Place) -> None:
    sum_groups(op, place.bases[GROUPS], place.bases[GRADIENTS])


def _example() -> tuple[Array, Place]:
    """Arguments of the types that all kernels are compiled for."""
    one, whole, real = np.zeros(1, np.float32), np.zeros(1, np.int64), np.zeros(1)
    batch = Batch(one.reshape(1, 1, 1, 1), whole, whole, one.reshape(1, 1), real)
    return whole, Place(one, np.zeros(1, np.uint8), one, one, whole, real, batch, 0)


class Kind(NamedTuple):
    """A kind of operation: the names of its columns, and its kernel."""

    columns: tuple[str, ...]
    entry: Entry


def _kinds() -> dict[str, Kind]:
    example = _example()
    kinds = {
        "correlate": (CORRELATE, _correlate),
        "descend": (DESCEND, _descend),
        "bias gradient": (RUNS, _bias_gradient),
        "max pool": (WINDOWS, _max_pool),
        "max pool back": (WINDOWS, _max_pool_back),
        "avg pool": (WINDOWS, _avg_pool),
        "avg pool back": (WINDOWS, _avg_pool_back),
        "clear": (RUNS, _clear),
        "relu": (RUNS, _relu),
        "tanh": (RUNS, _tanh),
        "tanh back": (RUNS, _tanh_back),
        "dropout": (RUNS, _dropout),
        "respond": (RUNS, _respond),
        "respond back": (RUNS, _respond_back),
        "load": (ENDS, _load),
        "logits": (ENDS, _logits),
        "loss": (ENDS, _loss),
        "turn": (ENDS, _turn),
        "keep": (RUNS, _keep),
        "sum": (RUNS, _sum),
    }
    return {name: Kind(columns, Entry(body, example)) for name, (columns, body) in kinds.items()}


KINDS = _kinds()
COLUMNS = max(len(kind.columns) for kind in KINDS.values())
_ENTRIES = [kind.entry for kind in KINDS.values()]


def operation(kind: str, **columns: int) -> list[int]:
    """A row of a table; columns that are not named are zero."""
    names = KINDS[kind].columns
    row = [0] * COLUMNS
    row[0] = list(KINDS).index(kind)
    for name, value in columns.items():
        row[names.index(name)] = value
    return row


class Table:
    """Operations, a row each: what every group goes through in this order, then pieces of the batch's gradient.

    rows, pieces: int64 [operations, columns].
    """

    def __init__(self, operations: Iterable[list[int]], pieces: Iterable[list[int]] = ()) -> None:
        self.rows, self.pieces = (np.array(list(each), np.int64).reshape(-1, COLUMNS) for each in (operations, pieces))
        self._kinds = sorted({*self.rows[:, 0].tolist(), *self.pieces[:, 0].tolist()})
        self._entries = np.zeros(len(KINDS), np.int64)

    def entries(self) -> Array:
        """The addresses of the kernels that are needed, by the number of their kind; zeros while kernels are noted.

        Looked up once: a small network's step is a millisecond.
        """
        if not self._entries[self._kinds].all():
            self._entries[self._kinds] = [_ENTRIES[kind].address() for kind in self._kinds]
        return self._entries
