"""What can be computed: each operation checks its shapes, runs its kernel and records itself on the tape.

All of them work in float32 and float64; the inputs of one operation share one dtype.

Legend: N batch, C channel, H W height and width, I input features (or input channels per group), O output,
K classes. Weights of convolutions are OIHW.
"""

from __future__ import annotations

import numpy as np

from mlcore.autograd import current_layer, record
from mlcore.errors import DataError, ShapeError
from mlcore.kernels import batch_norm, conv, elementwise, gemm, local, loss, norm, pool
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """x @ weight.T + bias: [N, O]."""
    _want_rank(x_NI, 2, "linear")
    if x_NI.shape[1] != weight_OI.shape[1] or bias_O.shape != weight_OI.shape[:1]:
        raise _bad("linear", x_NI.shape, f"[N, {weight_OI.shape[1]}] for a weight of {weight_OI.shape}")
    _same_dtype(x_NI, weight_OI, bias_O)
    return record("linear", (x_NI, weight_OI, bias_O), gemm.linear_forward(x_NI.data, weight_OI.data, bias_O.data))


def conv2d(
    x_NCHW: Tensor, weight_OIHW: Tensor, bias_O: Tensor | None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """Cross-correlation with zero padding: [N, O, P, Q] with P = (H + 2 padding - kernel) // stride + 1.

    bias_O: None for none.
    """
    _want_rank(x_NCHW, 4, "conv2d")
    out_channels, per_group, kernel_h, kernel_w = weight_OIHW.shape
    bias = bias_O or Tensor(np.zeros(out_channels, x_NCHW.dtype))
    if x_NCHW.shape[1] != per_group * groups or out_channels % groups or bias.shape != (out_channels,):
        wanted = f"{per_group * groups} channels for a weight of {weight_OIHW.shape} in {groups} group(s)"
        raise _bad("conv2d", x_NCHW.shape, wanted)
    _windows("conv2d", x_NCHW.shape[2:], (kernel_h, kernel_w), stride, padding)
    _same_dtype(x_NCHW, weight_OIHW, bias)
    out = conv.conv2d_forward(x_NCHW.data, weight_OIHW.data, bias.data, stride, padding, groups)
    return record("conv2d", (x_NCHW, weight_OIHW, bias), out, stride, padding, groups)


def local2d(x_NCHW: Tensor, weight_PQOCKL: Tensor, bias_OPQ: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """A convolution whose weights, and biases, differ from place to place: [N, O, P, Q]."""
    _want_rank(x_NCHW, 4, "local2d")
    p, q, outputs, channels, kernel_h, kernel_w = weight_PQOCKL.shape
    places = (p, q)
    if x_NCHW.shape[1] != channels or bias_OPQ.shape != (outputs, p, q):
        raise _bad("local2d", x_NCHW.shape, f"{channels} channels for a weight of {weight_PQOCKL.shape}")
    if _windows("local2d", x_NCHW.shape[2:], (kernel_h, kernel_w), stride, padding) != places:
        raise _bad("local2d", x_NCHW.shape, f"a map with {p}x{q} places for its window")
    _same_dtype(x_NCHW, weight_PQOCKL, bias_OPQ)
    out = local.local2d_forward(x_NCHW.data, weight_PQOCKL.data, bias_OPQ.data, stride, padding)
    return record("local2d", (x_NCHW, weight_PQOCKL, bias_OPQ), out, stride, padding)


def max_pool2d(x_NCHW: Tensor, size: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The largest value of each window; padding never wins. `stride` is `size` unless given."""
    _want_rank(x_NCHW, 4, "max_pool2d")
    step = stride or size
    pool_windows("max_pool2d", x_NCHW.shape[2:], size, step, padding)
    out, winner = pool.max_pool2d_forward(x_NCHW.data, size, step, padding)
    return record("max_pool2d", (x_NCHW,), out, winner)


def avg_pool2d(x_NCHW: Tensor, size: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The mean of each window; padding counts as zeros. `stride` is `size` unless given."""
    _want_rank(x_NCHW, 4, "avg_pool2d")
    step = stride or size
    pool_windows("avg_pool2d", x_NCHW.shape[2:], size, step, padding)
    out = pool.avg_pool2d_forward(x_NCHW.data, size, step, padding)
    return record("avg_pool2d", (x_NCHW,), out, size, step, padding)


def global_avg_pool(x_NCHW: Tensor) -> Tensor:
    """The mean of each map: [N, C]."""
    _want_rank(x_NCHW, 4, "global_avg_pool")
    return record("global_avg_pool", (x_NCHW,), pool.global_avg_pool_forward(x_NCHW.data))


def relu(x: Tensor) -> Tensor:
    """max(x, 0), elementwise; the gradient at 0 is 0, and a NaN stays one."""
    out = elementwise.relu_forward(x.data)
    return record("relu", (x,), out, out)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent, elementwise."""
    out = elementwise.tanh_forward(x.data)
    return record("tanh", (x,), out, out)


def dropout(x: Tensor, probability: float, rng: Rng) -> Tensor:
    """Zero each value with this probability and divide the others by 1 - probability, so that the mean stays.

    Source: Hinton et al. 2012, arXiv:1207.0580, in its inverted form: nothing is left to do in evaluation.
    """
    if not 0 <= probability < 1:
        raise ShapeError(f"dropout of {probability}", place=current_layer(), fix="give a number in [0, 1)")
    seed = elementwise.dropout_seed(rng.generator())
    return record("dropout", (x,), _dropped(x.data, probability, seed, rng.before), probability, seed, rng.before)


def _dropped(x: Array, probability: float, seed: int, before: int) -> Array:
    """The values after dropout: what the gradient goes through too."""
    out = np.empty_like(x)
    rows, order = x.reshape(x.shape[0], -1), np.arange(x[0].size)
    elementwise.dropout(rows, out.reshape(rows.shape), order, probability, seed, before)
    return out


def local_response_norm(x_NCHW: Tensor, size: int, k: float, factor: float, beta: float) -> Tensor:
    """x / (k + factor * sum of x^2 over the `size` channels around) ^ beta; `size` is odd.

    Source: Krizhevsky et al. 2012, sec. 3.3. The paper calls the factor alpha; others call size * factor alpha.
    """
    _want_odd("local_response_norm", x_NCHW, size)
    out, s = norm.local_response_forward(x_NCHW.data, size, k, factor, beta)
    return record("local_response_norm", (x_NCHW,), out, s, size, factor, beta)


def map_response_norm(x_NCHW: Tensor, size: int, k: float, factor: float, beta: float) -> Tensor:
    """x / (k + factor * sum of x^2 over the `size` x `size` window around, in the same map) ^ beta; `size` is odd.

    Source: the "rnorm" layers of Krizhevsky's cuda-convnet, which calls size^2 * factor the scale, and beta pow.
    """
    _want_odd("map_response_norm", x_NCHW, size)
    out, s = norm.map_response_forward(x_NCHW.data, size, k, factor, beta)
    return record("map_response_norm", (x_NCHW,), out, s, size, factor, beta)


def batch_norm2d(
    x_NCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running_mean_C: Tensor,
    running_variance_C: Tensor,
    epsilon: float,
    momentum: float | None,
) -> Tensor:
    """weight * (x - mean) / sqrt(variance + epsilon) + bias, channel by channel.

    With a momentum, mean and variance are those of x over N, H and W, the gradient goes through them too, and the
    running ones are moved in place: (1 - momentum) * running + momentum * the batch's, the variance being unbiased
    there. Without one, as in evaluation, they are the running ones. Source: Ioffe and Szegedy 2015, algorithms 1, 2.
    """
    _want_rank(x_NCHW, 4, "batch_norm2d")
    if weight_C.shape != x_NCHW.shape[1:2]:
        raise _bad("batch_norm2d", x_NCHW.shape, f"{weight_C.shape[0]} channels")
    _same_dtype(x_NCHW, weight_C, bias_C, running_mean_C, running_variance_C)
    mean, variance = running_mean_C.data.copy(), running_variance_C.data.copy()
    if momentum is not None:
        count = x_NCHW.data.size // x_NCHW.shape[1]
        if count < 2:
            raise _bad("batch_norm2d", x_NCHW.shape, "at least two values per channel in training")
        mean, variance = batch_norm.moments(x_NCHW.data)
        _move_towards(running_mean_C.data, mean, momentum)
        _move_towards(running_variance_C.data, variance * variance.dtype.type(count / (count - 1)), momentum)
    inverse = (1 / np.sqrt(variance + variance.dtype.type(epsilon))).astype(variance.dtype)
    out = batch_norm.normalise(x_NCHW.data, mean, inverse, weight_C.data, bias_C.data)
    return record("batch_norm2d", (x_NCHW, weight_C, bias_C), out, mean, inverse, momentum is not None)


def _move_towards(running: Array, seen: Array, momentum: float) -> None:
    """In place: (1 - momentum) * running + momentum * seen."""
    running *= running.dtype.type(1 - momentum)
    running += running.dtype.type(momentum) * seen


def flatten(x: Tensor) -> Tensor:
    """[N, ...] to [N, product of the rest]."""
    return record("flatten", (x,), x.data.reshape(x.shape[0], -1))


def add(left: Tensor, right: Tensor) -> Tensor:
    """Elementwise sum of two tensors of one shape (nothing is broadcast)."""
    if left.shape != right.shape:
        raise _bad("add", right.shape, f"the shape of the other side, {list(left.shape)}")
    _same_dtype(left, right)
    return record("add", (left, right), left.data + right.data)


def scale(x: Tensor, factor: float) -> Tensor:
    """x times a constant."""
    constant = x.dtype.type(factor)
    return record("scale", (x,), x.data * constant, constant)


def cross_entropy(logits_NK: Tensor, labels_N: Array) -> Tensor:
    """Mean over the batch of -log softmax(logits)[label]: a scalar.

    labels_N: any integer dtype, in 0..K-1; DataError names the first one that is not.
    """
    _want_rank(logits_NK, 2, "cross_entropy")
    labels = _checked_labels(labels_N, *logits_NK.shape)
    out, softmax = loss.cross_entropy_forward(logits_NK.data, labels)
    return record("cross_entropy", (logits_NK,), out, softmax, labels)


def pool_windows(what: str, plane: tuple[int, ...], size: int, stride: int, padding: int) -> tuple[int, int]:
    """Output height and width of a pooling; ShapeError if none is left or a window would see padding only."""
    if padding * 2 > size:
        wanted = f"a padding of at most {size // 2} (half of size {size}), so that no window is padding only"
        raise ShapeError(f"{what} with padding {padding}", place=current_layer(), fix=f"give {wanted}")
    return _windows(what, plane, (size, size), stride, padding)


def conv_windows(plane: tuple[int, ...], kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Output height and width of a convolution, or of a locally connected layer; ShapeError if nothing is left."""
    return _windows("conv2d", plane, (kernel, kernel), stride, padding)


def _windows(what: str, plane: tuple[int, ...], window: tuple[int, int], stride: int, padding: int) -> tuple[int, int]:
    if stride < 1 or padding < 0 or min(window) < 1:
        raise ShapeError(
            f"{what} with window {window[0]}x{window[1]}, stride {stride}, padding {padding}",
            place=current_layer(),
            fix="window and stride are at least 1, padding at least 0",
        )
    p, q = ((side + 2 * padding - w) // stride + 1 for side, w in zip(plane, window, strict=True))
    if p < 1 or q < 1:
        got = f"{what} of a {window[0]}x{window[1]} window over a {plane[0]}x{plane[1]} map"
        raise ShapeError(
            f"{got} (padding {padding}) leaves a feature map of {max(p, 0)}x{max(q, 0)}",
            place=current_layer(),
            fix="use a smaller window, more padding or fewer poolings before it",
        )
    return p, q


def _checked_labels(labels_N: Array, n: int, classes: int) -> Array:
    if labels_N.shape != (n,) or labels_N.dtype.kind not in "iu":
        raise DataError(
            f"labels of shape {labels_N.shape} and dtype {labels_N.dtype} for {n} rows of logits",
            fix="give one integer per example",
        )
    labels = labels_N.astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"label {labels[wrong[0]]} of example {wrong[0]} is not in 0..{classes - 1}",
            fix="check that images and labels are of the same dataset, or raise the number of classes",
        )
    return labels


def _want_rank(x: Tensor, rank: int, op: str) -> None:
    if len(x.shape) != rank:
        axes = "[N, C, H, W]" if rank == 4 else "[N, features]"
        raise _bad(op, x.shape, axes + (": put a Flatten before it" if rank == 2 else ""))
    if x.shape[0] == 0:
        raise _bad(op, x.shape, "at least one example")


def _want_odd(op: str, x: Tensor, size: int) -> None:
    """What the response normalisations want: maps, and a neighbourhood with a middle."""
    _want_rank(x, 4, op)
    if size < 1 or size % 2 == 0:
        raise ShapeError(f"{op} of size {size}", place=current_layer(), fix="give an odd number")


def _same_dtype(*tensors: Tensor) -> None:
    kinds = {t.dtype for t in tensors}
    if len(kinds) > 1:
        mixed = " and ".join(sorted(str(k) for k in kinds))
        raise ShapeError(f"{mixed} in one operation", place=current_layer(), fix="convert them to one dtype")


def _bad(op: str, got: tuple[int, ...], wanted: str) -> ShapeError:
    return ShapeError(f"{op} got {list(got)}", place=current_layer(), fix=f"it wants {wanted}")
