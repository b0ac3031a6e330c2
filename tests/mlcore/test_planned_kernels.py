"""The kernels of a plan meet their slow twins, on shapes that no tile divides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from mlcore.kernels import elementwise, micro, panels, plane_pool, planes, reference
from mlcore.kernels.planes import Grid
from mlcore.kernels.precision import BF16, FP32, Precision, narrowed, widened
from mlcore.kernels.response import NO_RESPONSE, Response
from mlcore.layers import Conv2d, Linear, LocallyConnected2d
from mlcore.planned import layout
from mlcore.planned.layout import Planes, plane
from mlcore.planned.local_stage import LocalStage
from mlcore.planned.stages import ConvStage, LinearStage
from mlcore.rng import Rng
from tests.mlcore.helpers import Array, needs_compiler, normal, odd_shapes

pytestmark = needs_compiler


Pooling = tuple[tuple[int, ...], tuple[int, int, int], int]  # shape of the input; size, stride, padding; groups
precisions = st.sampled_from([FP32, BF16])


def _kept(values: Array, precision: Precision) -> Array:
    """float32 values as the precision keeps them: what the slow twin gets to see."""
    return widened(narrowed(values)) if precision is BF16 else values


def _near(got: Array, want: Array, precision: Precision, what: str) -> None:
    """fp32 to 1e-5 of the largest value, bf16 to 1e-2."""
    scale = max(1.0, float(np.abs(want).max()))
    assert got.shape == want.shape, what
    error = float(np.abs(got - want).max()) / scale
    assert error <= (1e-2 if precision is BF16 else 1e-5), f"{what}: relative error {error:.1e}"


def _filled(x_NCHW: Array, groups: int = 1, border: int = 0, precision: Precision = FP32) -> Planes:
    n, c, h, w = x_NCHW.shape
    there = plane(n, c, h, w, groups, border, precision)
    planes.load_images(x_NCHW, there.array, there.grid)
    return there


def _read(there: Planes) -> Array:
    """[N, C, H, W] of planes."""
    grid = there.grid
    rows = slice(grid.border, grid.border + grid.step * grid.height, grid.step)
    columns = slice(grid.border, grid.border + grid.step * grid.width, grid.step)
    parts = [part[:, rows, columns].transpose(0, 3, 1, 2) for part in there.array]
    return widened(np.concatenate(parts, axis=1))


def _plant(there: Planes, grad_NCHW: Array) -> None:
    """Put a gradient where the stage behind would leave it."""
    grid, groups = there.grid, there.groups
    kept = narrowed(grad_NCHW) if there.precision is BF16 else grad_NCHW
    for y, z in np.ndindex(grad_NCHW.shape[2:]):
        for g, part in enumerate(np.split(kept[:, :, y, z], groups, axis=1)):
            there.array[g, :, grid.border + y * grid.step, grid.border + z * grid.step] = part


@st.composite
def convolutions(draw: Callable[..., Any]) -> tuple[tuple[int, ...], dict[str, int], int]:
    groups, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    padding = draw(st.integers(0, kernel - 1))
    sides = st.integers(max(1, kernel - 2 * padding), 12)
    x = draw(st.integers(1, 18)), groups * draw(st.integers(1, 20)), draw(sides), draw(sides)
    how = {"kernel": kernel, "stride": draw(st.integers(1, 3)), "padding": padding, "groups": groups}
    readers = draw(st.integers(1, 2))
    return x, how, groups * readers * draw(st.integers(1, 20))


@odd_shapes
@given(convolutions(), st.booleans(), st.integers(1, 2), precisions)
@example(((2, 3, 41, 41), {"kernel": 3, "stride": 2, "padding": 1, "groups": 1}, 20), True, 1, FP32)
@example(((3, 4, 9, 8), {"kernel": 5, "stride": 2, "padding": 2, "groups": 2}, 96), True, 1, FP32)  # whole vectors
def test_a_planned_convolution_equals_its_slow_twin(
    case: tuple[tuple[int, ...], dict[str, int], int], relu: bool, readers: int, precision: Precision
) -> None:
    """Forward, back to the input, weights and bias; the output in other groups than the convolution's."""
    shape, how, outputs = case
    readers = readers if outputs % readers == 0 else 1
    x, (n, channels, h, w) = _kept(normal(shape), precision), shape
    layer = Conv2d(channels, outputs, rng=Rng(1), **how)
    layer.weight.data[:], layer.bias.data[:] = _kept(layer.weight.data, precision), normal((outputs,))
    settings = (how["stride"], how["padding"], how["groups"])
    want = reference.conv2d_forward(x, layer.weight.data, layer.bias.data, *settings)
    want = reference.relu_forward(want) if relu else want
    out = plane(n, outputs, *want.shape[2:], readers, 1, precision)
    source = _filled(x, how["groups"], how["padding"], precision)
    back = plane(n, channels, h, w, precision=precision)
    stage = ConvStage("c", layer, relu, source, back, out)
    nothing = {"weight": np.zeros_like(layer.weight.data), "bias": np.zeros_like(layer.bias.data)}
    stage.take({"weight": layer.weight.data, "bias": layer.bias.data}, nothing)
    stage.forward(n, None)
    _near(_read(out), want, precision, "output")
    border = out.array.copy()
    border[:, :, 1:-1, 1:-1] = 0
    assert not border.any(), "something was written beyond the output"

    grad = _kept(normal(want.shape, seed=1), precision)
    _plant(stage.out_grad, grad)
    stage.backward(n)
    slope = reference.relu_backward(grad, _read(out)) if relu else grad
    grad_x = reference.conv2d_grad_input(slope, layer.weight.data, x.shape, *settings)
    grad_weight, grad_bias = reference.conv2d_grad_weight(slope, x, layer.weight.data.shape, *settings)
    _near(_read(back), grad_x, precision, "gradient of the input")
    got = layout.conv_from_plan(stage.slope, channels // how["groups"])
    _near(got, grad_weight, FP32, "gradient of the weights")
    _near(stage.bias.sums.sum(axis=0), grad_bias, FP32, "gradient of the bias")


@st.composite
def local_layers(draw: Callable[..., Any]) -> tuple[tuple[int, ...], LocallyConnected2d]:
    kernel = draw(st.integers(1, 4))
    padding = draw(st.integers(0, kernel - 1))
    sides = st.integers(max(1, kernel - 2 * padding), 7)
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 40)), draw(sides), draw(sides)
    return shape, LocallyConnected2d(shape[1:], draw(st.integers(1, 40)), kernel, Rng(1), padding=padding)


@odd_shapes
@given(local_layers(), st.booleans(), st.integers(1, 2))
def test_a_planned_locally_connected_layer_equals_its_slow_twin(
    case: tuple[tuple[int, ...], LocallyConnected2d], relu: bool, step: int
) -> None:
    """Forward, back to the input (whose pixels may lie two apart), weights and biases; and the weights come back."""
    shape, layer = case
    x, (n, channels, h, w) = normal(shape), shape
    padding = layer.padding
    weights = {"weight": layer.weight.data, "bias": normal(layer.bias.shape)}
    velocities = {part: 2 * values for part, values in weights.items()}
    want = reference.local2d_forward(x, weights["weight"], weights["bias"], 1, padding)
    want = reference.relu_forward(want) if relu else want
    out = plane(n, layer.outputs, *want.shape[2:], border=1)
    back = plane(n, channels, step * h, step * w, border=1)
    back = Planes(back.array, Grid(1, step, h, w))
    stage = LocalStage("l", layer, relu, _filled(x, border=padding), back, out, layout.Pool())
    stage.take(weights, velocities)
    stage.forward(n, None)
    _near(_read(out), want, FP32, "output")
    border = out.array.copy()
    border[:, :, 1:-1, 1:-1] = 0
    assert not border.any(), "something was written beyond the output"

    grad = normal(want.shape, seed=1)
    _plant(stage.out_grad, grad)
    stage.backward(n)
    slope = reference.relu_backward(grad, _read(out)) if relu else grad
    _near(_read(back), reference.local2d_grad_input(slope, weights["weight"], x.shape, 1, padding), FP32, "input")
    assert np.count_nonzero(back.array) <= x.size, "something was written between the pixels of the input"
    wanted = reference.local2d_grad_weight(slope, x, weights["weight"].shape, 1, padding)
    stage.move({"weight": panels.Move(1, 0, 0), "bias": panels.Move(1, 0, 0)})
    moved, speeds = stage.give()
    for part, gradient in zip(("weight", "bias"), wanted, strict=True):
        _near(speeds[part], gradient, FP32, f"gradient of the {part}")
        _near(moved[part], weights[part] - gradient, FP32, f"moved {part}")


@odd_shapes
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 130), st.booleans(), precisions)
@example(3, 1030, 800, False, FP32)  # more inputs and blocks of outputs than go through the cache at once
def test_a_planned_linear_layer_equals_its_slow_twin(
    n: int, inputs: int, outputs: int, last: bool, precision: Precision
) -> None:
    """Forward, back to the input, and a step of the weights; a smaller batch than the plan's too."""
    layer = Linear(inputs, outputs, Rng(1))
    layer.weight.data[:], layer.bias.data[:] = _kept(layer.weight.data, precision), normal((outputs,))
    room = n + 3
    x, back = plane(room, inputs, 1, 1, precision=precision), plane(room, inputs, 1, 1, precision=precision)
    stage = LinearStage("l", layer, True, x, back, last)
    velocity = {"weight": normal((outputs, inputs), seed=4), "bias": normal((outputs,), seed=5)}
    stage.take({"weight": layer.weight.data, "bias": layer.bias.data}, velocity)
    for count in (room, n):
        values = _kept(normal((count, inputs), seed=count), precision)
        panels.copy_rows(values, x.rows(count))
        stage.forward(count, None)
        kept = FP32 if last else precision
        want = reference.relu_forward(reference.linear_forward(values, *_now(stage, precision)))
        _near(widened(stage.out.rows(count)), want, kept, "output")

        grad = _kept(normal((count, outputs), seed=3), kept)
        panels.copy_rows(grad, stage.out_grad.rows(count))
        stage.backward(count)
        slope = _kept(reference.relu_backward(grad, widened(stage.out.rows(count))), precision)
        want_back = reference.linear_grad_input(slope, _now(stage, precision)[0])
        _near(widened(back.rows(count)), want_back, precision, "gradient of the input")

        (weights, moving) = stage.give()
        grad_weight, grad_bias = reference.linear_grad_weight(slope, values)
        reference.sgd_update(weights["weight"], grad_weight, moving["weight"], 0.1, 0.9, 0.01, False)
        reference.sgd_update(weights["bias"], grad_bias, moving["bias"], 0.1, 0.9, 0.01, False)
        stage.update(count, dict.fromkeys(("weight", "bias"), panels.Move(0.1, 0.9, 0.01)))
        moved, speed = stage.give()
        for part, allowed in (("weight", FP32), ("bias", precision if last else FP32)):
            _near(moved[part], weights[part], allowed, f"{part} after a step")
            _near(speed[part], moving[part], allowed, f"velocity of {part}")


def _now(stage: LinearStage, precision: Precision) -> tuple[Array, Array]:
    """The stage's weights as it multiplies by them, and its bias."""
    weights, _ = stage.give()
    return _kept(weights["weight"], precision), weights["bias"]


@st.composite
def poolings(draw: Callable[..., Any], whole: bool = False) -> Pooling:
    """whole: of whole vectors of channels in one group, which go another way."""
    size, groups = draw(st.integers(1, 4)), 1 if whole else draw(st.integers(1, 2))
    sides = st.integers(size, 11)
    channels = draw(st.sampled_from((16, 32, 48)) if whole else st.integers(1, 20))
    shape = draw(st.integers(1, 3)), groups * channels, draw(sides), draw(sides)
    return shape, (size, draw(st.integers(1, 4)), draw(st.integers(0, size // 2))), groups


RESPONSES = (NO_RESPONSE, Response(3, 1.0, 0.2, 0.6), Response(5, 2.0, 0.1, 0.75), Response(9, 1.0, 0.05, 0.75))


@odd_shapes
@given(poolings(), st.sampled_from(RESPONSES), st.booleans(), precisions)
def test_planned_max_pooling_with_normalisation_equals_its_slow_twins(
    case: Pooling, response: Response, ties: bool, precision: Precision
) -> None:
    _compare_max_pooling(case, response, ties, precision)


@odd_shapes
@given(poolings(whole=True), st.booleans())
def test_planned_max_pooling_of_whole_vectors_equals_its_slow_twin(case: Pooling, ties: bool) -> None:
    _compare_max_pooling(case, NO_RESPONSE, ties, FP32)


def _compare_max_pooling(case: Pooling, response: Response, ties: bool, precision: Precision) -> None:
    shape, how, groups = case
    x = normal(shape)
    x = np.round(x) if ties else _kept(x, precision)
    normed, s = x, np.ones_like(x)
    if response.size:
        normed, s = reference.local_response_forward(x, response.size, response.k, response.alpha, response.beta)
    want, winner = reference.max_pool2d_forward(normed, *how)
    n, channels, p, q = want.shape
    source, out = _filled(x, precision=precision), plane(n, channels, p, q, groups, 2, precision)
    won = np.zeros((n, p, q, channels), np.uint8)
    plane_pool.max_pool_forward(source.array, response, *how, out.array, out.grid, won, n)
    _near(_read(out), want, precision, "output")
    assert not out.array[:, :, :2].any()

    grad, back = _kept(normal(want.shape, seed=1), precision), plane(n, channels, *shape[2:], groups, 1, precision)
    back.array[:] = 7  # from a step before
    slope = _filled(grad, precision=precision).array
    plane_pool.max_pool_backward(slope, won, source.array, response, *how, back.array, back.grid, n)
    chosen = _places(won, *how, x.shape[3])
    if not response.size or (precision is FP32 and not ties):
        assert (chosen == winner).all()  # else normalised in another order, equal numbers may differ in the last bit
    grad_normed = reference.max_pool2d_backward(grad, chosen, x.shape)
    if response.size:
        grad_normed = reference.local_response_backward(grad_normed, x, s, response.size, response.alpha, response.beta)
    _near(_read(back), grad_normed, precision, "gradient")


def _places(won_NPQC: Array, size: int, stride: int, padding: int, width: int) -> Array:
    """Winners as the tape keeps them, h * W + w [N, C, P, Q], from winners as places in their windows."""
    i, j = np.divmod(won_NPQC.transpose(0, 3, 1, 2).astype(np.int32), size)
    p, q = np.ogrid[: i.shape[2], : i.shape[3]]
    places: Array = (p * stride - padding + i) * width + q * stride - padding + j
    return places


@odd_shapes
@given(poolings(), precisions)
def test_planned_average_pooling_equals_its_slow_twin(case: Pooling, precision: Precision) -> None:
    _compare_average_pooling(case, precision)


@odd_shapes
@given(poolings(whole=True))
def test_planned_average_pooling_of_whole_vectors_equals_its_slow_twin(case: Pooling) -> None:
    _compare_average_pooling(case, FP32)


def _compare_average_pooling(case: Pooling, precision: Precision) -> None:
    shape, how, groups = case
    x = _kept(normal(shape), precision)
    want = reference.avg_pool2d_forward(x, *how)
    n, channels, p, q = want.shape
    out = plane(n, channels, p, q, groups, 1, precision)
    back = plane(n, channels, *shape[2:], groups, 1, precision)
    back.array[:] = 7  # from a step before
    plane_pool.avg_pool_forward(_filled(x, precision=precision).array, *how, out.array, out.grid, n)
    _near(_read(out), want, precision, "output")
    grad = _kept(normal(want.shape, seed=1), precision)
    plane_pool.avg_pool_backward(_filled(grad, precision=precision).array, *how, back.array, back.grid, n)
    _near(_read(back), reference.avg_pool2d_backward(grad, x.shape, *how), precision, "gradient")


@odd_shapes
@given(st.integers(1, 70), st.integers(1, 90), st.sampled_from([16, 24, 32]), st.booleans(), st.booleans())
def test_weights_are_packed_in_the_order_of_the_inputs_and_padding_stays(
    outputs: int, inputs: int, columns: int, is_blank: bool, fills_blank: bool
) -> None:
    weight = np.zeros((outputs, inputs), np.float32) if is_blank else normal((outputs, inputs))
    order = Rng(inputs).generator().permutation(inputs)
    blocks = -(-outputs // columns)
    out = np.full((blocks, inputs + 3, columns), 0 if fills_blank else 9, np.float32)
    want = out.copy()
    for o in range(outputs):
        want[o // columns, :inputs, o % columns] = weight[o, order]
    panels.pack_weights(weight, order, out)
    assert np.array_equal(out, want)


@given(st.integers(1, 2000), st.integers(1, 400))
def test_tiles_cover_a_length_without_rest_as_evenly_as_can_be(length: int, most: int) -> None:
    rows, times, last_rows, last_times = micro.cover(length, most)
    assert rows * times + last_rows * last_times == length
    assert rows <= most
    assert times + last_times == -(-length // most)
    assert last_times == 0 or rows - last_rows == 1


def test_dropout_drops_its_share_the_same_in_any_order() -> None:
    x = np.ones((50, 999), np.float32)
    order = Rng(1).generator().permutation(999)
    plain, mixed = np.empty_like(x), np.empty_like(x)
    elementwise.dropout(x, plain, np.arange(999), 0.3, 12345)
    elementwise.dropout(x, mixed, order, 0.3, 12345)
    assert (mixed == plain[:, order]).all()
    assert abs((plain == 0).mean() - 0.3) < 0.01
    assert set(np.unique(plain).tolist()) == {0.0, float(np.float32(1 / 0.7))}
    kept = plain != 0
    for shift in (1, 2, 999):  # neighbours are as independent as they should be
        both = (kept.reshape(-1)[shift:] & kept.reshape(-1)[:-shift]).mean()
        assert abs(both - 0.49) < 0.01


@odd_shapes
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_bf16_rounds_to_the_nearest_and_keeps_nan(values: list[float]) -> None:
    x = np.array(values, np.float32)
    kept = widened(narrowed(x))
    assert (np.isnan(kept) == np.isnan(x)).all()
    finite = np.isfinite(x) & np.isfinite(kept)
    assert (np.abs(kept[finite] - x[finite]) <= np.abs(x[finite]) * 2.0**-8 + 2.0**-134).all()
    compiled = np.zeros((1, x.size), np.uint16)
    panels.copy_rows(x[None], compiled)
    assert (compiled[0] == narrowed(x)).all()
