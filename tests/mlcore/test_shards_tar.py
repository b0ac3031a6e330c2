"""Tar archives from strangers: walked by their headers, never unpacked, and damage is never taken for the end."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.data.shards.tarwalk import Member, Span, TarError, is_safe, walk
from tests.mlcore.photographs import sound, tar


def walked(content: bytes) -> list[Member]:
    with tempfile.TemporaryFile() as stream:
        stream.write(content)
        stream.flush()
        return list(walk(Span.of_file(stream.fileno(), "here.tar")))


def packed(members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150).filter(
    lambda name: name.strip("/") == name
)


@given(
    st.dictionaries(NAMES, st.binary(max_size=1500), max_size=4),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@settings(max_examples=100, deadline=None, database=None)
def test_a_walk_finds_every_member_where_it_is(members: dict[str, bytes], kind: int) -> None:
    content = packed(members, kind)
    found = walked(content)
    assert [member.name for member in found] == list(members)
    assert [content[m.offset : m.offset + m.size] for m in found] == list(members.values())


WHOLE = packed({"n01/a.jpg": b"x" * 700, "n01/" + "b" * 200: b"y", "n02/c.jpg": b""})


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8))
@settings(max_examples=500, deadline=None, database=None)
def test_bytes_changed_anywhere_give_members_inside_the_file_or_a_tar_error(at: int, patch: bytes) -> None:
    content = WHOLE[:at] + patch + WHOLE[at + len(patch) :]
    found = list[Member]()
    with contextlib.suppress(TarError):
        found = walked(content)
    assert all(0 <= member.offset <= member.offset + member.size <= len(content) for member in found)


@given(st.binary(max_size=2000))
@settings(max_examples=300, deadline=None, database=None)
def test_noise_is_no_archive(content: bytes) -> None:
    with pytest.raises(TarError):
        walked(b"\1" + content)


def test_an_archive_cut_anywhere_is_told_from_a_whole_one() -> None:
    end = WHOLE.rindex(b"n02/c.jpg") + 512  # before the mark of its end
    for length in [*range(0, end, 128), end]:
        with pytest.raises(TarError, match="byte"):
            walked(WHOLE[:length])
    assert len(walked(WHOLE)) == 3


def test_a_member_that_declares_more_than_the_file_holds_is_refused_before_it_is_read() -> None:
    info = tarfile.TarInfo("n01/a.jpg")
    info.size = 1 << 40
    with pytest.raises(TarError, match="1099511627776 bytes"):
        walked(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_an_extended_header_has_a_limit() -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 1 << 20
    with pytest.raises(TarError, match="extended header of 1048576 bytes"):
        walked(info.tobuf(tarfile.USTAR_FORMAT) + bytes((1 << 20) + 1024))


def test_links_devices_and_sparse_files_are_no_pictures() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("n01/odd.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        sparse = tarfile.TarInfo("n01/sparse.jpg")
        sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
        archive.addfile(sparse, io.BytesIO(bytes(512)))
        folder = tarfile.TarInfo("n01")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        last = tarfile.TarInfo("n01/last.jpg")
        archive.addfile(last)
    found = walked(stream.getvalue())
    assert [member.regular for member in found] == [False] * 5 + [True]
    assert found[-1].name == "n01/last.jpg"


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "n01/../../a.jpg", "n01/a\n.jpg", "a\\b.jpg", "n01/", ""])
def test_names_that_leave_their_root_are_unsafe(name: str) -> None:
    assert not is_safe(name)


def test_a_walk_writes_nothing(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("../escaped.jpg", b"x"), *sound(2)])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert len(list(walk(Span.of_file(descriptor, "a.tar")))) == 3
    finally:
        os.close(descriptor)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]
