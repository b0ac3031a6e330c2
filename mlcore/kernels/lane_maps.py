"""What is done to the pixels of a row in lanes one by one, or across channels: activations, dropout, normalisation,
and the sums that are a bias's gradient.

A channel's row is a run of `count` floats; the runs of several channels stand `_channel` bytes apart. All offsets are
in bytes from the activations' start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.elementwise import copy_block, relu_block, tanh_block, tanh_slope_block
from mlcore.kernels.jit import kernel
from mlcore.kernels.lane_vectors import load_at, plus, spread, store_at, unless_floored
from mlcore.kernels.response import to_minus_beta
from mlcore.kernels.simd import total

RUNS = (
    "kind",
    "x", "x_channel", "gate", "gate_channel", "out", "out_channel", "channels", "count",
    "height", "x_row", "gate_row", "relu",  # a bias's gradient walks a whole plane; `out` counts in the gradients
    "constants", "number", "row", "width", "lanes",  # dropout: its constants, which one it is, and where the row is
    "size", "sums", "pull", "scratch_channel",  # normalisation: rows of s, and of what a channel pulls at the others
)  # fmt: skip
FLOAT_BYTES, SIXTEEN_FLOATS = 4, 64

Array = NDArray[Any]

(
    _, X, X_CHANNEL, GATE, GATE_CHANNEL, OUT, OUT_CHANNEL, CHANNELS, COUNT, HEIGHT, X_ROW, GATE_ROW, RELU,
    CONSTANTS, NUMBER, ROW, WIDTH, LANES, SIZE, SUMS, PULL, SCRATCH_CHANNEL,
) = range(len(RUNS))  # fmt: skip


@kernel
def _run(op: Array, memory: Array, offset: int, stride: int, channel: int) -> Array:
    """A channel's row; `offset` and `stride` are columns of the table."""
    start = (op[offset] + channel * op[stride]) // FLOAT_BYTES
    run: Array = memory[start : start + op[COUNT]]
    return run


@kernel
def clear_row(op: Array, memory: Array) -> None:
    """out = 0."""
    for channel in range(op[CHANNELS]):
        _run(op, memory, OUT, OUT_CHANNEL, channel)[:] = 0


@kernel
def keep(op: Array, memory: Array, factors: Array) -> None:
    """A run of `count` floats into the factors, before another group comes by."""
    start = op[OUT] // FLOAT_BYTES
    copy_block(_run(op, memory, X, X_CHANNEL, 0), factors[start : start + op[COUNT]])


@kernel
def sum_groups(op: Array, x: int, out: int) -> None:
    """What `height` groups made, `x_row` bytes apart, added in their order; `count` floats in whole sixteens."""
    for i in range(0, op[COUNT] * FLOAT_BYTES, SIXTEEN_FLOATS):
        so_far = load_at(x + op[X] + i)
        for group in range(1, op[HEIGHT]):
            so_far = plus(so_far, load_at(x + op[X] + i + group * op[X_ROW]))
        store_at(out + op[OUT] + i, so_far)


@kernel
def relu_row(op: Array, memory: Array) -> None:
    """out = x where gate is above zero (or NaN), else zero: forward with x as the gate, back with the output."""
    for channel in range(op[CHANNELS]):
        x, gate = _run(op, memory, X, X_CHANNEL, channel), _run(op, memory, GATE, GATE_CHANNEL, channel)
        relu_block(x, gate, _run(op, memory, OUT, OUT_CHANNEL, channel))


@kernel
def tanh_row(op: Array, memory: Array) -> None:
    """out = tanh(x)."""
    for channel in range(op[CHANNELS]):
        tanh_block(_run(op, memory, X, X_CHANNEL, channel), _run(op, memory, OUT, OUT_CHANNEL, channel))


@kernel
def tanh_back_row(op: Array, memory: Array) -> None:
    """out = x (1 - gate^2)."""
    for channel in range(op[CHANNELS]):
        x, gate = _run(op, memory, X, X_CHANNEL, channel), _run(op, memory, GATE, GATE_CHANNEL, channel)
        tanh_slope_block(x, gate, _run(op, memory, OUT, OUT_CHANNEL, channel))


@kernel
def bias_gradient(op: Array, base: int, grads: Array) -> None:
    """In place: x is the gradient before a ReLU whose output is the gate; and its sums over pixels and images."""
    for channel in range(op[CHANNELS]):
        so_far = spread(np.float32(0))
        for h in range(op[HEIGHT]):
            there = base + op[X] + h * op[X_ROW] + channel * op[X_CHANNEL]
            shown = base + op[GATE] + h * op[GATE_ROW] + channel * op[GATE_CHANNEL]
            for i in range(0, op[COUNT] * FLOAT_BYTES, SIXTEEN_FLOATS):
                slope = load_at(there + i)
                if op[RELU]:
                    slope = unless_floored(load_at(shown + i), slope)
                    store_at(there + i, slope)
                so_far = plus(so_far, slope)
        grads[op[OUT] // FLOAT_BYTES + channel] = total(so_far)


@kernel
def dropout_row(op: Array, memory: Array, seeds: Array, constants: Array, first: int) -> None:
    """out = x / (1 - probability), or zero; which, depends on the image's number and the place, as on the tape.

    seeds: of each dropout, and behind them how many images of the batch come before those at hand.
    In evaluation, where the limit is 0, there are none.
    """
    limit, scale = np.uint32(constants[op[CONSTANTS]]), np.float32(constants[op[CONSTANTS] + 1])
    features = op[CHANNELS] * op[HEIGHT] * op[WIDTH]
    for channel in range(op[CHANNELS]):
        x, out = _run(op, memory, X, X_CHANNEL, channel), _run(op, memory, OUT, OUT_CHANNEL, channel)
        if limit == 0:
            copy_block(x, out)
            continue
        seed = np.uint32(seeds[op[NUMBER]])
        for w in range(op[WIDTH]):
            start = (seeds[-1] + first) * features + (channel * op[HEIGHT] + op[ROW]) * op[WIDTH] + w
            part = slice(w * op[LANES], (w + 1) * op[LANES])
            _drop(x[part], out[part], np.uint32(start), np.uint32(features), seed, limit, scale)


@kernel
def _drop(x: Array, out: Array, start: Any, features: Any, seed: Any, limit: Any, scale: Any) -> None:
    """One pixel; the images' places are `features` apart from `start` on."""
    for lane in range(out.size):
        value = x[lane] * scale
        kept = _mixed(seed ^ _mixed(np.uint32(start + np.uint32(lane) * features))) >= limit
        out[lane] = value if kept else np.float32(0)


@kernel
def _mixed(number: Any) -> Any:
    """`elementwise.mixed` of a uint32: it wraps around by itself, so that vectors of 32 bits will do."""
    number = np.uint32(np.uint32(number ^ (number >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    number = np.uint32(np.uint32(number ^ (number >> np.uint32(15))) * np.uint32(0x735A2D97))
    return np.uint32(number ^ (number >> np.uint32(15)))


@kernel
def respond_row(op: Array, memory: Array, constants: Array) -> None:
    """Local response normalisation: out = x s^-beta; s is left in `sums`."""
    k, factor = np.float32(constants[op[CONSTANTS]]), np.float32(constants[op[CONSTANTS] + 1])
    for channel in range(op[CHANNELS]):
        s, out = _run(op, memory, SUMS, SCRATCH_CHANNEL, channel), _run(op, memory, OUT, OUT_CHANNEL, channel)
        s[:] = 0
        for near in range(max(0, channel - op[SIZE] // 2), min(op[CHANNELS], channel + op[SIZE] // 2 + 1)):
            x = _run(op, memory, X, X_CHANNEL, near)
            for i in range(s.size):
                s[i] += x[i] * x[i]
        for i in range(s.size):
            s[i] = k + factor * s[i]
            out[i] = s[i]
        to_minus_beta(out, constants[op[CONSTANTS] + 2])
        x = _run(op, memory, X, X_CHANNEL, channel)
        for i in range(s.size):
            out[i] *= x[i]


@kernel
def respond_back_row(op: Array, memory: Array, constants: Array) -> None:
    """dx = dy s^-b - 2 a b x * sum over neighbours of dy x s^(-b-1); `gate` is dy, `out` dx."""
    beta = constants[op[CONSTANTS] + 2]
    for channel in range(op[CHANNELS]):
        x, slope = _run(op, memory, X, X_CHANNEL, channel), _run(op, memory, GATE, GATE_CHANNEL, channel)
        s, back = _run(op, memory, SUMS, SCRATCH_CHANNEL, channel), _run(op, memory, OUT, OUT_CHANNEL, channel)
        pulled = _run(op, memory, PULL, SCRATCH_CHANNEL, channel)
        copy_block(s, back)
        to_minus_beta(back, beta)
        for i in range(s.size):
            weighed = slope[i] * back[i]
            pulled[i] = weighed * x[i] / s[i]
            back[i] = weighed
    factor = np.float32(2 * constants[op[CONSTANTS] + 1] * beta)
    for channel in range(op[CHANNELS]):
        x, back = _run(op, memory, X, X_CHANNEL, channel), _run(op, memory, OUT, OUT_CHANNEL, channel)
        for near in range(max(0, channel - op[SIZE] // 2), min(op[CHANNELS], channel + op[SIZE] // 2 + 1)):
            pulled = _run(op, memory, PULL, SCRATCH_CHANNEL, near)
            for i in range(x.size):
                back[i] -= factor * x[i] * pulled[i]
