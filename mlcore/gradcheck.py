"""Gradients against central differences, in float64.

    check_grads(lambda x: ops.tanh(x), np.linspace(-2, 2, 12).reshape(3, 4))

`check_grads` holds every entry of every input against (f(x + e) - f(x - e)) / 2e. Where a kink (ReLU, a pooling's
tie) lies between the two points, the difference says nothing about the gradient: there the slopes on the left and on
the right differ, and the entry is left out. That depends on the forward pass only, so a wrong rule can't hide
behind it, and a check that leaves out more than a fifth of its entries fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlcore import models, ops
from mlcore.autograd import backward, no_grad
from mlcore.errors import CheckFailed
from mlcore.layers import Layer, convert
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor

STEP = 1e-5
TOLERANCE = 1e-6
SEED = 20_260_101
ENTRIES_PER_PARAMETER = 12

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class GradcheckRow:
    """What one check saw: `max_error` relative to the largest gradient of its input; `message` if it failed."""

    name: str
    checked: int
    left_out: int
    max_error: float
    tolerance: float
    ok: bool
    message: str = ""


@dataclass(frozen=True)
class Measured:
    """Counts of entries, and the largest error among those checked."""

    checked: int
    left_out: int
    max_error: float


def check_grads(function: Function, *inputs: Array, tolerance: float = TOLERANCE) -> Measured:
    """Check d(function)/d(each input); CheckFailed names input, entry, and both numbers.

    function: takes one Tensor per input, returns a Tensor of any shape, and is the same each time it is called.
    inputs: float64 after conversion; values near a kink are allowed, see above.
    """
    tensors = [Tensor(np.array(x, np.float64), requires_grad=True, name=f"input {i}") for i, x in enumerate(inputs)]
    return _check(lambda: function(*tensors), tensors, None, tolerance)


def gradcheck_model(model: Layer, x_shape: tuple[int, ...], classes: int, rng: Rng | None = None) -> Measured:
    """Check a whole model's parameters through its loss, at a sample of entries of each.

    Converts the model to float64. x_shape: with the batch axis. rng: None checks it as in evaluation.
    """
    convert(model, np.float64)
    generator = Rng(SEED).child("model").generator()
    x = Tensor(generator.standard_normal(x_shape))
    labels = generator.integers(0, classes, x_shape[0])
    parameters = list(model.parameters().values())
    return _check(lambda: ops.cross_entropy(model(x, rng), labels), parameters, ENTRIES_PER_PARAMETER, TOLERANCE)


def run_gradcheck(model_name: str | None = None) -> list[GradcheckRow]:
    """Every operation and every model (or that model only); RecipeError for a name that is not known."""
    if model_name is not None:
        return [_row(f"model {model_name}", lambda: _check_named_model(model_name))]
    rows = [_row(f"op {name}", check) for name, check in OP_CHECKS.items()]
    return rows + [row for name in models.MODELS for row in run_gradcheck(name)]


def _check(function: Callable[[], Tensor], tensors: Sequence[Tensor], sample: int | None, tolerance: float) -> Measured:
    """`sample`: entries per tensor, None for all of them."""
    for tensor in tensors:
        tensor.grad = None
    out = function()
    weights = Rng(SEED).child("cotangent").generator().standard_normal(out.shape)
    backward(out, weights)

    def value() -> float:
        with no_grad():
            return float(np.vdot(function().data, weights))

    found = [_check_tensor(value, tensor, sample, tolerance) for tensor in tensors]
    measured = Measured(
        sum(one.checked for one in found),
        sum(one.left_out for one in found),
        max(one.max_error for one in found),
    )
    if measured.left_out > measured.checked // 4:
        raise CheckFailed(f"{measured.left_out} entries lie at kinks, {measured.checked} were checked",
                          fix="choose inputs away from ties and zeros")  # fmt: skip
    return measured


def _check_tensor(value: Callable[[], float], tensor: Tensor, sample: int | None, tolerance: float) -> Measured:
    if tensor.grad is None or tensor.grad.shape != tensor.shape:
        got = None if tensor.grad is None else list(tensor.grad.shape)
        raise CheckFailed(f"its gradient has shape {got}, not {list(tensor.shape)}", place=tensor.name)
    slopes = {entry: _slopes(value, tensor.data, entry) for entry in _entries(tensor.shape, sample)}
    size = max(1e-3, float(np.abs(tensor.grad).max()), *(abs(left + right) / 2 for left, right in slopes.values()))
    checked, left_out, worst = 0, 0, 0.0
    for entry, (left, right) in slopes.items():
        if abs(left - right) > 1e-3 * size:
            left_out += 1
            continue
        error = abs(float(tensor.grad[entry]) - (left + right) / 2) / size
        if not error <= tolerance:
            raise _mismatch(tensor, entry, (left + right) / 2, error, tolerance)
        checked, worst = checked + 1, max(worst, error)
    return Measured(checked, left_out, worst)


def _slopes(value: Callable[[], float], data: Array, entry: tuple[int, ...]) -> tuple[float, float]:
    """The slope of `value` on the left and on the right of one entry."""
    before = float(data[entry])
    here = value()
    data[entry] = before + STEP
    above = value()
    data[entry] = before - STEP
    below = value()
    data[entry] = before
    return (here - below) / STEP, (above - here) / STEP


def _entries(shape: tuple[int, ...], sample: int | None) -> Iterator[tuple[int, ...]]:
    size = int(np.prod(shape))
    if sample is None or size <= sample:
        return np.ndindex(shape)
    chosen = Rng(SEED).child("entries", size).generator().choice(size, sample, replace=False)
    return (tuple(int(i) for i in np.unravel_index(one, shape)) for one in chosen)


def _mismatch(tensor: Tensor, entry: tuple[int, ...], difference: float, error: float, tolerance: float) -> CheckFailed:
    assert tensor.grad is not None
    got = float(tensor.grad[entry])
    return CheckFailed(
        f"gradient {got:.9g}, central difference {difference:.9g} (relative error {error:.1e}, limit {tolerance:.0e})",
        place=f"{tensor.name}{list(entry)}",
        fix="the rule in autograd.RULES or the kernel behind it is wrong",
    )


def _row(name: str, check: Callable[[], Measured]) -> GradcheckRow:
    try:
        seen = check()
    except CheckFailed as error:
        return GradcheckRow(name, 0, 0, float("nan"), TOLERANCE, False, str(error))
    return GradcheckRow(name, seen.checked, seen.left_out, seen.max_error, TOLERANCE, True)


def _check_named_model(name: str) -> Measured:
    shape, classes = models.INPUTS.get(name, ((), 0))
    return gradcheck_model(models.build(name, {}, Rng(SEED)), (2, *shape), classes)


def _values(*shape: int) -> Array:
    """Normal numbers, the same for the same shape."""
    return Rng(SEED).child("values", *shape).generator().standard_normal(shape)


def _apart(*shape: int) -> Array:
    """Numbers at least 0.1 from one another and 0.05 from zero, in random order: no ties, no kinks near."""
    size = int(np.prod(shape))
    order = Rng(SEED).child("apart", *shape).generator().permutation(size)
    return ((order - size // 2) * 0.1 + 0.05).reshape(shape)


def _conv(stride: int, padding: int, groups: int) -> Callable[[], Measured]:
    x, weight, bias = _values(2, 4, 7, 6), _values(6, 4 // groups, 3, 3), _values(6)
    return lambda: check_grads(lambda x, w, b: ops.conv2d(x, w, b, stride, padding, groups), x, weight, bias)


def _dropout() -> Measured:
    return check_grads(lambda x: ops.dropout(x, 0.4, Rng(SEED)), _values(4, 9))


def _response(size: int, beta: float) -> Callable[[], Measured]:
    return lambda: check_grads(lambda x: ops.local_response_norm(x, size, 2.0, 0.3, beta), _values(2, 7, 3, 2))


def _local(stride: int, padding: int, places: tuple[int, int]) -> Callable[[], Measured]:
    x, weight, bias = _values(2, 3, 5, 4), _values(*places, 4, 3, 3, 2), _values(4, *places)
    return lambda: check_grads(lambda x, w, b: ops.local2d(x, w, b, stride, padding), x, weight, bias)


def _map_response(size: int, beta: float) -> Callable[[], Measured]:
    return lambda: check_grads(lambda x: ops.map_response_norm(x, size, 2.0, 0.3, beta), _values(2, 2, 5, 4))


def _batch_norm(momentum: float | None) -> Callable[[], Measured]:
    running = Tensor(_values(3)), Tensor(_values(3) ** 2 + 0.5)

    def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.batch_norm2d(x, weight, bias, *running, 1e-3, momentum)

    return lambda: check_grads(normalise, _values(4, 3, 3, 2), _values(3) + 2, _values(3))


def _cross_entropy() -> Measured:
    return check_grads(lambda x: ops.cross_entropy(x, np.array([2, 0, 4])), _values(3, 5))


OP_CHECKS: dict[str, Callable[[], Measured]] = {
    "linear": lambda: check_grads(ops.linear, _values(5, 7), _values(9, 7), _values(9)),
    "conv2d": _conv(1, 0, 1),
    "conv2d padding 1": _conv(1, 1, 1),
    "conv2d stride 2": _conv(2, 1, 1),
    "conv2d groups 2": _conv(1, 1, 2),
    "local2d": _local(1, 0, (3, 3)),
    "local2d stride 2": _local(2, 1, (3, 3)),
    "max_pool2d": lambda: check_grads(lambda x: ops.max_pool2d(x, 2), _apart(2, 3, 6, 5)),
    "max_pool2d 3/2": lambda: check_grads(lambda x: ops.max_pool2d(x, 3, 2, 1), _apart(2, 2, 7, 6)),
    "avg_pool2d": lambda: check_grads(lambda x: ops.avg_pool2d(x, 2), _values(2, 3, 6, 5)),
    "avg_pool2d 3/2": lambda: check_grads(lambda x: ops.avg_pool2d(x, 3, 2, 1), _values(2, 2, 7, 6)),
    "global_avg_pool": lambda: check_grads(ops.global_avg_pool, _values(2, 3, 4, 5)),
    "relu": lambda: check_grads(ops.relu, _apart(4, 9)),
    "tanh": lambda: check_grads(ops.tanh, _values(4, 9)),
    "dropout": _dropout,
    "local_response_norm": _response(3, 0.75),
    "local_response_norm 5": _response(5, 0.5),
    "map_response_norm": _map_response(3, 0.75),
    "map_response_norm 5": _map_response(5, 0.5),
    "batch_norm2d": _batch_norm(0.1),
    "batch_norm2d in evaluation": _batch_norm(None),
    "flatten": lambda: check_grads(ops.flatten, _values(2, 3, 4)),
    "add": lambda: check_grads(ops.add, _values(3, 4), _values(3, 4)),
    "add to itself": lambda: check_grads(lambda x: ops.add(x, x), _values(3, 4)),
    "scale": lambda: check_grads(lambda x: ops.scale(x, -2.5), _values(3, 4)),
    "cross_entropy": _cross_entropy,
}
