"""Pooling layers.

Legend: N batch, C channel, H W height and width.
"""

from __future__ import annotations

from mlcore import ops
from mlcore.layers.base import Layer, Shape, want_planes
from mlcore.rng import Rng
from mlcore.tensor import Tensor


class _Pool(Layer):
    """What the two poolings share: square windows, `stride` equal to `size` unless given."""

    def __init__(self, size: int, stride: int | None = None, padding: int = 0) -> None:
        self.size, self.stride, self.padding = size, stride or size, padding

    def output_shape(self, input_shape: Shape) -> Shape:
        name = type(self).__name__
        want_planes(name, input_shape, None)
        return (
            input_shape[0],
            *ops.pool_windows(name, input_shape[1:], self.size, self.stride, self.padding),
        )


class MaxPool2d(_Pool):
    """The largest value of each window."""

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.max_pool2d(x_NCHW, self.size, self.stride, self.padding)


class AvgPool2d(_Pool):
    """The mean of each window; padding counts as zeros."""

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.avg_pool2d(x_NCHW, self.size, self.stride, self.padding)


class GlobalAvgPool(Layer):
    """The mean of each map, [N, C]: no Flatten is needed behind it. Source: Lin et al. 2013, arXiv:1312.4400, 3.2."""

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.global_avg_pool(x_NCHW)

    def output_shape(self, input_shape: Shape) -> Shape:
        want_planes("GlobalAvgPool", input_shape, None)
        return input_shape[:1]
