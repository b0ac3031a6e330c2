"""Normalisations: over neighbouring channels, over neighbours in the same map, and over a batch.

Legend: N batch, C channel, H W height and width.
"""

from __future__ import annotations

import numpy as np

from mlcore import ops
from mlcore.errors import RecipeError, ShapeError
from mlcore.layers.base import Layer, Shape, want_planes
from mlcore.rng import Rng
from mlcore.tensor import Tensor


class LocalResponseNorm(Layer):
    """Damp each activation by its neighbouring channels: x / (k + factor * sum of x^2) ^ beta.

    size: channels wide, odd. alpha: the paper's factor; with `divided`, the convention of cuda-convnet, Caffe and
    PyTorch, in which the factor is alpha / size. Source: Krizhevsky et al. 2012, sec. 3.3.
    """

    def __init__(self, size: int, k: float, alpha: float, beta: float, divided: bool = False) -> None:
        if size < 1 or size % 2 == 0:
            raise RecipeError(f"a normalisation across {size} channels", fix="give an odd number")
        self.size, self.k, self.beta = size, k, beta
        self.factor = alpha / size if divided else alpha

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.local_response_norm(x_NCHW, self.size, self.k, self.factor, self.beta)

    def output_shape(self, input_shape: Shape) -> Shape:
        want_planes("LocalResponseNorm", input_shape, None)
        return input_shape


class MapResponseNorm(Layer):
    """Damp each activation by those around it in its own map: x / (k + factor * sum of x^2) ^ beta.

    size: side of the square window, odd. alpha: the factor is alpha / size^2, as in cuda-convnet (its "scale"; its
    "pow" is beta and its k is 1). Source: the "rnorm" layers of Krizhevsky's cuda-convnet.
    """

    def __init__(self, size: int, k: float, alpha: float, beta: float) -> None:
        if size < 1 or size % 2 == 0:
            raise RecipeError(f"a normalisation within windows of {size}x{size}", fix="give an odd number")
        self.size, self.k, self.beta = size, k, beta
        self.factor = alpha / size**2

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        return ops.map_response_norm(x_NCHW, self.size, self.k, self.factor, self.beta)

    def output_shape(self, input_shape: Shape) -> Shape:
        want_planes("MapResponseNorm", input_shape, None)
        return input_shape


class BatchNorm2d(Layer):
    """Each channel with mean 0 and variance 1 over batch and pixels, then weight * x + bias; both [C].

    Training normalises by the batch's own mean and (biased) variance, and moves the running ones towards them:
    running = (1 - momentum) * running + momentum * batch's, where the variance is the unbiased one. Evaluation uses
    the running ones, which are buffers. epsilon is added to the variance. All as in PyTorch, defaults too.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2 (with a running mean for its step 10).
    """

    def __init__(self, channels: int, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        if channels < 1:
            raise ShapeError(f"BatchNorm2d of {channels} channels", fix="give at least 1")
        if not epsilon > 0 or not 0 <= momentum <= 1:
            raise RecipeError(
                f"BatchNorm2d with epsilon {epsilon} and momentum {momentum}",
                fix="give an epsilon above 0 and a momentum in [0, 1]",
            )
        self.channels, self.epsilon, self.momentum = channels, epsilon, momentum
        self.weight = Tensor(np.ones(channels, np.float32), requires_grad=True, name="weight")
        self.bias = Tensor(np.zeros(channels, np.float32), requires_grad=True, name="bias")
        self.running_mean = Tensor(np.zeros(channels, np.float32), name="running_mean")
        self.running_variance = Tensor(np.ones(channels, np.float32), name="running_variance")

    def __call__(self, x_NCHW: Tensor, rng: Rng | None = None) -> Tensor:
        affine, running = (self.weight, self.bias), (self.running_mean, self.running_variance)
        momentum = None if rng is None else self.momentum
        return ops.batch_norm2d(x_NCHW, *affine, *running, self.epsilon, momentum)

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def buffers(self) -> dict[str, Tensor]:
        return {"running_mean": self.running_mean, "running_variance": self.running_variance}

    def output_shape(self, input_shape: Shape) -> Shape:
        want_planes("BatchNorm2d", input_shape, self.channels)
        return input_shape
