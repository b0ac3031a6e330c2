"""A. Krizhevsky's CIFAR-10 networks: 26 % test error in 80 seconds of a 2011 graphics card, and 18 %, 13 %, 11 %.

Source: cuda-convnet's published configurations layers-80sec, layers-18pct, layers-conv-local-13pct and -11pct. All
begin with 5x5 convolutions, each with a pooling of 3x3 windows 2 apart; the last two go on with locally connected
layers, and the 11 % one normalises across channels, as in Krizhevsky et al. 2012, sec. 3.3. It is also the larger one
(twice the maps in local3, 1.9 times the weights): what differs from it in normalisation alone is itself with norm =
false. The author's poolings count windows that stick out at the far edge; here a padding of 1 gives the same 16, 8 and
4 pixels a side. His averages divide by how many pixels of a window lie in the image, ours always by 9. With weights =
"published" each layer begins with the deviation of its configuration, for inputs of 0..255 less the mean image. The
last two are trained on random crops of 24x24, less the mean of the pixels under the crop; the author's less the mean
image's centre.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlcore.layers import (
    AvgPool2d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    LocallyConnected2d,
    LocalResponseNorm,
    MapResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
)
from mlcore.options import read_options
from mlcore.rng import Rng


@dataclass(frozen=True)
class CudaConvnetOptions:
    """net: which of the four. weights: how all weights begin; "published": each layer's as the author's. norm: false
    leaves out the response normalisation of those that have one, and nothing else."""

    net: Literal["80s", "18pct", "13pct", "11pct"] = "80s"
    weights: str = "he"
    norm: bool = True


def cuda_convnet(options: Mapping[str, Any], rng: Rng, input_shape: tuple[int, ...], classes: int) -> Sequential:
    """The network for `input_shape` (channels, height, width), usually (3, 32, 32); see CudaConvnetOptions."""
    chosen = read_options(CudaConvnetOptions, options, "model.options")
    stack = _Stack(input_shape, _beginnings(chosen), chosen.norm, rng)
    NETS[chosen.net](stack)
    stack.linear("output", classes)
    return Sequential(stack.layers, input_shape)


def _beginnings(chosen: CudaConvnetOptions) -> Mapping[str, str]:
    """The initialiser of each layer."""
    of = DEVIATIONS[chosen.net]
    return {name: f"normal:{of[name]}" if chosen.weights == "published" else chosen.weights for name in of}


class _Stack:
    """Layers put on one another; each is made for what the one below it gives."""

    def __init__(self, input_shape: tuple[int, ...], weights: Mapping[str, str], normed: bool, rng: Rng) -> None:
        self.shape, self.weights, self.normed, self.rng = input_shape, weights, normed, rng
        self.layers: list[tuple[str, Layer]] = []

    def add(self, name: str, layer: Layer) -> None:
        self.shape = Sequential([(name, layer)]).output_shape(self.shape)
        self.layers.append((name, layer))

    def norm(self, name: str, layer: Layer) -> None:
        if self.normed:
            self.add(name, layer)

    def conv(self, name: str, outputs: int) -> None:
        """5x5, the map keeps its size; no ReLU."""
        self.add(name, Conv2d(self.shape[0], outputs, 5, self.rng.child(name), padding=2, weights=self.weights[name]))

    def conv_relu(self, name: str, outputs: int) -> None:
        self.conv(name, outputs)
        self.add(f"{name}_act", ReLU())

    def local_relu(self, name: str, outputs: int) -> None:
        """3x3 with weights of its own at every place; the map keeps its size."""
        stream = self.rng.child(name)
        self.add(name, LocallyConnected2d(self.shape, outputs, 3, stream, padding=1, weights=self.weights[name]))
        self.add(f"{name}_act", ReLU())

    def linear(self, name: str, outputs: int) -> None:
        if len(self.shape) > 1:
            self.add("flatten", Flatten())
        self.add(name, Linear(self.shape[0], outputs, self.rng.child(name), weights=self.weights[name]))


def _net_80s(stack: _Stack) -> None:
    stack.conv("conv1", 32)
    stack.add("pool1", MaxPool2d(3, 2, 1))
    stack.add("conv1_act", ReLU())
    stack.conv_relu("conv2", 32)
    stack.add("pool2", AvgPool2d(3, 2, 1))
    stack.conv_relu("conv3", 64)
    stack.add("pool3", AvgPool2d(3, 2, 1))
    stack.linear("fc1", 64)
    stack.add("fc1_act", ReLU())


def _net_18pct(stack: _Stack) -> None:
    stack.conv("conv1", 32)
    stack.add("pool1", MaxPool2d(3, 2, 1))
    stack.add("conv1_act", ReLU())
    stack.norm("norm1", MapResponseNorm(3, 1.0, 5e-5, 0.75))
    stack.conv_relu("conv2", 32)
    stack.add("pool2", AvgPool2d(3, 2, 1))
    stack.norm("norm2", MapResponseNorm(3, 1.0, 5e-5, 0.75))
    stack.conv_relu("conv3", 64)
    stack.add("pool3", AvgPool2d(3, 2, 1))


def _net_13pct(stack: _Stack) -> None:
    stack.conv_relu("conv1", 64)
    stack.add("pool1", MaxPool2d(3, 2, 1))
    stack.conv_relu("conv2", 64)
    stack.add("pool2", MaxPool2d(3, 2, 1))
    stack.local_relu("local3", 32)
    stack.local_relu("local4", 32)


def _net_11pct(stack: _Stack) -> None:
    stack.conv_relu("conv1", 64)
    stack.add("pool1", MaxPool2d(3, 2, 1))
    stack.norm("norm1", LocalResponseNorm(9, 1.0, 1e-3, 0.75, divided=True))
    stack.conv_relu("conv2", 64)
    stack.norm("norm2", LocalResponseNorm(9, 1.0, 1e-3, 0.75, divided=True))
    stack.add("pool2", MaxPool2d(3, 2, 1))
    stack.local_relu("local3", 64)
    stack.local_relu("local4", 32)


NETS: dict[str, Callable[[_Stack], None]] = {
    "80s": _net_80s,
    "18pct": _net_18pct,
    "13pct": _net_13pct,
    "11pct": _net_11pct,
}

# initW of the published configurations, by layer.
DEVIATIONS: dict[str, dict[str, float]] = {
    "80s": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc1": 0.1, "output": 0.1},
    "18pct": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "output": 0.01},
    "13pct": {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "output": 0.01},
    "11pct": {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "output": 0.01},
}
