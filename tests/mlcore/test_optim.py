"""The optimisers and the schedules of its rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.errors import CheckpointError, RecipeError
from mlcore.optim import SGD, Adam, Optimiser
from mlcore.schedule import SCHEDULES, build
from mlcore.tensor import Tensor
from tests.mlcore.helpers import normal, tensor


def _parameters(grad: float = 1.0) -> dict[str, Tensor]:
    parameters = {"fc.weight": tensor([[1.0, -2.0]]), "fc.bias": tensor([3.0])}
    for p in parameters.values():
        p.grad = np.full(p.shape, grad, np.float32)
    return parameters


def test_a_step_without_momentum_is_rate_times_gradient() -> None:
    parameters = _parameters()
    SGD(parameters).step(0.5)
    assert parameters["fc.weight"].data.tolist() == [[0.5, -2.5]]


def test_momentum_adds_what_is_left_of_the_last_steps() -> None:
    parameters = _parameters()
    optimiser = SGD(parameters, momentum=0.5)
    optimiser.step(1.0)
    optimiser.step(1.0)
    assert parameters["fc.bias"].data.tolist() == [3 - 1 - 1.5]


def test_nesterov_looks_one_step_ahead() -> None:
    parameters = _parameters()
    SGD(parameters, momentum=0.5, nesterov=True).step(1.0)
    assert parameters["fc.bias"].data.tolist() == [3 - 1.5]


def test_weight_decay_pulls_weights_but_not_biases() -> None:
    parameters = _parameters(grad=0.0)
    SGD(parameters, weight_decay=0.1).step(1.0)
    assert parameters["fc.weight"].data.tolist() == [[pytest.approx(0.9), pytest.approx(-1.8)]]
    assert parameters["fc.bias"].data.tolist() == [3.0]


def test_biases_decay_when_asked_to() -> None:
    parameters = _parameters(grad=0.0)
    SGD(parameters, weight_decay=0.1, decay_biases=True).step(1.0)
    assert parameters["fc.bias"].data.tolist() == [pytest.approx(2.7)]


def test_a_parameter_without_gradient_is_left_alone() -> None:
    parameters = _parameters()
    parameters["fc.bias"].grad = None
    SGD(parameters, weight_decay=0.1).step(1.0)
    assert parameters["fc.bias"].data.tolist() == [3.0]


def test_zero_grad_forgets() -> None:
    parameters = _parameters()
    SGD(parameters).zero_grad()
    assert all(p.grad is None for p in parameters.values())


@pytest.mark.parametrize("gradient", [1e-3, 1.0, -250.0])
def test_adams_first_step_is_the_rate_whatever_the_gradients_size(gradient: float) -> None:
    parameters = _parameters(gradient)
    Adam(parameters).step(0.25)
    assert parameters["fc.bias"].data.tolist() == [pytest.approx(3 - 0.25 * np.sign(gradient), rel=1e-4)]


def test_adam_decays_weights_but_not_biases() -> None:
    parameters = _parameters(grad=0.0)
    Adam(parameters, weight_decay=0.1).step(0.5)
    assert parameters["fc.weight"].data.tolist() == [[pytest.approx(0.5), pytest.approx(-1.5)]]
    assert parameters["fc.bias"].data.tolist() == [3.0]


MAKERS: dict[str, Callable[[dict[str, Tensor]], Optimiser]] = {
    "sgd": lambda parameters: SGD(parameters, 0.9, 0.01),
    "adam": lambda parameters: Adam(parameters, weight_decay=0.01),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_state_goes_on_to_the_bit(name: str) -> None:
    def train(parameters: dict[str, Tensor], optimiser: Optimiser, steps: range) -> None:
        for step in steps:
            for name, p in parameters.items():
                p.grad = normal(p.shape, seed=step + len(name))
            optimiser.step(0.1)

    make, whole, halves = MAKERS[name], _parameters(), _parameters()
    train(whole, make(whole), range(6))
    first = make(halves)
    train(halves, first, range(3))
    second = make(halves)
    second.load_state(first.state())
    train(halves, second, range(3, 6))
    assert all((whole[k].data == halves[k].data).all() for k in whole)


def test_one_optimisers_state_is_not_anothers() -> None:
    with pytest.raises(CheckpointError, match="recipe"):
        Adam(_parameters()).load_state(SGD(_parameters()).state())


def test_a_state_is_a_copy() -> None:
    parameters = _parameters()
    optimiser = SGD(parameters, momentum=0.9)
    state = optimiser.state()
    optimiser.step(0.1)
    assert not state["fc.bias"].any()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"fc.weight": np.zeros((1, 2), np.float32)},
        {"fc.weight": np.zeros((2, 1), np.float32), "fc.bias": np.zeros(1, np.float32)},
        {"fc.weight": np.zeros((1, 2)), "fc.bias": np.zeros(1)},
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="recipe"):
        SGD(_parameters()).load_state(state)


@pytest.mark.parametrize("name", SCHEDULES)
@given(total=st.integers(1, 5000), data=st.data())
def test_a_schedule_stays_between_zero_and_one(name: str, total: int, data: Any) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 <= build(name)(step, total) <= 1


@pytest.mark.parametrize(
    ("name", "options", "factors"),
    [
        ("constant", {}, [1, 1, 1, 1, 1]),
        ("step", {"gamma": 0.5, "drops": 2}, [1, 1, 0.5, 0.5, 0.25]),
        ("cosine", {}, [1, 0.853553, 0.5, 0.146447, 0]),
        ("cosine", {"floor": 0.5}, [1, 0.926777, 0.75, 0.573223, 0.5]),
        ("one_cycle", {"warmup": 0.25, "floor": 0.1}, [1 / 25, 1, 0.666667, 0.333333, 0.1]),
        ("one_cycle", {"warmup": 0}, [1, 0.75, 0.5, 0.25, 0.01]),
    ],
)
def test_a_schedule_goes_through_its_points(name: str, options: dict[str, Any], factors: list[float]) -> None:
    schedule: Callable[[int, int], float] = build(name, options)
    assert [schedule(step, 100) for step in (0, 25, 50, 75, 100)] == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("step", {"gama": 0.5}, "did you mean 'gamma'"),
        ("step", {"drops": 1.5}, "write an integer"),
        ("step", {"gamma": -1}, "above 0"),
        ("cosine", {"floor": 2}, "between 0 and 1"),
        ("one_cycle", {"warmup": -0.1}, "between 0 and 1"),
        ("constant", {"rate": 0.1}, "known: none"),
    ],
)
def test_a_bad_schedule_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(name, options)
    assert message in str(caught.value)
