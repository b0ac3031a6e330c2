"""Gradients by central differences, and that the check catches planted faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from mlcore import autograd, gradcheck, models, ops
from mlcore.autograd import RULES, Gradients, Node, Rule
from mlcore.errors import CheckFailed, RecipeError
from mlcore.gradcheck import OP_CHECKS, check_grads, gradcheck_model, run_gradcheck
from mlcore.kernels import conv
from mlcore.rng import Rng
from tests.mlcore.helpers import Array, needs_compiler


@pytest.mark.parametrize("name", OP_CHECKS)
def test_the_gradient_equals_the_central_difference(name: str) -> None:
    measured = OP_CHECKS[name]()
    assert measured.checked > 10
    assert measured.max_error < 1e-6


def test_every_rule_is_checked() -> None:
    assert {name.split()[0] for name in OP_CHECKS} >= set(RULES)


LARGE = {"alexnet", "alexnet_small", "resnet_small"}  # half a minute, or many


@needs_compiler
@pytest.mark.parametrize("name", sorted(set(models.MODELS) - LARGE))
def test_a_models_gradients_equal_central_differences(name: str) -> None:
    (row,) = run_gradcheck(name)
    assert row.ok, row.message
    assert row.checked > 50


def test_a_model_with_dropout_and_tanh_passes() -> None:
    options = {"hidden": [7], "activation": "tanh", "dropout": 0.3}
    model = models.build("mlp", options, Rng(1), (1, 4, 4), 3)
    assert gradcheck_model(model, (5, 1, 4, 4), 3, Rng(2)).max_error < 1e-6


@needs_compiler
@pytest.mark.parametrize("net", ["18pct", "13pct", "11pct"])
def test_the_gradients_of_the_cifar_networks_equal_central_differences(net: str) -> None:
    model = models.build("cuda_convnet", {"net": net}, Rng(1), (3, 9, 9), 4)
    assert gradcheck_model(model, (2, 3, 9, 9), 4).checked > 50


@needs_compiler
@pytest.mark.parametrize("rng", [Rng(2), None], ids=["training", "evaluation"])
def test_the_gradients_of_a_residual_network_equal_central_differences(rng: Rng | None) -> None:
    model = models.build("resnet_small", {}, Rng(1), (1, 5, 5), 3)
    assert gradcheck_model(model, (5, 1, 5, 5), 3, rng).checked > 50


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(RecipeError, match="lenet5"):
        run_gradcheck("lenet6")


def _part(i: int, change: Callable[[Array], Array]) -> Callable[[Rule], Rule]:
    """A rule whose i-th gradient is changed."""

    def wrong(rule: Rule) -> Rule:
        def apply(node: Node, grad: Array) -> Gradients:
            parts = list(rule(node, grad))
            good = parts[i]
            assert good is not None
            parts[i] = np.ascontiguousarray(change(good))
            return tuple(parts)

        return apply

    return wrong


def _saved(change: Callable[[Array], Array]) -> Callable[[Rule], Rule]:
    """A rule that finds something else in the first thing it saved."""

    def wrong(rule: Rule) -> Rule:
        return lambda node, grad: rule(dataclasses.replace(node, saved=(change(node.saved[0]), *node.saved[1:])), grad)

    return wrong


def _unflipped(rule: Rule) -> Rule:
    """A convolution's input gradient with the window turned round."""

    def apply(node: Node, grad: Array) -> Gradients:
        x, weight, _ = node.inputs
        turned = np.ascontiguousarray(weight.data[:, :, ::-1, ::-1])
        return conv.conv2d_grad_input(grad, turned, x.shape, *node.saved), *rule(node, grad)[1:]

    return apply


PLANTED: dict[str, tuple[str, Callable[[Rule], Rule]]] = {
    "linear: sign of the input's gradient": ("linear", _part(0, np.negative)),
    "linear: weight gradient shifted by one input": ("linear", _part(1, lambda g: np.roll(g, 1, axis=1))),
    "linear: bias gradient a mean, not a sum": ("linear", _part(2, lambda g: g / 5)),
    "conv2d: windows not turned round": ("conv2d", _unflipped),
    "conv2d: height and width exchanged": ("conv2d", _part(1, lambda g: g.swapaxes(2, 3))),
    "conv2d: output channels shifted": ("conv2d", _part(1, lambda g: np.roll(g, 1, axis=0))),
    "conv2d: input off by one row": ("conv2d", _part(0, lambda g: np.roll(g, 1, axis=2))),
    "conv2d: a hundred-thousandth too large": ("conv2d", _part(1, lambda g: g * (1 + 1e-5))),
    "local2d: places shifted": ("local2d", _part(1, lambda g: np.roll(g, 1, axis=1))),
    "local2d: biases shared": ("local2d", _part(2, lambda g: g + g.mean(axis=(1, 2), keepdims=True))),
    "local2d: input off by one column": ("local2d", _part(0, lambda g: np.roll(g, 1, axis=3))),
    "max_pool2d: the winner's neighbour": ("max_pool2d", _saved(lambda w: np.maximum(w - 1, 0))),
    "avg_pool2d: divided by the side, not the area": ("avg_pool2d", _part(0, lambda g: g * 2)),
    "relu: gate always open": ("relu", _saved(np.ones_like)),
    "tanh: slope 1 - out^4": ("tanh", _saved(np.square)),
    "dropout: kept values not scaled": ("dropout", _saved(np.zeros_like)),
    "dropout: another mask": (
        "dropout",
        lambda rule: lambda node, grad: rule(dataclasses.replace(node, saved=(node.saved[0], node.saved[1] + 1)), grad),
    ),
    "local_response_norm: neighbours left out": (
        "local_response_norm",
        lambda rule: lambda node, grad: (grad * node.saved[0] ** -node.saved[3],),
    ),
    "local_response_norm: a sign": (
        "local_response_norm",
        lambda rule: (
            lambda node, grad: rule(
                dataclasses.replace(node, saved=(*node.saved[:2], -node.saved[2], node.saved[3])), grad
            )
        ),
    ),
    "map_response_norm: neighbours left out": (
        "map_response_norm",
        lambda rule: lambda node, grad: (grad * node.saved[0] ** -node.saved[3],),
    ),
    "map_response_norm: a smaller window": (
        "map_response_norm",
        lambda rule: (
            lambda node, grad: rule(dataclasses.replace(node, saved=(node.saved[0], 1, *node.saved[2:])), grad)
        ),
    ),
    "global_avg_pool: a sum, not a mean": ("global_avg_pool", _part(0, lambda g: g * 20)),
    "batch_norm2d: nothing through mean and variance": (
        "batch_norm2d",
        lambda rule: lambda node, grad: rule(dataclasses.replace(node, saved=(*node.saved[:2], False)), grad),
    ),
    "batch_norm2d: another mean": ("batch_norm2d", _saved(lambda mean: mean + 1e-4)),
    "batch_norm2d: channels shifted": ("batch_norm2d", _part(1, lambda g: np.roll(g, 1))),
    "batch_norm2d: bias gradient a mean, not a sum": ("batch_norm2d", _part(2, lambda g: g / 24)),
    "scale: sign lost": ("scale", _part(0, np.negative)),
    "add: one side left out": ("add", _part(1, np.zeros_like)),
    "cross_entropy: not divided by the batch": ("cross_entropy", _part(0, lambda g: g * 3)),
    "cross_entropy: target of the wrong row": (
        "cross_entropy",
        lambda rule: (
            lambda node, grad: rule(dataclasses.replace(node, saved=(node.saved[0], np.roll(node.saved[1], 1))), grad)
        ),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, plant = PLANTED[name]
    monkeypatch.setitem(autograd.RULES, op, plant(RULES[op]))
    with pytest.raises(CheckFailed, match="central difference"):
        OP_CHECKS[op]()


def test_a_planted_fault_is_reported_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(autograd.RULES, "tanh", _part(0, np.negative)(RULES["tanh"]))
    rows = {name: gradcheck._row(name, OP_CHECKS[name]) for name in ("relu", "tanh")}
    assert rows["relu"].ok
    assert not rows["tanh"].ok
    assert "central difference" in rows["tanh"].message


def test_a_gradient_of_the_wrong_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(autograd.RULES, "flatten", lambda node, grad: (grad,))
    with pytest.raises(CheckFailed, match="shape"):
        OP_CHECKS["flatten"]()


def test_kinks_are_left_out_but_not_too_many() -> None:
    assert check_grads(ops.relu, np.array([0.0, 1, 2, 3, -1, -2])).left_out == 1
    with pytest.raises(CheckFailed, match="kinks"):
        check_grads(ops.relu, np.array([0.0, 1, -1]))


def test_a_check_that_returns_nan_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(autograd.RULES, "tanh", _part(0, lambda g: g * np.nan)(RULES["tanh"]))
    with pytest.raises(CheckFailed):
        OP_CHECKS["tanh"]()


def test_the_inputs_of_a_check_are_not_changed() -> None:
    x = np.linspace(-1, 1, 8)
    before = x.copy()
    check_grads(lambda t: ops.scale(t, 2), x)
    assert (x == before).all()
