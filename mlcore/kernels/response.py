"""Local response normalisation of one pixel's channels, forward and back: vector loops that pooling calls on its way.

Legend: C channel. float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel
from mlcore.kernels.precision import widen

Array = NDArray[Any]


class Response(NamedTuple):
    """Local response normalisation across `size` channels: x / (k + alpha * sum of x^2) ^ beta; size 0: none.

    alpha is the factor of the sum itself. Source: Krizhevsky et al. 2012, sec. 3.3.
    """

    size: int
    k: float
    alpha: float
    beta: float


NO_RESPONSE = Response(0, 1.0, 0.0, 0.75)


@kernel
def room(channels: int, response: Response) -> Array:
    """Space for one pixel: squares with a margin of zeros, and the sums over neighbours."""
    return np.zeros((2, channels + response.size), np.float32)


@kernel
def respond(x: Array, response: Response, space: Array, out: Array) -> None:
    """One pixel's channels, normalised."""
    if response.size == 0:
        for c in range(x.size):
            out[c] = widen(x[c])
        return
    sums = _sums(x, response, space)
    to_minus_beta(sums, response.beta)
    for c in range(x.size):
        out[c] = widen(x[c]) * sums[c]


@kernel
def _sums(x: Array, response: Response, space: Array) -> Array:
    """s of every channel: k + alpha * the sum of the neighbours' squares."""
    half = response.size // 2
    squares: Array = space[0]
    sums: Array = space[1, : x.size]
    inner = squares[half : half + x.size]
    for c in range(x.size):
        value = widen(x[c])
        inner[c] = value * value
    _over_neighbours(squares, response.size, sums)
    k, alpha = np.float32(response.k), np.float32(response.alpha)
    for c in range(x.size):
        sums[c] = k + alpha * sums[c]
    return sums


@kernel
def _over_neighbours(padded: Array, size: int, sums: Array) -> None:
    """sums[c] = padded[c] + ... + padded[c + size - 1]."""
    if size == 5:
        a, b, c, d, e = padded, padded[1:], padded[2:], padded[3:], padded[4:]
        for i in range(sums.size):
            sums[i] = (a[i] + b[i]) + (c[i] + d[i]) + e[i]
        return
    sums[:] = 0
    for j in range(size):
        part = padded[j : j + sums.size]
        for i in range(sums.size):
            sums[i] += part[i]


@kernel
def to_minus_beta(sums: Array, beta: float) -> None:
    """s ^ -0.75 is two square roots and a division; other powers take the long way."""
    kind = sums.dtype.type
    if beta == 0.75:
        one = kind(1)
        for c in range(sums.size):
            root = np.sqrt(sums[c])
            sums[c] = one / (root * np.sqrt(root))
        return
    power = kind(-beta)
    for c in range(sums.size):
        sums[c] = sums[c] ** power


@kernel
def respond_back(x: Array, grad: Array, response: Response, space: Array, out: Array) -> None:
    """dx = dy s^-b - 2 alpha b x sum over neighbours of (dy x s^(-b-1))."""
    if response.size == 0:
        for c in range(x.size):
            out[c] = grad[c]
        return
    half = response.size // 2
    sums = _sums(x, response, space)
    pull = space[0]
    inner = pull[half : half + x.size]
    for c in range(x.size):
        out[c] = sums[c]
    to_minus_beta(sums, response.beta)
    for c in range(x.size):
        weighed = grad[c] * sums[c]
        inner[c] = weighed * widen(x[c]) / out[c]
        out[c] = weighed
    _over_neighbours(pull, response.size, sums)
    factor = np.float32(2 * response.alpha * response.beta)
    for c in range(x.size):
        out[c] -= factor * widen(x[c]) * sums[c]
