"""Kernels compiled ahead of time, and kept for the next process only where nobody else can write."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mlcore import warm
from mlcore.kernels import ahead, jit, native
from mlcore.kernels.micro import tile_address
from tests.mlcore.helpers import Array, needs_compiler, run_python

MACHINE = native.this_machine()
TEXT = "define void @nothing() {\nret void\n}"

pytestmark = needs_compiler


@jit.SharedKernel
def _double(values: Array) -> None:
    for i in range(values.size):
        values[i] *= 2


@pytest.fixture
def shelf(tmp_path: Path) -> native.Shelf:
    found = native.Shelf.of(tmp_path)
    assert found is not None
    return found


def test_work_is_noted_once_per_kernel_and_types_and_not_done() -> None:
    single, twofold = np.ones(3, np.float32), np.ones(3)

    def work() -> None:
        for values in (single, twofold, single):
            _double(0, values)

    jobs = ahead.jobs_of(work)
    assert [job.name for job in jobs] == ["test_warm.double"] * 2
    assert {str(job.signature[0].dtype) for job in jobs} == {"float32", "float64"}
    assert single.tolist() == twofold.tolist() == [1, 1, 1]
    _double(0, single)
    assert single.tolist() == [2, 2, 2]


def test_two_processes_share_the_jobs_and_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    code = """
import numpy as np
from mlcore.kernels import ahead, elementwise, jit, pool
def work():
    for kind in (np.float32, np.float64):
        x = np.ones((1, 1, 4, 4), kind)
        elementwise.relu_forward(x)
        pool.avg_pool2d_forward(x, 2, 2, 0)
jobs, told = ahead.jobs_of(work), []
ahead.compile_all(jobs, lambda number, job: told.append(number), share=True)
misses = sum(sum(job.dispatcher.stats.cache_misses.values()) for job in jobs[::2])
print(told == list(range(4)), all(job.signature in job.dispatcher.overloads for job in jobs), misses)
"""
    first, second = (run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() for _ in range(2))
    assert first[:2] == second[:2] == ["True", "True"]
    assert second[2] == "0"


def test_compiled_code_is_found_by_what_the_files_say_and_not_by_their_times(tmp_path: Path) -> None:
    (tmp_path / "doubled.py").write_text(
        "from mlcore.kernels import jit\nfrom beside import FACTOR\n"
        "@jit.kernel\ndef doubled(value):\n    return value * FACTOR\n"
    )
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    look = "from doubled import doubled; print(doubled(2), sum(doubled.stats.cache_hits.values()))"
    seen = []
    for factor, at in ((2, 1), (2, 2), (3, 2)):
        (tmp_path / "beside.py").write_text(f"FACTOR = {factor}\n")
        for file in tmp_path.glob("*.py"):
            os.utime(file, (at, at))
        seen.append(run_python(look, PYTHONPATH=str(tmp_path), **kept))
    assert seen == ["4 0\n", "4 1\n", "6 0\n"]


def test_a_child_that_dies_costs_nothing_but_its_help() -> None:
    class Deadly:
        def compile(self, signature: object) -> None:
            done.append(os.getpid())
            if os.getpid() != parent:
                os._exit(1)

    parent, done = os.getpid(), list[int]()
    jobs = [ahead.Job(str(number), Deadly(), ()) for number in range(4)]
    ahead.compile_all(jobs, lambda number, job: None, share=True)
    assert done == [parent] * 4


def test_machine_code_is_kept_whole_for_the_next_process(tmp_path: Path) -> None:
    code = """
from mlcore.kernels import micro, native
import mlcore.kernels.native as n
made, machine_code = [], n._machine_code
n._machine_code = lambda *a: made.append(1) or machine_code(*a)
assert micro.tile_address(3, 1, native.this_machine()) > 0
print(len(made))
"""
    runs = [run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    (kept,) = tmp_path.glob("*/native/*")
    for damage in (kept.read_bytes()[:-1], b"", kept.read_bytes()[::-1]):
        kept.write_bytes(damage)
        runs.append(run_python(code, NUMBA_CACHE_DIR=str(tmp_path)))
        runs.append(run_python(code, NUMBA_CACHE_DIR=str(tmp_path)))
    assert [int(made) for made in runs] == [1, 0, 1, 0, 1, 0, 1, 0]


def test_another_way_to_compile_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = native._key(TEXT, native.AVX2)
    monkeypatch.setattr(native, "OPT_LEVEL", 2)
    assert native._key(TEXT, native.AVX2) != before


def test_a_mark_depends_on_the_networks_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def stamp(folder: Path) -> tuple[str, ...]:
        seen.append(folder.resolve().name)
        return ()

    monkeypatch.setattr(jit, "stamp", stamp)
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    warm._mark(warm.Wanted.of_model("lenet5", 8))
    assert set(seen) == {"mlcore", "planned", "lanes", "models", "layers"}


def test_other_text_or_another_processor_is_another_key() -> None:
    keys = {native._key(TEXT, machine) for machine in (native.AVX512, native.AVX2, native.PORTABLE)}
    assert len(keys | {native._key(TEXT + "\n", native.AVX2)}) == 4


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_not_used(shelf: native.Shelf, mode: int) -> None:
    shelf.keep("key", b"code")
    shelf.folder.chmod(mode)
    assert native.Shelf.of(shelf.folder.parent) is None


def test_a_folder_of_somebody_else_or_behind_a_link_is_not_used(
    shelf: native.Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "native").symlink_to(shelf.folder)
    assert native.Shelf.of(tmp_path / "linked") is None
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert native.Shelf.of(tmp_path) is None


def test_where_nothing_can_be_written_code_is_compiled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", None):
        monkeypatch.setattr(native, "cache_folder", lambda place=place: place)
        assert tile_address.__wrapped__(2, 1, MACHINE) > 0


def test_the_start_after_warming_looks_at_no_kernel_and_compiles_none(tmp_path: Path) -> None:
    code = """
from mlcore.kernels import ahead, prepare
from mlcore.warm import Wanted, _train_and_evaluate, warm
prepare(1)
wanted, told = Wanted("mnist_cnn", {}, (1, 10, 10), 10, 2), []
print(warm(wanted, told.append).kernels == len(told), len(told) > 0)
jobs = ahead.jobs_of(lambda: _train_and_evaluate(wanted))
for job in jobs:
    job.do()
print(len(jobs) > 0, sum(sum(job.dispatcher.stats.cache_misses.values()) for job in jobs) > 0)
"""
    how = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1"}
    assert run_python(code, **how).split() == ["True", "True", "True", "True"]
    assert run_python(code, **how).split() == ["True", "False", "True", "False"]
