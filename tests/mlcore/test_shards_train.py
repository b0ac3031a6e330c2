"""A recipe trains on photographs in shards, and what is broken in them never ends a run in its middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mlcore import config
from mlcore.cli import app
from mlcore.data.shards import faults
from mlcore.errors import DataError, RecipeError
from tests.mlcore.drawn import command, mlcore
from tests.mlcore.photographs import RECIPE, jpeg, png, recipe, sound, splits, tar
from tests.mlcore.test_cli import call, document


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos.toml").write_text(RECIPE)
    return splits(tmp_path)


def trained(data: Path, name: str, *overrides: str) -> dict[str, Any]:
    arguments = (data / "photos.toml", *overrides, "--data", data, "--out", data / name, "-q", "--no-pictures")
    return document("train", *arguments)


def test_photographs_are_learnt(data: Path) -> None:
    result = trained(data, "run", "train.epochs=10")
    assert result["data"]["name"] == "shards"
    assert sorted(result["data"]["sha256"]) == ["test/a.tar", "train/a.tar", "train/b.tar"]
    assert result["test_error_pct"] <= 20
    assert result["warnings"] == []
    assert len(np.load(data / "run" / "predictions.npy")) == 15
    again = document("evaluate", data / "run", "--data", data)
    assert again["test_error_pct"] == result["test_error_pct"]
    (data / "one.png").write_bytes(png(4))
    assert json.loads(call("predict", data / "run", data / "one.png"))["class"] in (0, 1, 2)


def test_a_run_killed_in_mid_epoch_ends_with_the_bits_of_one_that_was_not(data: Path) -> None:
    overrides = ("train.epochs=8", "train.batch=7", "train.checkpoint_every_s=0", "data.views=ten")
    whole = trained(data, "whole", *overrides)
    arguments = ("train", data / "photos.toml", *overrides, "--data", data, "--out", data / "killed", "-q")
    process = subprocess.Popen(command(*arguments, "--no-pictures"), stderr=subprocess.DEVNULL)
    checkpoints = data / "killed" / "checkpoints"
    while process.poll() is None and not any(_step(path) >= 11 for path in checkpoints.glob("step-*.json")):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps = [_step(path) for path in checkpoints.glob("step-*.json")]
    assert max(steps) < whole["total_steps"]
    assert any(step % 9 for step in steps)  # 60 photographs in batches of 7: an epoch is 9 steps
    done = mlcore("train", "--resume", data / "killed", "--no-pictures", "-q", "--json")
    resumed = json.loads(done.stdout)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["test_loss"] == whole["test_loss"]


def _step(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def test_broken_pictures_are_refused_before_training_or_left_out_and_told_in_the_result(data: Path) -> None:
    splits(data, {"n01/cut.jpg": jpeg(1)[:-70], "n01/words.jpg": b"words"})
    arguments = ("train", data / "photos.toml", "--data", data, "--out", data / "refused", "-q")
    call(*arguments, fails=DataError)
    assert not (data / "refused").exists()
    result = trained(data, "run", 'data.broken="skip"', "train.epochs=1")
    assert result["status"] == "finished"
    assert [warning.partition(" (")[0] for warning in result["warnings"]] == [
        f"left out: 1 x {faults.DAMAGED}", f"left out: 1 x {faults.NO_PICTURE}",
    ]  # fmt: skip


def test_broken_test_and_snapshot_pictures_that_are_scored_as_black_are_told_in_the_result(data: Path) -> None:
    for split in ("train", "test"):
        call("data", "shards", data / split, data / f"made-{split}", "--side", "24", "-q")
        call("data", "stats", data / f"made-{split}", "-q")
        with (data / f"made-{split}" / "shard-000000.tar").open("r+b") as stream:
            stream.seek(700)  # in the first picture: changed after it was catalogued
            stream.write(b"zzzz")
    here = ("data.train=made-train", "data.test=made-test", 'data.broken="skip"')
    result = trained(data, "run", *here, "train.epochs=2", "train.snapshots=true")
    assert [warning.partition(" (")[0] for warning in result["warnings"]] == [
        f"since epoch 1: 1 x {faults.CHANGED}",
        f"since epoch 1: 1 x training picture for which a black square is scored: {faults.CHANGED}",
        f"left out: 2 x {faults.CHANGED}",
        f"left out: 2 x training picture for which a black square is scored: {faults.CHANGED}",
        f"left out: 1 x test picture for which a black square is scored: {faults.CHANGED}",
    ]
    assert "made-test/shard-000000.tar: byte" in result["warnings"][-1]
    told = CliRunner().invoke(app, ["evaluate", str(data / "run"), "--data", str(data)]).stderr
    assert "warning: left out: 1 x test picture for which a black square is scored" in told


def test_the_control_with_labels_dealt_out_anew_learns_nothing(data: Path) -> None:
    result = trained(data, "run", "data.shuffle_labels=true", "train.epochs=5")
    assert result["test_error_pct"] > 20


def test_options_of_shards_belong_to_shards() -> None:
    with pytest.raises(RecipeError, match="'train' is an option of shards"):
        recipe("data.dataset=mnist")
    with pytest.raises(RecipeError, match=r"data\.broken"):
        recipe("data.broken=maybe")


def test_a_crop_that_does_not_fit_into_the_square_is_refused(data: Path) -> None:
    call("train", data / "photos.toml", "data.crop=25", "--data", data, "--out", data / "run", fails=RecipeError)


def test_shards_must_say_what_only_they_know() -> None:
    with pytest.raises(RecipeError, match="shards need side, classes"):
        config.parse(RECIPE.replace("classes = 3\n", "").replace("side = 24\n", ""), "photos.toml")
    assert recipe().data.broken == "refuse"


# --------------------------------------------------------------------------------------- labels that are withheld


def without_labels(root: Path) -> None:
    """The test pictures under names that say nothing."""
    pictures = [content for _, content in sound(15, 100)]
    tar(root / "test" / "a.tar", [(f"{number:06}.jpg", content) for number, content in enumerate(pictures)])


def test_test_pictures_without_class_folders_are_predicted_and_not_scored(data: Path) -> None:
    known = trained(data, "known", "train.epochs=6")
    without_labels(data)
    result = trained(data, "withheld", "train.epochs=6")
    assert known["test_error_pct"] is not None
    assert (result["test_error_pct"], result["test_loss"], result["warnings"]) == (None, None, [])
    assert result["weights_sha256"] == known["weights_sha256"]
    same = [np.load(data / run / "predictions.npy") for run in ("known", "withheld")]
    assert np.array_equal(*same)
    assert document("evaluate", data / "withheld", "--data", data)["test_error_pct"] is None
    drawn = (data / "photos.toml", "train.epochs=1", "--data", data, "--out", data / "drawn", "-q")
    assert document("train", *drawn)["warnings"] == []
    assert (data / "drawn" / "curves.png").exists()
    assert not (data / "drawn" / "confusion.png").exists()


def test_only_test_labels_can_be_withheld_and_only_all_of_them(data: Path) -> None:
    tar(data / "test" / "a.tar", [*sound(15, 100), ("bare.jpg", jpeg(1))])
    arguments = ("train", data / "photos.toml", "--data", data, "-q", "--out")
    call(*arguments, data / "some", fails=DataError)
    without_labels(data)
    for name in ("a", "b"):
        tar(data / "train" / f"{name}.tar", [(f"{name}{number}.jpg", jpeg(number)) for number in range(5)])
    call(*arguments, data / "none", fails=DataError)


# ----------------------------------------------------------------------- what runs of photographs leave for a scorer


def test_snapshots_of_photographs_are_in_the_shards_order_for_every_epoch_and_seed(data: Path) -> None:
    arguments = ("train", data / "photos.toml", "train.epochs=8", "train.snapshots=true", "data.validation=6")
    said = document(*arguments, "--seeds", "2", "--data", data, "--out", data / "group", "-q", "--no-pictures")
    assert [row["status"] for row in said["runs"]] == ["finished"] * 2
    truth = np.arange(60) % 3  # a.tar, then b.tar, classes by turns; those held out too
    for run in ("s1", "s2"):
        snapshots = sorted((data / "group" / run).glob("train_predictions_*.npy"))
        assert [path.stem[-3:] for path in snapshots] == [f"{epoch:03}" for epoch in range(1, 9)]
        last = np.load(snapshots[-1])
        assert (last.shape, last.dtype) == ((60,), np.uint8)
        assert np.mean(last != truth) < 0.2
    alone = trained(data, "alone", "train.epochs=8", "train.snapshots=true", "data.validation=6", "seed=2")
    assert alone["weights_sha256"] == said["runs"][1]["weights_sha256"]
    theirs = np.load(data / "group" / "s2" / "train_predictions_008.npy")
    assert np.array_equal(np.load(data / "alone" / "train_predictions_008.npy"), theirs)


def test_a_run_of_many_classes_has_its_top_5_and_of_ten_views_what_the_centre_says(data: Path) -> None:
    def members(first: int, count: int) -> list[tuple[str, bytes]]:
        return [(f"c{i % 12:02}/p{i}.jpg", jpeg(i, kind=i % 3)) for i in range(first, first + count)]

    tar(data / "many" / "train.tar", members(0, 72))
    tar(data / "many" / "val.tar", members(100, 24))
    where = ("data.train=many/train.tar", "data.test=many/val.tar", "data.classes=12", "data.views=ten")
    result = trained(data, "run", *where, "data.validation=12", "train.epochs=6")
    assert result["test_top5_error_pct"] < result["test_error_pct"]
    assert result["validation_top5_error_pct"] is not None
    guesses = np.load(data / "run" / "predictions_top5.npy")
    first = np.load(data / "run" / "predictions.npy")
    assert guesses.shape == (24, 5)
    assert np.array_equal(guesses[:, 0], first)
    labels = np.arange(100, 124) % 12
    wrong = 100 * np.mean((guesses != labels[:, None]).all(axis=1))
    assert wrong == pytest.approx(result["test_top5_error_pct"])
    trained(data, "centre", *where[:3], "data.validation=12", "train.epochs=6")
    centre = np.load(data / "run" / "predictions_centre.npy")
    assert np.array_equal(centre, np.load(data / "centre" / "predictions.npy"))
    assert not (data / "centre" / "predictions_centre.npy").exists()
