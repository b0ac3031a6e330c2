"""What the engine's tests share: numbers by seed, tolerances, and a way to run Python in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from mlcore import ops
from mlcore.layers import Sequential
from mlcore.optim import SGD, Pace
from mlcore.rng import Rng
from mlcore.tensor import Tensor

Array = NDArray[Any]

ROOT = Path(__file__).parents[2]
RATE = 0.02  # of the steps that engines are compared by
DTYPES = (np.float32, np.float64)
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}

needs_compiler = pytest.mark.skipif(
    bool(getattr(numba.config, "DISABLE_JIT")),  # noqa: B009  numba makes its settings at import
    reason="minutes long, or about compiled code: NUMBA_DISABLE_JIT is set",
)

# Kernels compile on their first example: a deadline would measure the compiler.
odd_shapes = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def normal(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Array:
    """Normal numbers, the same for the same arguments."""
    return Rng(seed).child("test", *shape).generator().standard_normal(shape).astype(dtype)


def assert_close(got: Array, want: Array, what: str = "") -> None:
    """Same shape and dtype, and equal within the dtype's tolerance of the largest value."""
    assert got.shape == want.shape, f"{what}: {got.shape} instead of {want.shape}"
    assert got.dtype == want.dtype, f"{what}: {got.dtype} instead of {want.dtype}"
    size = max(1.0, float(np.abs(want).max()))
    error = float(np.abs(got - want).max()) / size
    assert error <= TOLERANCE[want.dtype], f"{what}: relative error {error:.2e}"


def tensor(data: Any, dtype: Any = np.float32) -> Tensor:
    """A leaf that wants a gradient."""
    return Tensor(np.asarray(data, dtype), requires_grad=True)


def run_python(code: str, **environment: str) -> str:
    """stdout of `code` in a fresh interpreter at the project's root; its stderr when it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def odd_paces(model: Sequential) -> dict[str, Pace]:
    """A rate and a decay of its own for every parameter."""
    return {name: Pace(1 + 0.25 * (i % 5), 0.01 * (i % 3)) for i, name in enumerate(model.parameters())}


def tape_step(
    model: Sequential, optimiser: SGD, x: Array, labels: Array, step: int, rate: float = RATE
) -> tuple[float, Array]:
    """Loss and logits of a step on the tape; dropout draws from the step's own stream."""
    optimiser.zero_grad()
    logits = model(Tensor(x), Rng(5).child("step", step))
    loss = ops.cross_entropy(logits, labels)
    loss.backward()
    optimiser.step(rate)
    return loss.item(), logits.data


def assert_near(got: Array, want: Array, what: str, tolerance: float) -> None:
    """Same shape, and equal within the tolerance as a share of the largest value."""
    assert got.shape == want.shape, what
    error = float(np.abs(got - want).max()) / (float(np.abs(want).max()) + 1e-12)
    assert error <= tolerance, f"{what}: relative error {error:.1e}"
