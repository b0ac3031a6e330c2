"""Every fast kernel meets its slow twin, on shapes that no tile divides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.kernels import batch_norm, conv, elementwise, gemm, local, loss, norm, pool, reference
from tests.mlcore.helpers import DTYPES, Array, assert_close, normal, odd_shapes, run_python

dtypes = st.sampled_from(DTYPES)
sizes = st.integers(1, 37)


@st.composite
def convolutions(draw: Callable[..., Any]) -> dict[str, Any]:
    groups, kernel_h, kernel_w = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3))
    return {
        "x": (
            draw(st.integers(1, 10)),
            groups * draw(st.integers(1, 3)),
            draw(st.integers(max(1, kernel_h - 2 * padding), 11)),
            draw(st.integers(max(1, kernel_w - 2 * padding), 12)),
        ),
        "outputs": groups * draw(st.integers(1, 6)),
        "kernel": (kernel_h, kernel_w),
        "settings": (draw(st.integers(1, 3)), padding, groups),
    }


@odd_shapes
@given(convolutions(), dtypes)
def test_convolution_equals_its_slow_twin(case: dict[str, Any], dtype: Any) -> None:
    x, (stride, padding, groups) = normal(case["x"], dtype), case["settings"]
    weight = normal((case["outputs"], x.shape[1] // groups, *case["kernel"]), dtype)
    bias = normal((case["outputs"],), dtype)
    want = reference.conv2d_forward(x, weight, bias, stride, padding, groups)
    assert_close(conv.conv2d_forward(x, weight, bias, stride, padding, groups), want, "output")
    grad = normal(want.shape, dtype, seed=1)
    _same(conv, reference, "conv2d_grad_input", grad, weight, x.shape, stride, padding, groups)
    _same(conv, reference, "conv2d_grad_weight", grad, x, weight.shape, stride, padding, groups)


@odd_shapes
@given(convolutions(), st.integers(1, 40), dtypes)
def test_local_connections_equal_their_slow_twin(case: dict[str, Any], n: int, dtype: Any) -> None:
    stride, padding, _ = case["settings"]
    x = normal((n, *case["x"][1:]), dtype)
    places = [1 + (side + 2 * padding - k) // stride for side, k in zip(x.shape[2:], case["kernel"], strict=True)]
    weight = normal((*places, case["outputs"], x.shape[1], *case["kernel"]), dtype)
    bias = normal((case["outputs"], *places), dtype)
    _same(local, reference, "local2d_forward", x, weight, bias, stride, padding)
    grad = normal((n, case["outputs"], *places), dtype, seed=1)
    _same(local, reference, "local2d_grad_input", grad, weight, x.shape, stride, padding)
    _same(local, reference, "local2d_grad_weight", grad, x, weight.shape, stride, padding)


@odd_shapes
@given(sizes, sizes, sizes, dtypes)
def test_linear_equals_its_slow_twin(n: int, inputs: int, outputs: int, dtype: Any) -> None:
    x, weight = normal((n, inputs), dtype), normal((outputs, inputs), dtype, seed=1)
    grad, bias = normal((n, outputs), dtype, seed=2), normal((outputs,), dtype)
    _same(gemm, reference, "linear_forward", x, weight, bias)
    _same(gemm, reference, "linear_grad_input", grad, weight)
    _same(gemm, reference, "linear_grad_weight", grad, x)


@st.composite
def poolings(draw: Callable[..., Any]) -> dict[str, Any]:
    size = draw(st.integers(1, 4))
    sides = st.integers(size, 11)
    return {
        "x": (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(sides), draw(sides)),
        "settings": (size, draw(st.integers(1, 4)), draw(st.integers(0, size // 2))),
    }


@odd_shapes
@given(poolings(), dtypes, st.booleans())
def test_pooling_equals_its_slow_twin(case: dict[str, Any], dtype: Any, ties: bool) -> None:
    x = normal(case["x"], dtype)
    x = np.round(x) if ties else x
    out, winner = reference.max_pool2d_forward(x, *case["settings"])
    got_out, got_winner = pool.max_pool2d_forward(x, *case["settings"])
    np.testing.assert_array_equal(got_out, out)
    np.testing.assert_array_equal(got_winner, winner)
    grad = normal(out.shape, dtype, seed=1)
    _same(pool, reference, "max_pool2d_backward", grad, winner, x.shape)
    _same(pool, reference, "avg_pool2d_forward", x, *case["settings"])
    _same(pool, reference, "avg_pool2d_backward", grad, x.shape, *case["settings"])


@odd_shapes
@given(st.integers(1, 40_000), dtypes, st.floats(0.01, 30))
def test_elementwise_equals_its_slow_twin(size: int, dtype: Any, spread: float) -> None:
    x, grad = normal((size,), dtype) * dtype(spread), normal((size,), dtype, seed=1)
    for name in ("relu", "tanh"):
        out = getattr(reference, f"{name}_forward")(x)
        assert_close(getattr(elementwise, f"{name}_forward")(x), out, name)
        _same(elementwise, reference, f"{name}_backward", grad, out)


@odd_shapes
@given(sizes, st.integers(1, 20), dtypes, st.sampled_from([1, 3, 5, 9]), st.sampled_from([0.5, 0.75, 1.0]))
def test_local_response_normalisation_equals_its_slow_twin(
    n: int, channels: int, dtype: Any, size: int, beta: float
) -> None:
    x, grad = normal((n, channels, 3, 2), dtype), normal((n, channels, 3, 2), dtype, seed=1)
    _same(norm, reference, "local_response_forward", x, size, 2.0, 0.1, beta)
    s = reference.local_response_forward(x, size, 2.0, 0.1, beta)[1]
    _same(norm, reference, "local_response_backward", grad, x, s, size, 0.1, beta)


@odd_shapes
@given(st.integers(1, 9), st.integers(1, 9), dtypes, st.sampled_from([1, 3, 5, 9]), st.sampled_from([0.5, 0.75, 1.0]))
def test_response_normalisation_within_maps_equals_its_slow_twin(
    height: int, width: int, dtype: Any, size: int, beta: float
) -> None:
    x, grad = normal((3, 2, height, width), dtype), normal((3, 2, height, width), dtype, seed=1)
    _same(norm, reference, "map_response_forward", x, size, 2.0, 0.1, beta)
    s = reference.map_response_forward(x, size, 2.0, 0.1, beta)[1]
    _same(norm, reference, "map_response_backward", grad, x, s, size, 0.1, beta)


@odd_shapes
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 9), st.integers(1, 6), dtypes, st.floats(-30, 30))
def test_batch_normalisation_equals_its_slow_twin(
    n: int, channels: int, height: int, width: int, dtype: Any, middle: float
) -> None:
    x = normal((n, channels, height, width), dtype) + dtype(middle)
    grad, weight = normal(x.shape, dtype, seed=1), normal((channels,), dtype, seed=2)
    _same(batch_norm, reference, "moments", x)
    mean = reference.moments(x)[0]
    inverse = (1 + normal((channels,), dtype, seed=3) ** 2).astype(dtype)
    _same(batch_norm, reference, "normalise", x, mean, inverse, weight, normal((channels,), dtype, seed=4))
    for of_batch in (True, False):
        _same(batch_norm, reference, "normalise_backward", grad, x, weight, mean, inverse, of_batch)


@odd_shapes
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), dtypes)
def test_global_pooling_equals_its_slow_twin(n: int, channels: int, height: int, width: int, dtype: Any) -> None:
    x = normal((n, channels, height, width), dtype)
    _same(pool, reference, "global_avg_pool_forward", x)
    _same(pool, reference, "global_avg_pool_backward", normal((n, channels), dtype), x.shape)


@odd_shapes
@given(sizes, sizes, dtypes, st.floats(0.1, 300))
def test_cross_entropy_equals_its_slow_twin(n: int, classes: int, dtype: Any, spread: float) -> None:
    logits = normal((n, classes), dtype) * dtype(spread)
    labels = np.arange(n) % classes
    _same(loss, reference, "cross_entropy_forward", logits, labels)
    softmax = reference.cross_entropy_forward(logits, labels)[1]
    _same(loss, reference, "cross_entropy_backward", 0.7, softmax, labels)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_equals_its_slow_twin(dtype: Any, nesterov: bool) -> None:
    fast, slow = ([normal((33,), dtype, seed=s) for s in range(3)] for _ in range(2))
    for _ in range(3):
        elementwise.sgd_update(*fast, 0.1, 0.9, 0.01, nesterov)
        reference.sgd_update(*slow, 0.1, 0.9, 0.01, nesterov)
    for got, want in zip(fast, slow, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_equals_its_slow_twin(dtype: Any) -> None:
    fast, slow = (
        [normal((17_000,), dtype), normal((17_000,), dtype, seed=1), *np.zeros((2, 17_000), dtype)] for _ in range(2)
    )
    for step in range(1, 4):
        elementwise.adam_update(*fast, step, 0.1, 0.9, 0.99, 1e-3, 0.01)
        reference.adam_update(*slow, step, 0.1, 0.9, 0.99, 1e-3, 0.01)
    for got, want in zip(fast, slow, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("kernels", [elementwise, reference], ids=["fast", "slow twin"])
@pytest.mark.parametrize("name", ["relu_forward", "tanh_forward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_stays_a_nan(kernels: Any, name: str, dtype: Any) -> None:
    x = np.array([1.0, np.nan, -1.0, np.inf, -np.inf], dtype)
    out = getattr(kernels, name)(x)
    assert np.isnan(out).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("size_and_stride", [(2, 2), (3, 2)], ids=["halving", "general"])
def test_a_nan_wins_its_window(size_and_stride: tuple[int, int]) -> None:
    x = normal((1, 1, 6, 6))
    x[0, 0, 1, 1] = np.nan
    x[0, 0, 0, 1] = np.inf
    out, winner = pool.max_pool2d_forward(x, *size_and_stride, 0)
    assert np.isnan(out[0, 0, 0, 0])
    assert winner[0, 0, 0, 0] == 7


def test_no_kernel_reads_beyond_its_buffers() -> None:
    """NaNs around the arrays in memory would show up in the results."""
    memory = np.full(100_000, np.nan, np.float32)
    x = memory[1000 : 1000 + 2 * 3 * 7 * 5].reshape(2, 3, 7, 5)
    weight = memory[3000 : 3000 + 5 * 3 * 3 * 3].reshape(5, 3, 3, 3)
    x[:], weight[:] = normal(x.shape), normal(weight.shape)
    out = conv.conv2d_forward(x, weight, np.zeros(5, np.float32), 1, 1, 1)
    grads = conv.conv2d_grad_weight(out, x, weight.shape, 1, 1, 1)
    grad_x = conv.conv2d_grad_input(out, weight, x.shape, 1, 1, 1)
    for array in (out, grad_x, *grads):
        assert np.isfinite(array).all()


def test_the_kernels_run_without_the_compiler() -> None:
    code = """
import numpy as np
from mlcore.kernels import conv, gemm, pool, reference, simd
from tests.mlcore.helpers import assert_close, normal
x, weight, bias = normal((2, 2, 5, 4)), normal((3, 2, 3, 3)), normal((3,))
for stride in (1, 2):
    out = reference.conv2d_forward(x, weight, bias, stride, 1, 1)
    assert_close(conv.conv2d_forward(x, weight, bias, stride, 1, 1), out)
    for name, other, shape in (("input", weight, x.shape), ("weight", x, weight.shape)):
        twins = [getattr(k, f"conv2d_grad_{name}")(out, other, shape, stride, 1, 1) for k in (conv, reference)]
        np.testing.assert_allclose(*[t[0] if isinstance(t, tuple) else t for t in twins], rtol=1e-4, atol=1e-4)
assert_close(gemm.linear_forward(x[0, 0], x[1, 1], bias[[0, 1, 2, 0, 1]]), x[0, 0] @ x[1, 1].T + bias[[0, 1, 2, 0, 1]])
np.testing.assert_array_equal(pool.max_pool2d_forward(x, 2, 2, 0)[1], reference.max_pool2d_forward(x, 2, 2, 0)[1])
lanes = np.arange(32, dtype=np.float32)
print(float(simd.total(simd.multiply_add(simd.load(lanes, 0), simd.load(lanes, 16), simd.zeros(lanes)))))
"""
    assert float(run_python(code, NUMBA_DISABLE_JIT="1")) == float(np.dot(np.arange(16), np.arange(16, 32)))


def _same(fast: Any, slow: Any, name: str, *arguments: Any) -> None:
    got, want = getattr(fast, name)(*arguments), getattr(slow, name)(*arguments)
    for i, (one, other) in enumerate(zip(_parts(got), _parts(want), strict=True)):
        assert_close(one, other, f"{name}[{i}]")


def _parts(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)
