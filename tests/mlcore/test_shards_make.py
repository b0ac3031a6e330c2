"""Shards are made from whatever holds pictures: whole or not there, the same bytes however often they were killed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from mlcore.data.shards import faults
from mlcore.data.shards.catalogue import from_index
from mlcore.data.shards.decode import Look
from mlcore.data.shards.faults import Faults, PictureError
from mlcore.data.shards.files import shard_files
from mlcore.data.shards.make import Making, recoded
from mlcore.data.shards.originals import Original, Truth, originals, read_truth
from mlcore.data.shards.scan import open_catalogue
from mlcore.data.shards.stats import statistics_of
from mlcore.errors import CheckFailed, DataError
from tests.mlcore.drawn import command
from tests.mlcore.photographs import CLASSES, catalogued, cmyk, jpeg, png, roots, sound, tar
from tests.mlcore.test_cli import call, document


def folders(root: Path, count: int = 12) -> Path:
    """Class folders with that many pictures in turns."""
    for name, content in sound(count):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def arguments(source: Path, out: Path, *options: str) -> tuple[str | Path, ...]:
    return "data", "shards", source, out, "--side", "24", "--per-shard", "5", "-q", *options


def made(source: Path, out: Path, *options: str) -> dict[str, Any]:
    return document(*arguments(source, out, *options))


def refused(source: Path, out: Path, *options: str) -> None:
    call(*arguments(source, out, *options), fails=DataError)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def found(source: str, tmp_path: Path, truth: Truth | None = None) -> tuple[list[Original], Faults]:
    seen = Faults()
    return originals(source, truth, roots(tmp_path), seen, lambda text: None), seen


# ------------------------------------------------------------------------------------------------ one picture


def test_a_jpeg_that_has_its_size_keeps_its_bytes() -> None:
    assert recoded(jpeg(1), Making(24)) == (jpeg(1), 24)
    assert recoded(jpeg(1), Making(100)) == (jpeg(1), 24)  # smaller: not enlarged unless asked


@pytest.mark.parametrize(
    ("content", "making", "shape"),
    [
        (jpeg(1, 60, 90), Making(24), (24, 36)),
        (jpeg(1, 90, 60), Making(24), (36, 24)),
        (jpeg(1, 24, 30), Making(48, enlarge=True), (48, 60)),
        (png(1), Making(24), (24, 30)),
        (cmyk(1), Making(24), (24, 30)),
    ],
)
def test_other_pictures_become_rgb_jpegs_of_the_shorter_side(
    content: bytes, making: Making, shape: tuple[int, int]
) -> None:
    got, shorter = recoded(content, making)
    height, width, colours, _ = simplejpeg.decode_jpeg_header(got)
    assert ((height, width), shorter, colours) == (shape, min(shape), "YCbCr")


@pytest.mark.parametrize(
    ("content", "making"),
    [
        (jpeg(1, 1, 300), Making(256, enlarge=True)),  # 76800 pixels wide
        (png(1, 20, 66_000), Making(256)),
        (jpeg(1, 24, 30), Making(48, enlarge=True, max_pixels=24 * 60)),
    ],
)
def test_a_picture_that_no_jpeg_can_hold_is_left_out_as_too_large(content: bytes, making: Making) -> None:
    with pytest.raises(PictureError, match="it would become") as caught:
        recoded(content, making)
    assert caught.value.kind == faults.TOO_LARGE


# ------------------------------------------------------------------------------------------------ sources


def test_class_folders_are_found_and_their_links_are_not_followed(tmp_path: Path) -> None:
    folders(tmp_path / "src")
    (tmp_path / "src" / "n04").mkdir()
    (tmp_path / "src" / "n01" / "link.jpg").symlink_to("/etc/hostname")
    (tmp_path / "src" / "n05").symlink_to(tmp_path / "src" / "n01")
    pictures, seen = found("src", tmp_path)
    assert len(pictures) == 12
    assert seen.counts == {faults.IRREGULAR: 2, faults.EMPTY_CLASS: 1}


def test_the_official_training_archive_is_read_through_its_inner_archives(tmp_path: Path) -> None:
    inner = []
    for name in CLASSES:
        members = [(f"{name}_{i}.JPEG", jpeg(i)) for i in range(3)]
        inner.append((f"{name}.tar", tar(tmp_path / "inner.tar", members).read_bytes()))
    tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    pictures, seen = found("ILSVRC2012_img_train.tar", tmp_path)
    assert [(one.class_name, one.name) for one in pictures] == [(n, f"{n}_{i}.JPEG") for n in CLASSES for i in range(3)]
    assert all(one.read() == jpeg(i % 3) for i, one in enumerate(pictures))
    assert not seen.counts


def test_the_official_validation_archive_gets_its_classes_from_the_ground_truth(tmp_path: Path) -> None:
    tar(tmp_path / "val.tar", [(f"val_{i}.JPEG", jpeg(i)) for i in (2, 1, 3)])
    (tmp_path / "truth.txt").write_text("2\n1\n3\n")
    (tmp_path / "names.txt").write_text("n01 tench\nn02 dog\nn03 church\n")
    seen = Faults()
    truth = read_truth(tmp_path / "truth.txt", tmp_path / "names.txt", 1, seen)
    pictures, _ = found("val.tar", tmp_path, truth)
    assert {one.name: one.class_name for one in pictures} == {
        "val_1.JPEG": "n02", "val_2.JPEG": "n01", "val_3.JPEG": "n03",
    }  # fmt: skip
    (tmp_path / "named.txt").write_text("val_1.JPEG 0\nval_2.JPEG n09\nval_3.JPEG 3\n")
    truth = read_truth(tmp_path / "named.txt", tmp_path / "names.txt", 0, seen)
    pictures, left = found("val.tar", tmp_path, truth)
    assert [(one.name, one.class_name) for one in pictures] == [("val_1.JPEG", "n01"), ("val_2.JPEG", "n09")]
    assert seen.counts == {faults.STRANGE_CLASS: 1}
    assert left.counts == {faults.NO_CLASS: 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [("1\n2\n", "2 classes are listed for 3 pictures"), ("1\nb 2\n", "neither"), ("1\n", "--classes FILE")],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    tar(tmp_path / "val.tar", [(f"val_{i}.JPEG", jpeg(i)) for i in range(3)])
    (tmp_path / "truth.txt").write_text(text)
    (tmp_path / "names.txt").write_text("n01\nn02\n")
    names = None if "--classes" in said else tmp_path / "names.txt"
    with pytest.raises(DataError, match=said):
        found("val.tar", tmp_path, read_truth(tmp_path / "truth.txt", names, 1, Faults()))


def test_two_pictures_that_would_get_one_name_get_two(tmp_path: Path) -> None:
    (tmp_path / "src" / "n01").mkdir(parents=True)
    for name, content in (("a.jpg", jpeg(1)), ("a.png", png(1)), ("a-2.jpg", jpeg(2)), ("a.b.jpg", jpeg(3))):
        (tmp_path / "src" / "n01" / name).write_bytes(content)
    names = [one.member for one in found("src", tmp_path)[0]]
    assert len(set(names)) == 4
    assert all(name.count(".") == 1 for name in names)


# ------------------------------------------------------------------------------------------------ shards


def test_shards_hold_every_picture_once_mixed_and_their_index_is_right(tmp_path: Path) -> None:
    said = made(folders(tmp_path / "src"), tmp_path / "out")
    assert (said["images"], said["shards"], said["side"], said["left_out"]) == (12, 3, 24, {})
    seen = from_index(tmp_path / "out")
    assert seen.counts() == dict.fromkeys(CLASSES, 4)
    contents = {content: CLASSES.index(name.partition("/")[0]) for name, content in sound(12)}
    assert {seen.read(i): int(seen.labels[i]) for i in range(12)} == contents
    assert len(set(seen.labels[:5])) > 1  # mixed across classes
    names = list[str]()
    for path in seen.shards:
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert sorted(names) == sorted(name for name, _ in sound(12))
    call("data", "check", tmp_path / "out", "--pictures", "-q")


def test_broken_pictures_are_refused_or_left_out_and_told(tmp_path: Path) -> None:
    source = folders(tmp_path / "src")
    (source / "n01" / "cut.jpg").write_bytes(jpeg(1)[:-60])
    (source / "n02" / "words.jpg").write_bytes(b"words")
    (source / "n04").mkdir()
    refused(source, tmp_path / "refused")
    said = made(source, tmp_path / "out", "--broken", "skip")
    assert said["images"] == 12
    assert {kind: count for kind, (count, _) in said["left_out"].items()} == {
        faults.DAMAGED: 1, faults.NO_PICTURE: 1, faults.EMPTY_CLASS: 1,
    }  # fmt: skip
    assert from_index(tmp_path / "out").faults.counts[faults.DAMAGED] == 1


def test_a_changed_missing_or_cut_shard_fails_the_check_by_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(folders(tmp_path / "src"), out)
    shard = out / "shard-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    failed = document("data", "check", out, "-q", fails=CheckFailed)
    assert [row["name"] for row in failed["rows"] if not row["passed"]] == ["shard-000001.tar"]
    shard.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"shard-000001\.tar"):
        from_index(out)
    shard.unlink()
    call("data", "check", out, "-q", fails=CheckFailed)


def test_shards_of_one_name_in_two_folders_are_held_against_their_own_checksums(tmp_path: Path) -> None:
    for name in ("p", "q"):
        made(folders(tmp_path / "src", 6 if name == "p" else 12), tmp_path / name)
    (tmp_path / "list.txt").write_text("p/shard-000000.tar\nq/shard-000000.tar\n")
    rows = document("data", "check", tmp_path / "list.txt", "-q", fails=CheckFailed)["rows"]
    assert [row["saw"] for row in rows if row["name"] == "shard-000000.tar"] == ["sha256 as known"] * 2


def test_a_folder_of_something_else_and_other_options_are_refused(tmp_path: Path) -> None:
    source, out = folders(tmp_path / "src"), tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    refused(source, out)
    assert [path.name for path in out.iterdir() if path.is_file()] == ["letter.txt"]
    made(source, tmp_path / "new")
    before = digests(tmp_path / "new")
    made(source, tmp_path / "new")
    refused(source, tmp_path / "new", "--quality", "50")
    assert digests(tmp_path / "new") == before


def test_a_making_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = folders(tmp_path / "src", 240)
    how = ("data", "shards", source, "--side", "16", "--per-shard", "8", "-q", "--workers", "1")
    call(*how, tmp_path / "whole")
    wanted, out, kept = digests(tmp_path / "whole"), tmp_path / "out", list[int]()
    for shards_before_the_kill in (1, 9, 20):
        process = subprocess.Popen(command(*how, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("shard-*.tar"))) < shards_before_the_kill:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        assert all(digest == wanted[name] for name, digest in digests(out).items() if name.startswith("shard-"))
        kept += [(out / "shard-000000.tar").stat().st_mtime_ns]
    call(*how, out)
    assert digests(out) == wanted
    assert {(out / "shard-000000.tar").stat().st_mtime_ns} == set(kept[1:])  # what was done is not done again


def test_a_full_disk_ends_the_making_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlcore.data.shards import make

    source, out, append = folders(tmp_path / "src"), tmp_path / "out", make._append
    calls = iter(range(100))

    def full(*arguments: Any) -> int:
        if next(calls) == 7:
            raise OSError(28, "No space left on device")
        return append(*arguments)

    monkeypatch.setattr(make, "_append", full)
    refused(source, out)
    assert [path.name for path in out.iterdir() if path.is_file()] == ["shard-000000.tar"]
    assert made(source, out)["images"] == 12


def test_statistics_are_kept_beside_the_shards(tmp_path: Path) -> None:
    made(folders(tmp_path / "src"), tmp_path / "out")
    said = document("data", "stats", tmp_path / "out", "-q")
    assert said["path"] == str(tmp_path / "out" / "statistics-24.npz")
    assert np.allclose(np.array(said["axes"]).T @ np.array(said["axes"]), said["covariance"])
    before = Path(said["path"]).stat().st_mtime_ns
    assert document("data", "stats", tmp_path / "out", "-q") == said
    assert Path(said["path"]).stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out" / "index.json").read_text())["images"] == 12


def test_some_shards_of_an_indexed_folder_are_those_and_no_others(tmp_path: Path) -> None:
    made(folders(tmp_path / "src"), tmp_path / "out")
    (tmp_path / "list.txt").write_text("out/shard-000000.tar\nout/shard-000002.tar\n")
    whole = catalogued("out", tmp_path)
    for name, chosen in {"out/shard-00000[12].tar": (1, 2), "out/shard-000001.tar": (1,), "list.txt": (0, 2)}.items():
        part = catalogued(name, tmp_path)
        files = [f"shard-{number:06}.tar" for number in chosen]
        assert [path.name for path in part.shards] == list(part.sha256) == files
        rows = [i for i, shard in enumerate(whole.table["shard"]) if shard in chosen]
        assert [part.read(i) for i in range(len(part))] == [whole.read(i) for i in rows]
        assert part.labels.tolist() == whole.labels[rows].tolist()
        assert part.classes == CLASSES


def test_each_part_of_an_indexed_folder_has_statistics_of_its_own(tmp_path: Path) -> None:
    made(folders(tmp_path / "src"), tmp_path / "out")
    paths = set[Path]()
    for name, count in {"out": 12, "out/shard-00000[01].tar": 10, "out/shard-00000[12].tar": 7}.items():
        part, cache = catalogued(name, tmp_path), tmp_path / "cache"
        statistics, path = statistics_of(part, 24, cache, Look(1), lambda text: None)
        assert statistics.count == count
        paths.add(path)
        written = path.stat().st_mtime_ns
    for name in ("out", "out/shard-00000[01].tar"):
        told = list[str]()
        paths.add(statistics_of(catalogued(name, tmp_path), 24, cache, Look(1), told.append)[1])
        assert not told  # kept: not measured again
    assert (len(paths), path.stat().st_mtime_ns) == (3, written)


def test_a_class_that_some_shards_lack_is_told_of_training_and_not_of_a_test(tmp_path: Path) -> None:
    made(folders(tmp_path / "src", 3), tmp_path / "out", "--per-shard", "1")
    here = roots(tmp_path)
    files = shard_files("out/shard-000001.tar", here)
    for withhold, seen in ((False, {faults.EMPTY_CLASS: 2}), (True, {})):
        catalogue = open_catalogue(files, here, Look(1), lambda text: None, withhold)
        assert (catalogue.classes, catalogue.faults.counts) == (CLASSES, seen)


def test_a_shard_that_the_index_beside_it_does_not_list_is_refused(tmp_path: Path) -> None:
    made(folders(tmp_path / "src"), tmp_path / "out")
    tar(tmp_path / "out" / "more.tar", sound(3))
    for name in ("out", "out/more.tar"):
        with pytest.raises(DataError, match=r"more\.tar: index\.json beside it does not list it"):
            catalogued(name, tmp_path)


def test_a_second_member_of_one_name_is_left_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for content in (jpeg(1), jpeg(2)):
            info = tarfile.TarInfo("n01/a.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    pictures, seen = found("a.tar", tmp_path)
    assert [one.read() for one in pictures] == [jpeg(1)]
    assert seen.counts == {faults.DUPLICATE: 1}
