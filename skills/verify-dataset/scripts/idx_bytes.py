"""Find and read IDX files: unsigned bytes, gzipped or not, with bounds checked before anything large is held."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_RAW_BYTES = 64 << 20  # MNIST's largest file is 47 MB; what unpacks to more is refused


class DataProblem(Exception):
    """A file that can't be used; the text names it and the fix."""


def find_folder(dataset: str, data: Path | None) -> tuple[Path, bool]:
    """Returns the folder of the files, and whether it holds the surrogate. The real dataset wins."""
    roots = [data] if data else default_roots()
    places = [(root / dataset, False) for root in roots] + [(root, False) for root in roots]
    places += [(root / f"{dataset}-surrogate", True) for root in roots]
    for folder, surrogate in places:
        if find_file(folder, "train-images-idx3-ubyte"):
            return folder, surrogate or folder.resolve().name.endswith("-surrogate")
    looked = ", ".join(str(root) for root in roots)
    raise DataProblem(f"no {dataset} files under {looked}; pass --data DIR, set MLCORE_DATA, or run `mlcore fetch`")


def default_roots() -> list[Path]:
    if given := os.environ.get("MLCORE_DATA"):
        return [Path(given)]
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [Path(os.environ.get("MLCORE_CACHE") or Path(base) / "mlcore")]


def find_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_raw(path: Path) -> bytes:
    """The decompressed bytes of an IDX file, never more than MAX_RAW_BYTES of them."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            raw = stream.read(MAX_RAW_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataProblem(f"{path}: can't be read ({error}); fetch it again") from error
    if len(raw) > MAX_RAW_BYTES:
        raise DataProblem(f"{path}: unpacks to more than {MAX_RAW_BYTES} bytes; not an MNIST file")
    return raw


def parse_idx(raw: bytes, name: str) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes: 0 0 8 rank, rank big-endian uint32 sizes, then exactly that many bytes.

    Raises DataProblem. Returns a read-only view of `raw`, shaped as the header says.
    """
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataProblem(f"{name}: bad magic {raw[:4].hex() or 'nothing'}; an IDX file of bytes begins 000008")
    rank = raw[3]
    if rank not in (1, 3):
        raise DataProblem(f"{name}: {rank} dimensions; images have 3, labels 1")
    start = 4 + 4 * rank
    if len(raw) < start:
        raise DataProblem(f"{name}: ends inside its header; fetch it again")
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    declared, present = math.prod(shape), len(raw) - start
    if declared != present:
        raise DataProblem(f"{name}: declares {declared} bytes as {shape}, holds {present}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
