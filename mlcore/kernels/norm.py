"""Local response normalisation, each example by itself: across channels, or within each map.

    out = x / s ^ beta, s = k + factor * (sum of x^2 over the neighbours)

Neighbours are the `size` channels around, or the `size` x `size` window around in the same map.
Source: Krizhevsky et al. 2012, sec. 3.3; within maps: the "rnorm" layers of Krizhevsky's cuda-convnet.
Legend: N batch, C channel, H W height and width. float32 or float64.
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
    _forward(COST * size * x_NCHW.size, _rows(x_NCHW), size, False, kind(k), kind(factor), kind(beta), _rows(out),
             _rows(s))  # fmt: skip
    return out, s


def local_response_backward(
    grad_NCHW: Array, x_NCHW: Array, s_NCHW: Array, size: int, factor: float, beta: float
) -> Array:
    """dy s^-beta - 2 factor beta x * (sum over the channels around of dy x s^(-beta - 1))."""
    grad_x = np.empty_like(x_NCHW)
    kind = x_NCHW.dtype.type
    _backward(
        COST * size * x_NCHW.size, _rows(grad_NCHW), _rows(x_NCHW), _rows(s_NCHW), size, False, kind(factor),
        kind(beta), _rows(grad_x),
    )  # fmt: skip
    return grad_x


def map_response_forward(x_NCHW: Array, size: int, k: float, factor: float, beta: float) -> tuple[Array, Array]:
    """(the values normalised within their maps, s). Pixels beyond the edges count as zeros."""
    out, s = np.empty_like(x_NCHW), np.empty_like(x_NCHW)
    kind = x_NCHW.dtype.type
    _forward(
        COST * size * x_NCHW.size, _planes(x_NCHW), size, True, kind(k), kind(factor), kind(beta),
        _planes(out), _planes(s),
    )  # fmt: skip
    return out, s


def map_response_backward(
    grad_NCHW: Array, x_NCHW: Array, s_NCHW: Array, size: int, factor: float, beta: float
) -> Array:
    """As across channels: the window is symmetric, so whom a pixel damps are those that damp it."""
    grad_x = np.empty_like(x_NCHW)
    kind = x_NCHW.dtype.type
    _backward(
        COST * size * x_NCHW.size, _planes(grad_NCHW), _planes(x_NCHW), _planes(s_NCHW), size, True, kind(factor),
        kind(beta), _planes(grad_x),
    )  # fmt: skip
    return grad_x


def _rows(x_NCHW: Array) -> Array:
    """[N, C, H * W]."""
    return x_NCHW.reshape(*x_NCHW.shape[:2], -1)


def _planes(x_NCHW: Array) -> Array:
    """[N * C, H, W]."""
    return x_NCHW.reshape(-1, *x_NCHW.shape[2:])


# Below, x is [N, C, H * W], or within maps [N * C, H, W]: neighbours along the second axis, or the second and third.


@SharedKernel
def _forward(x: Array, size: int, within: bool, k: Any, factor: Any, beta: Any, out: Array, s: Array) -> None:
    for n in prange(x.shape[0]):
        s[n] = _neighbourhood(x[n] * x[n], size, within)
        for c in range(x.shape[1]):
            for i in range(x.shape[2]):
                total = k + factor * s[n, c, i]
                s[n, c, i] = total
                out[n, c, i] = x[n, c, i] * total ** (-beta)


@SharedKernel
def _backward(grad: Array, x: Array, s: Array, size: int, within: bool, factor: Any, beta: Any, grad_x: Array) -> None:
    twice = x.dtype.type(2)
    for n in prange(x.shape[0]):
        damped = grad[n] * s[n] ** (-beta)
        around = _neighbourhood(damped * x[n] / s[n], size, within)
        grad_x[n] = damped - twice * factor * beta * x[n] * around


@kernel
def _neighbourhood(values: Array, size: int, within: bool) -> Array:
    """For each value the sum over its neighbours."""
    sums = np.zeros_like(values)
    _sum_around(values, size, sums)
    if not within:
        return sums
    windows = np.zeros_like(values)
    _sum_beside(sums, size, windows)
    return windows


@kernel
def _sum_around(values: Array, size: int, sums: Array) -> None:
    """sums[c] += the rows of the `size` channels (or lines) around c, in their order."""
    half = size // 2
    for c in range(values.shape[0]):
        for other in range(max(0, c - half), min(values.shape[0], c + half + 1)):
            for i in range(values.shape[1]):
                sums[c, i] += values[other, i]


@kernel
def _sum_beside(values: Array, size: int, sums: Array) -> None:
    """sums[:, i] += the `size` columns around i, in their order."""
    half, width = size // 2, values.shape[1]
    for row in range(values.shape[0]):
        for step in range(-half, half + 1):
            for i in range(max(0, -step), min(width, width - step)):
                sums[row, i] += values[row, i + step]
