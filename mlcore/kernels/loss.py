"""Softmax cross-entropy, in the form that can't overflow: the largest logit is subtracted first.

Legend: N batch, K classes. float32 or float64; labels int64 in 0..K-1, checked by the caller.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel

Array = NDArray[Any]


def cross_entropy_forward(logits_NK: Array, labels_N: Array) -> tuple[Array, Array]:
    """(mean of -log softmax(logits)[label], the softmax itself)."""
    softmax = np.empty_like(logits_NK)
    mean = _forward(logits_NK, labels_N, softmax)
    return np.asarray(mean, logits_NK.dtype), softmax


def cross_entropy_backward(grad: float, softmax_NK: Array, labels_N: Array) -> Array:
    """(softmax - one hot) * grad / N."""
    grad_logits = np.empty_like(softmax_NK)
    _backward(grad / len(labels_N), softmax_NK, labels_N, grad_logits)
    return grad_logits


@kernel
def _forward(logits_NK: Array, labels_N: Array, softmax_NK: Array) -> Any:
    rows, classes = logits_NK.shape
    losses = 0.0
    for n in range(rows):
        largest = logits_NK[n, 0]
        for k in range(1, classes):
            largest = max(largest, logits_NK[n, k])
        total = 0.0
        for k in range(classes):
            softmax_NK[n, k] = math.exp(logits_NK[n, k] - largest)
            total += softmax_NK[n, k]
        for k in range(classes):
            softmax_NK[n, k] /= total
        losses += math.log(total) - (logits_NK[n, labels_N[n]] - largest)
    return losses / rows


@kernel
def _backward(factor: float, softmax_NK: Array, labels_N: Array, grad_NK: Array) -> None:
    rows, classes = softmax_NK.shape
    for n in range(rows):
        for k in range(classes):
            target = 1.0 if k == labels_N[n] else 0.0
            grad_NK[n, k] = (softmax_NK[n, k] - target) * factor
