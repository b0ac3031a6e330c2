"""WebDataset's usual layout: a picture's class is the number in the .cls beside it; what is wrong with it is told."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlcore.data.shards import faults
from mlcore.data.shards.originals import originals
from mlcore.data.shards.photos import Photos, find_photos
from mlcore.errors import DataError
from tests.mlcore.photographs import catalogued, jpeg, recipe, roots, tar


def samples(numbers: Mapping[int, bytes | None]) -> list[tuple[str, bytes]]:
    """Pictures 000001.jpg ... with the .cls that each is given; it comes first for every second one."""
    members = list[tuple[str, bytes]]()
    for key, text in numbers.items():
        pair = [(f"{key:06}.jpg", jpeg(key, kind=key % 3)), (f"{key:06}.cls", text or b"")]
        members += [one for one in pair[:: 1 if key % 2 else -1] if text is not None or one[0].endswith(".jpg")]
    return members


def in_turns(first: int, count: int) -> dict[int, bytes | None]:
    """Three classes."""
    return {key: str(key % 3).encode() for key in range(first, first + count)}


def splits(root: Path, train: Mapping[int, bytes | None], test: Mapping[int, bytes | None]) -> Path:
    tar(root / "train" / "a.tar", samples(train))
    tar(root / "test" / "a.tar", samples(test))
    return root


def photos(root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Photos:
    monkeypatch.setenv("MLCORE_CACHE", str(root / "cache"))
    return find_photos(recipe(*overrides).data, root, lambda text: None)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_a_class_is_the_number_beside_its_picture_before_or_after_it(tmp_path: Path, ending: str) -> None:
    told = {key: f"{(key * 7) % 12}\n".encode() for key in range(24)}
    content = tar(tmp_path / "raw.tar", samples(told)).read_bytes()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"a{ending}").write_bytes(gzip.compress(content) if ending == ".tar.gz" else content)
    for _ in ("scanned", "kept"):
        seen = catalogued("train", tmp_path)
        assert seen.labels.tolist() == [(key * 7) % 12 for key in range(24)]
        assert [seen.read(key) for key in range(24)] == [jpeg(key, kind=key % 3) for key in range(24)]
        assert seen.classes == tuple(map(str, range(12)))  # in the order of numbers: 2 before 10
        assert not seen.faults.counts


def test_both_splits_have_the_numbers_as_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = photos(splits(tmp_path, in_turns(0, 9), {50: b"2", 51: b"0"}), monkeypatch)  # the test lacks class 1
    assert (made.class_names, made.warnings) == (("0", "1", "2"), ())
    assert made.train.labels.tolist() == [0, 1, 2] * 3
    assert made.test_labels is not None
    assert made.test_labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (None, faults.NO_CLASS),
        (b"dog", faults.NO_NUMBER),
        (b"-1", faults.NO_NUMBER),
        (b"", faults.NO_NUMBER),
        (b"1" + b" " * 40 + b"2", faults.NO_NUMBER),
        (b"3", faults.OUT_OF_RANGE),
        (b"999999999", faults.OUT_OF_RANGE),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_number_that_is_none_is_refused_by_shard_and_member_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, text: bytes | None, kind: str
) -> None:
    splits(tmp_path, in_turns(0, 9), in_turns(20, 6))
    tar(tmp_path / split / "a.tar", samples({**in_turns(0, 9), 77: text}))
    with pytest.raises(DataError, match=rf"1 x {re.escape(kind)} \(first: .*{split}/a\.tar:000077\.(jpg|cls)"):
        photos(tmp_path, monkeypatch)
    made = photos(tmp_path, monkeypatch, 'data.broken="skip"')
    catalogue = getattr(made, split)
    assert (len(catalogue), catalogue.faults.counts) == (9, {kind: 1})


def test_a_class_that_no_training_picture_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits(tmp_path, in_turns(0, 9), in_turns(20, 6))
    with pytest.raises(DataError, match=f"1 x {faults.EMPTY_CLASS} .*class 3"):
        photos(tmp_path, monkeypatch, "data.classes=4")


def test_numbers_that_are_all_wrong_are_no_withheld_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits(tmp_path, in_turns(0, 9), dict.fromkeys(range(20, 26), b"dog"))
    with pytest.raises(DataError, match=re.escape(f"6 x {faults.NO_NUMBER}")):
        photos(tmp_path, monkeypatch, 'data.broken="skip"')


def test_shards_are_not_made_from_numbers(tmp_path: Path) -> None:
    for name in ("a", "b"):  # of several archives without folders, each would be a class
        tar(tmp_path / f"{name}.tar", samples(in_turns(0, 9)))
    with pytest.raises(DataError, match=r"a\.tar:000000\.cls: its classes are numbers"):
        originals("*.tar", None, roots(tmp_path), faults.Faults(), lambda text: None)
