"""Operations: what they compute, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlcore import ops
from mlcore.autograd import in_layer
from mlcore.errors import DataError, ShapeError
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import assert_close, normal, tensor


def test_pool_sends_gradient_only_to_the_winner() -> None:
    x = tensor([[[[1.0, 5.0], [2.0, 3.0]]]])
    ops.max_pool2d(x, 2).backward(np.full((1, 1, 1, 1), 7, np.float32))
    assert x.grad is not None
    assert x.grad.tolist() == [[[[0.0, 7.0], [0.0, 0.0]]]]


def test_overlapping_windows_add_their_gradients_at_a_common_winner() -> None:
    x = tensor(np.zeros((1, 1, 3, 5)))
    x.data[0, 0, 1, 2] = 9
    ops.max_pool2d(x, 3, 1).backward(np.array([1, 2, 4], np.float32).reshape(1, 1, 1, 3))
    assert x.grad is not None
    assert x.grad[0, 0, 1, 2] == 7
    assert x.grad.sum() == 7


def test_average_pooling_shares_the_gradient_evenly() -> None:
    x = tensor(normal((1, 1, 4, 4)))
    ops.avg_pool2d(x, 2).backward(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2))
    assert x.grad is not None
    assert x.grad[0, 0, 2:, 2:].tolist() == [[0.75, 0.75], [0.75, 0.75]]


def test_convolution_by_a_single_one_is_a_shift() -> None:
    x, weight = normal((1, 1, 5, 5)), np.zeros((1, 1, 3, 3), np.float32)
    weight[0, 0, 0, 1] = 1
    out = ops.conv2d(Tensor(x), Tensor(weight), Tensor(np.zeros(1, np.float32)), padding=1)
    assert_close(out.data[0, 0, 1:], x[0, 0, :-1])
    assert not out.data[0, 0, 0].any()


def test_groups_do_not_see_one_another() -> None:
    x, weight, bias = normal((1, 4, 5, 5)), tensor(normal((2, 2, 3, 3))), tensor(np.zeros(2))
    before = ops.conv2d(Tensor(x), weight, bias, groups=2).data
    x[:, 2:] += 1
    after = ops.conv2d(Tensor(x), weight, bias, groups=2).data
    assert (before[:, 0] == after[:, 0]).all()
    assert (before[:, 1] != after[:, 1]).all()


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_classes() -> None:
    loss = ops.cross_entropy(Tensor(np.zeros((4, 10), np.float32)), np.arange(4))
    assert loss.item() == pytest.approx(np.log(10), rel=1e-6)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    logits = tensor([[1e30, 0.0], [0.0, -1e30]])
    loss = ops.cross_entropy(logits, np.array([0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_may_be_of_any_integer_dtype(dtype: type) -> None:
    labels = np.array([1, 0], dtype)
    logits = Tensor(normal((2, 3)))
    assert ops.cross_entropy(logits, labels).item() == ops.cross_entropy(logits, labels.astype(int)).item()


def test_dropout_keeps_the_mean_and_repeats_itself_by_seed() -> None:
    x = Tensor(np.ones((200, 200), np.float32))
    out = ops.dropout(x, 0.25, Rng(1)).data
    assert np.unique(out).tolist() == [0.0, pytest.approx(4 / 3)]
    assert out.mean() == pytest.approx(1, abs=0.02)
    assert (out == ops.dropout(x, 0.25, Rng(1)).data).all()
    assert (out != ops.dropout(x, 0.25, Rng(2)).data).any()


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "a map that shrinks to nothing": (lambda: _conv((1, 1, 3, 3), (1, 1, 5, 5)), "feature map of 0x0"),
    "channels that don't fit": (lambda: _conv((1, 2, 9, 9), (1, 1, 3, 3)), "it wants 1 channels"),
    "an image without a batch axis": (lambda: _conv((1, 9, 9), (1, 1, 3, 3)), "[N, C, H, W]"),
    "an empty batch": (lambda: _conv((0, 1, 9, 9), (1, 1, 3, 3)), "at least one example"),
    "a pooling of padding only": (lambda: ops.max_pool2d(_zeros(1, 1, 8, 8), 2, 2, 2), "half of size 2"),
    "a pooling larger than its map": (lambda: ops.avg_pool2d(_zeros(1, 1, 2, 2), 3), "feature map of 0x0"),
    "an unflattened input": (lambda: ops.linear(_zeros(2, 1, 3, 3), _zeros(4, 9), _zeros(4)), "Flatten"),
    "features that don't fit": (lambda: ops.linear(_zeros(2, 8), _zeros(4, 9), _zeros(4)), "[N, 9]"),
    "shapes that differ": (lambda: ops.add(_zeros(2, 3), _zeros(3, 2)), "[2, 3]"),
    "two dtypes": (lambda: ops.add(_zeros(2), Tensor(np.zeros(2))), "float32 and float64"),
    "a dropout of everything": (lambda: ops.dropout(_zeros(2), 1.0, Rng(0)), "[0, 1)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_shape_is_refused_with_layer_shape_and_fix(name: str) -> None:
    call, message = REFUSED[name]
    with in_layer("C3"), pytest.raises(ShapeError) as caught:
        call()
    assert "C3" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), "label 3 of example 1 is not in 0..2"),
        (np.array([-1, 0]), "label -1 of example 0"),
        (np.array([0]), "one integer per example"),
        (np.array([0.0, 1.0]), "one integer per example"),
    ],
)
def test_labels_that_can_not_be_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError) as caught:
        ops.cross_entropy(_zeros(2, 3), labels)
    assert message in str(caught.value)


def _zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


def _conv(x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Tensor:
    return ops.conv2d(_zeros(*x_shape), _zeros(*weight_shape), _zeros(weight_shape[0]))
