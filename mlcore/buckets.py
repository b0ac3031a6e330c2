"""Gradients on their way to their sums over all ranks: in place, in pieces, while the kernels go on.

All ranks add the same arrays in the same order. What is large travels as it is, in pieces; small ones travel together.
The order in which MPI adds is fixed for a number of ranks, so that the same run gives the same bits again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlcore.parallel import Ranks
from mlcore.tensor import Array

PIECE_BYTES = 1 << 20  # of 244 MB, between two processes of a machine: 60 ms in pieces of 1 MiB, 120 of 4, 110 at once


@dataclass(eq=False)
class _Bucket:
    """What travels together: one large array, or small ones in a copy of them all."""

    arrays: list[Array]
    packed: Array | None = None
    requests: list[Any] = field(default_factory=list)


class Buckets:
    """`add` as gradients get final; `arrived` waits for one of them, `settle` for all."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._open: list[Array] = []
        self._under_way: dict[int, _Bucket] = {}  # by the place of each array

    def add(self, gradient: Array) -> None:
        """Start summing an array, which has to be contiguous and left alone until it has arrived."""
        assert gradient.flags.c_contiguous, "it is summed in place"
        if gradient.nbytes >= PIECE_BYTES:
            self._send(_Bucket([gradient]))
            return
        self._open.append(gradient)
        if sum(each.nbytes for each in self._open) >= PIECE_BYTES:
            self._close()

    def arrived(self, gradient: Array) -> None:
        """Go on when the sum is there."""
        if _place(gradient) not in self._under_way:
            self._close()
        self._finish(self._under_way[_place(gradient)])

    def settle(self) -> None:
        """Go on when all sums are there."""
        self._close()
        for bucket in list(self._under_way.values()):
            self._finish(bucket)
        self._under_way.clear()
        self._ranks.progress.off()

    def _close(self) -> None:
        if self._open:
            packed = np.concatenate([each.reshape(-1) for each in self._open])
            self._send(_Bucket(self._open, packed))
            self._open = []

    def _send(self, bucket: _Bucket) -> None:
        flat = bucket.arrays[0].reshape(-1) if bucket.packed is None else bucket.packed
        length = PIECE_BYTES // flat.itemsize
        pieces = (flat[start : start + length] for start in range(0, flat.size, length))
        bucket.requests = [self._ranks.sum_in_place(piece) for piece in pieces]
        self._under_way |= {_place(each): bucket for each in bucket.arrays}
        self._ranks.progress.on()

    def _finish(self, bucket: _Bucket) -> None:
        if not bucket.requests:
            return
        self._ranks.progress.off()  # who waits keeps things going
        self._ranks.wait(bucket.requests)
        self._ranks.progress.on()
        bucket.requests = []
        if bucket.packed is not None:
            start = 0
            for each in bucket.arrays:
                each[...] = bucket.packed[start : start + each.size].reshape(each.shape)
                start += each.size


def _place(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
