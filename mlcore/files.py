"""Files that are either whole or not there: a temporary sibling, fsync, rename, fsync of the folder."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of `path` for writing; on a clean exit it takes the path's place, durably.

    On any error the temporary file is removed and what `path` held before stays. Raises OSError (disk full,
    read-only folder) as it comes: the caller knows what is lost.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, wholly or not at all."""
    with replacing(path) as stream:
        stream.write(content)


def write_json(path: Path, document: Any) -> None:
    """Replace `path` by `document` as indented JSON; NaN and infinity are refused (ValueError)."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Replace `path` by the array as .npy."""
    content = io.BytesIO()  # numpy.save into a real file does not notice when the disk is full
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, all of `content` or, at an OSError, nothing."""
    with path.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += stream.write(content[written:])
        except OSError:
            stream.truncate(before)
            raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
