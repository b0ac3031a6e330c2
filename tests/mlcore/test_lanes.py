"""Lanes train as the tape does: same losses, same weights, for every kind of step and for batches of any size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
import pytest

from mlcore.engines import planned
from mlcore.kernels import ahead, jit, native
from mlcore.lanes import layout, weighted
from mlcore.lanes.plan import LanePlan
from mlcore.lanes.program import network
from mlcore.layers import (
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    Tanh,
)
from mlcore.models import INPUTS, build
from mlcore.optim import SGD
from mlcore.planned.fuse import Unplannable
from mlcore.planned.plan import Plan
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import RATE, Array, assert_near, needs_compiler, normal, odd_paces, run_python, tape_step

Make = Callable[[], Sequential]


def _mixed() -> Sequential:
    """A bit of everything, with groups, strides and channels that no tile divides."""
    rng = Rng(3)
    layers: list[tuple[str, Layer]] = [
        ("c1", Conv2d(3, 10, 5, rng.child("c1"), stride=2, padding=1)),
        ("p1", MaxPool2d(3, 2, 1)),
        ("r1", ReLU()),
        ("n1", LocalResponseNorm(5, 2.0, 0.1, 0.75)),
        ("c2", Conv2d(10, 18, 3, rng.child("c2"), padding=2, groups=2)),
        ("t2", Tanh()),
        ("d2", Dropout(0.3)),
        ("c3", Conv2d(18, 12, 3, rng.child("c3"), stride=3, padding=1, groups=3)),
        ("r3", ReLU()),
        ("n3", LocalResponseNorm(3, 1.0, 0.2, 0.6)),
        ("a3", AvgPool2d(3, 1, 1)),
        ("r3b", ReLU()),
        ("c4", Conv2d(12, 33, 1, rng.child("c4"))),
        ("r4", ReLU()),
        ("p4", MaxPool2d(2, 1)),
        ("f", Flatten()),
        ("d5", Dropout(0.4)),
        ("l5", Linear(33 * 2 * 2, 43, rng.child("l5"))),
        ("r5", ReLU()),
        ("l6", Linear(43, 7, rng.child("l6"))),
    ]
    return Sequential(layers, (3, 29, 27))


def _edges() -> Sequential:
    """A window wider than its image, a stride wider than its window, and weights right behind a convolution."""
    rng = Rng(4)
    layers: list[tuple[str, Layer]] = [
        ("p0", MaxPool2d(2)),
        ("c1", Conv2d(2, 5, 7, rng.child("c1"), padding=3)),
        ("p1", MaxPool2d(2, 3)),
        ("c2", Conv2d(5, 4, 1, rng.child("c2"), stride=2, padding=1)),
        ("c3", Conv2d(4, 6, 2, rng.child("c3"), padding=1)),
        ("f", Flatten()),
        ("l", Linear(6 * 3 * 3, 5, rng.child("l"))),
    ]
    return Sequential(layers, (2, 11, 10))


def _left_over(last: Layer, *between: Layer) -> Sequential:
    """9x9 maps behind a convolution, of which `last` leaves some of the last rows and columns to nobody."""
    rng = Rng(6)
    layers = [
        Conv2d(2, 6, 3, rng.child("c"), padding=1), *between, last, Flatten(),
        Linear(math.prod(last.output_shape((6, 9, 9))), 5, rng.child("l")),
    ]  # fmt: skip
    return Sequential([(f"n{i}", layer) for i, layer in enumerate(layers)], (2, 9, 9))


def _left_over_twice() -> Sequential:
    """As `_left_over`, but the 9x9 maps are pooled ones of 19x19."""
    rng = Rng(7)
    layers: list[tuple[str, Layer]] = [
        ("c", Conv2d(2, 6, 3, rng.child("c"), padding=1)),
        ("p1", MaxPool2d(2)),
        ("n", RESPONSE),
        ("p2", MaxPool2d(2)),
        ("f", Flatten()),
        ("l", Linear(6 * 4 * 4, 5, rng.child("l"))),
    ]
    return Sequential(layers, (2, 19, 19))


RESPONSE = LocalResponseNorm(5, 2.0, 0.1, 0.75)
CASES: dict[str, tuple[Make, tuple[int, ...], int]] = {
    "a bit of everything": (_mixed, (3, 29, 27), 7),
    "edges": (_edges, (2, 11, 10), 5),
    "cuda_convnet": (lambda: build("cuda_convnet", {}, Rng(1), (3, 17, 16)), (3, 17, 16), 10),
    "fig1 of tanh": (lambda: build("fig1", {"activation": "tanh"}, Rng(1), (3, 17, 16)), (3, 17, 16), 10),
    "lenet5": (lambda: build("lenet5", {"activation": "tanh", "pool": "avg"}, Rng(1), (1, 14, 14)), (1, 14, 14), 10),
    "mlp": (lambda: build("mlp", {"dropout": 0.2}, Rng(1), (1, 5, 5)), (1, 5, 5), 10),
    "rows that max pooling leaves over": (
        lambda: _left_over(MaxPool2d(2), Tanh(), RESPONSE, Dropout(0.3)), (2, 9, 9), 5,
    ),
    "rows that wide max pooling leaves over": (lambda: _left_over(MaxPool2d(4, 3), RESPONSE, ReLU()), (2, 9, 9), 5),
    "rows that average pooling leaves over": (lambda: _left_over(AvgPool2d(2, 3), RESPONSE, Tanh()), (2, 9, 9), 5),
    "rows that a convolution leaves over": (
        lambda: _left_over(Conv2d(6, 5, 2, Rng(8), stride=2), AvgPool2d(3, 1, 1), RESPONSE), (2, 9, 9), 5,
    ),
    "rows left over twice": (_left_over_twice, (2, 19, 19), 5),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_lanes_equal_the_tape(case: str) -> None:
    _compare(case, nesterov=False)


@needs_compiler
def test_lanes_equal_the_tape_with_nesterovs_momentum() -> None:
    _compare("mlp", nesterov=True)


@needs_compiler
def test_lanes_equal_the_tape_when_every_parameter_has_its_own_pace() -> None:
    _compare("lenet5", nesterov=False, paced=True)


def _compare(case: str, nesterov: bool, paced: bool = False) -> None:
    make, shape, classes = CASES[case]
    model, other = make(), make()
    for one in (model, other):
        for name, tensor in one.parameters().items():  # biases that a wrong decay would move
            tensor.data += 0.1 if name.endswith("bias") else 0
    paces = odd_paces(model) if paced else None
    optimiser, others = (SGD(one.parameters(), 0.9, 0.02, nesterov, paces=paces) for one in (model, other))
    plan = LanePlan(other, others, 70, shape)
    for step, count in enumerate((70, 1, 33)):
        x, labels = normal((count, *shape), seed=step), (np.arange(count) * 3 + step) % classes
        loss, logits = tape_step(model, optimiser, x, labels, step)
        planned_loss, planned_logits = plan.step(x, labels, RATE, Rng(5).child("step", step))
        assert planned_loss == pytest.approx(loss, rel=1e-5)
        assert_near(planned_logits, logits, "logits", 2e-5)
    plan.give()
    for name, tensor in model.parameters().items():
        assert_near(other.parameters()[name].data, tensor.data, name, 1e-5)
        assert_near(others.state()[name], optimiser.state()[name], f"velocity of {name}", 1e-4)
    x = normal((75, *shape), seed=9)
    assert_near(plan.logits(x), other(Tensor(x)).data, "evaluation", 1e-5)


@needs_compiler
def test_lanes_and_tape_have_the_same_losses_for_fifty_steps() -> None:
    model, other = (build("lenet5", {}, Rng(1), (1, 12, 12)) for _ in range(2))
    optimiser = SGD(model.parameters(), 0.9, 5e-4)
    plan = LanePlan(other, SGD(other.parameters(), 0.9, 5e-4), 40, (1, 12, 12))
    for step in range(50):
        x, labels = normal((40, 1, 12, 12), seed=step), (np.arange(40) + step) % 10
        want, _ = tape_step(model, optimiser, x, labels, step)
        loss, _ = plan.step(x, labels, RATE, Rng(step))
        assert loss == pytest.approx(want, rel=1e-4)


def _trained(threads: int) -> dict[str, Array]:
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        model = _mixed()
        plan = LanePlan(model, SGD(model.parameters(), 0.9, 5e-4), 77, (3, 29, 27))
        for step in range(2):
            plan.step(normal((77, 3, 29, 27), seed=step), np.arange(77) % 7, RATE, Rng(step))
        plan.give()
        return {name: tensor.data for name, tensor in model.parameters().items()}
    finally:
        numba.set_num_threads(before)


@needs_compiler
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one thread")
def test_lanes_give_the_same_bits_with_one_thread_and_two(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _trained(1)
    monkeypatch.setattr(jit, "WORTH_SHARING", 0)
    together = _trained(2)
    assert all((alone[name] == together[name]).all() for name in alone)


@needs_compiler
@pytest.mark.parametrize("machine", [native.AVX512, native.AVX2, native.PORTABLE], ids=["avx512", "avx2", "portable"])
def test_lanes_equal_the_tape_with_vectors_of_any_width(
    machine: native.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.lanes > native.this_machine().lanes:
        pytest.skip(f"this processor has no vectors of {machine.lanes} floats")
    for module in (layout, weighted):
        monkeypatch.setattr(module, "this_machine", lambda: machine)
    test_lanes_equal_the_tape("a bit of everything")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("processor", "lanes"), [("haswell", 8), ("generic", 4)])
def test_lanes_equal_the_tape_when_numba_is_told_to_be_an_older_processor(processor: str, lanes: int) -> None:
    code = """
from mlcore.kernels.native import this_machine
from tests.mlcore.test_lanes import test_lanes_equal_the_tape
test_lanes_equal_the_tape("a bit of everything")
print(this_machine().lanes)
"""
    assert int(run_python(code, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")) == lanes


def _no_biases(maps: int) -> Sequential:
    layers = [("c", Conv2d(1, maps, 3, Rng(1), biases=None)), ("f", Flatten()), ("l", Linear(maps * 9, 5, Rng(2)))]
    return Sequential(layers, (1, 5, 5))


class _Unknown(Layer):
    """A layer that nobody has heard of."""


def test_a_network_that_has_no_form_in_lanes_says_which_layer_is_in_the_way() -> None:
    with pytest.raises(Unplannable, match="layer 'u': there is no _Unknown in lanes"):
        network(Sequential([("c", Conv2d(1, 4, 3, Rng(1))), ("u", _Unknown())]), (1, 5, 5))
    with pytest.raises(Unplannable, match="one number for each class"):
        network(Sequential([("c", Conv2d(1, 4, 3, Rng(1))), ("f", Flatten())]), (1, 5, 5))
    last = Sequential([("c", Conv2d(1, 4, 3, Rng(1))), ("d", Conv2d(4, 5, 3, Rng(2))), ("f", Flatten())])
    with pytest.raises(Unplannable, match="layer 'd': a convolution of windows can't be the last layer"):
        network(last, (1, 5, 5))
    with pytest.raises(Unplannable, match="layer 'c': it has no biases"):
        network(_no_biases(4), (1, 5, 5))


@needs_compiler
def test_a_nan_in_one_image_reaches_its_logits_and_the_loss_but_no_other_image() -> None:
    model = _mixed()
    plan = LanePlan(model, SGD(model.parameters()), 3, (3, 29, 27))
    x = normal((3, 3, 29, 27))
    x[1, 1, 10, 10] = np.nan
    loss, logits = plan.step(x, np.arange(3), 0.0, Rng(1))
    assert np.isnan(loss)
    assert np.isnan(logits).any(axis=1).tolist() == [False, True, False]


@needs_compiler
def test_small_networks_go_into_lanes_wide_ones_and_large_images_onto_planes_and_small_batches_neither() -> None:
    def kind(name: str, batch: int) -> type[object]:
        return kind_of(build(name, {}, Rng(1)), batch, INPUTS[name][0])

    def kind_of(model: Sequential, batch: int, shape: tuple[int, ...]) -> type[object]:
        return type(planned(model, SGD(model.parameters()), batch, shape))

    assert kind("lenet5", 64) is LanePlan
    assert kind("lenet5", 8) is type(None)
    assert kind("mnist_cnn", 8) is Plan
    assert kind("cuda_convnet", 64) is Plan  # its convolutions save multiplications there
    assert kind_of(build("mnist_cnn", {}, Rng(1), (1, 60, 60), 10), 64, (1, 60, 60)) is Plan
    assert kind_of(_no_biases(4), 64, (1, 5, 5)) is type(None)
    assert kind_of(_no_biases(40), 64, (1, 5, 5)) is Plan


@needs_compiler
def test_a_network_compiles_the_operations_that_it_has_and_no_others() -> None:
    model = build("mlp", {}, Rng(1), (1, 5, 5))

    def work() -> None:
        plan = LanePlan(model, SGD(model.parameters()), 32, (1, 5, 5))
        plan.step(normal((32, 1, 5, 5)), np.zeros(32, int), 0, Rng(1))

    names = [job.name for job in ahead.jobs_of(work)]
    assert {"lane_kinds.correlate", "lane_kinds.turn", "lane_program.run"} <= set(names)
    assert not {"lane_kinds.descend", "lane_kinds.max_pool", "lane_kinds.tanh"} & set(names)
