"""IDX files: what is written reads back, and what is malformed costs an error and nothing else."""

import gzip
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.data.idx import ELEMENT_TYPES, Idx, read_idx, read_images, read_labels, write_idx
from mlcore.errors import DataError, DatasetMissing, IdxBadMagic, IdxOversize, IdxTruncated, IdxWrongCount

FUZZ = settings(max_examples=2000, deadline=None, database=None)
SMALL_LIMIT = 4096


def header(code: int, *sizes: int) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, code, len(sizes), *sizes)


def read_bytes(content: bytes, limit: int = SMALL_LIMIT) -> Idx:
    """Read `content` from a file in a folder where nothing else may appear."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        try:
            return read_idx(path, limit)
        finally:
            assert [entry.name for entry in Path(folder).iterdir()] == ["file"]
            assert path.read_bytes() == content


@pytest.mark.parametrize("code", ELEMENT_TYPES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_element_type_reads_back_as_it_was_written(code: int, suffix: str, tmp_path: Path) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(np.dtype(ELEMENT_TYPES[code]).newbyteorder("="))
    write_idx(tmp_path / f"a{suffix}", array)
    got = read_idx(tmp_path / f"a{suffix}")
    assert got.array.dtype == array.dtype
    assert np.array_equal(got.array, array)


def test_the_digest_is_of_the_decompressed_bytes_whatever_the_wrapping(tmp_path: Path) -> None:
    array = np.arange(200, dtype=np.uint8)
    write_idx(tmp_path / "plain", array)
    write_idx(tmp_path / "packed.gz", array)
    (tmp_path / "other.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes(), 1, mtime=99))
    digests = {read_idx(tmp_path / name).sha256 for name in ("plain", "packed.gz", "other.gz")}
    assert len(digests) == 1


def test_equal_arrays_are_written_to_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, np.arange(100, dtype=np.uint8))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", IdxTruncated),
        (b"\0\0\x08", IdxTruncated),
        (b"\0\0\x08\x03\0\0\0\1", IdxTruncated),
        (b"\1\0\x08\1\0\0\0\0", IdxBadMagic),
        (b"\0\0\x07\1\0\0\0\0", IdxBadMagic),
        (b"\0\0\x08\0", IdxBadMagic),
        (b"\0\0\x08\x05" + 20 * b"\0", IdxBadMagic),
        (b"\x1f\x8bnot gzip at all", IdxBadMagic),
        (header(8, 3) + b"\1\2", IdxTruncated),
        (header(8, 3) + b"\1\2\3\4", IdxWrongCount),
        (header(8, 2**32 - 1, 2**32 - 1, 2**32 - 1), IdxOversize),
        (gzip.compress(header(8, 3) + b"\1\2", mtime=0), IdxTruncated),
        (gzip.compress(header(8, 3) + b"\1\2\3\4", mtime=0), IdxWrongCount),
        (gzip.compress(header(8, 300) + bytes(range(100)) * 3, mtime=0)[:-30], IdxTruncated),
        (gzip.compress(header(8, 3) + b"\1\2\3", mtime=0)[:-8] + 8 * b"\0", IdxBadMagic),
    ],
)
def test_each_malformation_has_its_own_error_naming_file_and_fix(content: bytes, error: type[DataError]) -> None:
    with pytest.raises(error) as caught:
        read_bytes(content)
    assert caught.value.place.endswith("file")
    assert caught.value.fix


def test_an_absent_file_and_a_folder_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing):
        read_idx(tmp_path / "none")
    with pytest.raises(DataError):
        read_idx(tmp_path)


def test_labels_where_images_belong_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "labels", np.zeros(5, np.uint8))
    write_idx(tmp_path / "images", np.zeros((5, 2, 2), np.uint8))
    with pytest.raises(IdxBadMagic, match="swapped"):
        read_images(tmp_path / "labels")
    with pytest.raises(IdxBadMagic, match="swapped"):
        read_labels(tmp_path / "images")


def peak_of_failing_read(path: Path, error: type[DataError]) -> int:
    """The most bytes allocated while reading `path` fails with `error`."""
    tracemalloc.start()
    try:
        with pytest.raises(error):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_claim_in_a_small_file_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "claim").write_bytes(header(8, 60_000, 28, 28) + b"\0" * 10)
    (tmp_path / "claim.gz").write_bytes(gzip.compress(header(8, 60_000, 28, 28) + b"\0" * 10, mtime=0))
    assert peak_of_failing_read(tmp_path / "claim", IdxTruncated) < 1 << 20
    assert peak_of_failing_read(tmp_path / "claim.gz", IdxTruncated) < 1 << 20


def test_a_gzip_bomb_is_read_one_byte_past_its_claim_only(tmp_path: Path) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(header(8, 1000) + bytes(64 << 20), 1))
    assert peak_of_failing_read(tmp_path / "bomb.gz", IdxWrongCount) < 4 << 20


SIZES = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 12), min_size=0, max_size=5)
HEADERS = st.builds(
    lambda zeros, code, rank, sizes: (
        struct.pack(">HBB", zeros, code, rank) + b"".join(struct.pack(">I", size) for size in sizes)
    ),
    st.sampled_from([0, 0, 0, 1, 0x1F8B]),
    st.sampled_from([*ELEMENT_TYPES, 0, 7, 255]),
    st.integers(0, 6),
    SIZES,
)
FILES = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda head, body: head + body, HEADERS, st.binary(max_size=200)),
    st.builds(lambda head, body: gzip.compress(head + body, 1, mtime=0), HEADERS, st.binary(max_size=200)),
    st.builds(lambda body: b"\x1f\x8b" + body, st.binary(max_size=100)),
)


def outcome(content: bytes) -> Idx | DataError:
    """What reading gives; any other error passes through and fails the test."""
    try:
        return read_bytes(content)
    except DataError as error:
        return error


@FUZZ
@given(FILES)
def test_no_file_gives_anything_but_an_array_or_a_documented_error(content: bytes) -> None:
    got = outcome(content)
    if isinstance(got, DataError):
        assert got.exit_code == 2
    else:
        assert got.array.nbytes <= SMALL_LIMIT


@FUZZ
@given(st.data())
def test_a_sound_file_with_one_wound_reads_as_its_bytes_say_or_not_at_all(data: st.DataObject) -> None:
    sound = header(8, 4, 3) + bytes(range(12))
    content = bytearray(gzip.compress(sound, 1, mtime=0) if data.draw(st.booleans()) else sound)
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    got = outcome(bytes(content))
    if isinstance(got, DataError):
        return
    if content[:2] == b"\x1f\x8b":
        assert got.array.tobytes() == bytes(range(12))  # the flip was in gzip's time stamp or system byte
    else:
        assert got.array.tobytes() == bytes(content[-got.array.nbytes :] if got.array.nbytes else b"")
