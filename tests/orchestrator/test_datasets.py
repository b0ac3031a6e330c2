"""Datasets: agents never see the test labels, nobody knows the gate's own images, controls hold nothing to learn."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import datasets, formats, scoring
from orchestrator.datasets import Dataset
from orchestrator.errors import InputError
from orchestrator.formats import FORMATS, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, Bytes, Split, read_idx

TRAIN, TEST = 40, 24


def images(count: int, seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(1, 256, (count, 8, 9), np.uint8)  # no black: a moved edge shows


def drawn(folder: Path, zipped: bool = True, seed: int = 0) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        TRAIN_IMAGES: images(TRAIN, seed),
        TRAIN_LABELS: (np.arange(TRAIN) * 3 % 10).astype(np.uint8),
        TEST_IMAGES: images(TEST, seed + 1),
        TEST_LABELS: (np.arange(TEST) % 10).astype(np.uint8),
    }
    for name, array in arrays.items():
        formats.write_idx(folder / name, array)
        if not zipped:
            (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress((folder / name).read_bytes()))
            (folder / name).unlink()
    hashes = {name: f"{name} {seed}" for name in FORMATS["mnist"].official}
    return Dataset("mnist", folder, hashes, official=False, surrogate=False)


def split(folder: Path, dataset: Dataset, seed: int) -> tuple[Bytes, Bytes, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """The gate's test images, its answers, and which of them it made."""
    datasets.gate_split(dataset, folder, seed)
    found = read_idx(folder / "data/mnist" / TEST_IMAGES, 3)
    return found, np.load(folder / "answers.npy"), np.load(folder / "made.npy")


def test_files_that_changed_while_a_run_was_interrupted_are_named(tmp_path: Path) -> None:
    """Else a verdict would be signed under the checksums of files that it was not measured on."""
    fresh = drawn(tmp_path / "mnist")
    known = dataclasses.replace(fresh, sha256=datasets._digests("mnist", fresh.folder, fresh.sha256))
    datasets.demand_same(known)
    drawn(tmp_path / "mnist", seed=5)
    with pytest.raises(InputError, match=rf"{TRAIN_IMAGES}.* changed since the run began; put the files back, or"):
        datasets.demand_same(known)


# What an agent sees


@pytest.mark.parametrize("zipped", [True, False])
def test_agents_get_everything_but_the_test_labels(tmp_path: Path, zipped: bool) -> None:
    dataset = drawn(tmp_path / "somewhere/mnist", zipped)
    assert datasets.withhold(dataset, tmp_path / "data") == tmp_path / "data"
    ending = "" if zipped else ".gz"
    names = sorted(name.removesuffix(ending) for name in (TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS))
    assert sorted(path.name for path in (tmp_path / "data/mnist").iterdir()) == names
    labels = read_idx(dataset.folder / TEST_LABELS, 1).tobytes()
    for name in names:
        raw = (tmp_path / "data/mnist" / name).read_bytes()
        assert raw == (dataset.folder / name).read_bytes()
        assert labels not in (gzip.decompress(raw) if zipped else raw)


def test_another_dataset_in_a_folder_of_the_same_name_replaces_the_copy(tmp_path: Path) -> None:
    datasets.withhold(drawn(tmp_path / "one/mnist"), tmp_path / "data")
    copy = tmp_path / "data/mnist" / TRAIN_IMAGES
    first, when = copy.read_bytes(), copy.stat().st_mtime_ns
    datasets.withhold(drawn(tmp_path / "one/mnist"), tmp_path / "data")
    assert copy.stat().st_mtime_ns == when  # the same files aren't copied again
    datasets.withhold(drawn(tmp_path / "two/mnist", zipped=False, seed=5), tmp_path / "data")
    assert not copy.exists()
    assert gzip.decompress(first) != copy.with_suffix("").read_bytes()


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    dataset = drawn(tmp_path / "one/mnist")
    (tmp_path / "data/mnist").mkdir(parents=True)
    (tmp_path / "data/mnist" / TRAIN_IMAGES).write_bytes(b"half")
    datasets.withhold(dataset, tmp_path / "data")
    assert len(read_idx(tmp_path / "data/mnist" / TRAIN_IMAGES, 3)) == TRAIN


# What the gate trains on


def test_the_gates_images_are_the_published_ones_and_as_many_moved_by_a_pixel(tmp_path: Path) -> None:
    dataset = drawn(tmp_path / "mnist")
    published = read_idx(dataset.folder / TEST_IMAGES, 3)
    found, answers, made = split(tmp_path / "share", dataset, 1)
    assert len(found) == len(answers) == len(made) == 2 * TEST
    assert made.sum() == TEST
    where = {image.tobytes(): index for index, image in enumerate(published)}
    assert sorted(where[image.tobytes()] for image in found[~made]) == list(range(TEST))
    assert all(answers[row] == where[found[row].tobytes()] % 10 for row in np.flatnonzero(~made))
    for row in np.flatnonzero(made):
        (source,) = [index for index, image in enumerate(published) if is_moved(image, found[row])]
        assert answers[row] == source % 10


def is_moved(image: Bytes, moved: Bytes) -> bool:
    """Whether `moved` is the image one pixel up, down, left or right, its edge repeated where it was uncovered."""
    height, width = image.shape
    framed = np.pad(image, 1, mode="edge")
    steps = [(0, 1), (2, 1), (1, 0), (1, 2)]
    return any((framed[y : y + height, x : x + width] == moved).all() for y, x in steps)


def test_answers_in_the_gates_order_score_as_perfect_and_in_the_files_order_as_chance(tmp_path: Path) -> None:
    _, answers, made = split(tmp_path / "share", drawn(tmp_path / "mnist"), 1)
    np.save(tmp_path / "p.npy", answers.astype(np.int64))
    found = scoring.score(tmp_path / "p.npy", answers, made)
    assert (found["test_error_pct"], found["gate_split_error_pct"]) == (0.0, 0.0)
    np.save(tmp_path / "p.npy", np.arange(2 * TEST) % 10)
    assert scoring.score(tmp_path / "p.npy", answers, made)["test_error_pct"] > 50


def test_the_same_seed_gives_the_same_files_and_another_one_others(tmp_path: Path) -> None:
    dataset = drawn(tmp_path / "mnist")
    first, second, third = (split(tmp_path / name, dataset, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert all((one == two).all() for one, two in zip(first, second, strict=True))
    assert not (first[0] == third[0]).all()
    assert not (first[2] == third[2]).all()
    one, two = ((tmp_path / name / "data/mnist" / TEST_IMAGES).read_bytes() for name in "ab")
    assert one == two


def test_no_test_label_lies_in_the_folder_that_the_sandbox_mounts(tmp_path: Path) -> None:
    split(tmp_path / "share", drawn(tmp_path / "mnist"), 1)
    names = sorted(path.name for path in (tmp_path / "share/data").rglob("*") if path.is_file())
    assert names == sorted([TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES])


@pytest.mark.parametrize("kind", ["shuffled labels", "noise images"])
def test_a_control_takes_away_what_could_be_learnt_and_nothing_else(tmp_path: Path, kind: datasets.Control) -> None:
    dataset = drawn(tmp_path / "mnist", zipped=False)
    datasets.control(dataset, tmp_path / "control", kind, 3)
    folder = tmp_path / "control/data/mnist"
    labels, pictures = read_idx(folder / TRAIN_LABELS, 1), read_idx(folder / TRAIN_IMAGES, 3)
    real_labels, real_pictures = read_idx(dataset.folder / TRAIN_LABELS, 1), read_idx(dataset.folder / TRAIN_IMAGES, 3)
    assert sorted(labels) == sorted(real_labels)
    assert pictures.shape == real_pictures.shape
    assert (labels == real_labels).all() == (kind == "noise images")
    assert (pictures == real_pictures).all() == (kind == "shuffled labels")
    assert sum(path.name.startswith("train-images") for path in folder.iterdir()) == 1
    assert len(np.load(tmp_path / "control/answers.npy")) == 2 * TEST
    assert (tmp_path / "control/complete").exists()


def test_fewer_labels_than_images_are_refused(tmp_path: Path) -> None:
    dataset = drawn(tmp_path / "mnist")
    formats.write_idx(dataset.folder / TEST_LABELS, np.zeros(TEST - 1, np.uint8))
    with pytest.raises(InputError, match=f"{TEST} test images but {TEST - 1} labels; fetch it again"):
        datasets.gate_split(dataset, tmp_path / "share", 1)


# CIFAR-10


def drawn_cifar(folder: Path, packed: str = "") -> Dataset:
    """Ten records a training batch and 20 in the test batch, in the layout that is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for number, name in enumerate((*formats.TRAIN_BATCHES, formats.TEST_BATCH)):
        labels = (np.arange(20 if name == formats.TEST_BATCH else 10) + number) % 10
        pictures = rng.integers(1, 256, (len(labels), *formats.CIFAR_SHAPE), np.uint8)
        path = folder / f"{name}.bin"
        formats.write_batch(path, Split(pictures, labels.astype(np.uint8)))
        if packed:
            (folder / f"{name}.bin{packed}").write_bytes(PACKERS[packed](path.read_bytes()))
            path.unlink()
    return Dataset("cifar10", folder, {"any": "thing"}, official=False, surrogate=False)


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
def test_an_agents_cifar_batches_are_unpacked_and_the_test_batchs_labels_are_255(tmp_path: Path, packed: str) -> None:
    dataset = drawn_cifar(tmp_path / "somewhere/cifar10", packed)
    datasets.withhold(dataset, tmp_path / "data")
    folder = tmp_path / "data/cifar10"
    batches = (*formats.TRAIN_BATCHES, formats.TEST_BATCH)
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.bin" for name in batches]
    train, test = dataset.format.train(dataset.folder), dataset.format.test(dataset.folder)
    assert (dataset.format.train(folder).images == train.images).all()
    assert (dataset.format.train(folder).labels == train.labels).all()
    records = np.frombuffer((folder / "test_batch.bin").read_bytes(), np.uint8).reshape(20, formats.RECORD_BYTES)
    assert (records[:, 0] == formats.WITHHELD).all()
    assert (records[:, 1:] == test.images.reshape(20, -1)).all()


def test_the_gates_cifar_split_hides_which_images_it_moved(tmp_path: Path) -> None:
    dataset = drawn_cifar(tmp_path / "cifar10")
    datasets.gate_split(dataset, tmp_path / "share", 1)
    raw = np.frombuffer((tmp_path / "share/data/cifar10/test_batch.bin").read_bytes(), np.uint8)
    found, made = raw.reshape(40, -1), np.load(tmp_path / "share/made.npy")
    answers, test = np.load(tmp_path / "share/answers.npy"), dataset.format.test(dataset.folder)
    assert (found[:, 0] == formats.WITHHELD).all()
    where = {image.tobytes(): index for index, image in enumerate(test.images)}
    assert all(answers[row] == test.labels[where[found[row, 1:].tobytes()]] for row in np.flatnonzero(~made))
    assert (found[made, 1:] != 0).all()
    moved = found[made, 1:].reshape(-1, *formats.CIFAR_SHAPE)
    assert all(any(is_moved_picture(image, each) for image in test.images) for each in moved)
    assert (np.load(tmp_path / "share/train_answers.npy") == dataset.format.train(dataset.folder).labels).all()


def is_moved_picture(image: Bytes, moved: Bytes) -> bool:
    framed = np.pad(image, [(0, 0), (1, 1), (1, 1)], mode="edge")
    return any((framed[:, y : y + 32, x : x + 32] == moved).all() for y, x in [(0, 1), (2, 1), (1, 0), (1, 2)])


def test_changed_labels_are_a_share_and_the_scorer_knows_which(tmp_path: Path) -> None:
    dataset = drawn_cifar(tmp_path / "cifar10")
    datasets.control(dataset, tmp_path / "control", "changed labels", 3)
    given = dataset.format.train(tmp_path / "control/data/cifar10").labels
    planted, true = np.load(tmp_path / "control/planted.npy"), np.load(tmp_path / "control/train_answers.npy")
    assert (np.load(tmp_path / "control/given.npy") == given).all()
    assert ((given != true) == planted).all()
    assert 0 < planted.sum() < len(true) / 2
    assert given.max() < 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no CIFAR batch"),
        (bytes(formats.RECORD_BYTES + 1), "is no CIFAR batch"),
        (bytes([10]) + bytes(3072), "has a label 10, not a class"),
        (bytes([255]) + bytes(3072), "has a label 255"),
    ],
)
def test_what_is_no_labelled_cifar_batch_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "b.bin").write_bytes(content)
    with pytest.raises(InputError, match=words):
        formats.read_batch(tmp_path / "b.bin")


def test_a_missing_cifar_batch_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data_batch_1\.bin is missing; run `mlcore fetch cifar10`"):
        FORMATS["cifar10"].train(tmp_path)


# Labels, IDX


def test_a_dataset_says_what_it_is() -> None:
    def label(official: bool, surrogate: bool) -> str:
        return Dataset("mnist", Path(), {}, official, surrogate).label

    absent = Dataset("mnist", Path(), {}, official=False, surrogate=False, absent=True)
    assert absent.label == "mnist, which is not on this machine"
    assert label(True, False) == "mnist"
    assert "surrogate" in label(False, True)
    assert "unverified" in label(False, False)


def test_an_unknown_dataset_names_those_that_can_be_measured() -> None:
    with pytest.raises(
        InputError, match="dataset `cifar` can't be measured; measurable: mnist, cifar10, imagenette, ilsvrc2012"
    ):
        datasets.locate("cifar", None)


def test_photographs_that_are_not_there_are_absent_and_no_error(tmp_path: Path) -> None:
    found = datasets.locate("ilsvrc2012", tmp_path)
    assert (found.absent, found.official, found.label) == (True, False, "ilsvrc2012, which is not on this machine")
    datasets.withhold(found, tmp_path / "data")
    assert not (tmp_path / "data").exists()


GOOD = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + bytes(24)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("magic", b"\x00\x00\x08\x01" + GOOD[4:], "is not an IDX file of 3 dimensions; fetch it again"),
        ("type", b"\x00\x00\x0d\x03" + GOOD[4:], "is not an IDX file of 3 dimensions"),
        ("short header", GOOD[:10], "is not an IDX file of 3 dimensions"),
        ("empty", b"", "is not an IDX file of 3 dimensions"),
        ("short", GOOD[:-1], "does not hold what its header says"),
        ("long", GOOD + b"x", "does not hold what its header says"),
        ("vast", GOOD[:4] + struct.pack(">3I", *[2**32 - 1] * 3) + bytes(24), "does not hold what its header says"),
        ("cut.gz", gzip.compress(GOOD, mtime=0)[:-12], "can't be read: .*; fetch it again"),
        ("text.gz", b"<html>not found</html>", "can't be read: Not a gzipped file"),
        ("bits.gz", gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 30, "can't be read: "),
    ],
)
def test_files_that_are_not_idx_are_refused_with_path_and_fix(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_idx(tmp_path / name, 3)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing; run `mlcore fetch mnist`, or give the folder with --data"):
        read_idx(tmp_path / TRAIN_IMAGES, 3)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 15), st.binary(min_size=1, max_size=6), st.integers(0, 50))
def test_an_idx_file_with_bytes_changed_or_cut_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, planted: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    content = (GOOD[:at] + planted + GOOD[at + len(planted) :])[: cut if cut < 40 else None]
    path.write_bytes(content)
    try:
        found = read_idx(path, 3)
    except InputError:
        return
    assert found.tobytes() == content[16:]
    assert found.ndim == 3
