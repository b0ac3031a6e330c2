"""A plan trains as the tape does: same losses, same weights, for every kind of step and for batches of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from mlcore import ops
from mlcore.kernels import jit, native
from mlcore.layers import (
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocallyConnected2d,
    LocalResponseNorm,
    MapResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    Tanh,
    convert,
)
from mlcore.models import build
from mlcore.optim import SGD
from mlcore.planned import layout
from mlcore.planned.fuse import AvgPooling, Dropping, MaxPooling, Unplannable, Weighted, fused
from mlcore.planned.plan import Plan
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import RATE, Array, assert_near, needs_compiler, normal, odd_paces, run_python, tape_step

Make = Callable[[], Sequential]


def _mixed() -> Sequential:
    """A bit of everything, with channels that no vector width divides."""
    rng = Rng(3)
    layers: list[tuple[str, Layer]] = [
        ("c1", Conv2d(3, 20, 5, rng.child("c1"), stride=2, padding=1)),
        ("r1", ReLU()),
        ("n1", LocalResponseNorm(5, 2.0, 0.1, 0.75)),
        ("p1", MaxPool2d(3, 2, 1)),
        ("c2", Conv2d(20, 36, 3, rng.child("c2"), padding=1, groups=2)),
        ("r2", ReLU()),
        ("c3", Conv2d(36, 24, 3, rng.child("c3"), stride=2, padding=1, groups=3)),
        ("n3", LocalResponseNorm(3, 1.0, 0.2, 0.6)),
        ("c4", Conv2d(24, 50, 2, rng.child("c4"))),
        ("p4", MaxPool2d(2, 1)),
        ("r4", ReLU()),
        ("a4", AvgPool2d(3, 2, 1)),
        ("d5", Dropout(0.4)),
        ("f", Flatten()),
        ("l5", Linear(50 * 2 * 2, 83, rng.child("l5"))),
        ("r5", ReLU()),
        ("d6", Dropout(0.3)),
        ("l6", Linear(83, 7, rng.child("l6"))),
    ]
    return Sequential(layers, (3, 37, 35))


def _unusual() -> Sequential:
    """Layers that have no planned form: before any weights, between planes of groups and strides, with weights of their
    own."""
    rng = Rng(4)
    layers: list[tuple[str, Layer]] = [
        ("t0", Tanh()),
        ("c1", Conv2d(3, 24, 3, rng.child("c1"), padding=1)),
        ("n1", MapResponseNorm(3, 1.0, 0.1, 0.75)),
        ("p1", MaxPool2d(3, 2)),
        ("t1", Tanh()),
        ("c2", Conv2d(24, 40, 3, rng.child("c2"), stride=2, padding=1, groups=2)),
        ("t2", Tanh()),
        ("l3", LocallyConnected2d((40, 4, 3), 17, 3, rng.child("l3"), padding=1)),
        ("r3", ReLU()),
        ("f", Flatten()),
        ("l4", Linear(17 * 4 * 3, 6, rng.child("l4"))),
    ]
    return Sequential(layers, (3, 15, 13))


def _local() -> Sequential:
    """Locally connected layers one after the other and before groups, and a convolution right before a linear layer."""
    rng = Rng(6)
    layers: list[tuple[str, Layer]] = [
        ("c1", Conv2d(3, 10, 3, rng.child("c1"), padding=1)),
        ("p1", MaxPool2d(3, 2, 1)),
        ("r1", ReLU()),
        ("l2", LocallyConnected2d((10, 5, 6), 21, 3, rng.child("l2"), padding=1)),
        ("r2", ReLU()),
        ("l3", LocallyConnected2d((21, 5, 6), 12, 2, rng.child("l3"))),
        ("c4", Conv2d(12, 18, 3, rng.child("c4"), padding=1)),
        ("r4", ReLU()),
        ("l5", LocallyConnected2d((18, 4, 5), 8, 3, rng.child("l5"), padding=1)),
        ("c6", Conv2d(8, 14, 3, rng.child("c6"), padding=1, groups=2)),
        ("r6", ReLU()),
        ("f", Flatten()),
        ("l7", Linear(14 * 4 * 5, 6, rng.child("l7"))),
    ]
    return Sequential(layers, (3, 10, 11))


def _no_biases() -> Sequential:
    """Convolutions without biases, as before a batch normalisation, but with none."""
    rng = Rng(7)
    layers: list[tuple[str, Layer]] = [
        ("c1", Conv2d(2, 20, 3, rng.child("c1"), biases=None)),
        ("p1", MaxPool2d(2)),
        ("c2", Conv2d(20, 34, 3, rng.child("c2"), padding=1, biases=None)),
        ("r2", ReLU()),
        ("p2", MaxPool2d(2)),
        ("c3", Conv2d(34, 9, 1, rng.child("c3"), biases=None)),
        ("f", Flatten()),
        ("l", Linear(9 * 2 * 2, 5, rng.child("l"))),
    ]
    return Sequential(layers, (2, 11, 10))


def _pools_behind_others() -> Sequential:
    """Max pooling before a ReLU, behind layers that can't take the ReLU along; dropout before local windows."""
    rng = Rng(9)
    layers: list[tuple[str, Layer]] = [
        ("c1", Conv2d(2, 20, 3, rng.child("c1"), padding=1)),
        ("n1", LocalResponseNorm(5, 1.0, 0.1, 0.75)),
        ("p1", MaxPool2d(2)),
        ("r1", ReLU()),
        ("c2", Conv2d(20, 34, 3, rng.child("c2"), padding=1)),
        ("t2", Tanh()),
        ("p2", MaxPool2d(3, 2, 1)),
        ("r2", ReLU()),
        ("d2", Dropout(0.3)),
        ("l3", LocallyConnected2d((34, 3, 3), 9, 3, rng.child("l3"), padding=1)),
        ("f", Flatten()),
        ("l", Linear(9 * 3 * 3, 5, rng.child("l"))),
    ]
    return Sequential(layers, (2, 11, 10))


CASES: dict[str, tuple[Make, tuple[int, ...], int]] = {
    "a bit of everything": (_mixed, (3, 37, 35), 7),
    "layers without a planned form": (_unusual, (3, 15, 13), 6),
    "locally connected": (_local, (3, 10, 11), 6),
    "pooling behind what takes no ReLU": (_pools_behind_others, (2, 11, 10), 5),
    "convolutions without biases": (_no_biases, (2, 11, 10), 5),
    "mnist_cnn": (lambda: build("mnist_cnn", {}, Rng(1), (1, 12, 11)), (1, 12, 11), 10),
    "cuda_convnet": (lambda: build("cuda_convnet", {}, Rng(1), (3, 17, 16)), (3, 17, 16), 10),
    "lenet5": (lambda: build("lenet5", {}, Rng(1), (1, 14, 14)), (1, 14, 14), 10),
    "mlp": (lambda: build("mlp", {"dropout": 0.2}, Rng(1), (1, 5, 5)), (1, 5, 5), 10),
}


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_a_plan_equals_the_tape(case: str) -> None:
    _compare(case, paced=False)


@needs_compiler
def test_a_plan_equals_the_tape_when_every_parameter_has_its_own_pace() -> None:
    _compare("a bit of everything", paced=True)


def _compare(case: str, paced: bool) -> None:
    make, shape, classes = CASES[case]
    model, other = make(), make()
    for one in (model, other):
        for name, tensor in one.parameters().items():  # biases that a wrong decay would move
            tensor.data += 0.1 if name.endswith("bias") else 0
    paces = odd_paces(model) if paced else None
    optimiser, others = (SGD(one.parameters(), 0.9, 0.02, paces=paces) for one in (model, other))
    plan = Plan(other, others, 19, shape)
    for step, count in enumerate((19, 1, 18)):
        x, labels = normal((count, *shape), seed=step), (np.arange(count) * 3 + step) % classes
        loss, logits = tape_step(model, optimiser, x, labels, step)
        planned_loss, planned_logits = plan.step(x, labels, RATE, Rng(5).child("step", step))
        assert planned_loss == pytest.approx(loss, rel=1e-5)
        assert_near(planned_logits, logits, "logits", 2e-5)
    plan.give()
    for name, tensor in model.parameters().items():
        assert_near(other.parameters()[name].data, tensor.data, name, 1e-5)
        assert_near(others.state()[name], optimiser.state()[name], f"velocity of {name}", 1e-4)
    x = normal((5, *shape), seed=9)
    assert_near(plan.logits(x), other(Tensor(x)).data, "evaluation", 1e-5)


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_a_plan_in_bf16_stays_near_the_tape(case: str) -> None:
    """In small steps: in large ones the loss explodes, and what was rounded in the first decides about the third."""
    make, shape, classes = CASES[case]
    model, other, rate = make(), make(), RATE / 10
    optimiser, others = SGD(model.parameters(), 0.9, 0.02), SGD(other.parameters(), 0.9, 0.02)
    plan = Plan(other, others, 19, shape, "bf16")
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    for step, count in enumerate((19, 1, 18)):
        x, labels = normal((count, *shape), seed=step), (np.arange(count) * 3 + step) % classes
        loss, _ = tape_step(model, optimiser, x, labels, step, rate)
        assert plan.step(x, labels, rate, Rng(5).child("step", step))[0] == pytest.approx(loss, rel=1e-2)
    plan.give()
    for name, first in before.items():
        wanted, got = (one.parameters()[name].data - first for one in (model, other))
        assert _cosine(wanted, got) > 0.98, name


@needs_compiler
@pytest.mark.parametrize("count", [19, 1])
def test_a_planned_residual_network_has_the_gradients_and_statistics_of_the_tape(count: int) -> None:
    """Against float64: steps would part where rounding moves a number across a ReLU's corner."""
    exact, model = (build("resnet_small", {}, Rng(1), (3, 18, 18), 10) for _ in range(2))
    convert(exact, np.float64)
    x, labels = normal((count, 3, 18, 18), seed=count), np.arange(count) % 10
    loss = ops.cross_entropy(exact(Tensor(x.astype(np.float64)), Rng(5)), labels)
    loss.backward()
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    plan = Plan(model, SGD(model.parameters(), 0.0, 0.0), 19, (3, 18, 18))
    assert plan.step(x, labels, 1.0, Rng(5))[0] == pytest.approx(loss.item(), rel=1e-6)
    plan.give()
    for name, tensor in exact.parameters().items():
        assert tensor.grad is not None
        gradient = before[name] - model.parameters()[name].data
        scale = np.abs(tensor.grad).max() + 1e-3 * np.abs(before[name]).max()  # a weight less a weight rounds
        assert np.abs(gradient - tensor.grad).max() <= 1e-5 * scale, name
    for name, tensor in exact.buffers().items():
        assert_near(model.buffers()[name].data, tensor.data, name, 1e-5)
    assert_near(plan.logits(x), model(Tensor(x)).data, "evaluation", 1e-5)


@needs_compiler
def test_a_residual_network_in_bf16_stays_near_the_tape() -> None:
    model, other = (build("resnet_small", {}, Rng(1), (3, 18, 18), 10) for _ in range(2))
    optimiser, others = SGD(model.parameters(), 0.9, 0.02), SGD(other.parameters(), 0.9, 0.02)
    plan = Plan(other, others, 19, (3, 18, 18), "bf16")
    for step, count in enumerate((19, 1, 18)):
        x, labels = normal((count, 3, 18, 18), seed=step), (np.arange(count) * 3 + step) % 10
        loss, _ = tape_step(model, optimiser, x, labels, step)
        assert plan.step(x, labels, RATE, Rng(5).child("step", step))[0] == pytest.approx(loss, rel=1e-2)


def _cosine(left: Array, right: Array) -> float:
    return float((left * right).sum() / np.sqrt((left * left).sum() * (right * right).sum() + 1e-30))


def _trained(case: str, threads: int, precision: str) -> dict[str, Array]:
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        make, shape, classes = CASES[case]
        model = make()
        plan = Plan(model, SGD(model.parameters(), 0.9, 5e-4), 37, shape, precision)
        for step in range(2):
            plan.step(normal((37, *shape), seed=step), np.arange(37) % classes, RATE, Rng(step))
        plan.give()
        return {name: tensor.data for name, tensor in model.parameters().items()}
    finally:
        numba.set_num_threads(before)


@needs_compiler
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one thread")
@pytest.mark.parametrize(
    ("case", "precision"),
    [("a bit of everything", "fp32"), ("a bit of everything", "bf16"), ("locally connected", "fp32")],
)
def test_a_plan_gives_the_same_bits_with_one_thread_and_two(
    case: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = _trained(case, 1, precision)
    monkeypatch.setattr(jit, "WORTH_SHARING", 0)
    together = _trained(case, 2, precision)
    assert all((alone[name] == together[name]).all() for name in alone)


@needs_compiler
@pytest.mark.parametrize("machine", [native.AVX512, native.AVX2, native.PORTABLE], ids=["avx512", "avx2", "portable"])
def test_a_plan_equals_the_tape_with_vectors_of_any_width(
    machine: native.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.lanes > native.this_machine().lanes:
        pytest.skip(f"this processor has no vectors of {machine.lanes} floats")
    monkeypatch.setattr(layout, "this_machine", lambda: machine)
    test_a_plan_equals_the_tape("a bit of everything")
    test_a_plan_equals_the_tape("locally connected")
    test_a_plan_in_bf16_stays_near_the_tape("a bit of everything")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("processor", "lanes"), [("haswell", 8), ("generic", 4)])
def test_a_plan_equals_the_tape_when_numba_is_told_to_be_an_older_processor(processor: str, lanes: int) -> None:
    code = """
from mlcore.kernels.native import this_machine
from tests.mlcore.test_planned import test_a_plan_equals_the_tape
test_a_plan_equals_the_tape("a bit of everything")
print(this_machine().lanes)
"""
    assert int(run_python(code, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")) == lanes


def test_layers_are_fused_into_steps() -> None:
    kinds = [type(step) for step in fused(list(_mixed().layers.items()))]
    assert kinds == [
        Weighted, MaxPooling, Weighted, Weighted, MaxPooling, Weighted, MaxPooling, AvgPooling, Dropping,
        Weighted, Dropping, Weighted,
    ]  # fmt: skip
    relus = [step.relu for step in fused(list(_mixed().layers.items())) if isinstance(step, Weighted)]
    assert relus == [True, True, False, True, True, False]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([("c", Conv2d(1, 4, 3, Rng(1), padding=3)), ("f", Flatten())], "layer 'c': a padding of 3"),
        ([("s", Sequential([("l", Linear(4, 4, Rng(1)))], (4,)))], "layer 's': there is no planned Sequential"),
    ],
)
def test_a_network_that_has_no_plan_says_which_layer_is_in_the_way(layers: list[Any], said: str) -> None:
    with pytest.raises(Unplannable, match=said):
        fused(layers)


@needs_compiler
@pytest.mark.parametrize("how", [{"groups": 2}, {"padding": 1}])
def test_dropout_before_windows_that_want_other_planes_is_left_to_the_tape(how: dict[str, int]) -> None:
    behind = Conv2d(4, 6, 3, Rng(2), **how)
    shape = behind.output_shape((4, 7, 7))
    layers = [
        ("c", Conv2d(1, 4, 3, Rng(1))), ("r", ReLU()), ("d", Dropout(0.5)), ("b", behind), ("f", Flatten()),
        ("l", Linear(math.prod(shape), 3, Rng(3))),
    ]  # fmt: skip
    model = Sequential(layers, (1, 9, 9))
    with pytest.raises(Unplannable, match="layer 'b': its input is laid out for another layer"):
        Plan(model, SGD(model.parameters()), 8, (1, 9, 9))


@needs_compiler
def test_a_nan_in_the_input_reaches_the_loss() -> None:
    model = _mixed()
    plan = Plan(model, SGD(model.parameters()), 3, (3, 37, 35))
    x = normal((3, 3, 37, 35))
    x[1, 1, 10, 10] = np.nan
    loss, logits = plan.step(x, np.arange(3), 0.0, Rng(1))
    assert np.isnan(loss)
    assert np.isnan(logits).any(axis=1).tolist() == [False, True, False]


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_moved_by_gradients_that_were_given_out_have_the_bits_of_a_step(precision: str) -> None:
    plans = []
    for _ in range(2):
        model = _mixed()
        plans.append(Plan(model, SGD(model.parameters(), 0.9, 0.02), 19, (3, 37, 35), precision))
    stepping, other = plans
    for step, count in enumerate((19, 3)):
        x, labels, rng = normal((count, 3, 37, 35), seed=step), np.arange(count) % 7, Rng(5).child("step", step)
        stepping.step(x, labels, RATE, rng)
        other.forward(x, labels, rng)
        other.move(RATE, list(other.backward_by_layer()))
    for plan in plans:
        plan.give()
    for name, tensor in stepping.model.parameters().items():
        assert (other.model.parameters()[name].data == tensor.data).all(), name
    assert (other.logits(x) == stepping.logits(x)).all()


@needs_compiler
@pytest.mark.parametrize("where", ["tape", "plan"])
def test_the_gradient_of_a_batch_is_the_sum_of_its_parts_masks_of_dropout_included(where: str) -> None:
    whole, parts = ([_gradients(where, part) for part in cut] for cut in ([(0, 9)], [(0, 4), (4, 9)]))
    for got, want in zip(np.add(*parts), whole[0], strict=True):
        assert_near(np.asarray(got), np.asarray(want), where, 1e-5)


def _gradients(where: str, part: tuple[int, int]) -> Array:
    """The gradient of the first linear layer for a part of a batch of nine, weighted by its size."""
    model = build("mlp", {"dropout": 0.4, "hidden": [12]}, Rng(1), (1, 5, 5))
    x, labels, mine = normal((9, 1, 5, 5)), np.arange(9), slice(*part)
    rng, share = Rng(5).child("step", 0).behind(part[0]), (part[1] - part[0]) / 9
    if where == "plan":
        plan = Plan(model, SGD(model.parameters()), 9, (1, 5, 5))
        plan.forward(x[mine], labels[mine], rng, share)
        return np.stack([gradients[-1] for gradients in plan.backward_by_layer() if gradients][-1:])
    loss = ops.cross_entropy(model(Tensor(x[mine]), rng), labels[mine])
    loss.backward(np.array(share))
    return np.stack([tensor.grad for name, tensor in model.parameters().items() if name.endswith("bias")][:1])
