"""The stages in lanes meet the slow twins of their kernels, on shapes that no tile divides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlcore.kernels import lane_program, reference
from mlcore.kernels.lane_kinds import Batch, Table, operation
from mlcore.kernels.lane_maps import dropout_row
from mlcore.kernels.lane_program import Memory
from mlcore.lanes.layout import Arena, Parameters, Plane, group_images
from mlcore.lanes.program import NO_DROPOUT, PooledStage
from mlcore.lanes.stages import AvgPoolStage, Groups, MaxPoolStage, ResponseStage, Stage
from mlcore.lanes.weighted import ConvStage, LinearStage
from mlcore.layers import AvgPool2d, Conv2d, Linear, MaxPool2d
from mlcore.rng import Rng
from tests.mlcore.helpers import Array, assert_close, needs_compiler, normal, odd_shapes

pytestmark = needs_compiler
GROUP = 16  # images given; the rest of the group are zeros


class Bench:
    """Memory for one group, and a way to put images into planes, run operations and look."""

    def __init__(
        self, arena: Arena, winners: Arena, parameters: Parameters, constants: tuple[float, ...] = (), factors: int = 0
    ) -> None:
        floats = [np.zeros((1, size // 4), np.float32) for size in (arena.size, 4 * parameters.size, factors)]
        flat = [np.zeros(parameters.size, np.float32) for _ in range(2)]
        own, grads, kept = floats
        self.groups = Groups(1, grads.nbytes, kept.nbytes)
        self.memory = Memory(own, np.zeros((1, winners.size), np.uint8), grads, kept, *flat, np.array(constants))

    def put(self, plane: Plane, x_NCHW: Array) -> None:
        self._pixels(plane)[:, :, :, : len(x_NCHW)] = x_NCHW.transpose(2, 1, 3, 0)

    def look(self, plane: Plane, images: int) -> Array:
        return np.ascontiguousarray(self._pixels(plane)[:, :, :, :images].transpose(3, 1, 0, 2))

    def run(self, operations: Iterable[list[int]], pieces: Iterable[list[int]] = ()) -> None:
        one = np.zeros((1, 1, 1, 1), np.float32)
        batch = Batch(one, np.zeros(1, np.int64), np.zeros(1, np.int64), one[0, 0], np.zeros(1))
        lane_program.run(0, Table(operations, pieces), group_images(), self.memory, batch)

    def forward(self, stage: Stage) -> None:
        self.run(operation for row in range(stage.out.height) for operation in stage.forward(row, True))

    def _pixels(self, plane: Plane) -> Array:
        flat = self.memory.activations[0, plane.offset // 4 :][: plane.ring * plane.row_bytes // 4]
        pixels = flat.reshape(plane.ring, plane.channels, -1, plane.pixel // 4)
        return pixels[:, :, plane.left : plane.left + plane.width]


@st.composite
def convolutions(draw: Callable[..., Any]) -> tuple[tuple[int, ...], dict[str, int], int]:
    groups, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    padding = draw(st.integers(0, kernel))
    sides = st.integers(max(1, kernel - 2 * padding), 10)
    x = GROUP, groups * draw(st.integers(1, 7)), draw(sides), draw(sides)
    how = {"kernel": kernel, "stride": draw(st.integers(1, 3)), "padding": padding, "groups": groups}
    return x, how, groups * draw(st.integers(1, 18))


@odd_shapes
@given(convolutions(), st.booleans())
def test_a_convolution_in_lanes_equals_its_slow_twin(
    case: tuple[tuple[int, ...], dict[str, int], int], relu: bool
) -> None:
    """Forward, back to the input, weights and bias."""
    shape, how, outputs = case
    x, (_, channels, h, w), layer = normal(shape), shape, Conv2d(shape[1], outputs, rng=Rng(1), **how)
    layer.bias.data[:] = normal((outputs,))
    settings = (how["stride"], how["padding"], how["groups"])
    want = reference.conv2d_forward(x, layer.weight.data, layer.bias.data, *settings)
    want = reference.relu_forward(want) if relu else want

    arena, parameters = Arena(), Parameters()
    source, back = arena.plane(channels, h, w, how["padding"], how["padding"]), arena.plane(channels, h, w, 1, 2)
    out = arena.plane(*want.shape[1:], 1, 1)
    stage = ConvStage("c", layer, relu, False, source, back, out, arena, parameters)
    bench = Bench(arena, Arena(), parameters)
    bench.put(source, x)
    stage.to_lanes(layer.weight.data, stage.weight.of(bench.memory.weights))
    stage.bias.of(bench.memory.weights)[:] = layer.bias.data
    bench.forward(stage)
    assert_close(bench.look(out, GROUP), want, "output")

    grad = normal(want.shape, seed=1)
    bench.put(stage.out_grad, grad)
    bench.run(stage.backward(), stage.gather(bench.groups))
    slope = reference.relu_backward(grad, want) if relu else grad
    grad_x = reference.conv2d_grad_input(slope, layer.weight.data, x.shape, *settings)
    grad_weight, grad_bias = reference.conv2d_grad_weight(slope, x, layer.weight.data.shape, *settings)
    assert_close(bench.look(back, GROUP), grad_x, "gradient of the input")
    assert_close(stage.from_lanes(stage.weight.of(bench.memory.slope)), grad_weight, "gradient of the weights")
    assert_close(stage.bias.of(bench.memory.slope), grad_bias, "gradient of the bias")


@odd_shapes
@given(st.integers(1, 90), st.integers(1, 130), st.booleans())
def test_a_linear_layer_in_lanes_equals_its_slow_twin(inputs: int, outputs: int, gaps: bool) -> None:
    x, layer = normal((GROUP, inputs, 1, 1)), Linear(inputs, outputs, Rng(1))
    layer.bias.data[:] = normal((outputs,), seed=2)
    arena, factors, parameters = Arena(), Arena(), Parameters()
    source, back = arena.plane(inputs, 1, 1), arena.plane(inputs, 1, 1, int(gaps))
    stage = LinearStage("l", layer, False, source, back, arena.plane(outputs, 1, 1), arena, factors, parameters)
    bench = Bench(arena, Arena(), parameters, factors=factors.size)
    bench.put(source, x)
    stage.to_lanes(layer.weight.data, stage.weight.of(bench.memory.weights))
    stage.bias.of(bench.memory.weights)[:] = layer.bias.data
    bench.forward(stage)
    want = reference.linear_forward(x[:, :, 0, 0], layer.weight.data, layer.bias.data)
    assert_close(bench.look(stage.out, GROUP)[:, :, 0, 0], want, "output")

    grad = normal((GROUP, outputs), seed=3)
    bench.put(stage.out_grad, grad[:, :, None, None])
    bench.run(stage.backward(), stage.gather(bench.groups))
    grad_weight, grad_bias = reference.linear_grad_weight(grad, x[:, :, 0, 0])
    grad_x = reference.linear_grad_input(grad, layer.weight.data)
    assert_close(bench.look(back, GROUP)[:, :, 0, 0], grad_x, "gradient of the input")
    assert_close(stage.from_lanes(stage.weight.of(bench.memory.slope)), grad_weight, "gradient of the weights")
    assert_close(stage.bias.of(bench.memory.slope), grad_bias, "gradient of the bias")


@st.composite
def poolings(draw: Callable[..., Any]) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    size = draw(st.integers(1, 4))
    sides = st.integers(size, 11)
    shape = GROUP, draw(st.integers(1, 5)), draw(sides), draw(sides)
    return shape, (size, draw(st.integers(1, 5)), draw(st.integers(0, size // 2)))


@odd_shapes
@given(poolings(), st.booleans())
def test_max_pooling_in_lanes_equals_its_slow_twin(
    case: tuple[tuple[int, ...], tuple[int, int, int]], ties: bool
) -> None:
    shape, how = case
    x = np.round(normal(shape)) if ties else normal(shape)
    want, winner = reference.max_pool2d_forward(x, *how)
    arena, winners = Arena(), Arena()
    source, back, out = arena.plane(*shape[1:], 1), arena.plane(*shape[1:], 2, 1), arena.plane(*want.shape[1:], 1)
    stage = MaxPoolStage("p", MaxPool2d(*how), source, back, out, arena, winners)
    grad = normal(want.shape, seed=1)
    bench = _pooled(stage, winners, arena, x, grad)
    assert_close(bench.look(out, GROUP), want, "output")
    assert_close(bench.look(back, GROUP), reference.max_pool2d_backward(grad, winner, x.shape), "gradient")


@odd_shapes
@given(poolings())
def test_average_pooling_in_lanes_equals_its_slow_twin(case: tuple[tuple[int, ...], tuple[int, int, int]]) -> None:
    shape, how = case
    x = normal(shape)
    want = reference.avg_pool2d_forward(x, *how)
    arena, winners = Arena(), Arena()
    source, back, out = arena.plane(*shape[1:], 1), arena.plane(*shape[1:], 2, 1), arena.plane(*want.shape[1:], 1)
    stage = AvgPoolStage("p", AvgPool2d(*how), source, back, out, arena)
    grad = normal(want.shape, seed=1)
    bench = _pooled(stage, winners, arena, x, grad)
    assert_close(bench.look(out, GROUP), want, "output")
    assert_close(bench.look(back, GROUP), reference.avg_pool2d_backward(grad, x.shape, *how), "gradient")


def _pooled(stage: MaxPoolStage | AvgPoolStage, winners: Arena, arena: Arena, x: Array, grad: Array) -> Bench:
    """Forward and back, with rubbish where the gradient will be."""
    bench = Bench(arena, winners, Parameters())
    assert stage.x_grad is not None
    bench.put(stage.x_grad, np.full_like(x, 7))
    bench.put(stage.x, x)
    bench.forward(stage)
    bench.put(stage.out_grad, grad)
    bench.run(stage.backward())
    return bench


@odd_shapes
@given(st.integers(1, 9), st.sampled_from([(3, 1.0, 0.2, 0.6), (5, 2.0, 0.1, 0.75), (9, 1.0, 0.05, 0.75)]))
def test_local_response_normalisation_in_lanes_equals_its_slow_twin(
    channels: int, response: tuple[int, float, float, float]
) -> None:
    size, k, factor, beta = response
    shape = (GROUP, channels, 3, 5)
    x, grad = normal(shape), normal(shape, seed=1)
    want, sums = reference.local_response_forward(x, size, k, factor, beta)
    arena = Arena()
    source, back, out = (arena.plane(*shape[1:], border) for border in (0, 2, 1))
    stage = ResponseStage("n", size, 0, source, back, out, arena)
    bench = Bench(arena, Arena(), Parameters(), (k, factor, beta))
    bench.put(source, x)
    bench.forward(stage)
    bench.put(stage.out_grad, grad)
    bench.run(stage.backward())
    assert_close(bench.look(out, GROUP), want, "output")
    want_grad = reference.local_response_backward(grad, x, sums, size, factor, beta)
    assert_close(bench.look(back, GROUP), want_grad, "gradient")


def test_no_dropout_reads_no_seed_for_evaluation_has_none() -> None:
    op = np.array(operation("dropout", out=64, channels=1, count=16, height=1, width=1, lanes=16))
    memory = np.arange(32, dtype=np.float32)
    dropout_row.py_func(op, memory, np.zeros(0, np.int64), np.array(NO_DROPOUT), 0)  # uncompiled, it minds its bounds
    assert memory.tolist() == 2 * list(range(16))


def test_a_pool_behind_the_first_convolution_keeps_only_some_rows() -> None:
    """What makes LeNet's step fit the second cache: whole planes of the first maps would not."""
    arena, parameters, layer = Arena(), Parameters(), Conv2d(1, 6, 5, Rng(1), padding=2)
    out = arena.plane(6, 28, 28, ring=2)
    conv = ConvStage("c", layer, True, True, arena.plane(1, 28, 28, 2, 2), None, out, arena, parameters)
    PooledStage(conv, "p", MaxPool2d(2), arena.plane(6, 14, 14), arena, Arena())
    assert conv.out.ring == 2
    assert conv.out_grad.ring == conv.strip < 28
