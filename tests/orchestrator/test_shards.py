"""Photographs: nothing that the sandbox sees tells a test photograph's class, and controls hold nothing to learn."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator import datasets, scoring, trials
from orchestrator.datasets import Dataset
from orchestrator.errors import InputError
from orchestrator.records import Target
from orchestrator.shards import PHOTOGRAPHS
from tests.orchestrator.photographs import (
    CLASSES,
    FOLDER,
    TEST,
    TRAIN,
    contents,
    drawn,
    jpeg,
    label,
    listed,
    members,
    tar,
)

TRAIN_NAMES = [f"{FOLDER}-train-{number:04}.tar" for number in range(2)]
TEST_NAME = f"{FOLDER}-val-0000.tar"


def split(folder: Path, dataset: Dataset, seed: int = 1) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The gate's test photographs, its answers, and which of them it made."""
    datasets.gate_split(dataset, folder, seed)
    found = contents(folder / "data" / FOLDER / TEST_NAME)
    return found, np.load(folder / "answers.npy"), np.load(folder / "made.npy")


def demand_silent(folder: Path) -> None:
    """Not a name, a time, an order or another file in `folder` tells the class of a test photograph."""
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [*TRAIN_NAMES, TEST_NAME]
    headers = listed(folder / TEST_NAME)
    assert [header.name for header in headers] == [f"{number:07}.jpg" for number in range(len(headers))]
    assert {(header.mtime, header.uname, header.gname, header.linkname) for header in headers} == {(0, "", "", "")}
    raw = (folder / TEST_NAME).read_bytes()
    assert not [name for name in {label(i) for i in range(CLASSES)} if f"{name}/".encode() in raw]
    assert b"ILSVRC2012" not in raw
    public = [content for _, content in members(1000, TEST)]
    assert sorted(public) != public
    order = [public.index(content) for content in contents(folder / TEST_NAME) if content in public]
    assert sorted(order) == list(range(TEST))
    assert order != list(range(TEST))


@pytest.mark.parametrize("packed", [True, False])
def test_agents_see_no_label_of_a_test_photograph_and_all_of_the_training_ones(tmp_path: Path, packed: bool) -> None:
    dataset = drawn(tmp_path / "somewhere", packed)
    (dataset.folder / "MANIFEST.json").write_text(json.dumps({"classes": []}))
    datasets.withhold(dataset, tmp_path / "data")
    demand_silent(tmp_path / "data" / FOLDER)
    train = [header.name for name in TRAIN_NAMES for header in listed(tmp_path / "data" / FOLDER / name)]
    assert train == [name for name, _ in members(0, TRAIN)]
    written = (tmp_path / "data" / FOLDER / TEST_NAME).stat().st_mtime_ns
    datasets.withhold(dataset, tmp_path / "data")
    assert (tmp_path / "data" / FOLDER / TEST_NAME).stat().st_mtime_ns == written  # not made again


def test_the_gates_photographs_are_the_published_bytes_and_others_moved_by_a_pixel(tmp_path: Path) -> None:
    found, answers, made = split(tmp_path / "share", drawn(tmp_path))
    demand_silent(tmp_path / "share/data" / FOLDER)
    public = [content for _, content in members(1000, TEST)]
    names = sorted({label(i) for i in range(CLASSES)})
    assert (len(found), made.sum()) == (2 * TEST, TEST)
    for row in np.flatnonzero(~made):
        assert names[answers[row]] == label(1000 + public.index(found[row]))
    for row in np.flatnonzero(made):
        numbers = [1000 + i for i, content in enumerate(public) if is_moved(content, found[row])]
        assert names[answers[row]] in {label(number) for number in numbers}
    train = np.load(tmp_path / "share/train_answers.npy")
    assert [names[number] for number in train] == [label(i) for i in range(TRAIN)]


def is_moved(content: bytes, other: bytes) -> bool:
    """Whether the other is about the same picture a pixel further, written with the same tables."""
    one, two = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(other))
    if one.size != two.size or one.quantization != two.quantization:  # type: ignore[attr-defined]
        return False
    a, b = np.asarray(one).astype(int), np.asarray(two).astype(int)
    shifts = ((0, 1), (0, -1), (1, 0), (-1, 0))
    inner = np.s_[2:-2, 2:-2]
    gaps = [np.abs(np.roll(b, shift, (0, 1))[inner] - a[inner]).mean() for shift in shifts]
    return min(gaps) < 4 < np.abs(a - b)[inner].mean()


def test_of_many_photographs_a_thousand_are_made_and_a_control_trains_on_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MADE_PHOTOGRAPHS", 5)
    monkeypatch.setattr(datasets, "CONTROL_PHOTOGRAPHS", 40)
    dataset = drawn(tmp_path)
    found, answers, made = split(tmp_path / "share", dataset)
    assert (len(found), len(answers), made.sum()) == (TEST + 5, TEST + 5, 5)
    datasets.control(dataset, tmp_path / "control", "changed labels", 3)
    given = PHOTOGRAPHS["imagenette"].train(tmp_path / "control/data" / FOLDER)
    planted, true = np.load(tmp_path / "control/planted.npy"), np.load(tmp_path / "control/train_answers.npy")
    assert len(given.labels) == len(true) == 40
    assert np.array_equal(given.labels != true, planted)
    assert 0 < planted.sum() < 20
    assert np.array_equal(np.load(tmp_path / "control/given.npy"), given.labels)


@pytest.mark.parametrize("kind", ["shuffled labels", "noise images"])
def test_a_control_takes_away_what_could_be_learnt_and_nothing_else(tmp_path: Path, kind: datasets.Control) -> None:
    dataset = drawn(tmp_path, packed=False)
    index = dataset.folder / "index.json"
    index.write_text("{}")
    datasets.control(dataset, tmp_path / "control", kind, 3)
    ours, real = (
        PHOTOGRAPHS["imagenette"].train(folder) for folder in (tmp_path / "control/data" / FOLDER, dataset.folder)
    )
    same = [one.read() == two.read() for one, two in zip(ours.images, real.images, strict=True)]
    assert ours.names == real.names
    assert sorted(ours.labels) == sorted(real.labels)
    assert np.array_equal(ours.labels, real.labels) == (kind == "noise images")
    assert all(same) if kind == "shuffled labels" else not any(same)
    assert not (tmp_path / "control/data" / FOLDER / "index.json").exists()  # its labels were the true ones


def test_plain_shards_are_linked_and_not_copied_and_packed_ones_unpacked(tmp_path: Path) -> None:
    dataset = drawn(tmp_path / "1", packed=False)
    datasets.withhold(dataset, tmp_path / "data")
    assert (dataset.folder / TRAIN_NAMES[0]).samefile(tmp_path / "data" / FOLDER / TRAIN_NAMES[0])
    datasets.withhold(drawn(tmp_path / "2"), tmp_path / "other")
    assert (tmp_path / "other" / FOLDER / TRAIN_NAMES[0]).read_bytes() == (dataset.folder / TRAIN_NAMES[0]).read_bytes()


def test_answers_are_scored_top_1_and_top_5_and_by_the_centre(tmp_path: Path) -> None:
    _, answers, made = split(tmp_path / "share", drawn(tmp_path))
    np.save(tmp_path / "p.npy", answers)
    assert scoring.score(tmp_path / "p.npy", answers, made)["test_error_pct"] == 0
    guesses = (answers[:, None] + np.arange(5)) % CLASSES
    np.save(tmp_path / "five.npy", guesses[:, ::-1])
    assert scoring.score_top5(tmp_path / "five.npy", answers, made)["test_top5_error_pct"] == 0
    np.save(tmp_path / "five.npy", (guesses + 1) % CLASSES)
    assert scoring.score_top5(tmp_path / "five.npy", answers, made)["test_top5_error_pct"] == 100


# What is compared with the published dataset


def test_a_dataset_is_official_by_its_photographs_and_not_by_its_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = PHOTOGRAPHS["imagenette"]
    drawn(tmp_path / "one")
    official = {
        name: hashlib.sha256(kind.raw(tmp_path / "one" / FOLDER, name)).hexdigest() for name in ("train", "val")
    }
    monkeypatch.setitem(PHOTOGRAPHS, "imagenette", dataclasses.replace(kind, official=official))
    assert datasets.locate("imagenette", tmp_path / "one").label == "imagenette"
    again = tmp_path / "two" / FOLDER
    tar(again / f"{FOLDER}-train-a.tar", members(0, TRAIN)[::-1])
    tar(again / f"{FOLDER}-val-a.tar", members(1000, TEST)[::-1])
    assert datasets.locate("imagenette", tmp_path / "two").official
    tar(again / f"{FOLDER}-val-a.tar", [*members(1000, TEST - 1), (f"{label(3)}/x.jpg", jpeg(4))])
    assert datasets.locate("imagenette", tmp_path / "two").label == "imagenette, unverified files"


def test_of_imagenet_only_the_numbers_can_be_compared(tmp_path: Path) -> None:
    kind = PHOTOGRAPHS["ilsvrc2012"]
    tar(tmp_path / "ilsvrc2012/train/0000.tar", members(0, TRAIN))
    tar(tmp_path / "ilsvrc2012/val/0000.tar", members(1000, TEST))
    assert kind.raw(tmp_path / "ilsvrc2012", "val") == f"{CLASSES} classes, {TEST} photographs\n".encode()
    found = datasets.locate("ilsvrc2012", tmp_path)
    assert (found.absent, found.official, found.label) == (False, False, "ilsvrc2012, unverified files")
    datasets.withhold(found, tmp_path / "data")
    headers = listed(tmp_path / "data/ilsvrc2012/val/0000.tar")
    assert {Path(header.name).parent for header in headers} == {Path()}


def test_what_is_no_folder_of_labelled_shards_is_refused_with_place_and_fix(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(InputError, match=rf"{FOLDER}-train-\* has no tar shards; see `mlcore data shards`"):
        datasets.locate("imagenette", tmp_path)
    drawn(tmp_path)
    path = tmp_path / FOLDER / f"{FOLDER}-val-0000.tar.xz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"val-0000\.tar\.xz can't be read: .*; fetch it again"):
        datasets.locate("imagenette", tmp_path)
    tar(path, [("bare.jpg", jpeg(1))], packed=True)
    with pytest.raises(InputError, match=r"bare\.jpg lies in no class's folder"):
        datasets.locate("imagenette", tmp_path)
    tar(path, [("n99/new.jpg", jpeg(1))], packed=True)
    with pytest.raises(InputError, match="of a class without training ones: n99"):
        datasets.locate("imagenette", tmp_path)
    tar(path, [("n00/words.jpg", b"words")], packed=True)
    with pytest.raises(InputError, match="a test photograph can't be decoded"):
        datasets.gate_split(drawn_again(tmp_path), tmp_path / "share", 1)


def drawn_again(root: Path) -> Dataset:
    return Dataset("imagenette", root / FOLDER, {}, official=False, surrogate=False)


# What is run


def test_controls_of_photographs_are_short_and_see_the_centre_only() -> None:
    asked = Target(
        id="x", metric="test_error_pct", value=30.0, margin=1.0, direction="at_most", seeds=3,
        dataset="imagenette", recipe="r.toml", source="s",
    )  # fmt: skip
    gain = asked.model_copy(update={"id": "y", "metric": "views_gain"})
    found = trials.trials([asked, gain], "1" * 40, b"secret")
    assert [(each.name, each.overrides) for each in found[:2]] == [
        ("zero-steps", ("train.steps=100", "data.views=centre", "train.steps=0")),
        ("shuffled-labels", ("train.steps=100", "data.views=centre", "train.epochs=1")),
    ]
    assert [each.overrides for each in found[3:]] == [()] * 3
    assert gain.shown(1.5) == "1.50 points"
    assert gain.quantity.of({"test_error_pct": 30.0, "test_centre_error_pct": 31.5}, 0) == 1.5
    assert gain.quantity.of({"test_error_pct": 30.0}, 0) is None
