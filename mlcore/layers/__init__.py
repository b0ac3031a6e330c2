"""Layers: parameters, and the operation they go into. A file per family; everything is imported from here.

A layer is called with a batch and an Rng (training) or None (evaluation: no dropout, running statistics). Shapes given
to and got from `output_shape` leave the batch axis out: (channels, height, width) or (features,).
"""

from mlcore.layers.base import Layer, Shape, Traced, convert
from mlcore.layers.containers import Residual, Sequential
from mlcore.layers.elementwise import Dropout, Flatten, ReLU, Tanh
from mlcore.layers.normalisation import BatchNorm2d, LocalResponseNorm, MapResponseNorm
from mlcore.layers.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from mlcore.layers.weighted import Conv2d, Linear, LocallyConnected2d

__all__ = [
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Layer",
    "Linear",
    "LocalResponseNorm",
    "LocallyConnected2d",
    "MapResponseNorm",
    "MaxPool2d",
    "ReLU",
    "Residual",
    "Sequential",
    "Shape",
    "Tanh",
    "Traced",
    "convert",
]
