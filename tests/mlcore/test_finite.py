"""NaN and infinity are traced to the layer they came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlcore import autograd
from mlcore.finite import find_non_finite
from mlcore.layers import Sequential
from mlcore.models import build
from mlcore.rng import Rng
from tests.mlcore.helpers import needs_compiler, normal

pytestmark = needs_compiler

X, LABELS = normal((4, 1, 28, 28)), np.array([1, 2, 3, 4])


def _model() -> Sequential:
    return build("lenet5", {}, Rng(0))


def test_a_sound_model_has_nothing_to_report() -> None:
    assert find_non_finite(_model(), X, LABELS) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["C1.weight", "C5.weight", "output.bias"])
def test_a_broken_weight_is_named(name: str, bad: float) -> None:
    model = _model()
    model.parameters()[name].data.flat[3] = bad
    found = find_non_finite(model, X, LABELS)
    assert found is not None
    assert found.startswith(f"layer '{name.split('.')[0]}': weight {name} has ")


def test_a_broken_input_is_named() -> None:
    x = X.copy()
    x[2, 0, 5, 5] = np.nan
    assert find_non_finite(_model(), x, LABELS) == "input: the batch has 1 NaN and 0 infinite of 3136 values"


def test_an_overflow_names_the_first_layer_of_the_forward_pass() -> None:
    model = _model()
    for name in ("C3.weight", "C5.weight"):
        model.parameters()[name].data *= np.float32(1e25)
    found = find_non_finite(model, X, LABELS)
    assert found is not None
    assert found.startswith("layer 'C5': forward output has ")


def test_a_gradient_that_breaks_names_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = autograd.RULES["tanh"]
    broken: Callable[..., autograd.Gradients] = lambda node, grad: tuple(  # noqa: E731
        g * np.float32(np.nan if node.layer == "fc2_act" else 1) for g in rule(node, grad) if g is not None
    )
    monkeypatch.setitem(autograd.RULES, "tanh", broken)
    model = build("mlp", {"hidden": [9, 8, 7], "activation": "tanh"}, Rng(0))
    found = find_non_finite(model, X, LABELS)
    assert found is not None
    assert found.startswith("layer 'fc2_act': gradient of its input has 32 NaN")


def test_looking_changes_no_gradient() -> None:
    model = _model()
    kept = {name: normal(p.shape) for name, p in model.parameters().items()}
    for name, p in model.parameters().items():
        p.grad = kept[name]
    find_non_finite(model, X, LABELS)
    assert all(p.grad is kept[name] for name, p in model.parameters().items())


def test_the_dropout_of_the_step_is_repeated() -> None:
    model = build("mlp", {"hidden": [5], "dropout": 0.5}, Rng(0))
    assert find_non_finite(model, X, LABELS, Rng(1).child("step", 3)) is None
