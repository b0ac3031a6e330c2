"""The networks, by name. A new one is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlcore.init import together
from mlcore.layers import Sequential
from mlcore.models.alexnet import alexnet, alexnet_small
from mlcore.models.cuda_convnet import cuda_convnet
from mlcore.models.fig1 import fig1
from mlcore.models.lenet5 import lenet5
from mlcore.models.mlp import mlp
from mlcore.models.mnist_cnn import mnist_cnn
from mlcore.models.resnet_small import resnet_small
from mlcore.options import unknown_name
from mlcore.rng import Rng

Builder = Callable[[Mapping[str, Any], Rng, tuple[int, ...], int], Sequential]

MODELS: dict[str, Builder] = {
    "alexnet": alexnet,
    "alexnet_small": alexnet_small,
    "cuda_convnet": cuda_convnet,
    "fig1": fig1,
    "lenet5": lenet5,
    "mlp": mlp,
    "mnist_cnn": mnist_cnn,
    "resnet_small": resnet_small,
}

# What each network was made for: (channels, height, width) of an example, and how many classes.
INPUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "alexnet": ((3, 227, 227), 1000),
    "alexnet_small": ((3, 64, 64), 200),
    "cuda_convnet": ((3, 32, 32), 10),
    "fig1": ((3, 32, 32), 10),
    "lenet5": ((1, 28, 28), 10),
    "mlp": ((1, 28, 28), 10),
    "mnist_cnn": ((1, 28, 28), 10),
    "resnet_small": ((3, 32, 32), 10),
}


def build(
    name: str,
    options: Mapping[str, Any],
    rng: Rng,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
) -> Sequential:
    """The network of that name with weights drawn from `rng`; RecipeError for an unknown name or option.

    input_shape: (channels, height, width) of one example; left out, it and `classes` are those of INPUTS. Returns
    logits [N, classes] when called.
    """
    if name not in MODELS:
        raise unknown_name("model", name, list(MODELS), "model.name")
    shape, count = INPUTS[name]
    with together():
        return MODELS[name](options, rng, input_shape or shape, classes or count)
