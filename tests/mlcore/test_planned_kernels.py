"""The kernels of a plan meet their slow twins, on shapes that no tile divides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlcore.kernels import elementwise, micro, panels, plane_pool, planes, reference
from mlcore.kernels.response import NO_RESPONSE, Response
from mlcore.layers import Conv2d
from mlcore.planned import layout
from mlcore.planned.layout import Planes, plane
from mlcore.planned.stages import ConvStage
from mlcore.rng import Rng
from tests.mlcore.helpers import Array, assert_close, needs_compiler, normal, odd_shapes

pytestmark = needs_compiler


def _filled(x_NCHW: Array, groups: int = 1, border: int = 0) -> Planes:
    n, c, h, w = x_NCHW.shape
    there = plane(n, c, h, w, groups, border)
    planes.load_images(x_NCHW, there.array, there.grid)
    return there


def _read(there: Planes) -> Array:
    """[N, C, H, W] of planes."""
    grid = there.grid
    rows = slice(grid.border, grid.border + grid.step * grid.height, grid.step)
    columns = slice(grid.border, grid.border + grid.step * grid.width, grid.step)
    return np.concatenate([part[:, rows, columns].transpose(0, 3, 1, 2) for part in there.array], axis=1)


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
@given(convolutions(), st.booleans(), st.integers(1, 2))
def test_a_planned_convolution_equals_its_slow_twin(
    case: tuple[tuple[int, ...], dict[str, int], int], relu: bool, readers: int
) -> None:
    """Forward, back to the input, weights and bias; the output in other groups than the convolution's."""
    shape, how, outputs = case
    readers = readers if outputs % readers == 0 else 1
    x, (n, channels, h, w) = normal(shape), shape
    layer = Conv2d(channels, outputs, rng=Rng(1), **how)
    layer.bias.data[:] = normal((outputs,))
    settings = (how["stride"], how["padding"], how["groups"])
    want = reference.conv2d_forward(x, layer.weight.data, layer.bias.data, *settings)
    want = reference.relu_forward(want) if relu else want
    out = plane(n, outputs, *want.shape[2:], readers, border=1)
    source, back = _filled(x, how["groups"], how["padding"]), plane(n, channels, h, w)
    stage = ConvStage("c", layer, relu, source, back, out)
    nothing = {"weight": np.zeros_like(layer.weight.data), "bias": np.zeros_like(layer.bias.data)}
    stage.take({"weight": layer.weight.data, "bias": layer.bias.data}, nothing)
    stage.forward(n, None)
    assert_close(_read(out), want, "output")
    assert not out.array[:, :, 0].any()

    grad = normal(want.shape, seed=1)
    planted = stage.out_grad
    for y, z in np.ndindex(want.shape[2:]):
        at = planted.grid.border + y * planted.grid.step, planted.grid.border + z * planted.grid.step
        for g, part in enumerate(np.split(grad[:, :, y, z], how["groups"], axis=1)):
            planted.array[g, :, at[0], at[1]] = part
    stage.backward(n)
    slope = reference.relu_backward(grad, want) if relu else grad
    grad_x = reference.conv2d_grad_input(slope, layer.weight.data, x.shape, *settings)
    grad_weight, grad_bias = reference.conv2d_grad_weight(slope, x, layer.weight.data.shape, *settings)
    assert_close(_read(back), grad_x, "gradient of the input")
    got = layout.conv_from_plan(stage.sums.sum(axis=0), channels // how["groups"])
    assert_close(got, grad_weight, "gradient of the weights")
    assert_close(stage.bias.sums.sum(axis=0), grad_bias, "gradient of the bias")


@odd_shapes
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 130))
def test_a_planned_linear_layer_equals_its_slow_twin(n: int, inputs: int, outputs: int) -> None:
    x, weight, bias = normal((n, inputs)), normal((outputs, inputs), seed=1), normal((outputs,), seed=2)
    vectors = layout.panel_vectors(outputs)
    columns = layout.panel_columns(vectors)
    panel = _panels(weight, columns)
    start, out = np.zeros(panel.shape[0] * columns, np.float32), np.empty((n, outputs), np.float32)
    start[:outputs] = bias
    panels.forward(x, panel, start, layout.tiles(n, vectors), -math.inf, out)
    assert_close(out, reference.linear_forward(x, weight, bias), "output")

    grad, nothing = normal((n, outputs), seed=3), np.zeros(columns, np.float32)
    by_output = np.full((panel.shape[0], n, columns), np.nan, np.float32)
    by_image = np.zeros((-(-n // columns), panel.shape[0] * columns, columns), np.float32)
    panels.pack_gradient(grad, by_output, by_image)
    back, tiles = np.full((inputs, n), np.nan, np.float32), layout.tiles(inputs, vectors)
    panels.to_input(panel, by_image, tiles, nothing, back)
    assert_close(back.T, reference.linear_grad_input(grad, weight), "gradient of the input")

    turned, velocity = np.empty((inputs, n), np.float32), normal((outputs, inputs), seed=4)
    moving = _panels(velocity, columns)
    panels.transpose(x, turned)
    panels.update(turned, by_output, tiles, nothing, panel, moving, panels.Move(0.1, 0.9, 0.01))
    reference.sgd_update(weight, reference.linear_grad_weight(grad, x)[0], velocity, 0.1, 0.9, 0.01, False)
    assert_close(layout.linear_from_plan(panel, np.arange(inputs), outputs), weight, "weights after a step")
    assert_close(layout.linear_from_plan(moving, np.arange(inputs), outputs), velocity, "velocities")


def _panels(weight: Array, columns: int) -> Array:
    panels_BIV = np.full((-(-weight.shape[0] // columns), weight.shape[1], columns), np.nan, np.float32)
    layout.linear_to_plan(weight, np.arange(weight.shape[1]), panels_BIV)
    return panels_BIV


@st.composite
def poolings(draw: Callable[..., Any]) -> tuple[tuple[int, ...], tuple[int, int, int], int]:
    size, groups = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    sides = st.integers(size, 11)
    shape = draw(st.integers(1, 3)), groups * draw(st.integers(1, 20)), draw(sides), draw(sides)
    return shape, (size, draw(st.integers(1, 4)), draw(st.integers(0, size // 2))), groups


RESPONSES = (NO_RESPONSE, Response(3, 1.0, 0.2, 0.6), Response(5, 2.0, 0.1, 0.75), Response(9, 1.0, 0.05, 0.75))


@odd_shapes
@given(poolings(), st.sampled_from(RESPONSES), st.booleans())
def test_planned_max_pooling_with_normalisation_equals_its_slow_twins(
    case: tuple[tuple[int, ...], tuple[int, int, int], int], response: Response, ties: bool
) -> None:
    shape, how, groups = case
    x = normal(shape)
    x = np.round(x) if ties else x
    normed, s = x, np.ones_like(x)
    if response.size:
        normed, s = reference.local_response_forward(x, response.size, response.k, response.alpha, response.beta)
    want, winner = reference.max_pool2d_forward(normed, *how)
    n, channels, p, q = want.shape
    source, out = _filled(x), plane(n, channels, p, q, groups, border=2)
    won = np.zeros((n, p, q, channels), np.uint8)
    plane_pool.max_pool_forward(source.array, response, *how, out.array, out.grid, won, n)
    assert_close(_read(out), want, "output")
    assert not out.array[:, :, :2].any()

    grad, back = normal(want.shape, seed=1), plane(n, channels, *shape[2:], groups)
    plane_pool.max_pool_backward(_filled(grad).array, won, source.array, response, *how, back.array, back.grid, n)
    if ties and response.size:
        return  # normalised in another order, equal numbers may differ in the last bit: another one may win
    grad_normed = reference.max_pool2d_backward(grad, winner, x.shape)
    if response.size:
        grad_normed = reference.local_response_backward(grad_normed, x, s, response.size, response.alpha, response.beta)
    assert_close(_read(back), grad_normed, "gradient")


@odd_shapes
@given(poolings())
def test_planned_average_pooling_equals_its_slow_twin(
    case: tuple[tuple[int, ...], tuple[int, int, int], int],
) -> None:
    shape, how, groups = case
    x = normal(shape)
    want = reference.avg_pool2d_forward(x, *how)
    n, channels, p, q = want.shape
    out, back = plane(n, channels, p, q, groups, border=1), plane(n, channels, *shape[2:], groups)
    plane_pool.avg_pool_forward(_filled(x).array, *how, out.array, out.grid, n)
    assert_close(_read(out), want, "output")
    grad = normal(want.shape, seed=1)
    plane_pool.avg_pool_backward(_filled(grad).array, *how, back.array, back.grid, n)
    assert_close(_read(back), reference.avg_pool2d_backward(grad, x.shape, *how), "gradient")


@odd_shapes
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
