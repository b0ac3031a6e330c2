"""CIFAR-10's batches: read to the byte however they are packed, refused when anything is wrong with them."""

import gzip
import io
import lzma
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.data import cifar
from mlcore.data.cifar import ARCHIVE, BATCHES, RECORD_BYTES, batch_bytes, parse_batch, read_batch, read_cifar10
from mlcore.data.fetch import Places, copy_to, find
from mlcore.data.mirrors import Source
from mlcore.errors import CifarMalformed, DataError, DatasetMissing
from tests.mlcore.drawn import cifar_folder, coloured, real_data, small_cifar

PACKERS: dict[str, Callable[[bytes], bytes]] = {".bin": bytes, ".bin.gz": gzip.compress, ".bin.xz": lzma.compress}
RECORDS = batch_bytes(*coloured(5, 0))


def pretended() -> dict[str, str]:
    """Checksums that make the drawn batches official."""
    return small_cifar().sha256


def write_archive(path: Path, stems: tuple[str, ...] = BATCHES) -> None:
    """The batches as the official archive has them."""
    with tarfile.open(path, "w:gz") as archive:
        for name in ("batches.meta.txt", *(f"{stem}.bin" for stem in stems)):
            content = b"names\n" if name.endswith("txt") else (cifar_folder() / name).read_bytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_batch_is_read_to_the_byte_however_it_is_packed(suffix: str, tmp_path: Path) -> None:
    images, labels = coloured(5, 0)
    path = tmp_path / f"data_batch_1{suffix}"
    path.write_bytes(PACKERS[suffix](RECORDS))
    batch = read_batch(path)
    assert np.array_equal(batch.images, images)
    assert np.array_equal(batch.labels, labels)
    assert batch.content == RECORDS


def test_the_first_byte_is_the_label_then_come_red_green_and_blue_by_rows() -> None:
    record = bytes([7]) + bytes([1, 2]) + bytes(1022) + bytes([3]) + bytes(1023) + bytes([4]) + bytes(1023)
    batch = parse_batch(record, "here")
    assert batch.labels.tolist() == [7]
    assert batch.images[0, :, 0, 0].tolist() == [1, 3, 4]
    assert batch.images[0, 0, 0, 1] == 2


@given(st.binary(max_size=64), st.integers(0, 4), st.integers(0, RECORD_BYTES - 1))
@settings(max_examples=50, deadline=None, database=None)
def test_bytes_that_are_no_whole_records_are_refused_and_others_read(tail: bytes, whole: int, cut: int) -> None:
    content = RECORDS[: whole * RECORD_BYTES + cut] + tail
    if content and len(content) % RECORD_BYTES == 0:
        assert len(parse_batch(content, "here").labels) == len(content) // RECORD_BYTES
    else:
        with pytest.raises(CifarMalformed, match=r"here: .* records of 3073; fetch it again"):
            parse_batch(content, "here")


@given(st.integers(10, 255), st.integers(0, 4))
@settings(max_examples=30, deadline=None, database=None)
def test_a_label_that_is_no_class_is_refused_with_its_place(label: int, at: int) -> None:
    images, labels = coloured(5, 0)
    labels[at] = label
    with pytest.raises(CifarMalformed, match=f"label {label} at {at} is not a class"):
        parse_batch(batch_bytes(images, labels), "here")


@pytest.mark.parametrize("suffix", [".bin.gz", ".bin.xz"])
@given(data=st.data())
@settings(max_examples=30, deadline=None, database=None)
def test_a_packed_file_that_was_cut_or_altered_is_refused_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    packed = bytearray(PACKERS[suffix](RECORDS))
    place = data.draw(st.integers(0, len(packed) - 1))
    if data.draw(st.booleans()):
        del packed[place:]
    else:
        packed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("cut") / f"data_batch_1{suffix}"
    path.write_bytes(packed)
    got, error = outcome(path)
    # some bytes of gzip's header say nothing about the content
    assert got == RECORDS or (error is not None and str(error).startswith(f"{path}: ") and error.fix)


def outcome(path: Path) -> tuple[bytes | None, DataError | None]:
    """What reading the batch comes to."""
    try:
        return read_batch(path).content, None
    except DataError as error:
        return None, error


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused_early(tmp_path: Path) -> None:
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"bomb{suffix}"
        path.write_bytes(pack(bytes(100 * RECORD_BYTES)))
        with pytest.raises(CifarMalformed, match="more than 30730 bytes"):
            read_batch(path, limit_bytes=10 * RECORD_BYTES)


def test_six_batches_become_a_dataset_in_their_order_with_its_classes_and_shape() -> None:
    dataset = small_cifar()
    assert (dataset.kind, dataset.name, dataset.image_shape, dataset.classes) == (
        "cifar10", "cifar10-unverified", (3, 32, 32), 10,
    )  # fmt: skip
    assert np.array_equal(dataset.train_images[60:120], coloured(60, 1)[0])
    assert np.array_equal(dataset.train_labels[240:], coloured(60, 4)[1])
    assert np.array_equal(dataset.test_images, coloured(60, 5)[0])
    assert dataset.test_labels is not None
    assert np.array_equal(dataset.test_labels, coloured(60, 5)[1])
    assert "data_batch_1" in dataset.warnings[0]


def test_files_with_the_official_checksums_are_cifar10_and_one_changed_byte_is_not(tmp_path: Path) -> None:
    folder = shutil.copytree(cifar_folder(), tmp_path / "cifar10")
    assert read_cifar10(folder, pretended()).name == "cifar10"
    content = bytearray((folder / "data_batch_3.bin").read_bytes())
    content[5] ^= 1
    (folder / "data_batch_3.bin").write_bytes(content)
    dataset = read_cifar10(folder, pretended())
    assert dataset.name == "cifar10-unverified"
    assert dataset.warnings == ("not the official CIFAR-10 files: data_batch_3 differ by sha256",)


def test_with_withheld_test_labels_it_still_is_cifar10(tmp_path: Path) -> None:
    folder = shutil.copytree(cifar_folder(), tmp_path / "cifar10")
    (folder / "test_batch.bin").write_bytes(batch_bytes(small_cifar().test_images, None))
    dataset = read_cifar10(folder, pretended())
    assert dataset.name == "cifar10"
    assert dataset.test_labels is None
    assert np.array_equal(dataset.test_images, small_cifar().test_images)
    assert "test_batch" not in dataset.sha256
    (folder / "data_batch_2.bin").write_bytes(batch_bytes(coloured(60, 1)[0], None))
    with pytest.raises(CifarMalformed, match="data_batch_2: its labels are withheld"):
        read_cifar10(folder)


def test_a_folder_without_a_batch_is_an_error_that_names_it_and_the_fix(tmp_path: Path) -> None:
    folder = shutil.copytree(cifar_folder(), tmp_path / "cifar10")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DatasetMissing, match=r"lacks data_batch_4 .*; run `mlcore fetch cifar10`"):
        read_cifar10(folder)
    with pytest.raises(DatasetMissing, match="holds no cifar10/ with the binary batches"):
        find("cifar10", Places(tmp_path, None, tmp_path / "cache"))


def test_the_official_archive_is_read_as_it_is(tmp_path: Path) -> None:
    write_archive(tmp_path / ARCHIVE)
    dataset = find("cifar10", Places(tmp_path, None, tmp_path), source=Source((), pretended()))
    assert dataset.name == "cifar10"
    assert np.array_equal(dataset.train_images, small_cifar().train_images)
    write_archive(tmp_path / ARCHIVE, BATCHES[1:])
    with pytest.raises(CifarMalformed, match="lacks data_batch_1"):
        read_cifar10(tmp_path)
    (tmp_path / ARCHIVE).write_bytes((tmp_path / ARCHIVE).read_bytes()[:-2000])
    with pytest.raises(CifarMalformed, match=ARCHIVE):
        read_cifar10(tmp_path)


def test_a_download_is_verified_and_kept_unpacked_and_a_wrong_mirror_passed_over(tmp_path: Path) -> None:
    def download(url: str, path: Path) -> None:
        if url.startswith("https://torn.org/"):
            path.write_bytes(b"<html>")
        else:
            write_archive(path)

    wrong = replace(cifar.SOURCE, mirrors=("https://other.org/", "https://torn.org/"), download=download)
    with pytest.raises(DatasetMissing, match=r"other.org: other bytes than .*, torn.org: not the archive"):
        find("cifar10", Places(None, None, tmp_path), say=lambda text: None, source=wrong)
    right = Source(("https://torn.org/", "https://a.org/"), pretended(), download)
    dataset = find("cifar10", Places(None, None, tmp_path), say=lambda text: None, source=right)
    assert dataset.name == "cifar10"
    assert sorted(path.name for path in (tmp_path / "cifar10").iterdir()) == sorted(f"{stem}.bin" for stem in BATCHES)
    offline = Source((), pretended(), lambda url, path: pytest.fail("asked a mirror again"))
    assert find("cifar10", Places(None, None, tmp_path), source=offline).name == "cifar10"


def test_a_copy_is_unpacked_and_the_same(tmp_path: Path) -> None:
    copy = read_cifar10(copy_to(small_cifar(), tmp_path / "out"))
    assert copy.sha256 == small_cifar().sha256


@pytest.mark.skipif(real_data("cifar10") is None, reason="MLCORE_DATA names no folder with cifar10/")
def test_the_real_files_are_recognised_as_cifar10() -> None:
    dataset = find("cifar10", Places(real_data("cifar10"), None, Path("unused")))
    assert dataset.name == "cifar10"
    assert dataset.train_images.shape == (50_000, 3, 32, 32)
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    means = [float(dataset.train_images[:, channel].mean()) for channel in range(3)]
    assert means == pytest.approx([125.30691805, 122.95039414, 113.86538318], abs=1e-6)
