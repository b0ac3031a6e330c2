"""The slow twin of every kernel: few lines of NumPy, right at a glance, for any float dtype.

The fast kernels (`gemm`, `conv`, `local`, `pool`, `norm`, `batch_norm`, `elementwise`, `loss`, `crop`) have the same
names and arguments; the tests hold them against these.

Legend: N batch, C input channel, H W input, O output channel, I input features or channels per group,
K L kernel window, P Q output height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]


def linear_forward(x_NI: Array, weight_OI: Array, bias_O: Array) -> Array:
    return x_NI @ weight_OI.T + bias_O


def linear_grad_input(grad_NO: Array, weight_OI: Array) -> Array:
    return grad_NO @ weight_OI


def linear_grad_weight(grad_NO: Array, x_NI: Array) -> tuple[Array, Array]:
    """Gradients of weight_OI and bias_O."""
    return grad_NO.T @ x_NI, grad_NO.sum(axis=0)


def conv2d_forward(x_NCHW: Array, weight_OIKL: Array, bias_O: Array, stride: int, padding: int, groups: int) -> Array:
    """Cross-correlation, as every deep-learning library calls convolution."""
    x = _pad(x_NCHW, padding)
    n, out_channels = x.shape[0], weight_OIKL.shape[0]
    p, q = _windows(x.shape, weight_OIKL.shape[2:], stride)
    out_NOPQ = np.zeros((n, out_channels, p, q), x.dtype) + bias_O[:, None, None]
    for c, o in _group_slices(x.shape[1], out_channels, groups):
        for (k, m), rows, columns in _taps(weight_OIKL.shape[2:], p, q, stride):
            out_NOPQ[:, o] += np.einsum("nchw,oc->nohw", x[:, c, rows, columns], weight_OIKL[o, :, k, m])
    return out_NOPQ


def conv2d_grad_input(
    grad_NOPQ: Array, weight_OIKL: Array, x_shape: Shape, stride: int, padding: int, groups: int
) -> Array:
    n, channels, h, w = x_shape
    grad_x = np.zeros((n, channels, h + 2 * padding, w + 2 * padding), grad_NOPQ.dtype)
    p, q = grad_NOPQ.shape[2:]
    for c, o in _group_slices(channels, weight_OIKL.shape[0], groups):
        for (k, m), rows, columns in _taps(weight_OIKL.shape[2:], p, q, stride):
            grad_x[:, c, rows, columns] += np.einsum("nohw,oc->nchw", grad_NOPQ[:, o], weight_OIKL[o, :, k, m])
    return np.ascontiguousarray(grad_x[:, :, padding : padding + h, padding : padding + w])


def conv2d_grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, weight_shape: Shape, stride: int, padding: int, groups: int
) -> tuple[Array, Array]:
    """Gradients of weight_OIKL and bias_O."""
    x = _pad(x_NCHW, padding)
    grad_w = np.zeros(weight_shape, x.dtype)
    p, q = grad_NOPQ.shape[2:]
    for c, o in _group_slices(x.shape[1], weight_shape[0], groups):
        for (k, m), rows, columns in _taps(weight_shape[2:], p, q, stride):
            grad_w[o, :, k, m] = np.einsum("nohw,nchw->oc", grad_NOPQ[:, o], x[:, c, rows, columns])
    return grad_w, grad_NOPQ.sum(axis=(0, 2, 3))


def local2d_forward(x_NCHW: Array, weight_PQOCKL: Array, bias_OPQ: Array, stride: int, padding: int) -> Array:
    """Each place's window with that place's weights."""
    x = _pad(x_NCHW, padding)
    out_NOPQ = np.zeros((len(x), *bias_OPQ.shape), x.dtype) + bias_OPQ
    for p, q, rows, columns in _each_place(weight_PQOCKL.shape, stride):
        out_NOPQ[:, :, p, q] += np.einsum("ncij,ocij->no", x[:, :, rows, columns], weight_PQOCKL[p, q])
    return out_NOPQ


def local2d_grad_input(grad_NOPQ: Array, weight_PQOCKL: Array, x_shape: Shape, stride: int, padding: int) -> Array:
    n, channels, h, w = x_shape
    grad_x = np.zeros((n, channels, h + 2 * padding, w + 2 * padding), grad_NOPQ.dtype)
    for p, q, rows, columns in _each_place(weight_PQOCKL.shape, stride):
        grad_x[:, :, rows, columns] += np.einsum("no,ocij->ncij", grad_NOPQ[:, :, p, q], weight_PQOCKL[p, q])
    return np.ascontiguousarray(grad_x[:, :, padding : padding + h, padding : padding + w])


def local2d_grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, weight_shape: Shape, stride: int, padding: int
) -> tuple[Array, Array]:
    """Gradients of weight_PQOCKL and bias_OPQ."""
    x = _pad(x_NCHW, padding)
    grad_w = np.zeros(weight_shape, x.dtype)
    for p, q, rows, columns in _each_place(weight_shape, stride):
        grad_w[p, q] = np.einsum("no,ncij->ocij", grad_NOPQ[:, :, p, q], x[:, :, rows, columns])
    return grad_w, grad_NOPQ.sum(axis=0)


def max_pool2d_forward(x_NCHW: Array, size: int, stride: int, padding: int) -> tuple[Array, Array]:
    """(largest value, its flat position h * W + w in the unpadded plane); the first one wins a tie, NaN wins all."""
    n, c, h, w = x_NCHW.shape
    p, q = _windows((n, c, h + 2 * padding, w + 2 * padding), (size, size), stride)
    out_NCPQ = np.empty((n, c, p, q), x_NCHW.dtype)
    winner_NCPQ = np.empty((n, c, p, q), np.int32)
    for i, j in np.ndindex(p, q):
        top, bottom = max(0, i * stride - padding), min(h, i * stride - padding + size)
        left, right = max(0, j * stride - padding), min(w, j * stride - padding + size)
        window = x_NCHW[:, :, top:bottom, left:right].reshape(n, c, -1)
        best = window.argmax(axis=2)
        out_NCPQ[:, :, i, j] = np.take_along_axis(window, best[..., None], axis=2)[..., 0]
        winner_NCPQ[:, :, i, j] = (top + best // (right - left)) * w + left + best % (right - left)
    return out_NCPQ, winner_NCPQ


def max_pool2d_backward(grad_NCPQ: Array, winner_NCPQ: Array, x_shape: Shape) -> Array:
    grad_x = np.zeros(x_shape, grad_NCPQ.dtype)
    for n, c, p, q in np.ndindex(grad_NCPQ.shape):
        grad_x[n, c].reshape(-1)[winner_NCPQ[n, c, p, q]] += grad_NCPQ[n, c, p, q]
    return grad_x


def avg_pool2d_forward(x_NCHW: Array, size: int, stride: int, padding: int) -> Array:
    """The mean of each window; padding counts as zeros, so the divisor is always size * size."""
    x = _pad(x_NCHW, padding)
    p, q = _windows(x.shape, (size, size), stride)
    out_NCPQ = np.zeros((*x.shape[:2], p, q), x.dtype)
    for _, rows, columns in _taps((size, size), p, q, stride):
        out_NCPQ += x[:, :, rows, columns]
    out_NCPQ /= size * size
    return out_NCPQ


def avg_pool2d_backward(grad_NCPQ: Array, x_shape: Shape, size: int, stride: int, padding: int) -> Array:
    n, c, h, w = x_shape
    grad_x = np.zeros((n, c, h + 2 * padding, w + 2 * padding), grad_NCPQ.dtype)
    share = grad_NCPQ / grad_NCPQ.dtype.type(size * size)
    for _, rows, columns in _taps((size, size), grad_NCPQ.shape[2], grad_NCPQ.shape[3], stride):
        grad_x[:, :, rows, columns] += share
    return np.ascontiguousarray(grad_x[:, :, padding : padding + h, padding : padding + w])


def global_avg_pool_forward(x_NCHW: Array) -> Array:
    return np.asarray(x_NCHW.sum(axis=(2, 3)) / x_NCHW.dtype.type(x_NCHW[0, 0].size))


def global_avg_pool_backward(grad_NC: Array, x_shape: Shape) -> Array:
    return np.asarray(grad_NC[:, :, None, None] * np.full(x_shape, 1 / (x_shape[2] * x_shape[3]), grad_NC.dtype))


def relu_forward(x: Array) -> Array:
    """max(x, 0); a NaN stays a NaN."""
    return np.where(x <= 0, x.dtype.type(0), x)


def relu_backward(grad: Array, out: Array) -> Array:
    return np.where(out <= 0, grad.dtype.type(0), grad)


def tanh_forward(x: Array) -> Array:
    return np.tanh(x)


def tanh_backward(grad: Array, out: Array) -> Array:
    return np.asarray(grad * (1 - out * out))


def local_response_forward(x_NCHW: Array, size: int, k: float, factor: float, beta: float) -> tuple[Array, Array]:
    """(the normalised values, s)."""
    s = k + factor * _sum_around(x_NCHW**2, size)
    return x_NCHW * s**-beta, s


def local_response_backward(
    grad_NCHW: Array, x_NCHW: Array, s_NCHW: Array, size: int, factor: float, beta: float
) -> Array:
    pull = _sum_around(grad_NCHW * x_NCHW * s_NCHW ** (-beta - 1), size)
    return np.asarray(grad_NCHW * s_NCHW**-beta - 2 * factor * beta * x_NCHW * pull)


def map_response_forward(x_NCHW: Array, size: int, k: float, factor: float, beta: float) -> tuple[Array, Array]:
    """(the values normalised within their maps, s)."""
    s = np.asarray(k + factor * _sum_within(x_NCHW**2, size))
    return x_NCHW * s**-beta, s


def map_response_backward(
    grad_NCHW: Array, x_NCHW: Array, s_NCHW: Array, size: int, factor: float, beta: float
) -> Array:
    pull = _sum_within(grad_NCHW * x_NCHW * s_NCHW ** (-beta - 1), size)
    return np.asarray(grad_NCHW * s_NCHW**-beta - 2 * factor * beta * x_NCHW * pull)


def moments(x_NCHW: Array) -> tuple[Array, Array]:
    """(mean_C, variance_C), the variance biased."""
    return x_NCHW.mean(axis=(0, 2, 3)), x_NCHW.var(axis=(0, 2, 3))


def normalise(x_NCHW: Array, mean_C: Array, inverse_C: Array, weight_C: Array, bias_C: Array) -> Array:
    x_hat = (x_NCHW - _wide(mean_C)) * _wide(inverse_C)
    return np.asarray(_wide(weight_C) * x_hat + _wide(bias_C))


def normalise_backward(
    grad_NCHW: Array, x_NCHW: Array, weight_C: Array, mean_C: Array, inverse_C: Array, of_batch: bool
) -> tuple[Array, Array, Array]:
    """The paper's chain rule, step by step: Ioffe and Szegedy 2015, sec. 3, the six equations of backpropagation."""
    x_hat = (x_NCHW - _wide(mean_C)) * _wide(inverse_C)
    grad_hat = grad_NCHW * _wide(weight_C)
    grad_x = grad_hat * _wide(inverse_C)
    if of_batch:
        count = x_NCHW.dtype.type(x_NCHW.size // x_NCHW.shape[1])
        away = x_NCHW - _wide(mean_C)
        grad_variance = (grad_hat * away).sum(axis=(0, 2, 3)) * -(inverse_C**3) / 2
        grad_mean = -grad_x.sum(axis=(0, 2, 3)) - 2 * grad_variance * away.mean(axis=(0, 2, 3))
        grad_x = grad_x + _wide(grad_variance) * 2 * away / count + _wide(grad_mean) / count
    return grad_x, (grad_NCHW * x_hat).sum(axis=(0, 2, 3)), grad_NCHW.sum(axis=(0, 2, 3))


def cross_entropy_forward(logits_NK: Array, labels_N: Array) -> tuple[Array, Array]:
    """(mean of -log softmax(logits)[label], the softmax itself)."""
    shifted = logits_NK - logits_NK.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = (log_sum[:, 0] - shifted[np.arange(len(labels_N)), labels_N]).mean()
    return np.asarray(loss, logits_NK.dtype), np.exp(shifted - log_sum)


def cross_entropy_backward(grad: float, softmax_NK: Array, labels_N: Array) -> Array:
    target_NK = np.zeros_like(softmax_NK)
    target_NK[np.arange(len(labels_N)), labels_N] = 1
    return np.asarray((softmax_NK - target_NK) * softmax_NK.dtype.type(grad / len(labels_N)))


def sgd_update(
    weight: Array, grad: Array, velocity: Array, rate: float, momentum: float, decay: float, nesterov: bool
) -> None:
    """In place: v = momentum * v + g + decay * w, then w -= rate * v (Nesterov: rate * (g' + momentum * v))."""
    kind = weight.dtype.type
    slope = grad + kind(decay) * weight
    velocity[...] = kind(momentum) * velocity + slope
    weight -= kind(rate) * (slope + kind(momentum) * velocity if nesterov else velocity)


def adam_update(
    weight: Array, grad: Array, mean: Array, square: Array, step: int, rate: float, beta1: float, beta2: float,
    epsilon: float, decay: float,
) -> None:  # fmt: skip
    """In place, for the step-th time (from 1): Kingma and Ba 2015, algorithm 1; decay * w joins the gradient."""
    kind = weight.dtype.type
    slope = grad + kind(decay) * weight
    mean[...] = kind(beta1) * mean + kind(1 - beta1) * slope
    square[...] = kind(beta2) * square + kind(1 - beta2) * slope**2
    mean_hat, square_hat = mean / kind(1 - beta1**step), square / kind(1 - beta2**step)
    weight -= kind(rate) * mean_hat / (np.sqrt(square_hat) + kind(epsilon))


def _sum_around(values_NCHW: Array, size: int) -> Array:
    """For each channel, the sum of the `size` channels around it; there are zeros beyond the ends."""
    half, channels = size // 2, values_NCHW.shape[1]
    padded = np.pad(values_NCHW, ((0, 0), (half, half), (0, 0), (0, 0)))
    return np.asarray(np.sum([padded[:, j : j + channels] for j in range(size)], axis=0))


def _sum_within(values_NCHW: Array, size: int) -> Array:
    """For each pixel, the sum over the size x size window around it; there are zeros beyond the edges."""
    h, w = values_NCHW.shape[2:]
    padded = _pad(values_NCHW, size // 2)
    return np.asarray(np.sum([padded[:, :, i : i + h, j : j + w] for i, j in np.ndindex(size, size)], axis=0))


def _wide(values_C: Array) -> Array:
    """[C] as [1, C, 1, 1]."""
    return values_C[None, :, None, None]


def _pad(x_NCHW: Array, padding: int) -> Array:
    return np.pad(x_NCHW, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def _windows(padded_shape: Shape, window: Shape, stride: int) -> tuple[int, int]:
    """How many windows fit, down and across."""
    return (padded_shape[2] - window[0]) // stride + 1, (padded_shape[3] - window[1]) // stride + 1


def crop_by_table(
    images_NCHW: Array, index_B: Array, windows_B3: Array, size: tuple[int, int], table_C256: Array
) -> Array:
    cut = crop(images_NCHW, index_B, windows_B3, size)
    return np.stack([table_C256[c][cut[:, c]] for c in range(cut.shape[1])], axis=1)


def crop_minus_mean(
    images_NCHW: Array, index_B: Array, windows_B3: Array, size: tuple[int, int], scale_C: Array, mean_CHW: Array
) -> Array:
    cut = crop(images_NCHW, index_B, windows_B3, size).astype(np.float32)
    mean_BCPQ = crop(mean_CHW[None], np.zeros_like(index_B), windows_B3, size)
    return np.asarray(cut * scale_C[:, None, None] - mean_BCPQ)


def crop(images_NCHW: Array, index_B: Array, windows_B3: Array, size: tuple[int, int]) -> Array:
    """Each image's window (top, left, mirrored) of that size."""
    parts = [
        images_NCHW[i, :, top : top + size[0], left : left + size[1]][:, :, :: -1 if mirrored else 1]
        for i, (top, left, mirrored) in zip(index_B, windows_B3, strict=True)
    ]
    return np.stack(parts)


def _each_place(weight_shape: Shape, stride: int) -> Iterator[tuple[int, int, slice, slice]]:
    """Each place (p, q) of a locally connected layer, with the rows and columns of its window."""
    for p, q in np.ndindex(weight_shape[:2]):
        top, left = p * stride, q * stride
        yield p, q, slice(top, top + weight_shape[4]), slice(left, left + weight_shape[5])


def _taps(window: Shape, p: int, q: int, stride: int) -> Iterator[tuple[tuple[int, int], slice, slice]]:
    """Each position (k, m) of a window, with the rows and columns of the padded input it meets."""
    for k in range(window[0]):
        for m in range(window[1]):
            yield (k, m), slice(k, k + p * stride, stride), slice(m, m + q * stride, stride)


def _group_slices(channels: int, out_channels: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """The input and output channels of each group."""
    c, o = channels // groups, out_channels // groups
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)


def cut_views(
    image_HW3: Array, corner: Shape, windows_V3: Array, scale_3: Array, less_3SS: Array, add_3: Array, out: Array
) -> None:
    """Fill out [V,3,P,Q] with windows of a photograph's square: scaled, less the mean, mirrored (see kernels.photo)."""
    side, (rows, columns) = less_3SS.shape[1], out.shape[2:]
    square = image_HW3[corner[0] : corner[0] + side, corner[1] : corner[1] + side].transpose(2, 0, 1)
    values = square.astype(np.float32) * scale_3[:, None, None] - less_3SS + add_3[:, None, None]
    for view, (top, left, mirrored) in zip(out, windows_V3, strict=True):
        seen = values[:, top : top + rows, left : left + columns]
        view[...] = seen[..., ::-1] if mirrored else seen
