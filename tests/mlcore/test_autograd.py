"""The tape: what is recorded, what flows back, what is freed."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from mlcore import ops
from mlcore.autograd import RULES, current_layer, in_layer, no_grad, tape, watching
from mlcore.tensor import Tensor
from tests.mlcore.helpers import Array, normal, tensor


def test_gradients_add_up_where_a_tensor_is_used_twice() -> None:
    x = tensor([1.0, 2.0])
    ops.add(ops.scale(x, 3), ops.add(x, x)).backward(np.array([1.0, 10.0], np.float32))
    assert x.grad is not None
    assert x.grad.tolist() == [5.0, 50.0]


def test_gradients_of_two_losses_add_up() -> None:
    x = tensor([2.0])
    ops.scale(x, 3).backward()
    ops.scale(x, 4).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [7.0]


def test_only_what_requires_a_gradient_gets_one() -> None:
    x, weight, bias = Tensor(normal((2, 3))), tensor(normal((4, 3))), tensor(normal((4,)))
    ops.linear(x, weight, bias).backward(normal((2, 4)))
    assert x.grad is None
    assert weight.grad is not None


def test_no_grad_leaves_no_tape() -> None:
    x = tensor([1.0])
    with no_grad():
        out = ops.relu(x)
    assert out.node is None
    assert not out.requires_grad
    assert ops.relu(x).node is not None


def test_the_tape_is_freed_by_backward() -> None:
    x = tensor(normal((3, 4)))
    hidden = ops.tanh(x)
    freed = weakref.ref(hidden.node)
    loss = ops.cross_entropy(hidden, np.array([0, 1, 2]))
    loss.backward()
    gc.collect()
    assert freed() is None
    assert tape(loss) == []


def test_a_tape_can_not_be_used_twice() -> None:
    loss = ops.scale(tensor([1.0]), 2)
    loss.backward()
    with pytest.raises(ValueError, match="already used"):
        loss.backward()


def test_a_loss_that_is_dropped_takes_its_tape_along() -> None:
    freed = weakref.ref(ops.relu(tensor([1.0])).node)
    gc.collect()
    assert freed() is None


def test_each_operation_knows_its_layer() -> None:
    with in_layer("block"), in_layer("C1"):
        out = ops.relu(tensor([1.0]))
    assert current_layer() == ""
    assert [(node.op, node.layer) for node in tape(out)] == [("relu", "block.C1")]


def test_the_tape_lists_operations_in_the_order_they_ran() -> None:
    out = ops.flatten(ops.scale(ops.relu(tensor(normal((2, 3)))), 2))
    assert [node.op for node in tape(out)] == ["relu", "scale", "flatten"]


def test_a_watcher_sees_every_output() -> None:
    seen: list[tuple[str, Array]] = []
    with watching(lambda layer, out: seen.append((layer, out))), in_layer("L"):
        ops.scale(ops.relu(tensor([-1.0, 2.0])), 3)
    assert [(layer, out.tolist()) for layer, out in seen] == [("L", [0.0, 2.0]), ("L", [0.0, 6.0])]


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        ops.relu(tensor([1.0, 2.0])).backward(np.ones(3, np.float32))


def test_backward_of_many_numbers_wants_their_gradient() -> None:
    with pytest.raises(ValueError, match="needs the gradient"):
        ops.relu(tensor([1.0, 2.0])).backward()


def test_a_tensor_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match="float32 or float64"):
        Tensor(np.arange(3))


def test_every_operation_has_a_rule() -> None:
    public = {name for name, thing in vars(ops).items() if callable(thing) and thing.__module__ == ops.__name__}
    assert {name for name in public if not name.startswith("_") and not name.endswith("windows")} == set(RULES)
