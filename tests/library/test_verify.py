"""verify.py: malformed files give its one error, faulty data are seen, and the card is the same for everyone."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.library.helpers import complaint, idx_bytes, module, run, small_dataset

idx_file = module("verify-dataset", "idx_bytes")
verify = module("verify-dataset", "verify")
MUTANT = settings(max_examples=2000, deadline=None)


def card_of(data: Path, tmp_path: Path) -> tuple[int, dict[str, object], str]:
    done = run("verify-dataset", "--data", data, "--card", tmp_path / "card.json", cwd=tmp_path)
    return done.returncode, json.loads((tmp_path / "card.json").read_text()), done.stderr


@MUTANT
@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail))
def test_bytes_are_an_idx_array_or_a_data_problem(raw: bytes) -> None:
    said = complaint(idx_file.DataProblem, lambda: idx_file.parse_idx(raw, "file"))
    assert said is None or said.startswith("file: ")
    assert said is not None or idx_bytes(idx_file.parse_idx(raw, "file")) == raw


@MUTANT
@given(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)), st.integers(0, 10**6))
def test_an_idx_array_of_any_shape_is_read_back_and_one_byte_less_is_refused(
    shape: tuple[int, int, int], seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    raw = idx_bytes(array)
    assert np.array_equal(idx_file.parse_idx(raw, "file"), array)
    assert complaint(idx_file.DataProblem, lambda: idx_file.parse_idx(raw[:-1], "file")) is not None


def test_a_header_that_declares_gigabytes_is_refused_without_holding_them() -> None:
    raw = b"\0\0\x08\x03" + b"\xff\xff\xff\xff" * 3 + b"few"
    with pytest.raises(idx_file.DataProblem, match="holds 3"):
        idx_file.parse_idx(raw, "file")


def test_a_gzip_bomb_is_refused_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx_file, "MAX_RAW_BYTES", 10_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(20_000)))
    with pytest.raises(idx_file.DataProblem, match="unpacks to more"):
        idx_file.read_raw(tmp_path / "bomb.gz")


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 400), flip=st.integers(1, 255))
def test_a_damaged_gzip_file_is_a_data_problem_or_unpacks(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    packed = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)), mtime=0))
    packed[at % len(packed)] ^= flip
    path = tmp_path_factory.getbasetemp() / "damaged.gz"
    path.write_bytes(packed)
    said = complaint(idx_file.DataProblem, lambda: idx_file.read_raw(path))
    assert said is None or f"{path}: can't be read" in said


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda leaf: st.lists(leaf)
       | st.dictionaries(st.text(max_size=5), leaf), max_leaves=8))  # fmt: skip
def test_any_other_card_differs_and_itself_does_not(claimed: object) -> None:
    card = {"dataset": "mnist", "train": {"count": 3, "per_class": [1, 2]}, "problems": []}
    assert verify.compare(claimed, card, "") != [] or claimed == card
    assert verify.compare(card, json.loads(json.dumps(card)), "") == []


def test_true_is_not_one_on_a_card() -> None:
    assert verify.compare({"blank": [True]}, {"blank": [1]}, "") != []


def test_data_that_are_not_official_never_get_the_name_mnist(tmp_path: Path) -> None:
    code, card, said = card_of(small_dataset(tmp_path / "data" / "mnist").parent, tmp_path)
    assert (code, card["dataset"], card["official"]) == (0, "mnist-unverified", False)
    assert "NOT the official files" in said


def test_the_surrogate_is_called_the_surrogate_also_when_its_own_folder_is_named(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "data" / "mnist-surrogate")
    for data in (folder.parent, folder):
        assert card_of(data, tmp_path)[1]["dataset"] == "mnist-surrogate"


def test_the_real_folder_wins_over_the_surrogate(tmp_path: Path) -> None:
    small_dataset(tmp_path / "data" / "mnist-surrogate")
    small_dataset(tmp_path / "data" / "mnist")
    assert card_of(tmp_path / "data", tmp_path)[1]["dataset"] == "mnist-unverified"


def test_the_card_is_the_same_with_and_without_test_labels(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "mnist")
    _, before, _ = card_of(folder, tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    code, after, said = card_of(folder, tmp_path)
    assert (code, after) == (0, before)
    assert "test labels: withheld" in said


def test_checking_accepts_the_card_just_written_and_refuses_one_changed_digit(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "mnist")
    card_of(folder, tmp_path)
    path = tmp_path / "card.json"
    assert run("verify-dataset", "--data", folder, "--check", path, cwd=tmp_path).returncode == 0
    path.write_text(path.read_text().replace('"count": 40', '"count": 41'))
    done = run("verify-dataset", "--data", folder, "--check", path, cwd=tmp_path)
    assert done.returncode == 1
    assert "train.count claims 41, the files give 40" in done.stderr


def test_plain_files_give_the_card_of_their_gzipped_twins(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "mnist")
    _, packed, _ = card_of(folder, tmp_path)
    for path in folder.iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert card_of(folder, tmp_path)[1] == packed


BLANKED = np.where(np.arange(40)[:, None, None] % 32 < 24, 0, 200).astype(np.uint8) * np.ones((1, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("replaced", "problem"),
    [
        ({"train_images": BLANKED}, "32 of 40 images are blank"),
        ({"train_labels": np.arange(39, dtype=np.uint8) % 10}, "40 images but 39 labels"),
        ({"train_labels": np.arange(40, dtype=np.uint8) % 9}, "wanted every class"),
        ({"train_labels": np.arange(40, dtype=np.uint8) % 11}, "wanted every class"),
        ({"t10k_images": np.ones((10, 28, 28), np.uint8)}, "9 of 10 images repeat another"),
        ({"t10k_images": np.ones((10, 14, 14), np.uint8)}, "10 images of [14, 14]"),
    ],
)
def test_faulty_contents_are_named_on_the_card_and_fail(tmp_path: Path, replaced: object, problem: str) -> None:
    assert isinstance(replaced, dict)
    code, card, said = card_of(small_dataset(tmp_path / "mnist", **replaced), tmp_path)
    assert code == 1
    assert problem in said
    assert any(problem in each for each in card["problems"])  # type: ignore[attr-defined]


def test_images_shared_by_training_and_test_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, 28, 28), np.uint8)
    _, card, _ = card_of(small_dataset(tmp_path / "mnist", train_images=images, t10k_images=images[:6]), tmp_path)
    assert card["shared_train_test"] == 6


def test_missing_files_are_named_with_the_fix(tmp_path: Path) -> None:
    done = run("verify-dataset", cwd=tmp_path, env={"MLCORE_DATA": str(tmp_path)})
    assert done.returncode == 2
    assert "mlcore fetch" in done.stderr
    (small_dataset(tmp_path / "mnist") / "t10k-images-idx3-ubyte.gz").unlink()
    done = run("verify-dataset", cwd=tmp_path, env={"MLCORE_DATA": str(tmp_path)})
    assert done.returncode == 2
    assert "t10k-images-idx3-ubyte: missing" in done.stderr


def test_the_official_files_are_recognised_to_the_byte(tmp_path: Path) -> None:
    data = os.environ.get("MLCORE_DATA")
    if not data or not (Path(data) / "mnist").is_dir():
        pytest.skip("needs the real MNIST: set MLCORE_DATA to a folder that holds mnist/")
    done = run("verify-dataset", "--data", data, "--require-official", "--card", tmp_path / "c.json", cwd=tmp_path)
    card = json.loads((tmp_path / "c.json").read_text())
    assert done.returncode == 0, done.stderr
    assert (card["dataset"], card["problems"], card["shared_train_test"]) == ("mnist", [], 0)
    assert card["train"]["per_class"] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


# CIFAR-10


def cifar_batches(folder: Path, withheld: bool) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (10, 3073), np.uint8)
        records[:, 0] = 255 if withheld and name == "test_batch" else np.arange(10)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def test_cifars_card_is_the_same_with_and_without_test_labels_and_counts_what_is_there(tmp_path: Path) -> None:
    one, two = (cifar_batches(tmp_path / str(flag) / "cifar10", flag) for flag in (False, True))
    card, found = verify.card_of("cifar10", one.parent)
    assert found == one
    assert card == verify.card_of("cifar10", two)[0]
    assert (card["dataset"], card["official"], card["problems"]) == ("cifar10-unverified", False, [])
    assert (card["train"]["count"], card["test"]["shape"]) == (50, [3, 32, 32])
    assert card["train"]["per_class"] == [5] * 10


def test_a_cifar_batch_that_was_cut_is_refused(tmp_path: Path) -> None:
    folder = cifar_batches(tmp_path / "cifar10", True)
    (folder / "data_batch_3.bin").write_bytes(bytes(3072))
    with pytest.raises(idx_file.DataProblem, match="3072 bytes are not one or more records of 3073; fetch it again"):
        verify.card_of("cifar10", tmp_path)
