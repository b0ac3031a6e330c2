"""A kernel that tells which thread took which turn."""

from __future__ import annotations

import numba
from numba import prange

from mlcore.kernels.jit import SharedKernel
from tests.mlcore.helpers import Array


@SharedKernel
def who_takes_each_turn(turns: Array) -> None:
    """turns[i] = the number of the thread that took turn i."""
    for i in prange(turns.size):
        turns[i] = numba.get_thread_id()
