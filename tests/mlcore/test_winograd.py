"""Winograd's way gives what the direct way gives, from matrices that are exactly right."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.kernels import jit, native, reference
from mlcore.kernels.cook_toom import algorithm
from mlcore.kernels.precision import BF16, FP32, Precision, narrowed, widened
from mlcore.layers import Conv2d
from mlcore.models import build
from mlcore.optim import SGD
from mlcore.planned import layout
from mlcore.planned.layout import plane
from mlcore.planned.plan import Plan
from mlcore.planned.winograd_stage import DIRECT, POINTS, Choice, Space, WinogradConvStage, chosen
from mlcore.rng import Rng
from tests.mlcore.helpers import Array, assert_near, needs_compiler, normal, odd_shapes
from tests.mlcore.test_planned_kernels import _filled, _plant, _read

WAYS = {2: Choice(5, 5, 5), 3: Choice(4, 4, 5), 4: Choice(3, 4, 3), 5: Choice(3, 3, 2)}
IN_BF16 = {2: Choice(3, 3, 3, BF16), 3: Choice(2, 2, 2, BF16), 4: Choice(3, 4, 3), 5: Choice(4, 4, 4)}
ALEXNET = {"conv2": (96, 256, 5, 2, 27), "conv3": (256, 384, 3, 1, 13), "conv4": (384, 384, 3, 2, 13)}


@pytest.mark.parametrize(("outputs", "taps"), [(4, 3), (5, 3), (3, 5), (2, 5), (6, 2)])
def test_the_matrices_make_a_filter_exactly(outputs: int, taps: int) -> None:
    """sum over p of A^T[i, p] G[p, j] B^T[p, k] is 1 where k = i + j, else 0: in whole numbers and fractions."""
    side = outputs + taps - 1
    way = algorithm(outputs, POINTS[side], taps)
    for i, j, k in np.ndindex(outputs, taps, side):
        total = sum(way.outputs[i][p] * way.taps[p][j] * way.inputs[p][k] for p in range(side))
        assert total == Fraction(k == i + j), (i, j, k)


@st.composite
def convolutions(draw: Callable[..., Any]) -> tuple[tuple[int, ...], dict[str, int], int]:
    """(shape of x, how, outputs), of stride 1."""
    groups, kernel = draw(st.integers(1, 3)), draw(st.sampled_from(sorted(WAYS)))
    padding = draw(st.integers(0, kernel - 1))
    sides = st.integers(max(1, kernel - 2 * padding), 14)
    shape = draw(st.integers(1, 18)), groups * draw(st.integers(1, 36)), draw(sides), draw(sides)
    how = {"kernel": kernel, "padding": padding, "groups": groups}
    return shape, how, groups * draw(st.integers(1, 36))


@needs_compiler
@odd_shapes
@given(convolutions(), st.booleans())
def test_winograds_convolution_equals_its_slow_twin(
    case: tuple[tuple[int, ...], dict[str, int], int], relu: bool
) -> None:
    _meets_its_twin(*case, relu)


@needs_compiler
@odd_shapes
@given(convolutions(), st.booleans())
def test_in_bf16_it_is_within_a_hundredth_of_its_slow_twin(
    case: tuple[tuple[int, ...], dict[str, int], int], relu: bool
) -> None:
    _meets_its_twin(*case, relu, BF16)


@needs_compiler
@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("machine", [native.AVX2, native.PORTABLE], ids=["avx2", "portable"])
def test_winograds_convolution_equals_its_slow_twin_with_shorter_vectors(
    machine: native.Machine, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.lanes > native.this_machine().lanes:
        pytest.skip(f"this processor has no vectors of {machine.lanes} floats")
    monkeypatch.setattr(layout, "this_machine", lambda: machine)
    _meets_its_twin((3, 2 * 21, 9, 11), {"kernel": 3, "padding": 1, "groups": 2}, 2 * 19, True, precision)


def _meets_its_twin(
    shape: tuple[int, ...], how: dict[str, int], outputs: int, relu: bool, precision: Precision = FP32
) -> None:
    """Forward, back to the input, and to the weights; in planes that have room for more images."""
    layer, stage = _stage(shape, how, outputs, relu, precision)
    x, (n, channels) = _read(stage.x)[: shape[0]], shape[:2]
    tolerance = {"fp32": 1e-5, "bf16": 1e-2}[precision.name]
    settings = (1, how["padding"], how["groups"])
    want = reference.conv2d_forward(x, layer.weight.data, layer.bias.data, *settings)
    want = reference.relu_forward(want) if relu else want
    stage.forward(n, None)
    assert_near(_read(stage.out)[:n], want, "output", tolerance)
    assert not stage.out.array[:, :, 0].any()
    assert not stage.out.array[:, n:].any()

    grad = widened(narrowed(normal(want.shape, seed=1))) if precision is BF16 else normal(want.shape, seed=1)
    _plant(stage.out_grad, np.concatenate([grad, np.full_like(grad[:1], np.nan)]))
    stage.backward(n)
    slope = reference.relu_backward(grad, _read(stage.out)[:n]) if relu else grad
    assert stage.x_grad is not None
    grad_x = reference.conv2d_grad_input(slope, layer.weight.data, shape, *settings)
    assert_near(_read(stage.x_grad)[:n], grad_x, "x", tolerance)
    grad_weight, _ = reference.conv2d_grad_weight(slope, x, layer.weight.data.shape, *settings)
    made = layout.conv_from_plan(stage.slope, channels // how["groups"])
    assert_near(made, grad_weight, "gradient of the weights", tolerance)


def _stage(
    shape: tuple[int, ...], how: dict[str, int], outputs: int, relu: bool = True, precision: Precision = FP32
) -> tuple[Conv2d, WinogradConvStage]:
    """A layer, and a stage with its weights for one image more than it gets."""
    n, channels, h, w = shape
    layer = Conv2d(channels, outputs, rng=Rng(1), **how)
    layer.bias.data[:] = normal((outputs,))
    source = _filled(np.concatenate([normal(shape), normal((1, *shape[1:]))]), how["groups"], how["padding"], precision)
    grown = 2 * how["padding"] + 1 - how["kernel"]
    out = plane(n + 1, outputs, h + grown, w + grown, border=1, precision=precision)
    back = plane(n + 1, channels, h, w, precision=precision)
    ways = WAYS if precision is FP32 else IN_BF16
    stage = WinogradConvStage("c", layer, relu, source, back, out, ways[how["kernel"]], Space())
    nothing = {"weight": np.zeros_like(layer.weight.data), "bias": np.zeros_like(layer.bias.data)}
    stage.take({"weight": layer.weight.data, "bias": layer.bias.data}, nothing)
    return layer, stage


@needs_compiler
@pytest.mark.parametrize("name", ALEXNET)
def test_alexnets_convolutions_are_right_to_five_digits(name: str) -> None:
    """Against float64, whose own error doesn't count, with inputs as a ReLU leaves them."""
    channels, outputs, kernel, groups, side = ALEXNET[name]
    how = {"kernel": kernel, "padding": kernel // 2, "groups": groups}
    layer, stage = _stage((1, channels, side, side), how, outputs, relu=False)
    np.maximum(stage.x.array, 0, out=stage.x.array)
    stage.forward(1, None)
    grad = normal((1, outputs, side, side), seed=1)
    _plant(stage.out_grad, np.concatenate([grad, grad]))
    stage.backward(1)
    x, weight, bias, slope = (
        a.astype(np.float64) for a in (_read(stage.x)[:1], layer.weight.data, layer.bias.data, grad)
    )
    settings = (1, kernel // 2, groups)
    assert stage.x_grad is not None
    _within(_read(stage.out)[:1], reference.conv2d_forward(x, weight, bias, *settings))
    _within(_read(stage.x_grad)[:1], reference.conv2d_grad_input(slope, weight, x.shape, *settings))
    want, _ = reference.conv2d_grad_weight(slope, x, weight.shape, *settings)
    _within(layout.conv_from_plan(stage.slope, channels // groups), want)


def _within(got: Array, want: Array) -> None:
    """Within 1e-5 of the largest value."""
    assert float(np.abs(got - want).max() / np.abs(want).max()) <= 1e-5


@needs_compiler
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one thread")
def test_winograds_convolution_gives_the_same_bits_with_one_thread_and_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "WORTH_SHARING", 0)
    alone, together = _bits(1), _bits(2)
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def _bits(threads: int) -> list[Array]:
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        _, stage = _stage((37, 34, 13, 11), {"kernel": 3, "padding": 1, "groups": 2}, 38)
        stage.forward(37, None)
        _plant(stage.out_grad, normal((38, 38, 13, 11), seed=1))
        stage.backward(37)
        assert stage.x_grad is not None
        return [stage.out.array, stage.x_grad.array, stage.slope]
    finally:
        numba.set_num_threads(before)


@needs_compiler
def test_a_nan_stays_in_its_image() -> None:
    _, stage = _stage((3, 33, 8, 8), {"kernel": 3, "padding": 1, "groups": 1}, 40)
    stage.x.array[0, 1, 4, 4, 7] = np.nan
    stage.forward(3, None)
    assert np.isnan(_read(stage.out)).any(axis=(1, 2, 3)).tolist() == [False, True, False, False]


def test_winograds_way_is_chosen_where_it_pays() -> None:
    for channels, outputs, kernel, groups, side in ALEXNET.values():
        layer = Conv2d(channels, outputs, kernel, Rng(1), padding=kernel // 2, groups=groups)
        assert chosen(layer, side, side) == {3: Choice(4, 4, 5), 5: Choice(4, 4, 4)}[kernel]
        assert chosen(layer, side, side, BF16) == {3: Choice(2, 2, 2, BF16), 5: Choice(4, 4, 4)}[kernel]
    for layer in (
        Conv2d(3, 96, 3, Rng(1)),  # few channels
        Conv2d(64, 64, 3, Rng(1), stride=2),
        Conv2d(64, 64, 1, Rng(1)),
        Conv2d(64, 64, 11, Rng(1)),
    ):
        assert chosen(layer, 13, 13) == chosen(layer, 13, 13, BF16) == DIRECT
    assert chosen(Conv2d(64, 64, 5, Rng(1), padding=2), 1, 1) == DIRECT  # one tile for one pixel
    few = Conv2d(64, 64, 5, Rng(1), padding=2)  # in floats it saves 2.4 times, less than pairs do
    assert chosen(few, 5, 5) != DIRECT == chosen(few, 5, 5, BF16)


@needs_compiler
def test_a_plan_can_go_the_direct_way_only() -> None:
    def stages(**how: Any) -> list[bool]:
        model = build("cuda_convnet", {}, Rng(1), (3, 17, 16))
        plan = Plan(model, SGD(model.parameters()), 2, (3, 17, 16), **how)
        return [isinstance(stage, WinogradConvStage) for stage in plan.stages]

    for precision in "fp32", "bf16":
        assert any(stages(precision=precision))
        assert not any(stages(precision=precision, winograd=False))
