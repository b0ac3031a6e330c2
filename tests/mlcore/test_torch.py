"""An independent implementation agrees: PyTorch, where it is installed (extra `peers`)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore import ops
from mlcore.config import Optimiser as Wanted
from mlcore.layers import (
    BatchNorm2d,
    Conv2d,
    GlobalAvgPool,
    Layer,
    LocallyConnected2d,
    LocalResponseNorm,
    MapResponseNorm,
    ReLU,
    Residual,
    Sequential,
    convert,
)  # fmt: skip
from mlcore.models import build
from mlcore.optim import SGD, Adam, Optimiser
from mlcore.paces import paces_of
from mlcore.peers import grouped, peer_of
from mlcore.planned.plan import Plan
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import assert_close, normal, odd_shapes, tensor

MISSING = "PyTorch is not installed: pip install -e '.[peers]'"
torch: Any = importlib.import_module("torch") if os.environ.get("CI") else pytest.importorskip("torch", reason=MISSING)
F: Any = torch.nn.functional if torch is not None else None

OPS: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
    "linear": (ops.linear, lambda x, w, b: F.linear(x, w, b), [(5, 7), (9, 7), (9,)]),
    "conv2d": (
        lambda x, w, b: ops.conv2d(x, w, b, 2, 1, 2),
        lambda x, w, b: F.conv2d(x, w, b, 2, 1, groups=2),
        [(9, 4, 11, 10), (6, 2, 3, 3), (6,)],
    ),
    "max_pool2d": (
        lambda x: ops.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        [(2, 3, 9, 8)],
    ),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 3, 2, 1), [(2, 3, 9, 8)]),
    "relu": (ops.relu, lambda x: F.relu(x), [(4, 9)]),
    "tanh": (ops.tanh, lambda x: torch.tanh(x), [(4, 9)]),
    "cross_entropy": (
        lambda x: ops.cross_entropy(x, np.array([1, 0, 4])),
        lambda x: F.cross_entropy(x, torch.tensor([1, 0, 4])),
        [(3, 5)],
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_an_operation_and_its_gradients_equal_pytorchs(name: str) -> None:
    ours, theirs, shapes = OPS[name]
    inputs = [tensor(normal(shape, seed=i)) for i, shape in enumerate(shapes)]
    others = [torch.from_numpy(t.data.copy()).requires_grad_() for t in inputs]
    out, other = ours(*inputs), theirs(*others)
    assert_close(out.data, other.detach().numpy(), "output")
    grad = normal(out.shape, seed=9)
    out.backward(grad)
    other.backward(torch.from_numpy(grad))
    for i, (mine, peer) in enumerate(zip(inputs, others, strict=True)):
        assert mine.grad is not None
        assert_close(mine.grad, peer.grad.numpy(), f"gradient {i}")


Image = tuple[int, int, int]


def _conv(image: Image, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(image[0], outputs, kernel, Rng(1), stride=stride, padding=kernel // 2, biases=None)


def _residual(image: Image) -> Layer:
    """A block as in a ResNet: it halves the map and has five channels."""
    body = Sequential(
        [
            ("conv1", _conv(image, 5, 3, 2)),
            ("norm1", BatchNorm2d(5)),
            ("act", ReLU()),
            ("conv2", _conv((5, 0, 0), 5, 3)),
        ]
    )
    return Residual(body, Sequential([("conv", _conv(image, 5, 1, 2)), ("norm", BatchNorm2d(5))]))


LAYERS: dict[str, Callable[[Image], Layer]] = {
    "BatchNorm2d": lambda image: BatchNorm2d(image[0], 1e-3, 0.3),
    "LocallyConnected2d": lambda image: LocallyConnected2d(image, 3, 2, Rng(1), stride=2, padding=1),
    "MapResponseNorm": lambda image: MapResponseNorm(3, 1.0, 0.5, 0.75),
    "LocalResponseNorm": lambda image: LocalResponseNorm(5, 2.0, 0.1, 0.75),
    "GlobalAvgPool": lambda image: GlobalAvgPool(),
    "Residual": _residual,
    "identity Residual": lambda image: Residual(Sequential([("conv", _conv(image, image[0], 3))])),
}


@pytest.mark.parametrize("name", LAYERS)
@odd_shapes
@given(n=st.integers(2, 6), image=st.tuples(st.integers(1, 5), st.integers(2, 9), st.integers(2, 9)))
def test_a_layer_its_gradients_and_its_evaluation_equal_pytorchs(name: str, n: int, image: Image) -> None:
    layer = LAYERS[name](image)
    for i, p in enumerate(layer.parameters().values()):
        p.data += 0.3 * normal(p.shape, seed=i)
    peer = peer_of(layer)
    x = tensor(normal((n, *image), seed=3) * 2 + 1)
    other_x = torch.from_numpy(x.data.copy()).requires_grad_()
    out, other = layer(x, Rng(0)), peer(other_x)
    assert_close(out.data, other.detach().numpy(), "output")
    grad = normal(out.shape, seed=9)
    out.backward(grad)
    other.backward(torch.from_numpy(grad))
    pairs = zip([x, *layer.parameters().values()], [other_x, *peer.parameters()], strict=True)
    for i, (mine, theirs) in enumerate(pairs):
        assert mine.grad is not None
        assert_close(mine.grad, theirs.grad.numpy(), f"gradient {i}")
    peer.eval()
    assert_close(layer(x).data, peer(other_x).detach().numpy(), "evaluation")


def test_ten_steps_of_lenet5_equal_pytorchs() -> None:
    model = build("lenet5", {}, Rng(4))
    peer = _lenet5_in_torch(model.parameters())
    optimiser = SGD(model.parameters(), 0.9, 5e-4, decay_biases=True)
    others = torch.optim.SGD(peer.parameters(), 0.02, 0.9, weight_decay=5e-4)
    for step in range(10):
        x, labels = normal((32, 1, 28, 28), seed=step), np.arange(32) % 10
        optimiser.zero_grad()
        others.zero_grad()
        loss = ops.cross_entropy(model(Tensor(x)), labels)
        other = F.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(labels))
        loss.backward()
        other.backward()
        optimiser.step(0.02)
        others.step()
        assert loss.item() == pytest.approx(other.item(), rel=1e-4)


def _lenet5_in_torch(parameters: dict[str, Tensor]) -> Any:
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    with torch.no_grad():
        for theirs, ours in zip(net.parameters(), parameters.values(), strict=True):
            theirs.copy_(torch.from_numpy(ours.data.copy()))
    return net


@pytest.mark.parametrize("name", ["alexnet", "mnist_cnn", "cuda_convnet"])
@pytest.mark.parametrize("winograd", [False, True], ids=["direct", "winograd"])
def test_fifty_planned_steps_equal_pytorchs(name: str, winograd: bool) -> None:
    """Equal first weights and batches; no dropout, whose masks differ. AlexNet on 67 pixels, hidden layers of 64.

    Rounding now and then moves a maximum to its neighbour, on either side, and what follows grows from step to step. By
    the direct way that is rare enough for fifty steps of our own. Winograd rounds more: there each step begins with
    PyTorch's weights and velocities, and losses agree to 5e-6, steps in their median to 1e-5.
    """
    options, shape, classes, batch, rate, tolerance = PLANNED[name]
    model = build(name, options, Rng(4), shape, classes)
    peer = peer_of(model)
    optimiser = SGD(model.parameters(), 0.9, 5e-4, decay_biases=True)
    others = torch.optim.SGD(peer.parameters(), rate, 0.9, weight_decay=5e-4)
    plan, apart = Plan(model, optimiser, batch, shape, winograd=winograd), list[float]()
    for step in range(50):
        if winograd:
            _take_from(peer, others, model, optimiser)
            plan.take()
        x, labels = normal((batch, *shape), seed=step % 5), (np.arange(batch) + step) % classes
        others.zero_grad()
        other = F.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(labels))
        other.backward()
        others.step()
        loss, _ = plan.step(x, labels, rate, Rng(step))
        assert loss == pytest.approx(other.item(), rel=5e-6 if winograd else tolerance), f"step {step}"
        plan.give()
        apart.append(_steps_apart(peer, others, model, optimiser))
    if winograd:
        assert np.median(apart) < 1e-5
        assert max(apart) < 3e-2, "a maximum that moved"


def _take_from(peer: Any, others: Any, model: Any, optimiser: SGD) -> None:
    """Weights and velocities of PyTorch's network."""
    for (name, mine), theirs in zip(model.parameters().items(), peer.parameters(), strict=True):
        mine.data[...] = theirs.detach().numpy()
        velocity = others.state[theirs].get("momentum_buffer")
        optimiser.velocities[name][...] = 0 if velocity is None else velocity.numpy()


def _steps_apart(peer: Any, others: Any, model: Any, optimiser: SGD) -> float:
    """The largest relative difference of a parameter's step, in the Euclidean norm."""
    pairs = zip(model.parameters(), peer.parameters(), strict=True)
    steps = [(optimiser.velocities[name], others.state[theirs]["momentum_buffer"].numpy()) for name, theirs in pairs]
    return max(float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)) for mine, theirs in steps)


PLANNED: dict[str, tuple[dict[str, Any], tuple[int, ...], int, int, float, float]] = {
    "alexnet": (
        {"dropout": 0.0, "hidden": 64, "alpha": "divided", "weights": "glorot"},
        (3, 67, 67),
        10,
        16,
        1e-3,
        1e-4,
    ),
    "mnist_cnn": ({"map_dropout": 0.0, "hidden_dropout": 0.0}, (1, 28, 28), 10, 20, 5e-4, 1e-3),
    "cuda_convnet": ({}, (3, 32, 32), 10, 20, 5e-4, 2e-3),
}


@dataclass(frozen=True)
class Taped:
    """A network with inputs of `shape`, trained by SGD with momentum, or by Adam."""

    model: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    rate: float
    batch: int = 6
    adam: bool = False


TAPED = {
    "lenet5": Taped("lenet5", {}, (1, 28, 28), 0.01),
    "mlp": Taped("mlp", {"hidden": [40, 30], "activation": "tanh"}, (1, 8, 8), 0.05),
    "alexnet_small": Taped("alexnet_small", {"dropout": 0.0, "hidden": 32}, (3, 32, 32), 0.005, batch=3),
    "cuda_convnet 18pct": Taped("cuda_convnet", {"net": "18pct"}, (3, 16, 16), 0.005),
    "cuda_convnet 13pct": Taped("cuda_convnet", {"net": "13pct"}, (3, 12, 12), 0.005),
    "cuda_convnet 11pct": Taped("cuda_convnet", {"net": "11pct"}, (3, 12, 12), 0.005),
    "resnet_small": Taped("resnet_small", {}, (3, 12, 12), 0.02),
    "resnet_small by Adam": Taped("resnet_small", {}, (3, 12, 12), 1e-3, adam=True),
}


@pytest.mark.parametrize("name", TAPED)
def test_fifty_steps_on_the_tape_equal_pytorchs(name: str) -> None:
    """Equal first weights and batches, weight decay, momentum or Adam; then equal outputs in evaluation.

    In float64: in float32 rounding moves a ReLU or a maximum across its kink now and then, and losses of a network
    with batch normalisation then part by a thousandth within thirty steps, whoever computes them.
    """
    case = TAPED[name]
    model = build(case.model, case.options, Rng(4), case.shape, 10)
    convert(model, np.float64)
    peer = peer_of(model)
    ours, theirs = _optimisers(case, model, peer)
    for step in range(50):
        x, labels = normal((case.batch, *case.shape), np.float64, seed=step % 5), (np.arange(case.batch) + step) % 10
        ours.zero_grad()
        theirs.zero_grad()
        loss = ops.cross_entropy(model(Tensor(x), Rng(step)), labels)
        other = F.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(labels))
        loss.backward()
        other.backward()
        ours.step(case.rate)
        theirs.step()
        assert loss.item() == pytest.approx(other.item(), rel=1e-7), f"step {step}"
    peer.eval()
    x = normal((case.batch, *case.shape), np.float64, seed=9)
    np.testing.assert_allclose(model(Tensor(x)).data, peer(torch.from_numpy(x)).detach().numpy(), rtol=1e-6, atol=1e-6)


def _optimisers(case: Taped, model: Sequential, peer: Any) -> tuple[Optimiser, Any]:
    """Ours and theirs, alike."""
    parameters, others = model.parameters(), peer.parameters()
    if case.adam:
        ours = Adam(parameters, 0.9, 0.99, 1e-4, weight_decay=5e-4, decay_biases=True)
        return ours, torch.optim.Adam(others, case.rate, (0.9, 0.99), 1e-4, weight_decay=5e-4)
    theirs = torch.optim.SGD(others, case.rate, 0.9, weight_decay=5e-4)
    return SGD(parameters, 0.9, weight_decay=5e-4, decay_biases=True), theirs


def test_rates_and_decays_of_layers_and_biases_equal_pytorchs_parameter_groups() -> None:
    model = build("lenet5", {}, Rng(4), (1, 12, 12))
    convert(model, np.float64)
    peer = peer_of(model)
    first, *_ = layers = list(dict.fromkeys(name.rpartition(".")[0] for name in model.parameters()))
    own = {first: {"rate": 0.5, "weight_decay": 0.03}, layers[-1]: {"bias_rate": 3.0, "weight_decay": 0.1}}
    wanted = Wanted.model_validate(
        {"rate": 0.05, "weight_decay": 0.004, "bias_rate": 2.0, "bias_decay": 0.01, "layers": own}
    )
    paces = paces_of(wanted, model.parameters())
    groups = grouped(dict(zip(model.parameters(), peer.parameters(), strict=True)), paces)
    ours = SGD(model.parameters(), 0.9, paces=paces)
    theirs = torch.optim.SGD([{**group, "lr": 0.05 * group.pop("pace")} for group in groups], 0.05, 0.9)
    for step in range(10):
        x, labels = normal((8, 1, 12, 12), np.float64, seed=step), (np.arange(8) + step) % 10
        ours.zero_grad()
        theirs.zero_grad()
        ops.cross_entropy(model(Tensor(x), Rng(step)), labels).backward()
        F.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
        ours.step(0.05)
        theirs.step()
    for mine, other in zip(model.parameters().values(), peer.parameters(), strict=True):
        np.testing.assert_allclose(mine.data, other.detach().numpy(), rtol=1e-9, atol=1e-10)
