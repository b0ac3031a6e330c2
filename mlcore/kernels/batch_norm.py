"""Batch normalisation: each channel by its mean and variance over the batch and its pixels.

    out = weight * (x - mean) * inverse + bias, inverse = 1 / sqrt(variance + epsilon)

A channel is one thread's work and its sums are taken in float64: first over the images, pixel by pixel (which fills
vectors), then over the pixels. So results don't depend on the number of threads, to the bit.

Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and the gradients after it.
Legend: N batch, C channel, H W height and width, F = H * W. float32 or float64, C-contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel

COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]


def moments(x_NCHW: Array) -> tuple[Array, Array]:
    """(mean_C, variance_C) over batch and pixels; the variance is the biased one, divided by N * H * W."""
    mean, variance = (np.empty(x_NCHW.shape[1], x_NCHW.dtype) for _ in range(2))
    _moments(COST * x_NCHW.size, _rows(x_NCHW), mean, variance)
    return mean, variance


def normalise(x_NCHW: Array, mean_C: Array, inverse_C: Array, weight_C: Array, bias_C: Array) -> Array:
    """weight * (x - mean) * inverse + bias."""
    out = np.empty_like(x_NCHW)
    _normalise(COST * x_NCHW.size, _rows(x_NCHW), mean_C, inverse_C, weight_C, bias_C, _rows(out))
    return out


def normalise_backward(
    grad_NCHW: Array, x_NCHW: Array, weight_C: Array, mean_C: Array, inverse_C: Array, of_batch: bool
) -> tuple[Array, Array, Array]:
    """Gradients of x, weight and bias. of_batch: mean and variance are x's own, and the gradient goes through them."""
    grad_x, grad_weight, grad_bias = np.empty_like(x_NCHW), np.empty_like(weight_C), np.empty_like(weight_C)
    _backward(
        COST * x_NCHW.size, _rows(grad_NCHW), _rows(x_NCHW), weight_C, mean_C, inverse_C, of_batch,
        _rows(grad_x), grad_weight, grad_bias,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _rows(x_NCHW: Array) -> Array:
    """[N, C, H * W]."""
    return x_NCHW.reshape(*x_NCHW.shape[:2], -1)


@SharedKernel
def _moments(x_NCF: Array, mean_C: Array, variance_C: Array) -> None:
    for c in prange(x_NCF.shape[1]):
        mean, variance = _channel_moments(x_NCF[:, c])
        mean_C[c], variance_C[c] = mean, variance


@kernel
def _channel_moments(x_NF: Array) -> tuple[float, float]:
    """Mean and biased variance of one channel, in two passes: one pass would cancel where the mean is large."""
    sums = np.zeros(x_NF.shape[1])
    for n in range(x_NF.shape[0]):
        row = x_NF[n]
        for f in range(sums.size):
            sums[f] += row[f]
    mean = _sum(sums) / x_NF.size
    sums[:] = 0
    for n in range(x_NF.shape[0]):
        row = x_NF[n]
        for f in range(sums.size):
            away = row[f] - mean
            sums[f] += away * away
    return mean, _sum(sums) / x_NF.size


@kernel
def _sum(values: Array) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


@SharedKernel
def _normalise(x_NCF: Array, mean_C: Array, inverse_C: Array, weight_C: Array, bias_C: Array, out_NCF: Array) -> None:
    for c in prange(x_NCF.shape[1]):
        for n in range(x_NCF.shape[0]):
            _normalise_row(x_NCF[n, c], mean_C[c], inverse_C[c], weight_C[c], bias_C[c], out_NCF[n, c])


@kernel
def _normalise_row(x: Array, mean: Any, inverse: Any, weight: Any, bias: Any, out: Array) -> None:
    for f in range(x.size):
        out[f] = weight * ((x[f] - mean) * inverse) + bias


@SharedKernel
def _backward(
    grad_NCF: Array,
    x_NCF: Array,
    weight_C: Array,
    mean_C: Array,
    inverse_C: Array,
    of_batch: bool,
    grad_x_NCF: Array,
    grad_weight_C: Array,
    grad_bias_C: Array,
) -> None:
    for c in prange(x_NCF.shape[1]):
        plain, weighed = _channel_sums(grad_NCF[:, c], x_NCF[:, c], mean_C[c], inverse_C[c])
        grad_bias_C[c], grad_weight_C[c] = plain, weighed
        share = 1 / (x_NCF.shape[0] * x_NCF.shape[2]) if of_batch else 0.0
        _back_rows(
            grad_NCF[:, c], x_NCF[:, c], mean_C[c], inverse_C[c], weight_C[c] * inverse_C[c],
            weight_C.dtype.type(plain * share), weight_C.dtype.type(weighed * share), grad_x_NCF[:, c],
        )  # fmt: skip


@kernel
def _channel_sums(grad_NF: Array, x_NF: Array, mean: Any, inverse: Any) -> tuple[float, float]:
    """The sums of dy and of dy * (x - mean) * inverse."""
    plain, weighed = np.zeros(x_NF.shape[1]), np.zeros(x_NF.shape[1])
    for n in range(x_NF.shape[0]):
        grad, x = grad_NF[n], x_NF[n]
        for f in range(plain.size):
            plain[f] += grad[f]
            weighed[f] += grad[f] * ((x[f] - mean) * inverse)
    return _sum(plain), _sum(weighed)


@kernel
def _back_rows(
    grad_NF: Array, x_NF: Array, mean: Any, inverse: Any, factor: Any, plain: Any, weighed: Any, out_NF: Array
) -> None:
    """factor * (dy - mean of dy - x_hat * mean of dy x_hat)."""
    for n in range(x_NF.shape[0]):
        grad, x, out = grad_NF[n], x_NF[n], out_NF[n]
        for f in range(x.size):
            out[f] = factor * (grad[f] - plain - (x[f] - mean) * inverse * weighed)
