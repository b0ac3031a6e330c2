"""Scoring: whatever an agent's code hands over as predictions, it is scored or refused, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import scoring
from orchestrator.scoring import NotScorable, load_predictions, score

COUNT = 20
GOOD = np.arange(COUNT) % 10


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def headed(header: str, body: bytes = b"", version: int = 1) -> bytes:
    """An .npy file with any header."""
    padded = header.encode() + b"\n"
    size = len(padded).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + padded + body


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, GOOD)
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(1 << 24))
    return buffer.getvalue()


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "text": b"0 1 2 3",
    "pickle": pickle.dumps(Evil()),
    "pickled array": npy(np.array([Evil()] * COUNT, dtype=object), allow_pickle=True),
    "npz": npz(),
    "npz bomb": bomb(),
    "broken zip": b"PK\x03\x04" + bytes(40),
    "too few": npy(GOOD[:-1]),
    "too many": npy(np.tile(GOOD, 2)),
    "matrix": npy(GOOD.reshape(COUNT, 1)),
    "scalar": npy(np.int64(3)),
    "floats": npy(GOOD.astype(np.float64)),
    "nan": npy(np.full(COUNT, np.nan)),
    "bools": npy(GOOD > 3),
    "text array": npy(GOOD.astype(str)),
    "complex": npy(GOOD.astype(complex)),
    "dates": npy(GOOD.astype("datetime64[s]")),
    "records": npy(GOOD.astype([("a", "i8")])),
    "negative": npy(GOOD - 1),
    "too large a class": npy(GOOD + 1),
    "wraps to a class": npy(np.full(COUNT, 2**64 - 1, np.uint64)),
    "truncated": npy(GOOD)[:-1],
    "truncated header": npy(GOOD)[:20],
    "huge shape": headed(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({10**15},), }}"),
    "huger shape": headed(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({10**40},), }}"),
    "negative shape": headed("{'descr': '<i8', 'fortran_order': False, 'shape': (-20,), }", bytes(160)),
    "huge header": headed("{'descr': '<i8', 'fortran_order': False, 'shape': (20,), }" + " " * 60000, bytes(160)),
    "nested header": headed("(" * 5000),
    "code as header": headed("__import__('os').mkdir('ran')"),
    "half a string": headed("{'descr': '<i8"),
    "python 2 header": headed("{'descr': '<i8', 'fortran_order': False, 'shape': (20L, "),
    "indented header": headed("  {\n 'a'\n  }\n\t'"),
    "unknown version": b"\x93NUMPY\x09\x00" + bytes(60),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_list_of_classes_is_not_scorable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.npy").write_bytes(HOSTILE[name])
    with pytest.raises(NotScorable, match=r"^p\.npy "):
        load_predictions(tmp_path / "p.npy", COUNT, 10)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_regular_file_is_not_scorable(tmp_path: Path) -> None:
    (tmp_path / "real.npy").write_bytes(npy(GOOD))
    (tmp_path / "link.npy").symlink_to("real.npy")
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    with (tmp_path / "large.npy").open("wb") as file:
        file.truncate(scoring.MAX_BYTES + 1)
    for name in ("link", "folder", "pipe", "none", "large"):
        with pytest.raises(NotScorable):
            load_predictions(tmp_path / f"{name}.npy", COUNT, 10)


@settings(max_examples=2000, deadline=None)
@given(st.integers(0, 199), st.binary(min_size=1, max_size=4), st.integers(0, 250))
def test_a_file_with_bytes_changed_or_cut_is_scored_or_refused(at: int, planted: bytes, cut: int) -> None:
    path = Path(tempfile.gettempdir()) / f"odyssey-scoring-{os.getpid()}.npy"
    whole = npy(GOOD)
    path.write_bytes((whole[:at] + planted + whole[at + len(planted) :])[: cut if cut < 200 else None])
    try:
        found = load_predictions(path, COUNT, 10)
        assert found.dtype == np.int64
        assert found.shape == (COUNT,)
        assert set(found) <= set(range(10))
    except NotScorable:
        pass
    finally:
        path.unlink()


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<i8", "u8"])
def test_integers_of_any_size_and_order_are_read(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "p.npy").write_bytes(npy(GOOD.astype(dtype)))
    assert load_predictions(tmp_path / "p.npy", COUNT, 10).tolist() == GOOD.tolist()


def planted_errors(folder: Path) -> tuple[Path, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Three of 10 published images and one of 10 made ones predicted wrongly."""
    made = np.arange(COUNT) % 2 == 1
    predictions = GOOD.copy()
    for wrong in (0, 2, 4, 7):
        predictions[wrong] = (GOOD[wrong] + 1) % 10
    path = folder / "p.npy"
    path.write_bytes(npy(predictions))
    return path, GOOD.astype(np.uint8), made


def test_errors_are_counted_apart_on_published_and_on_made_images(tmp_path: Path) -> None:
    found = score(*planted_errors(tmp_path))
    assert (found["test_error_pct"], found["gate_split_error_pct"]) == (30.0, 10.0)
    assert found["count"] == 10
    assert len(found["sha256"]) == 64


def run_script(folder: Path, predictions: Path) -> subprocess.CompletedProcess[str]:
    _, answers, made = planted_errors(folder)
    np.save(folder / "answers.npy", answers)
    np.save(folder / "made.npy", made)
    argv = [sys.executable, "-I", scoring.__file__, "--predictions", predictions, "--nonce", "n0nce"]
    argv += ["--answers", folder / "answers.npy", "--made", folder / "made.npy"]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


def test_as_a_script_it_answers_with_the_nonce_and_imports_nothing_from_where_it_stands(tmp_path: Path) -> None:
    path, *_ = planted_errors(tmp_path)
    for name in ("numpy", "json", "orchestrator", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    done = run_script(tmp_path, path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["nonce"], found["test_error_pct"], found["gate_split_error_pct"]) == ("n0nce", 30.0, 10.0)


def test_as_a_script_it_says_why_it_cannot_score(tmp_path: Path) -> None:
    (tmp_path / "evil.npy").write_bytes(HOSTILE["pickled array"])
    done = run_script(tmp_path, tmp_path / "evil.npy")
    assert done.returncode == 0
    assert json.loads(done.stdout)["error"].startswith("evil.npy is not a plain .npy file: ")
    assert not (tmp_path / "ran").exists()


def test_it_loads_only_the_standard_library_and_numpy() -> None:
    root = str(Path(scoring.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {root!r}); import orchestrator.scoring; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = {name.split(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert "numpy" in foreign
    ours = [name for name in done.stdout.split() if name.startswith(("orchestrator.", "mlcore"))]
    assert ours == ["orchestrator.scoring"]
    assert not foreign & {"pydantic", "yaml", "git", "nacl"}


# Five guesses, snapshots of training, weights


def test_an_image_is_right_if_any_of_its_five_guesses_is(tmp_path: Path) -> None:
    made = np.arange(COUNT) % 2 == 1
    guesses = (GOOD[:, None] + np.arange(5)) % 10
    guesses[:4] = (GOOD[:4, None] + np.arange(1, 6)) % 10
    (tmp_path / "five.npy").write_bytes(npy(guesses))
    found = scoring.score_top5(tmp_path / "five.npy", GOOD.astype(np.uint8), made)
    assert found == {"test_top5_error_pct": 20.0, "gate_split_top5_error_pct": 20.0}


@pytest.mark.parametrize("guesses", [np.zeros((COUNT, 5), int), np.zeros((COUNT, 4), int), np.zeros(COUNT, int)])
def test_guesses_that_repeat_or_are_not_five_are_not_scorable(tmp_path: Path, guesses: Any) -> None:
    (tmp_path / "five.npy").write_bytes(npy(guesses))
    with pytest.raises(NotScorable, match=r"five\.npy (repeats a guess|must hold 20 x 5 integers)"):
        scoring.score_top5(tmp_path / "five.npy", GOOD.astype(np.uint8), GOOD > 4)


def test_snapshots_are_scored_by_the_true_labels_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for epoch, wrong in ((1, 10), (12, 5)):
        predictions = GOOD.copy()
        predictions[:wrong] = (predictions[:wrong] + 1) % 10
        (tmp_path / f"train_predictions_{epoch:03}.npy").write_bytes(npy(predictions))
    (tmp_path / "train_predictions_x.npy").write_bytes(b"not looked at")
    found = dict(scoring.score_snapshots(tmp_path, GOOD))
    assert found == {"train_error_pct_001": 50.0, "train_error_pct_012": 25.0}


def test_copied_labels_are_told_from_learnt_ones_by_the_planted_wrong_ones(tmp_path: Path) -> None:
    planted = np.arange(COUNT) < 4
    given = np.where(planted, (GOOD + 1) % 10, GOOD)
    (tmp_path / "train_predictions_001.npy").write_bytes(npy(GOOD))
    assert scoring.copied_pct(tmp_path, given, planted) == 0.0
    (tmp_path / "train_predictions_002.npy").write_bytes(npy(given))
    assert scoring.copied_pct(tmp_path, given, planted) == 100.0


def weights(folder: Path, header: Any, body: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))
    return path


def array(*shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]}


def test_parameters_are_weights_and_biases_and_nothing_that_a_checkpoint_keeps_besides(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"a": "b"},
        "model/conv1.weight": array(2, 3, 5, 5),
        "model/conv1.bias": array(2),
        "model/norm1.running_mean": array(7),
        "optimiser/conv1.weight": array(2, 3, 5, 5),
        "optimiser/mean/conv1.bias": array(2),
        "steps": array(1, dtype="I64"),
    }
    assert scoring.count_parameters(weights(tmp_path, header, 4 * (150 + 2 + 7 + 150 + 2) + 8)) == 152


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ({"a.weight": array(3)}, 8, "holds 8 bytes of arrays, its header says 12"),
        ({"a.weight": array(10**9, 10**9)}, 12, "holds 12 bytes"),
        ({"a.weight": array(-3)}, 12, "has no such shape"),
        ({"a.weight": array(3, dtype="F128")}, 12, "is not an array"),
        ({"a.weight": 3}, 12, "is not an array"),
        ([], 0, "is not a safetensors file"),
        (b"{" * 20, 0, "is not a safetensors file"),
        (b"[" * 100_000, 0, "is not a safetensors file"),
        (b"", 0, "is not a safetensors file"),
    ],
)
def test_weights_that_their_header_does_not_account_for_are_not_counted(
    tmp_path: Path, header: Any, body: int, words: str
) -> None:
    with pytest.raises(NotScorable, match=words):
        scoring.count_parameters(weights(tmp_path, header, body))
