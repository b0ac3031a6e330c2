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

from mlcore.kernels.elementwise import copy_block
from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.response import to_minus_beta

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
# Sums are made in rows of `pitch`, with zeros left and right of them within maps, so that all loops are long.


@SharedKernel
def _forward(x: Array, size: int, within: bool, k: Any, factor: Any, beta: Any, out: Array, s: Array) -> None:
    margin = size // 2 if within else 0
    for n in prange(x.shape[0]):
        space = _space(x[n], margin)
        for c in range(x.shape[1]):
            inner, row = _inner(space[0], x.shape[2], margin, c), x[n, c]
            for i in range(row.size):
                inner[i] = row[i] * row[i]
        sums = _neighbourhood(space, x.shape[2] + 2 * margin, size, margin)
        for c in range(x.shape[1]):
            inner, row, total, powers = _inner(sums, x.shape[2], margin, c), x[n, c], s[n, c], out[n, c]
            for i in range(row.size):
                total[i] = k + factor * inner[i]
                powers[i] = total[i]
            to_minus_beta(powers, beta)
            for i in range(row.size):
                powers[i] *= row[i]


@SharedKernel
def _backward(grad: Array, x: Array, s: Array, size: int, within: bool, factor: Any, beta: Any, grad_x: Array) -> None:
    margin = size // 2 if within else 0
    twice = x.dtype.type(2) * factor * beta
    for n in prange(x.shape[0]):
        space = _space(x[n], margin)
        for c in range(x.shape[1]):
            inner, damped, total = _inner(space[0], x.shape[2], margin, c), grad_x[n, c], s[n, c]
            copy_block(total, damped)
            to_minus_beta(damped, beta)
            for i in range(damped.size):
                damped[i] *= grad[n, c, i]
                inner[i] = damped[i] * x[n, c, i] / total[i]
        sums = _neighbourhood(space, x.shape[2] + 2 * margin, size, margin)
        for c in range(x.shape[1]):
            inner, row, damped = _inner(sums, x.shape[2], margin, c), x[n, c], grad_x[n, c]
            for i in range(row.size):
                damped[i] -= twice * row[i] * inner[i]


@kernel
def _space(x: Array, margin: int) -> Array:
    """Room for the values of [rows, width] in rows with margins, and for two steps of their sums."""
    return np.zeros((3, x.shape[0] * (x.shape[1] + 2 * margin)), x.dtype)


@kernel
def _inner(values: Array, width: int, margin: int, row: int) -> Array:
    """A row without its margins."""
    start = row * (width + 2 * margin) + margin
    inner: Array = values[start : start + width]
    return inner


@kernel
def _neighbourhood(space: Array, pitch: int, size: int, margin: int) -> Array:
    """For each value the sum over its neighbours: along its row, if rows have margins, and in the rows around."""
    values, beside = space[0], space[1]
    sums: Array = space[2]
    if margin > 0:
        _add_shifted(values, size, 1, beside)
        _add_shifted(beside, size, pitch, sums)
    else:
        _add_shifted(values, size, pitch, sums)
    return sums


@kernel
def _add_shifted(values: Array, size: int, distance: int, sums: Array) -> None:
    """sums[i] += the `size` values around i that are `distance` apart, in their order."""
    half = size // 2
    for step in range(-half, half + 1):
        shift = step * distance
        first, count = max(0, -shift), max(0, values.size - abs(shift))
        to, part = sums[first : first + count], values[first + shift : first + shift + count]
        for i in range(count):
            to[i] += part[i]
