"""The tests can fail: a planted error (a sign, an index, a scale, a bound, a term) is caught by the test named for it.

Each row is applied to a copy of the package, in which the named tests run in a process with a compile cache of its own.
"python" rows run as plain Python and take seconds, some of them in every run of the tests; "compiled" rows have to be
compiled: `pytest -m slow tests/mlcore/test_mutations.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mlcore.helpers import ROOT, needs_compiler

CONV = "test_kernels.py::test_convolution_equals_its_slow_twin"
LINEAR = "test_kernels.py::test_linear_equals_its_slow_twin"
POOL = "test_kernels.py::test_pooling_equals_its_slow_twin"
ELEMENT = "test_kernels.py::test_elementwise_equals_its_slow_twin"
SGD = "test_kernels.py::test_sgd_equals_its_slow_twin"
NORM = "test_kernels.py::test_local_response_normalisation_equals_its_slow_twin"
LOSS = "test_kernels.py::test_cross_entropy_equals_its_slow_twin"
CROP_TABLE = "test_data_windows.py::test_cutting_by_a_table_equals_its_slow_twin_to_the_bit"
CROP_MEAN = "test_data_windows.py::test_cutting_less_the_mean_equals_its_slow_twin_to_the_bit"
DROPOUT = "test_planned_kernels.py::test_dropout_drops_its_share_the_same_in_any_order"
PLANNED_CONV = "test_planned_kernels.py::test_a_planned_convolution_equals_its_slow_twin"
PLANNED_LINEAR = "test_planned_kernels.py::test_a_planned_linear_layer_equals_its_slow_twin"
PACKED = "test_planned_kernels.py::test_weights_are_packed_in_the_order_of_the_inputs_and_padding_stays"
PLANNED_MAX = "test_planned_kernels.py::test_planned_max_pooling_with_normalisation_equals_its_slow_twins"
WHOLE_MAX = "test_planned_kernels.py::test_planned_max_pooling_of_whole_vectors_equals_its_slow_twin"
WHOLE_AVG = "test_planned_kernels.py::test_planned_average_pooling_of_whole_vectors_equals_its_slow_twin"
PLANNED_AVG = "test_planned_kernels.py::test_planned_average_pooling_equals_its_slow_twin"
PLANNED_LOCAL = "test_planned_kernels.py::test_a_planned_locally_connected_layer_equals_its_slow_twin"
WINOGRAD = "test_winograd.py::test_winograds_convolution_equals_its_slow_twin"
WINOGRAD_BF16 = "test_winograd.py::test_in_bf16_it_is_within_a_hundredth_of_its_slow_twin"


@dataclass(frozen=True)
class Mutant:
    """In `file` of mlcore/kernels, `old` becomes `new`; `caught_by` must fail."""

    file: str
    old: str
    new: str
    caught_by: str


PYTHON = (
    Mutant("loss.py", "(softmax_NK[n, k] - target) * factor", "(softmax_NK[n, k] - target)", LOSS),
    Mutant("loss.py", "(logits_NK[n, labels_N[n]] - largest)", "logits_NK[n, labels_N[n]]", LOSS),
    Mutant("pool.py", "first = window * stride - padding", "first = window * stride", POOL),
    Mutant("pool.py", "lower[2 * q + 1], width + 1)", "lower[2 * q + 1], width)", POOL),
    Mutant("pool.py", "(value > best) |", "(value >= best) |", POOL),
    Mutant("gemm.py", "sums[DOTS * i + j] + bias_O[o + j]", "sums[DOTS * i + j] - bias_O[o + j]", LINEAR),
    Mutant("gemm.py", "sums[j] += matrix[i, j]", "sums[j] = matrix[i, j]", LINEAR),
    Mutant("norm.py", "damped[i] -= twice", "damped[i] += twice", NORM),
    Mutant("norm.py", "range(-half, half + 1)", "range(-half, half)", NORM),
    Mutant("elementwise.py", "(one - out[i] * out[i])", "(one + out[i] * out[i])", ELEMENT),
    Mutant("elementwise.py", "(own * slope + ahead * speed)", "(own * slope + speed)", SGD),
    Mutant("elementwise.py", "speed = momentum * velocity[i] + slope", "speed = momentum * velocity[i] - slope", SGD),
    Mutant("crop.py", "[columns - 1 - q] = table[c, source[q]]", "[q] = table[c, source[q]]", CROP_TABLE),
    Mutant("crop.py", "less = mean[c, top + p, left :", "less = mean[c, top + p, 0 :", CROP_MEAN),
)
COMPILED = (
    Mutant("conv.py", "bias += sum_row(", "bias = sum_row(", CONV),
    Mutant("conv.py", "images = min(CHUNK, x_NCHW", "images = min(CHUNK - 1, x_NCHW", CONV),
    Mutant("conv.py", "channel = g * per_out + tile * ROWS + o", "channel = tile * ROWS + o", CONV),
    Mutant("elementwise.py", "kind(1 / (1 - probability))", "kind(1)", DROPOUT),
    Mutant("plane_local.py", "c + row * out_image, out_image", "c + row * image, image", PLANNED_LOCAL),
    Mutant("plane_local.py", "(side * side - 1 - step) * channels", "step * channels", PLANNED_LOCAL),
    Mutant("plane_local.py", "pixel % width + step % side + padding", "pixel % width + step % side", PLANNED_LOCAL),
    Mutant("plane_local.py", "windows.first + y + k, windows", "windows.first + y, windows", PLANNED_LOCAL),
    Mutant("plane_local.py", "sums[v] += row[v]", "sums[v] = row[v]", PLANNED_LOCAL),
    Mutant("planes.py", "a += rows * walk.stride * pixel", "a += rows * pixel", PLANNED_CONV),
    Mutant("plane_weights.py", "at += grid.step * grad.shape[2]", "at += grad.shape[2]", PLANNED_CONV),
    Mutant("plane_weights.py", "c += run * out_row", "c += out_row", PLANNED_CONV),
    Mutant("plane_weights.py", "1 if start > first or y > 0 else 0", "1 if start > first else 0", PLANNED_CONV),
    Mutant("planes.py", "widen(shown[v]) <= 0", "widen(shown[v]) < 0", PLANNED_CONV),
    Mutant("planes.py", "(kernel_w - 1 - s) * channels", "s * channels", PLANNED_CONV),
    Mutant(
        "planes.py",
        "row[grid.border + x * grid.step, c % per_group] =",
        "row[x * grid.step, c % per_group] =",
        PLANNED_CONV,
    ),
    Mutant("panels.py", "(slope[i] + decay * weight[i])", "(slope[i] - decay * weight[i])", PLANNED_LINEAR),
    Mutant("panels.py", "weight[i] -= rate * speed", "weight[i] += rate * speed", PLANNED_LINEAR),
    Mutant("panels.py", "n % wide, o & last] = value", "0, o & last] = value", PLANNED_LINEAR),
    Mutant("panels.py", "1 if first > 0 else 0, floor if at_end", "0, floor if at_end", PLANNED_LINEAR),
    Mutant("panels.py", "1 if first > 0 else 0, np.float32(-np.inf)", "0, np.float32(-np.inf)", PLANNED_LINEAR),
    Mutant("panels.py", "panel[place[first + k], v]", "panel[first + k, v]", PACKED),
    Mutant(
        "lane_pool.py", "spread(np.float32(i * size + j)), which)", "spread(np.float32(i * size)), which)", WHOLE_MAX
    ),
    Mutant("plane_pool.py", "max(0, -top), min(size, height - top)", "max(0, -top), size", PLANNED_MAX),
    Mutant("plane_pool.py", "ring[ready % size, w]", "ring[min(ready, size - 1), w]", PLANNED_MAX),
    Mutant("lane_pool.py", "value = load_at(row + j * pixel)", "value = load_at(row + start * pixel)", PLANNED_MAX),
    Mutant("plane_pool.py", "(h + padding) // stride + 1)", "(h + padding) // stride)", PLANNED_MAX),
    Mutant("plane_pool.py", "there[c] += share * widen(slope[c])", "there[c] += widen(slope[c])", PLANNED_AVG),
    Mutant("response.py", "2 * response.alpha * response.beta", "response.alpha * response.beta", PLANNED_MAX),
    Mutant("response.py", "(c[i] + d[i]) + e[i]", "(c[i] + d[i])", PLANNED_MAX),
    Mutant("tile_text.py", "fcmp ogt {self.vector} %floors", "fcmp olt {self.vector} %floors", PLANNED_CONV),
    Mutant(
        "tile_text.py", "%skip{i} = mul i64 %a_row, {i}", "%skip{i} = mul i64 %a_row, {max(i - 1, 0)}", PLANNED_CONV
    ),
    Mutant("tile_text.py", 'f"i64 {j * self.lanes + lane}"', 'f"i64 {lane}"', PLANNED_CONV),
    Mutant("tile_text.py", "add i64 %from, %a_outer", "add i64 %from, %a_inner", PLANNED_CONV),
    Mutant("plane_windows.py", '"last": min(size, grid.height - top)', '"last": size', WHOLE_MAX),
    Mutant("plane_windows.py", "row * pooled_grid.width * channels", "row * pooled_grid.width", WHOLE_MAX),
    Mutant("plane_windows.py", "(border + row) * width + border", "(border + row) * width", WHOLE_AVG),
    Mutant("plane_windows.py", "grid.border + grid.width) * channels):", "grid.width) * channels):", WHOLE_AVG),
    Mutant("transform.py", "fadd {self.vector} {value}, %start", "fsub {self.vector} {value}, %start", WINOGRAD),
    Mutant(
        "winograd.py",
        "row % cut.down * cut.outputs\n        corner = ((n",
        "row * cut.outputs\n        corner = ((n",
        WINOGRAD,
    ),
    Mutant("winograd.py", "there[o] += more[o]", "there[o] = more[o]", WINOGRAD),
    Mutant("winograd.py", "halves[2 * row + 1], words[row]", "halves[2 * row], words[row]", WINOGRAD_BF16),
    Mutant("winograd.py", "c = word * per_word + half", "c = word + half", WINOGRAD_BF16),
    Mutant("transform.py", "%c, {self.read.bytes}", "%c, {self.written.bytes}", WINOGRAD_BF16),
    Mutant("number_text.py", "splat (i32 32767)", "splat (i32 -32768)", WINOGRAD_BF16),
)
CHEAP = (PYTHON[1], PYTHON[3], PYTHON[6], PYTHON[8], PYTHON[11])  # in every run: one of each kind

DIED = (-signal.SIGABRT, -signal.SIGSEGV)  # what writes beyond its arrays may end the process

SETTINGS = """
from hypothesis import Phase, settings
settings.register_profile("once", phases=[Phase.explicit, Phase.generate])
settings.load_profile("once")  # a failure is all that is wanted, not the smallest
"""


def _name(mutant: Mutant) -> str:
    return f"{mutant.file}: {mutant.new}"


@pytest.mark.parametrize("mutant", CHEAP, ids=_name)
def test_a_planted_error_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    _assert_caught(mutant, tmp_path, compiled=False)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [row for row in PYTHON if row not in CHEAP], ids=_name)
def test_every_planted_error_is_caught_in_python(mutant: Mutant, tmp_path: Path) -> None:
    _assert_caught(mutant, tmp_path, compiled=False)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("mutant", COMPILED, ids=_name)
def test_every_planted_error_is_caught_in_compiled_code(mutant: Mutant, tmp_path: Path) -> None:
    _assert_caught(mutant, tmp_path, compiled=True)


@pytest.mark.parametrize("rows", [CHEAP, pytest.param(PYTHON, marks=pytest.mark.slow)], ids=["cheap", "all"])
def test_the_copy_passes_without_an_error_planted(rows: tuple[Mutant, ...], tmp_path: Path) -> None:
    _copy(tmp_path)
    code, said = _run(tmp_path, sorted({row.caught_by for row in rows}), compiled=False)
    assert code == 0, said


@pytest.mark.slow
@needs_compiler
def test_the_compiled_copy_passes_without_an_error_planted(tmp_path: Path) -> None:
    _copy(tmp_path)
    code, said = _run(tmp_path, sorted({row.caught_by for row in COMPILED}), compiled=True)
    assert code == 0, said


def test_every_row_says_what_it_changes_without_doubt() -> None:
    for row in (*PYTHON, *COMPILED):
        text = (ROOT / "mlcore" / "kernels" / row.file).read_text()
        assert text.count(row.old) == 1, row
        assert row.old != row.new
        file, _, test = row.caught_by.partition("::")
        assert f"\ndef {test}(" in (Path(__file__).parent / file).read_text(), row


def _assert_caught(mutant: Mutant, folder: Path, compiled: bool) -> None:
    _copy(folder)
    path = folder / "mlcore" / "kernels" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, "the text to change stands there once"
    path.write_text(text.replace(mutant.old, mutant.new))
    code, said = _run(folder, [mutant.caught_by], compiled)
    if code not in DIED:
        assert code == 1, f"survived, or could not be run:\n{said}"
        assert f"FAILED tests/mlcore/{mutant.caught_by}" in said


def _copy(folder: Path) -> None:
    """The package and its tests, with nothing compiled."""
    for name in ("mlcore", "tests/mlcore"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests" / "__init__.py").touch()
    (folder / "conftest.py").write_text(SETTINGS)
    shutil.copy(ROOT / "pyproject.toml", folder)


def _run(folder: Path, tests: list[str], compiled: bool) -> tuple[int, str]:
    """Exit code (1: a test failed) and output of pytest in the copy."""
    mode = {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(folder), "NUMBA_OPT": "1"}
    mode |= {} if compiled else {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *(f"tests/mlcore/{t}" for t in tests)],
        cwd=folder, env={**os.environ, **mode}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout[-3000:] + done.stderr[-2000:]
