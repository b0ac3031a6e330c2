"""Photographs from shards: what is odd is counted, what is shown is the file's own pixels, in an order of the seed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.data.loader import Batch
from mlcore.data.shards import faults
from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import Catalogue, from_index
from mlcore.data.shards.decode import Look, decode_square
from mlcore.data.shards.faults import PictureError
from mlcore.data.shards.feed import Seeing
from mlcore.data.shards.files import Roots, plain, shard_files
from mlcore.data.shards.photos import Photos, find_photos
from mlcore.data.shards.scan import open_catalogue
from mlcore.data.shards.stats import LACKED, measure, statistics_of
from mlcore.errors import DataError, DatasetMissing, RecipeError
from mlcore.kernels import photo, reference
from mlcore.rng import Rng
from tests.mlcore.photographs import (
    CLASSES,
    SIDE,
    bomb,
    catalogued,
    jpeg,
    png,
    recipe,
    roots,
    sound,
    splits,
    tar,
)
from tests.mlcore.test_cli import call

LOOK = Look(2, 1 << 20)


def quiet(text: str) -> None:
    """Progress that nobody hears."""


def photos(root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Photos:
    monkeypatch.setenv("MLCORE_CACHE", str(root / "cache"))
    return find_photos(recipe(*overrides).data, root, quiet)


# ------------------------------------------------------------------------------------------------ the catalogue

ODD = {
    "n01/cut.jpg": jpeg(7)[:-80],
    "n01/words.jpg": b"words",
    "n01/bomb.jpg": bomb(),
    "n02/p31.jpg": jpeg(9),
    "../n02/escaped.jpg": jpeg(9),
    "/n02/absolute.jpg": jpeg(9),
    "alone.jpg": jpeg(9),
    "n03/really.jpg": png(5),
    "n03/notes.txt": b"not for us",
}
LEFT_OUT = {
    faults.DAMAGED: 1,
    faults.NO_PICTURE: 1,
    faults.TOO_LARGE: 1,
    faults.DUPLICATE: 1,
    faults.UNSAFE: 2,
    faults.NO_CLASS: 1,
}


def test_every_odd_member_is_counted_by_kind_and_the_sound_ones_stay(tmp_path: Path) -> None:
    splits(tmp_path, ODD)
    seen = catalogued("train", tmp_path)
    assert seen.faults.counts == LEFT_OUT
    assert len(seen) == 61  # the PNG under a JPEG's name is a picture
    assert seen.classes == CLASSES
    assert seen.counts() == {"n01": 20, "n02": 20, "n03": 21}
    with pytest.raises(DataError, match=r'data\.broken = "skip"'):
        seen.faults.demand_none()


def test_a_scan_is_kept_in_the_cache_and_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    splits(tmp_path, ODD)
    first = catalogued("train", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")}
    second = catalogued("train", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")} == times
    assert second.faults == first.faults
    assert all(np.array_equal(first.table[name], second.table[name]) for name in first.table)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a.tar", "b.tar"]


def test_a_changed_shard_is_scanned_again(tmp_path: Path) -> None:
    splits(tmp_path)
    assert len(catalogued("train", tmp_path)) == 60
    tar(tmp_path / "train" / "b.tar", sound(33, 30))
    assert len(catalogued("train", tmp_path)) == 63


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.xz"])
def test_packed_shards_hold_the_same_pictures(tmp_path: Path, ending: str) -> None:
    content = tar(tmp_path / "raw.tar", sound(6)).read_bytes()
    pack = {".tar": bytes, ".tar.xz": lzma.compress}.get(ending, gzip.compress)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"a{ending}").write_bytes(pack(content))
    seen = catalogued("train", tmp_path)
    assert [seen.read(i) for i in range(6)] == [content for _, content in sound(6)]


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz"])
def test_a_shard_that_is_cut_short_gives_what_is_whole_and_says_so(tmp_path: Path, ending: str) -> None:
    content = tar(tmp_path / "raw.tar", sound(40)).read_bytes()
    noise = b"".join(np.random.default_rng(i).bytes(64) for i in range(4))
    packed = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.xz": lzma.compress}[ending](content + noise)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"a{ending}").write_bytes(packed[: len(packed) * 2 // 3])
    seen = catalogued("train", tmp_path)
    assert 3 < len(seen) < 40
    assert seen.faults.counts[faults.CUT_SHORT] >= 1
    assert catalogued("train", tmp_path).faults == seen.faults


def test_the_cache_of_decompressed_shards_is_bounded(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar.xz"
    packed.write_bytes(lzma.compress(bytes(3 << 20)))
    with pytest.raises(DataError, match="xz -dk"):
        plain(packed, Roots((tmp_path,), tmp_path / "cache", limit_mib=2), quiet)
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_shards_are_named_by_folder_pattern_or_list(tmp_path: Path) -> None:
    splits(tmp_path)
    (tmp_path / "train" / "a.tar.xz").write_bytes(b"the plain one is taken")
    (tmp_path / "list.txt").write_text("train/b.tar # a comment\n\ntest/a.tar\n")
    here = roots(tmp_path)
    assert [path.name for path in shard_files("train", here)] == ["a.tar", "b.tar"]
    assert [path.name for path in shard_files("train/b*", here)] == ["b.tar"]
    assert [path.parent.name for path in shard_files("list.txt", here)] == ["train", "test"]
    with pytest.raises(DatasetMissing, match="nowhere"):
        shard_files("nowhere", here)
    (tmp_path / "list.txt").write_text("gone.tar\n")
    with pytest.raises(DatasetMissing, match=r"gone\.tar"):
        shard_files("list.txt", here)


def test_a_list_or_a_shard_that_cant_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"train/caf\xe9.tar\n")
    (tmp_path / "mem.tar").symlink_to("/proc/self/mem")  # opens, and can't be read at its beginning
    for name, place in {"list.txt": "list.txt", "mem.tar": "mem.tar", "x" * 300: "xxx"}.items():
        with pytest.raises(DataError, match=rf"{place}: (not a list of paths|can't be read) .*; "):
            catalogued(name, tmp_path)
    for arguments in (("check", "mem.tar"), ("shards", "x" * 300, tmp_path / "out")):
        call("data", *arguments, "--data", tmp_path, "-q", fails=DataError)
    with pytest.raises(DataError, match=r"gone\.tar: can't be read"):
        open_catalogue([tmp_path / "gone.tar"], roots(tmp_path), LOOK, quiet)


def test_shards_of_one_name_in_two_folders_keep_a_checksum_each(tmp_path: Path) -> None:
    for number, name in enumerate(("p/0.tar", "q/0.tar", "q/1.tar")):
        tar(tmp_path / name, sound(3, 3 * number))
    (tmp_path / "list.txt").write_text("p/0.tar\nq/0.tar\nq/1.tar\n")
    for _ in ("scanned", "kept"):
        seen = catalogued("list.txt", tmp_path).sha256
        assert seen == {
            key: hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()
            for key, path in {"p/0.tar": "p/0.tar", "q/0.tar": "q/0.tar", "1.tar": "q/1.tar"}.items()
        }


def test_a_class_that_only_the_test_has_and_one_that_is_empty_are_faults(tmp_path: Path) -> None:
    splits(tmp_path)
    (tmp_path / "train" / "MANIFEST.json").write_text(json.dumps({"classes": [{"synset": "n00"}]}))
    train = catalogued("train", tmp_path)
    assert train.classes == ("n00", *CLASSES)
    assert train.faults.counts == {faults.EMPTY_CLASS: 1}
    tar(tmp_path / "test" / "b.tar", [("n09/x.jpg", jpeg(1))])
    test = catalogued("test", tmp_path).as_classes_of(CLASSES)
    assert test.faults.counts == {faults.STRANGE_CLASS: 1}
    assert test.counts() == dict.fromkeys(CLASSES, 5)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None, database=None)
def test_an_index_of_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    folder = tmp_path_factory.mktemp("noise")
    (folder / "index.json").write_bytes(noise)
    (folder / "members.npz").write_bytes(noise)
    with pytest.raises(DataError):
        from_index(folder)


# ------------------------------------------------------------------------------------------------ statistics


def test_statistics_are_those_of_all_pixels_and_are_measured_once(tmp_path: Path) -> None:
    splits(tmp_path)
    seen, told = catalogued("train", tmp_path), list[str]()
    made, path = statistics_of(seen, SIDE, tmp_path / "cache", LOOK, told.append)
    squares = np.stack([square_of(seen.read(i)) for i in range(len(seen))]) / 255
    assert np.allclose(made.mean_image, squares.mean(axis=0).transpose(2, 0, 1))
    assert np.allclose(made.covariance, np.cov(squares.reshape(-1, 3).T, bias=True))
    assert np.allclose(made.axes.T @ made.axes, made.covariance)
    told.clear()
    again, same = statistics_of(seen, SIDE, tmp_path / "cache", LOOK, told.append)
    assert (told, same) == ([], path)
    assert np.array_equal(again.total, made.total)


def test_statistics_of_other_pictures_are_not_taken(tmp_path: Path) -> None:
    splits(tmp_path)
    seen = catalogued("train", tmp_path)
    statistics_of(seen, SIDE, tmp_path / "cache", LOOK, quiet)
    fewer = seen.kept(np.arange(len(seen)) < 10)
    made, _ = statistics_of(fewer, SIDE, tmp_path / "cache", LOOK, quiet)
    assert made.count == 10
    assert np.array_equal(made.total, measure(fewer, SIDE, LOOK, quiet).total)


def test_a_broken_picture_is_left_out_of_the_statistics_or_refused_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = catalogued("train", splits(tmp_path), 1 << 26)
    spoil(seen)
    with pytest.raises(DataError, match=r"b\.tar: byte \d+: its checksum.*data\.broken = \"skip\""):
        photos(tmp_path, monkeypatch)
    for _ in range(2):  # such statistics are not kept: the picture may be repaired
        made = photos(tmp_path, monkeypatch, 'data.broken="skip"')
        whole = seen.kept(np.arange(60) < 59)
        assert (made.statistics.count, made.train.faults.counts) == (59, {f"{LACKED}{faults.CHANGED}": 1})
        assert np.array_equal(made.statistics.total, measure(whole, SIDE, LOOK, quiet).total)


def spoil(seen: Catalogue) -> None:
    """Change the last picture's first bytes, under a scan that stays: of a size and a time that are as they were."""
    path, before = seen.shards[-1], seen.shards[-1].stat()
    with path.open("r+b") as stream:
        stream.seek(int(seen.table["offset"][-1]))
        stream.write(b"zzzz")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def square_of(content: bytes) -> np.ndarray:
    square = decode_square(content, SIDE)
    return square.image_HW3[square.top : square.top + SIDE, square.left : square.left + SIDE]


# ------------------------------------------------------------------------------------------------ the stream


@given(st.data())
@settings(max_examples=40, deadline=None, database=None)
def test_views_equal_those_of_the_slow_twin(data: st.DataObject) -> None:
    side = data.draw(st.integers(3, 40))
    corner = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    size = data.draw(st.integers(1, side)), data.draw(st.integers(1, side))
    views = data.draw(st.integers(1, 3))
    generator = np.random.default_rng(side)
    image = generator.integers(0, 256, (corner[0] + side + 2, corner[1] + side + 1, 3)).astype(np.uint8)
    windows = generator.integers(0, (side - size[0] + 1, side - size[1] + 1, 2), (views, 3)).astype(np.int32)
    scale, add = generator.random(3).astype(np.float32), generator.standard_normal(3).astype(np.float32)
    less = generator.random((3, side, side)).astype(np.float32)
    got, want = np.empty((views, 3, *size), np.float32), np.empty((views, 3, *size), np.float32)
    photo.cut_views(image, corner, windows, scale, less, add, got)
    reference.cut_views(image, corner, windows, scale, less, add, want)
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, float(np.abs(want).max()))


def test_an_epoch_shows_every_photograph_once_as_its_window_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = photos(splits(tmp_path), monkeypatch, "data.colour_noise=0")
    feeds = made.feeds(16, Rng(1))
    batches = list(feeds.train.batches(0, feeds.train.steps_per_epoch))
    assert sorted(i for batch in batches for i in batch.index) == list(range(60))
    for batch in batches:
        assert batch.images.shape[1:] == (3, 20, 20)
        assert np.array_equal(batch.labels, made.train.labels[batch.index])
        assert batch.windows is not None
        shown = feeds.normaliser.undo(batch.images, batch.windows)
        for image, index, (top, left, mirrored) in zip(shown, batch.index, batch.windows, strict=True):
            part = square_of(made.train.read(int(index)))[top : top + 20, left : left + 20].transpose(2, 0, 1)
            assert np.array_equal(image, part[..., ::-1] if mirrored else part)


def test_colour_noise_moves_a_whole_photograph_along_the_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = splits(tmp_path)
    calm, noisy = (photos(root, monkeypatch, f"data.colour_noise={sigma}").feeds(60, Rng(1)) for sigma in ("0", "0.1"))
    first, second = next(calm.train.batches(0, 1)), next(noisy.train.batches(0, 1))
    assert np.array_equal(first.index, second.index)
    moved = (second.images - first.images) * noisy.normaliser.deviation
    assert moved.std(axis=(2, 3)).max() < 1e-6
    axes = photos(root, monkeypatch).statistics.axes
    factors = np.linalg.solve(axes.T, moved.mean(axis=(2, 3), dtype=np.float64).T)
    assert 0.05 < factors.std() < 0.2
    assert abs(factors.mean()) < 0.05


@given(st.integers(0, 9), st.integers(1, 3))
@settings(max_examples=10, deadline=None, database=None)
def test_a_stream_started_in_mid_epoch_goes_on_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, start: int, workers: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        root = STREAMED.setdefault("root", splits(tmp_path_factory.mktemp("streamed")))
        whole = photos(root, patch).feeds(16, Rng(3)).train.batches(0, 10)
        other = photos(root, patch, f"data.workers={workers}").feeds(16, Rng(3)).train.batches(start, 10)
        for want, got in zip(list(whole)[start:], other, strict=True):
            assert same(want, got)


STREAMED: dict[str, Path] = {}


def test_ranks_decode_their_own_parts_of_a_batch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, decoded = photos(splits(tmp_path), monkeypatch), list[int]()
    whole = next(made.feeds(40, Rng(1)).train.batches(0, 1))
    shown = Seeing.shown
    monkeypatch.setattr(Seeing, "shown", lambda *all: (decoded.append(all[2]), shown(*all)))
    for mine in (slice(0, 13), slice(13, 26), slice(26, 40)):
        feeds = made.feeds(40, Rng(1))
        feeds.train.only({40: mine}.__getitem__)
        batch = next(feeds.train.batches(0, 1))
        assert np.array_equal(batch.images[mine], whole.images[mine])
        assert np.array_equal(batch.labels, whole.labels)
        assert set(decoded[: mine.stop - mine.start]) == set(whole.index[mine])
        decoded.clear()


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "index"))


def test_epochs_and_seeds_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = photos(splits(tmp_path), monkeypatch)
    batches = [next(made.feeds(60, Rng(seed)).train.batches(at, at + 1)) for seed, at in ((1, 0), (1, 1), (2, 0))]
    assert len({tuple(batch.index) for batch in batches}) == 3
    assert len({batch.images.sum() for batch in batches}) == 3


def test_ten_views_of_each_test_photograph_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = photos(splits(tmp_path), monkeypatch, "data.views=ten")
    test = made.feeds(16, Rng(1)).test
    pieces = np.concatenate(list(test.pieces()))
    assert pieces.shape == (15, 10, 3, 20, 20)
    assert np.array_equal(pieces[:, :5], pieces[:, 5:, :, :, ::-1])
    centre = made.feeds(16, Rng(1)).normaliser.undo(pieces[:, 4])
    for at in range(15):
        assert np.array_equal(centre[at], square_of(made.test.read(at))[2:22, 2:22].transpose(2, 0, 1))


def test_the_parts_of_a_split_do_not_meet_and_the_control_deals_labels_out_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = photos(splits(tmp_path), monkeypatch, "data.validation=12", "data.limit=30", "data.shuffle_labels=true")
    feeds = made.feeds(30, Rng(1))
    batch = next(feeds.train.batches(0, 1))
    held = feeds.validation.index  # type: ignore[attr-defined]
    assert len(feeds.validation) == 12
    assert set(batch.index).isdisjoint(held)
    own = made.train.labels[batch.index]
    assert sorted(batch.labels) == sorted(own)
    assert not np.array_equal(batch.labels, own)
    with pytest.raises(RecipeError, match="exceed the 60"):
        photos(tmp_path, monkeypatch, "data.validation=60").feeds(16, Rng(1))


def test_a_photograph_that_changes_under_training_is_left_out_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = photos(splits(tmp_path), monkeypatch, 'data.broken="skip"')
    spoil(made.train)
    feeds = made.feeds(16, Rng(1))
    shown = sorted(i for batch in feeds.train.batches(0, 4) for i in batch.index)
    assert shown == list(range(59))
    assert feeds.faults.counts == {faults.CHANGED: 1}
    strict = replace(made, data=made.data.model_copy(update={"broken": "refuse"})).feeds(16, Rng(1))
    with pytest.raises(PictureError, match=r"b\.tar.*checksum"):
        list(strict.train.batches(0, 4))


def test_another_number_of_classes_than_the_recipes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="4 classes, but the shards have 3"):
        photos(splits(tmp_path), monkeypatch, "data.classes=4")


# ------------------------------------------------------------------------------------------------ ahead


def test_work_ahead_keeps_its_order_and_its_bound() -> None:
    begun = list[int]()

    def items() -> Iterator[int]:
        for i in range(50):
            begun.append(i)
            yield i

    for done, square in enumerate(ahead(lambda i: i * i, items(), 3, 5)):
        assert square == done**2
        assert len(begun) <= done + 6


def test_an_error_comes_at_its_turn_and_ends_the_work() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise DataError("three")
        return i

    got = list[int]()
    with pytest.raises(DataError, match="three"):
        got.extend(ahead(work, range(100), 2, 4))
    assert got in ([], [0, 1, 2])


def test_text_that_is_no_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.tar").write_bytes(io.BytesIO(b"hello " * 200).getvalue())
    with pytest.raises(DataError, match="no picture that can be used"):
        catalogued("train", tmp_path)
