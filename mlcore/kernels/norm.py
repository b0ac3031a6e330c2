"""Local response normalisation across channels, each example by itself.

    out = x / s ^ beta, s = k + factor * (sum of x^2 over the `size` channels around)

Source: Krizhevsky et al. 2012, sec. 3.3. Legend: N batch, C channel, H W height and width. float32 or float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel

COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]


def local_response_forward(x_NCHW: Array, size: int, k: float, factor: float, beta: float) -> tuple[Array, Array]:
    """(the normalised values, s). Channels beyond the first and the last count as zeros."""
    out, s = np.empty_like(x_NCHW), np.empty_like(x_NCHW)
    kind = x_NCHW.dtype.type
    _forward(COST * size * x_NCHW.size, _rows(x_NCHW), size, kind(k), kind(factor), kind(beta), _rows(out), _rows(s))
    return out, s


def local_response_backward(
    grad_NCHW: Array, x_NCHW: Array, s_NCHW: Array, size: int, factor: float, beta: float
) -> Array:
    """dy s^-beta - 2 factor beta x * (sum over the channels around of dy x s^(-beta - 1))."""
    grad_x = np.empty_like(x_NCHW)
    kind = x_NCHW.dtype.type
    _backward(
        COST * size * x_NCHW.size, _rows(grad_NCHW), _rows(x_NCHW), _rows(s_NCHW), size, kind(factor), kind(beta),
        _rows(grad_x),
    )  # fmt: skip
    return grad_x


def _rows(x_NCHW: Array) -> Array:
    """[N, C, H * W]."""
    return x_NCHW.reshape(*x_NCHW.shape[:2], -1)


@SharedKernel
def _forward(x: Array, size: int, k: Any, factor: Any, beta: Any, out: Array, s: Array) -> None:
    for n in prange(x.shape[0]):
        squares = x[n] * x[n]
        s[n] = 0
        _sum_around(squares, size, s[n])
        for c in range(x.shape[1]):
            for i in range(x.shape[2]):
                total = k + factor * s[n, c, i]
                s[n, c, i] = total
                out[n, c, i] = x[n, c, i] * total ** (-beta)


@SharedKernel
def _backward(grad: Array, x: Array, s: Array, size: int, factor: Any, beta: Any, grad_x: Array) -> None:
    twice = x.dtype.type(2)
    for n in prange(x.shape[0]):
        damped = grad[n] * s[n] ** (-beta)
        pull = damped * x[n] / s[n]
        around = np.zeros_like(pull)
        _sum_around(pull, size, around)
        grad_x[n] = damped - twice * factor * beta * x[n] * around


@kernel
def _sum_around(values: Array, size: int, sums: Array) -> None:
    """sums[c] += the values of the `size` channels around c, in the order of the channels."""
    half = size // 2
    for c in range(values.shape[0]):
        for other in range(max(0, c - half), min(values.shape[0], c + half + 1)):
            for i in range(values.shape[1]):
                sums[c, i] += values[other, i]
