"""An independent implementation agrees: PyTorch, where it is installed (extra `peers`)."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest

from mlcore import ops
from mlcore.models import build
from mlcore.optim import SGD
from mlcore.peers import peer_of
from mlcore.planned.plan import Plan
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import assert_close, normal, tensor

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
def test_fifty_planned_steps_equal_pytorchs(name: str) -> None:
    """Equal first weights and batches; no dropout, whose masks differ. AlexNet on 67 pixels, hidden layers of 64.

    Rounding now and then moves a maximum to its neighbour, on either side: then losses agree to a thousandth only.
    """
    options, shape, classes, batch, rate, tolerance = PLANNED[name]
    model = build(name, options, Rng(4), shape, classes)
    peer = peer_of(model)
    optimiser = SGD(model.parameters(), 0.9, 5e-4, decay_biases=True)
    others = torch.optim.SGD(peer.parameters(), rate, 0.9, weight_decay=5e-4)
    plan = Plan(model, optimiser, batch, shape)
    for step in range(50):
        x, labels = normal((batch, *shape), seed=step % 5), (np.arange(batch) + step) % classes
        others.zero_grad()
        other = F.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(labels))
        other.backward()
        others.step()
        loss, _ = plan.step(x, labels, rate, Rng(step))
        assert loss == pytest.approx(other.item(), rel=tolerance), f"step {step}"


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
