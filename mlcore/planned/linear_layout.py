"""How a fully connected layer of a plan lies in memory: its weights in panels, and room for a batch.

Legend: N image, I input, O output, B block of outputs, V columns of a panel, P numbers of a word.
"""

from __future__ import annotations

import math

import numpy as np

from mlcore.kernels import panels
from mlcore.kernels.precision import FP32, Precision
from mlcore.layers import Linear
from mlcore.planned.layout import panel_columns, panel_vectors, tiles
from mlcore.tensor import Array


def linear_from_plan(panels_BIV: Array, order: Array, outputs: int) -> Array:
    """The way back: [O, I]."""
    inputs, columns = len(order), panels_BIV.shape[2]
    weight = np.empty((outputs, inputs), np.float32)
    for block, panel in enumerate(panels_BIV):
        rows = weight[block * columns : (block + 1) * columns]
        rows[:, order] = panel[:inputs].T[: len(rows)]
    return weight


class LinearPanels:
    """A fully connected layer's weights and velocities in panels, and what the ways forward and back read: in bf16
    rounded copies `by_input` [B, words of I, V] and `by_output` [B, I, V], else the weights [B, I, V] themselves."""

    def __init__(self, layer: Linear, order: Array, precision: Precision) -> None:
        self.outputs, self.order, self.precision = layer.outputs, order, precision
        self.vectors = panel_vectors(layer.outputs)
        self.columns = panel_columns(self.vectors)
        blocks, words = -(-layer.outputs // self.columns), precision.words(layer.inputs)
        self.inputs = words * precision.per_word
        self.weight = np.zeros((blocks, self.inputs, self.columns), np.float32)
        self.velocity = np.zeros(self.weight.shape, np.float32)
        self.nothing = np.zeros(self.columns, np.float32)
        self.tiles = tiles(self.inputs, self.vectors, precision, unit=precision.per_word)
        self.by_input = self.by_output = self.weight
        self._slope: Array | None = None  # as large as the weights, and only wanted where others add to it
        if precision is not FP32:
            self._rounded = np.zeros((blocks, words, self.columns, precision.per_word), precision.dtype)
            self.by_input = self._rounded.view(precision.word)[..., 0]
            self.by_output = np.zeros(self.weight.shape, precision.dtype)

    def update(self, x_IN: Array, grad_BWV: Array, move: panels.Move) -> None:
        """Move the weights by the gradient that these make."""
        copies = panels.NO_COPIES if self.precision is FP32 else (self._rounded, self.by_output)
        panels.update(x_IN, grad_BWV, self.tiles, self.nothing, self.weight, self.velocity, move, copies)

    def gradient(self, x_IN: Array, grad_BWV: Array) -> Array:
        """The same gradient [B, I, V], kept for `move` instead."""
        if self._slope is None:
            self._slope = np.zeros_like(self.weight)
        panels.weight_gradient(x_IN, grad_BWV, self.tiles, self.nothing, self._slope)
        return self._slope

    def move(self, move: panels.Move) -> None:
        """Move the weights by the gradient that was kept."""
        assert self._slope is not None, "gradient comes first"
        flat = (self.weight.reshape(-1), self.velocity.reshape(-1), self._slope.reshape(1, -1))
        panels.move_weights(*flat, move)
        self._round()

    def take(self, weight_OI: Array, velocity_OI: Array) -> None:
        """Load the library's own layout."""
        for given, ours in ((weight_OI, self.weight), (velocity_OI, self.velocity)):
            panels.pack_weights(np.ascontiguousarray(given), self.order, ours)
        self._round()

    def give(self) -> tuple[Array, Array]:
        """Weights and velocities [O, I]."""
        weight, velocity = (linear_from_plan(each, self.order, self.outputs) for each in (self.weight, self.velocity))
        return weight, velocity

    def _round(self) -> None:
        """The copies that are read, after the weights."""
        if self.precision is not FP32:
            panels.round_weights(self.weight, self._rounded, self.by_output)


class LinearRoom:
    """What a fully connected layer needs for a batch besides its weights, for up to `images` images."""

    def __init__(self, layer: LinearPanels, images: int) -> None:
        self._layer, self._numbers = layer, layer.precision
        blocks, columns, words = len(layer.weight), layer.columns, self._numbers.words(images)
        per_word = self._numbers.per_word
        self._turned = np.zeros(layer.inputs * words * per_word, self._numbers.dtype)
        self._slopes = np.zeros(layer.inputs * images, np.float32)
        self._sums = np.zeros(0 if self._numbers is FP32 else images * layer.outputs, np.float32)
        self._by_output = np.zeros(blocks * words * columns * per_word, self._numbers.dtype)
        depth = blocks * columns // per_word
        self._by_image = np.zeros((-(-images // columns), depth, columns, per_word), self._numbers.dtype)

    def turned(self, images: int) -> Array:
        """[I, N in whole words] for the batch, turned round; zero where no image or input is."""
        wide = self._numbers.words(images) * self._numbers.per_word
        turned = self._turned[: self._layer.inputs * wide].reshape(-1, wide)
        turned[:, images:] = 0
        turned[len(self._layer.order) :] = 0
        return turned

    def slopes(self, images: int) -> Array:
        """[I, N] float32 for the gradient of the input."""
        return self._slopes[: self._layer.inputs * images].reshape(-1, images)

    def sums(self, images: int) -> Array:
        """[N, O] float32 for the output before it is rounded."""
        return self._sums[: images * self._layer.outputs].reshape(images, -1)

    def gradients(self, images: int) -> tuple[Array, Array]:
        """Room for the output's gradient, in words along the images [B, words of N, V, P] and along the outputs
        [blocks of V images, words of B * V, V, P]."""
        words, columns, per_word = self._numbers.words(images), self._layer.columns, self._numbers.per_word
        shape = len(self._layer.weight), words, columns, per_word
        return self._by_output[: math.prod(shape)].reshape(shape), self._by_image[: -(-images // columns)]

    def words(self, panels_WVP: Array) -> Array:
        """The same memory in words."""
        words: Array = panels_WVP.view(self._numbers.word)[..., 0]
        return words
