"""One thread or two: the same bits. And how kernels are compiled and kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numba
import numpy as np
import pytest

from mlcore import kernels
from mlcore.kernels import batch_norm, conv, elementwise, gemm, jit, local, pool
from mlcore.models import build
from mlcore.ops import cross_entropy
from mlcore.optim import SGD
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import Array, needs_compiler, normal, run_python

several_threads = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one thread")


def _trained(threads: int) -> dict[str, Array]:
    """LeNet-5's weights after three steps with this many threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        model = build("lenet5", {}, Rng(1))
        optimiser = SGD(model.parameters(), 0.9, 5e-4)
        for step in range(3):
            optimiser.zero_grad()
            loss = cross_entropy(model(Tensor(normal((21, 1, 28, 28), seed=step))), np.arange(21) % 10)
            loss.backward()
            optimiser.step(0.05)
        return {name: p.data for name, p in model.parameters().items()}
    finally:
        numba.set_num_threads(before)


@needs_compiler
@several_threads
def test_training_gives_the_same_bits_with_one_thread_and_two(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[str] = []
    alone = _trained(1)
    monkeypatch.setattr(jit, "WORTH_SHARING", 0)
    for module in (conv, gemm, pool, elementwise):
        for thing in vars(module).values():
            if isinstance(thing, jit.SharedKernel):
                monkeypatch.setattr(thing, "parallel", _noting(thing.parallel, shared))
    together = _trained(2)
    assert len(set(shared)) == 8  # convolution 3, linear 2, pooling 2, ReLU 1
    assert all((alone[name] == together[name]).all() for name in alone)


@needs_compiler
@several_threads
def test_batch_normalisation_local_connections_and_adam_give_the_same_bits_with_one_thread_and_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def results(threads: int) -> list[Array]:
        numba.set_num_threads(threads)
        x, grad, weight = normal((41, 5, 6, 7)), normal((41, 5, 6, 7), seed=1), normal((5,))
        mean, variance = batch_norm.moments(x)
        out = batch_norm.normalise(x, mean, variance, weight, weight)
        moved = [normal((50_000,), seed=s) ** 2 for s in range(4)]
        elementwise.adam_update(*moved, 3, 0.1, 0.9, 0.99, 1e-8, 0.01)
        places = normal((4, 5, 3, 5, 3, 3))
        near = local.local2d_forward(x, places, normal((3, 4, 5)), 1, 0)
        slopes = local.local2d_grad_input(near, places, x.shape, 1, 0)
        moved += [near, slopes, *local.local2d_grad_weight(near, x, places.shape, 1, 0)]
        return [mean, variance, out, *batch_norm.normalise_backward(grad, x, weight, mean, variance, True), *moved]

    before = numba.get_num_threads()
    try:
        alone = results(1)
        monkeypatch.setattr(jit, "WORTH_SHARING", 0)
        together = results(2)
    finally:
        numba.set_num_threads(before)
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


def _noting(dispatcher: object, seen: list[str]) -> object:
    def call(*arguments: object) -> object:
        seen.append(repr(dispatcher))
        return dispatcher(*arguments)  # type: ignore[operator]

    return call


@needs_compiler
@several_threads
def test_much_work_is_really_shared_also_when_it_comes_from_the_cache(tmp_path: Path) -> None:
    code = """
import numpy as np
from mlcore.kernels import jit, prepare
from tests.mlcore.turns import who_takes_each_turn
prepare(2)
for work in (0, jit.WORTH_SHARING):
    turns = np.zeros(64, np.int64)
    who_takes_each_turn(work, turns)
    print(len(set(turns.tolist())))
"""
    for _ in range(2):
        assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1", "2"]


def test_little_work_wakes_no_thread() -> None:
    shared = jit.SharedKernel(_nothing)
    shared.serial, shared.parallel = (lambda: "serial"), (lambda: "parallel")
    assert shared(jit.WORTH_SHARING - 1) == "serial"
    if numba.get_num_threads() > 1:
        assert shared(jit.WORTH_SHARING) == "parallel"


def _nothing() -> None:
    """A kernel that is never compiled."""


def test_prepare_sets_threads_within_what_there_is() -> None:
    code = """
import os
from mlcore.kernels import prepare
print(prepare(1), prepare(10_000), prepare(0), prepare())
print(os.environ["OMP_WAIT_POLICY"])
"""
    numbers, policy = run_python(code, NUMBA_NUM_THREADS="3", OMP_WAIT_POLICY="passive").splitlines()
    assert numbers == "1 3 1 3"
    assert policy == "passive"


def test_importing_the_package_loads_neither_numba_nor_kernels() -> None:
    code = "import sys, mlcore, mlcore.errors, mlcore.rng, mlcore.kernels; print('numba' in sys.modules)"
    assert run_python(code).strip() == "False"
    assert kernels.__doc__ is not None


@needs_compiler
def test_a_change_in_any_kernel_file_makes_all_compile_anew(tmp_path: Path) -> None:
    stamps = {kernel._cache._cache_file._source_stamp for kernel in (conv._forward.serial, gemm._product.serial)}
    kernels = jit.stamp(Path(jit.__file__).parent)
    assert stamps == {kernels}
    assert set(jit.stamp(tmp_path)) > set(kernels), "a kernel elsewhere depends on these files too"

    seen = []
    for change in ("", "# some words", "# same width"):
        folder = tmp_path / str(len(seen))
        shutil.copytree(Path(jit.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "simd.py").write_text((folder / "simd.py").read_text() + change)
        seen.append(jit._digest(folder))
    assert kernels == (seen[0],)
    assert len(set(seen)) == 3


@needs_compiler
def test_a_compiled_kernel_is_taken_from_the_cache_in_the_next_process(tmp_path: Path) -> None:
    code = """
from mlcore.kernels import loss
import numpy as np
loss.cross_entropy_forward(np.zeros((2, 3), np.float32), np.array([0, 1]))
print(sum(loss._forward.stats.cache_hits.values()), sum(loss._forward.stats.cache_misses.values()))
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0", "1"]
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1", "0"]
