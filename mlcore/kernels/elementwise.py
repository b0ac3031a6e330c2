"""What is done to each number by itself: ReLU, tanh, dropout, the optimisers' updates.

float32 or float64, for dropout bf16 too. NaN goes in, NaN comes out. Work is shared among threads in blocks of fixed
size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.precision import narrow, widen

BLOCK = 1 << 14  # values in one turn
COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]


def relu_forward(x: Array) -> Array:
    """max(x, 0)."""
    out = np.empty_like(x)
    _relu(COST * out.size, x.reshape(-1), x.reshape(-1), out.reshape(-1))
    return out


def relu_backward(grad: Array, out: Array) -> Array:
    """The gradient where the output was above zero, else zero."""
    grad_x = np.empty_like(out)
    _relu(COST * out.size, grad.reshape(-1), out.reshape(-1), grad_x.reshape(-1))
    return grad_x


def tanh_forward(x: Array) -> Array:
    """Hyperbolic tangent; float32 within 3e-7 of it."""
    if x.dtype != np.float32:
        return np.asarray(np.tanh(x))
    out = np.empty_like(x)
    _tanh_float32(COST * out.size, x.reshape(-1), out.reshape(-1))
    return out


def tanh_backward(grad: Array, out: Array) -> Array:
    """grad * (1 - out^2)."""
    grad_x = np.empty_like(out)
    _tanh_slope(COST * out.size, grad.reshape(-1), out.reshape(-1), grad_x.reshape(-1))
    return grad_x


def dropout_seed(generator: np.random.Generator) -> int:
    """A seed for `dropout`, from a stream."""
    return int(generator.integers(1 << 32))


def dropout(x_NF: Array, out_NF: Array, order_F: Array, probability: float, seed: int, before: int = 0) -> None:
    """out = x / (1 - probability), or zero with this probability; both ways, for gradients too. May work in place.

    Whether a number is kept depends on the seed and its place only: (before + image) * F + order[f]. So no mask is
    stored, and any layout of the same numbers drops the same ones, as does a part of a batch behind `before` images.
    """
    kind = np.float32 if x_NF.dtype == np.uint16 else x_NF.dtype.type
    scale = kind(1 / (1 - probability))
    _dropout(COST * x_NF.size, x_NF, out_NF, order_F, int(probability * (1 << 32)), seed, scale, before)


def sgd_update(
    weight: Array, grad: Array, velocity: Array, rate: float, momentum: float, decay: float, nesterov: bool
) -> None:
    """In place: v = momentum * v + g + decay * w, then w -= rate * v (Nesterov: rate * (g' + momentum * v))."""
    kind = weight.dtype.type
    ahead = momentum if nesterov else 0.0
    own = 1.0 if nesterov else 0.0
    _sgd(
        weight.reshape(-1), grad.reshape(-1), velocity.reshape(-1),
        kind(rate), kind(momentum), kind(decay), kind(ahead), kind(own),
    )  # fmt: skip


def adam_update(
    weight: Array, grad: Array, mean: Array, square: Array, step: int, rate: float, beta1: float, beta2: float,
    epsilon: float, decay: float,
) -> None:  # fmt: skip
    """In place, for the step-th time (from 1), with g' = g + decay * w:

    m = beta1 * m + (1 - beta1) * g', v = beta2 * v + (1 - beta2) * g'^2, both divided by 1 - beta^step for the move
    w -= rate * m / (sqrt(v) + epsilon). Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    kind = weight.dtype.type
    _adam(
        COST * weight.size, weight.reshape(-1), grad.reshape(-1), mean.reshape(-1), square.reshape(-1),
        kind(beta1), kind(1 - beta1), kind(beta2), kind(1 - beta2), kind(epsilon), kind(decay),
        kind(rate / (1 - beta1**step)), kind(1 / math.sqrt(1 - beta2**step)),
    )  # fmt: skip


@kernel
def copy_block(values: Array, out: Array) -> None:
    """out = values. An array assigned to a slice takes seconds to compile: the words of an error come with it."""
    for i in range(out.size):
        out[i] = values[i]


@SharedKernel
def _relu(values: Array, gate: Array, out: Array) -> None:
    """out = values where gate is above zero (or NaN), else zero."""
    for block in prange(-(-out.size // BLOCK)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        relu_block(values[part], gate[part], out[part])


@kernel
def relu_block(values: Array, gate: Array, out: Array) -> None:
    nothing = out.dtype.type(0)
    for i in range(out.size):
        value = values[i]  # read it in any case: a conditional read can't be vectorised
        out[i] = nothing if gate[i] <= nothing else value


@SharedKernel
def _dropout(
    x_NF: Array, out_NF: Array, order_F: Array, limit: int, seed: int, scale: Any, before: int
) -> None:  # fmt: skip
    for n in prange(x_NF.shape[0]):
        _dropout_row(x_NF[n], out_NF[n], order_F, (before + n) * x_NF.shape[1], limit, seed, scale)


@kernel
def _dropout_row(x: Array, out: Array, order: Array, first: int, limit: int, seed: int, scale: Any) -> None:
    nothing = x.dtype.type(0)
    for i in range(x.size):
        value = narrow(widen(x[i]) * scale, out)
        out[i] = value if mixed(seed ^ mixed(first + order[i])) >= limit else nothing


@kernel
def mixed(number: int) -> int:
    """32 bits that look random for every number: a multiply-and-shift hash, in 64-bit arithmetic.

    Source: the lowbias32 family of C. Wellons' hash-prospector, with two multipliers below 2^31.
    """
    number &= 0xFFFFFFFF
    number = ((number ^ (number >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    number = ((number ^ (number >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return number ^ (number >> 15)


@SharedKernel
def _tanh_float32(x: Array, out: Array) -> None:
    for block in prange(-(-out.size // BLOCK)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        tanh_block(x[part], out[part])


@kernel
def tanh_block(x: Array, out: Array) -> None:
    """An odd polynomial over an even one, which vectorises where a library call does not.

    Source: the minimax approximation of the Eigen library (MathFunctionsImpl.h), clamped where tanh rounds to 1.
    """
    limit = np.float32(7.90531110763549805)
    for i in range(out.size):
        v = x[i]
        v = limit if v > limit else v
        v = -limit if v < -limit else v
        s = v * v
        top = np.float32(2.00018790482477e-13) + s * np.float32(-2.76076847742355e-16)
        top = np.float32(-8.60467152213735e-11) + s * top
        top = np.float32(5.12229709037114e-08) + s * top
        top = np.float32(1.48572235717979e-05) + s * top
        top = np.float32(6.37261928875436e-04) + s * top
        top = np.float32(4.89352455891786e-03) + s * top
        below = np.float32(1.18534705686654e-04) + s * np.float32(1.19825839466702e-06)
        below = np.float32(2.26843463243900e-03) + s * below
        below = np.float32(4.89352518554385e-03) + s * below
        out[i] = v * top / below


@SharedKernel
def _tanh_slope(grad: Array, out: Array, grad_x: Array) -> None:
    for block in prange(-(-out.size // BLOCK)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        tanh_slope_block(grad[part], out[part], grad_x[part])


@kernel
def tanh_slope_block(grad: Array, out: Array, grad_x: Array) -> None:
    one = out.dtype.type(1)
    for i in range(out.size):
        grad_x[i] = grad[i] * (one - out[i] * out[i])


@kernel
def _sgd(
    weight: Array, grad: Array, velocity: Array, rate: Any, momentum: Any, decay: Any, ahead: Any, own: Any
) -> None:
    """own and ahead: how the move is put together, 0 and 0 for the velocity alone, 1 and momentum for Nesterov."""
    for i in range(weight.size):
        slope = grad[i] + decay * weight[i]
        speed = momentum * velocity[i] + slope
        velocity[i] = speed
        weight[i] -= rate * (own * slope + ahead * speed) if own > 0 else rate * speed


@SharedKernel
def _adam(
    weight: Array, grad: Array, mean: Array, square: Array, beta1: Any, rest1: Any, beta2: Any, rest2: Any,
    epsilon: Any, decay: Any, rate: Any, root: Any,
) -> None:  # fmt: skip
    """rest1, rest2: 1 - beta1, 1 - beta2; rate, root: what the corrections of m and of sqrt(v) make of them."""
    for block in prange(-(-weight.size // BLOCK)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        _adam_block(
            weight[part], grad[part], mean[part], square[part], beta1, rest1, beta2, rest2, epsilon, decay, rate, root
        )


@kernel
def _adam_block(
    weight: Array, grad: Array, mean: Array, square: Array, beta1: Any, rest1: Any, beta2: Any, rest2: Any,
    epsilon: Any, decay: Any, rate: Any, root: Any,
) -> None:  # fmt: skip
    for i in range(weight.size):
        slope = grad[i] + decay * weight[i]
        mean[i] = beta1 * mean[i] + rest1 * slope
        square[i] = beta2 * square[i] + rest2 * slope * slope
        weight[i] -= rate * mean[i] / (np.sqrt(square[i]) * root + epsilon)
