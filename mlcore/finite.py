"""Where a NaN or an infinity came from: the first layer that had one."""

from __future__ import annotations

import numpy as np

from mlcore import ops
from mlcore.autograd import Node, backward, watching
from mlcore.layers import Layer
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor


def find_non_finite(model: Layer, x: Array, labels: Array, rng: Rng | None = None) -> str | None:
    """The first thing that is not finite, or None if all is.

    Looks at the input, the weights, each layer's forward output, the loss, and the gradients in the order in which
    they are computed. Returns e.g. "layer 'C3': forward output has 12 NaN and 0 infinite of 102400 values".
    x: one batch as the model takes it. rng: the step's stream, to repeat its dropout. Gradients that the model's
    parameters hold, and its buffers, are kept as they were.
    """
    kept = {name: tensor.grad for name, tensor in model.parameters().items()}
    buffers = {name: tensor.data.copy() for name, tensor in model.buffers().items()}
    try:
        return _before(model, x) or _on_the_way(model, x, labels, rng)
    finally:
        for name, tensor in model.parameters().items():
            tensor.grad = kept[name]
        for name, tensor in model.buffers().items():
            tensor.data[...] = buffers[name]


def all_finite(values: Array) -> bool:
    """Whether no value is a NaN or an infinity."""
    return bool(np.isfinite(values).all())


def _before(model: Layer, x: Array) -> str | None:
    if not all_finite(x):
        return f"input: the batch {_count(x)}"
    for name, tensor in model.parameters().items():
        if not all_finite(tensor.data):
            return f"layer '{_layer_of(name)}': weight {name} {_count(tensor.data)}"
    return None


def _on_the_way(model: Layer, x: Array, labels: Array, rng: Rng | None) -> str | None:
    found: list[str] = []

    def see_output(layer: str, out: Array) -> None:
        if not found and not all_finite(out):
            found.append(f"layer '{layer}': forward output {_count(out)}")

    def see_gradient(node: Node, tensor: Tensor, gradient: Array) -> None:
        if not found and not all_finite(gradient):
            what = tensor.name or "its input"
            found.append(f"layer '{node.layer or 'loss'}': gradient of {what} {_count(gradient)}")

    # An overflow on the way is what we look for, not news.
    with np.errstate(all="ignore"):
        with watching(see_output):
            logits = model(Tensor(x), rng)
        if not found:
            loss = ops.cross_entropy(logits, labels)
            if not all_finite(loss.data):
                return f"loss: {loss.item()}"
            backward(loss, watch=see_gradient)
    return found[0] if found else None


def _layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _count(values: Array) -> str:
    nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    return f"has {nans} NaN and {infinities} infinite of {values.size} values"
