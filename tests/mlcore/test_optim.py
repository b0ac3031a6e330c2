"""The optimisers and the schedules of its rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.config import Optimiser as Wanted
from mlcore.errors import CheckpointError, RecipeError
from mlcore.optim import SGD, Adam, Optimiser, Pace
from mlcore.paces import paces_of
from mlcore.schedule import SCHEDULES, Place, Schedule, build
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


PACES = {"fc.weight": Pace(0.5, 0.3), "fc.bias": Pace(2.0, 0.1)}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_moves_each_parameter_at_its_own_pace(nesterov: bool) -> None:
    parameters = _parameters()
    optimiser = SGD(parameters, 0.9, 0.7, nesterov, paces=PACES)
    twins = {name: (p.data.astype(np.float64), np.zeros(p.shape)) for name, p in parameters.items()}
    for step in range(5):
        for name, p in parameters.items():
            p.grad = normal(p.shape, seed=step)
            weight, velocity = twins[name]
            slope = p.grad + PACES[name].decay * weight
            velocity[...] = 0.9 * velocity + slope
            weight -= 0.1 * PACES[name].rate * (slope + 0.9 * velocity if nesterov else velocity)
        optimiser.step(0.1)
    for name, p in parameters.items():
        assert p.data == pytest.approx(twins[name][0], rel=1e-5)


def test_adam_moves_each_parameter_at_its_own_pace() -> None:
    parameters = _parameters(grad=0.0)
    Adam(parameters, paces={"fc.weight": Pace(3.0, 0.0), "fc.bias": Pace(2.0, 0.1)}).step(0.25)
    assert parameters["fc.weight"].data.tolist() == [[1.0, -2.0]]
    assert parameters["fc.bias"].data.tolist() == [pytest.approx(3 - 0.5)]


def test_a_rate_of_zero_leaves_a_parameter_as_it_began() -> None:
    parameters = _parameters()
    SGD(parameters, 0.9, 0.1, paces={"fc.weight": Pace(0.0, 0.1)}).step(1.0)
    assert parameters["fc.weight"].data.tolist() == [[1.0, -2.0]]


def test_the_authors_momentum_makes_the_same_steps_until_the_rate_drops_and_then_coasts_further() -> None:
    parameters, slope, theirs, velocity = _parameters(), 0.5, 3.0, 0.0
    parameters["fc.bias"].grad = np.full(1, slope, np.float32)
    optimiser = SGD(parameters, 0.9)
    rates = [0.1] * 60 + [0.01] * 300
    for step, rate in enumerate(rates):
        optimiser.step(rate)
        velocity = 0.9 * velocity - rate * slope
        theirs += velocity
        if step == 59:
            assert parameters["fc.bias"].data.tolist() == [pytest.approx(theirs, rel=1e-5)]
    further = 0.9 * 0.1 * 0.9 / (1 - 0.9) * (slope / (1 - 0.9))
    assert float(parameters["fc.bias"].data[0]) - theirs == pytest.approx(further, rel=0.01)


def _wanting(**more: Any) -> Wanted:
    return Wanted.model_validate({"rate": 0.1, "weight_decay": 0.5, **more})


NAMES = ("conv1.weight", "conv1.bias", "block.fc.weight", "block.fc.bias")


def test_a_recipe_gives_biases_a_rate_and_a_decay_of_their_own() -> None:
    paces = paces_of(_wanting(bias_rate=2.0, bias_decay=0.1), NAMES)
    assert paces["conv1.weight"] == paces["block.fc.weight"] == Pace(1.0, 0.5)
    assert paces["conv1.bias"] == paces["block.fc.bias"] == Pace(2.0, 0.1)


def test_a_layers_own_rate_and_decay_go_before_the_networks() -> None:
    own = {"conv1": {"rate": 3.0, "weight_decay": 0.03}, "block.fc": {"bias_rate": 5.0, "bias_decay": 0.2}}
    paces = paces_of(_wanting(bias_rate=2.0, layers=own), NAMES)
    assert paces["conv1.weight"] == Pace(3.0, 0.03)
    assert paces["conv1.bias"] == Pace(6.0, 0.0)
    assert paces["block.fc.weight"] == Pace(1.0, 0.5)
    assert paces["block.fc.bias"] == Pace(5.0, 0.2)


def test_a_pace_of_an_unknown_layer_suggests_the_one_that_was_meant() -> None:
    with pytest.raises(
        RecipeError, match=r"optimiser.layers: unknown layer 'con1'; did you mean 'conv1'\? known: conv1"
    ):
        paces_of(_wanting(layers={"con1": {"rate": 2.0}}), NAMES)


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
@given(total=st.integers(1, 5000), drops=st.integers(0, 3), data=st.data())
def test_a_schedule_stays_between_zero_and_one(name: str, total: int, drops: int, data: Any) -> None:
    step = data.draw(st.integers(0, total - 1))
    options = {"at": [2, 5]} if name == "epochs" else {}
    assert 0 <= build(name, options)(Place(step, total, step // 10, drops)) <= 1


def test_the_authors_schedule_drops_after_the_epochs_it_names() -> None:
    schedule = build("epochs", {"at": [8, 10], "factor": 0.5})
    assert [schedule(Place(0, 100, epoch)) for epoch in (0, 7, 8, 9, 10, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_the_plateaus_rate_is_a_matter_of_drops_alone() -> None:
    schedule = build("plateau", {"factor": 0.5})
    assert [schedule(Place(step, 100, step, drops)) for step, drops in ((0, 0), (99, 0), (1, 2))] == [1, 1, 0.25]


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
    schedule: Schedule = build(name, options)
    assert [schedule(Place(step, 100)) for step in (0, 25, 50, 75, 100)] == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("step", {"gama": 0.5}, "did you mean 'gamma'"),
        ("step", {"drops": 1.5}, "write an integer"),
        ("step", {"gamma": -1}, "above 0"),
        ("cosine", {"floor": 2}, "between 0 and 1"),
        ("epochs", {}, "rising numbers of epochs"),
        ("epochs", {"at": [130, 120]}, "rising numbers of epochs"),
        ("epochs", {"at": [0]}, "rising numbers of epochs"),
        ("epochs", {"at": 8}, "write it in brackets"),
        ("plateau", {"factor": 2.0}, "between 0 and 1"),
        ("plateau", {"patience": 0}, "above 0"),
        ("plateau", {"change": -1.0}, "not below 0"),
        ("one_cycle", {"warmup": -0.1}, "between 0 and 1"),
        ("constant", {"rate": 0.1}, "known: none"),
    ],
)
def test_a_bad_schedule_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(name, options)
    assert message in str(caught.value)
