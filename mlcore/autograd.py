"""The way back: a table of gradient rules and the little engine that applies them.

Each operation hangs a `Node` on its output: what it was, its inputs, what the rule needs, the layer it ran in.
The nodes reachable from a loss are the tape. Nothing else holds them: `backward` cuts the tape as it goes, and a
loss that is dropped takes its tape along.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlcore.kernels import batch_norm, conv, elementwise, gemm, local, loss, norm, pool
from mlcore.tensor import Array, Tensor

Gradients = tuple[Array | None, ...]
Rule = Callable[["Node", Array], Gradients]
Watch = Callable[["Node", Tensor, Array], None]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on the tape. `saved` is what its rule needs besides the inputs."""

    op: str
    inputs: tuple[Tensor, ...]
    saved: tuple[Any, ...]
    layer: str
    order: int

    def wants(self, i: int) -> bool:
        """Whether the gradient of input `i` is needed at all: it is often the dearest part."""
        return self.inputs[i].requires_grad


def backward(output: Tensor, grad: Array | None = None, watch: Watch | None = None) -> None:
    """Add the gradient of `output` to the `grad` of every leaf that requires it, and free the tape.

    grad: d(anything)/d(output), of the output's shape; left out, `output` must hold one number and it is 1.
    watch: called with (node, input, its gradient so far) as each gradient is computed.
    """
    if output.node is None:
        raise ValueError("nothing to go back through: no input required gradients, or the tape was already used")
    if grad is None and output.data.size != 1:
        raise ValueError(f"backward of shape {output.shape} needs the gradient that arrives at it")
    seed = np.ones_like(output.data) if grad is None else np.ascontiguousarray(grad, output.dtype)
    if seed.size != output.data.size:
        raise ValueError(f"the gradient has shape {seed.shape}, its output {output.shape}")
    pending: dict[int, Array] = {output.node.order: seed.reshape(output.shape)}
    for node in tape(output, newest_first=True):
        for tensor, gradient in zip(node.inputs, RULES[node.op](node, pending.pop(node.order)), strict=True):
            if gradient is None or not tensor.requires_grad:
                continue
            if watch is not None:
                watch(node, tensor, gradient)
            _deliver(tensor, gradient, pending)
    _cut(output)


def tape(output: Tensor, newest_first: bool = False) -> list[Node]:
    """The operations that made `output`, in the order they ran (or from the last to the first)."""
    found: dict[int, Node] = {}
    waiting = [output.node] if output.node else []
    while waiting:
        node = waiting.pop()
        if node.order not in found:
            found[node.order] = node
            waiting.extend(t.node for t in node.inputs if t.node is not None)
    return [found[order] for order in sorted(found, reverse=newest_first)]


def record(op: str, inputs: tuple[Tensor, ...], data: Array, *saved: Any) -> Tensor:
    """The tensor of `data`, with its node when a gradient will be wanted."""
    output = Tensor(data)
    if _STATE.watch_forward is not None:
        _STATE.watch_forward(_STATE.layer, data)
    if _STATE.recording and any(t.requires_grad for t in inputs):
        output.requires_grad = True
        output.node = Node(op, inputs, saved, _STATE.layer, next(_ORDER))
    return output


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside, operations leave no tape: for evaluation."""
    before, _STATE.recording = _STATE.recording, False
    try:
        yield
    finally:
        _STATE.recording = before


@contextmanager
def in_layer(name: str) -> Iterator[None]:
    """Inside, operations belong to this layer; nested names are joined with a dot."""
    before = _STATE.layer
    _STATE.layer = f"{before}.{name}" if before else name
    try:
        yield
    finally:
        _STATE.layer = before


@contextmanager
def watching(watch: Callable[[str, Array], None]) -> Iterator[None]:
    """Inside, `watch(layer, output)` sees what every operation made."""
    before, _STATE.watch_forward = _STATE.watch_forward, watch
    try:
        yield
    finally:
        _STATE.watch_forward = before


def current_layer() -> str:
    """The layer that runs now, "" outside of any."""
    return _STATE.layer


class _State(threading.local):
    recording: bool = True
    layer: str = ""
    watch_forward: Callable[[str, Array], None] | None = None


_STATE = _State()
_ORDER = itertools.count()


def _deliver(tensor: Tensor, gradient: Array, pending: dict[int, Array]) -> None:
    """Sum the gradient where it belongs. Never in place: a rule may hand one array to two inputs."""
    if tensor.node is None:
        tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
    else:
        order = tensor.node.order
        pending[order] = pending[order] + gradient if order in pending else gradient


def _cut(output: Tensor) -> None:
    """Forget the tape behind `output`, so that activations are freed now."""
    waiting = [output]
    while waiting:
        tensor = waiting.pop()
        if tensor.node is not None:
            waiting.extend(tensor.node.inputs)
            tensor.node = None


# Each rule takes the node and the gradient at its output and gives one gradient (or None) per input.


def _linear(node: Node, grad_NO: Array) -> Gradients:
    x, weight, _ = node.inputs
    grad_x = gemm.linear_grad_input(grad_NO, weight.data) if node.wants(0) else None
    return grad_x, *gemm.linear_grad_weight(grad_NO, x.data)


def _conv2d(node: Node, grad_NOPQ: Array) -> Gradients:
    x, weight, _ = node.inputs
    grad_x = conv.conv2d_grad_input(grad_NOPQ, weight.data, x.shape, *node.saved) if node.wants(0) else None
    return grad_x, *conv.conv2d_grad_weight(grad_NOPQ, x.data, weight.shape, *node.saved)


def _local2d(node: Node, grad_NOPQ: Array) -> Gradients:
    x, weight, _ = node.inputs
    grad_x = local.local2d_grad_input(grad_NOPQ, weight.data, x.shape, *node.saved) if node.wants(0) else None
    return grad_x, *local.local2d_grad_weight(grad_NOPQ, x.data, weight.shape, *node.saved)


def _max_pool2d(node: Node, grad_NCPQ: Array) -> Gradients:
    return (pool.max_pool2d_backward(grad_NCPQ, node.saved[0], node.inputs[0].shape),)


def _avg_pool2d(node: Node, grad_NCPQ: Array) -> Gradients:
    return (pool.avg_pool2d_backward(grad_NCPQ, node.inputs[0].shape, *node.saved),)


def _global_avg_pool(node: Node, grad_NC: Array) -> Gradients:
    return (pool.global_avg_pool_backward(grad_NC, node.inputs[0].shape),)


def _relu(node: Node, grad: Array) -> Gradients:
    return (elementwise.relu_backward(grad, node.saved[0]),)


def _tanh(node: Node, grad: Array) -> Gradients:
    return (elementwise.tanh_backward(grad, node.saved[0]),)


def _dropout(node: Node, grad: Array) -> Gradients:
    grad_x = np.empty_like(grad)
    rows, order = grad.reshape(grad.shape[0], -1), np.arange(grad[0].size)
    elementwise.dropout(rows, grad_x.reshape(rows.shape), order, *node.saved)
    return (grad_x,)


def _local_response_norm(node: Node, grad_NCHW: Array) -> Gradients:
    return (norm.local_response_backward(grad_NCHW, node.inputs[0].data, *node.saved),)


def _map_response_norm(node: Node, grad_NCHW: Array) -> Gradients:
    return (norm.map_response_backward(grad_NCHW, node.inputs[0].data, *node.saved),)


def _batch_norm2d(node: Node, grad_NCHW: Array) -> Gradients:
    x, weight, _ = node.inputs
    return batch_norm.normalise_backward(grad_NCHW, x.data, weight.data, *node.saved)


def _flatten(node: Node, grad: Array) -> Gradients:
    return (grad.reshape(node.inputs[0].shape),)


def _add(_: Node, grad: Array) -> Gradients:
    return grad, grad


def _scale(node: Node, grad: Array) -> Gradients:
    return (grad * node.saved[0],)


def _cross_entropy(node: Node, grad: Array) -> Gradients:
    return (loss.cross_entropy_backward(float(grad), *node.saved),)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "local2d": _local2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": _global_avg_pool,
    "relu": _relu,
    "tanh": _tanh,
    "dropout": _dropout,
    "local_response_norm": _local_response_norm,
    "map_response_norm": _map_response_norm,
    "batch_norm2d": _batch_norm2d,
    "flatten": _flatten,
    "add": _add,
    "scale": _scale,
    "cross_entropy": _cross_entropy,
}
