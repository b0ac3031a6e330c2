"""Where a network in lanes begins and ends: images into the lanes, logits out of them, and the loss.

A group has as many places as lanes; in the last group of a batch, places beyond the batch show its last image again
(so that nothing there is stranger than in the batch), and the loss's gradient is zero for them.

Legend: N image, C channel, H W height and width, K class.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel

ENDS = (
    "kind",
    "x", "x_channel",  # a row of a plane, in bytes
    "out", "out_row",  # the gradient of the logits; or rows of `out_row` bytes for what is turned
    "row", "channels", "width", "lanes",
)  # fmt: skip
FLOAT_BYTES = 4

Array = NDArray[Any]

(_, X, X_CHANNEL, OUT, OUT_ROW, ROW, CHANNELS, WIDTH, LANES) = range(len(ENDS))


@kernel
def load_row(op: Array, memory: Array, images_NCHW: Array, first: int) -> None:
    """One row of a group's images, from image `first` on, into the lanes."""
    for channel in range(op[CHANNELS]):
        start = (op[X] + channel * op[X_CHANNEL]) // FLOAT_BYTES
        for lane in range(op[LANES]):
            source = images_NCHW[min(first + lane, images_NCHW.shape[0] - 1), channel, op[ROW]]
            for w in range(op[WIDTH]):
                memory[start + w * op[LANES] + lane] = source[w]


@kernel
def logits_out(op: Array, memory: Array, first: int, logits_NK: Array) -> None:
    """The group's logits to where the batch's are."""
    for n in range(first, min(first + op[LANES], logits_NK.shape[0])):
        for k in range(op[CHANNELS]):
            logits_NK[n, k] = memory[(op[X] + k * op[X_CHANNEL]) // FLOAT_BYTES + n - first]


@kernel
def cross_entropy(op: Array, memory: Array, first: int, logits_NK: Array, labels_N: Array, losses_N: Array) -> None:
    """Each image's loss, and the gradient of the batch's mean."""
    count, classes = logits_NK.shape
    for lane in range(op[LANES]):
        out, n = op[OUT] // FLOAT_BYTES + lane, first + lane
        if n >= count:
            for k in range(classes):
                memory[out + k * op[LANES]] = 0
            continue
        largest = logits_NK[n, 0]
        for k in range(1, classes):
            largest = max(largest, logits_NK[n, k])
        total = 0.0
        for k in range(classes):
            power = math.exp(logits_NK[n, k] - largest)
            memory[out + k * op[LANES]] = power
            total += power
        for k in range(classes):
            target = np.float32(1) if k == labels_N[n] else np.float32(0)
            share = np.float32(memory[out + k * op[LANES]] / total)
            memory[out + k * op[LANES]] = (share - target) / np.float32(count)
        losses_N[n] = math.log(total) - (logits_NK[n, labels_N[n]] - largest)


@kernel
def turn(op: Array, memory: Array, factors: Array) -> None:
    """Images down, channels across: [channels, lanes] to rows of channels, `out_row` bytes apart."""
    for lane in range(op[LANES]):
        out, x = (op[OUT] + lane * op[OUT_ROW]) // FLOAT_BYTES, op[X] // FLOAT_BYTES + lane
        for channel in range(op[CHANNELS]):
            factors[out + channel] = memory[x + channel * op[LANES]]
