"""The catalogue of a split: where each sound picture is and what its class is.

Made with the shards by `mlcore data shards` (index.json and members.npz beside them); of shards from elsewhere by one
look at every picture, which is kept in the cache, not beside the data. So a broken picture is known before training
begins: every epoch has the same pictures, and a prediction belongs to each.
Legend: N pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.shards.faults import CHANGED, EMPTY_CLASS, STRANGE_CLASS, Faults, PictureError
from mlcore.errors import ChecksumMismatch, DataError
from mlcore.files import write_bytes

INDEX, MEMBERS = "index.json", "members.npz"
SCHEMA = "mlcore.shards/1"
COLUMNS = {"shard": np.int32, "offset": np.int64, "size": np.int64, "crc": np.uint32, "label": np.int64}
MOST_JSON = 1 << 26

Table: TypeAlias = dict[str, npt.NDArray[Any]]
Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Catalogue:
    """N pictures in `shards` (plain tars), sorted by shard and offset.

    table: `shard` int32 [N], `offset` and `size` int64 [N] in bytes, `crc` uint32 [N] of the bytes, `label` int64 [N]
    into `classes`, -1 where labels are withheld. sha256: by shard. `side`: of the shorter sides, 0 when they differ.
    `home`: where the statistics belong: the shards' folder, or one of the cache. `numbered`: the classes are numbers
    from 0 that lie beside the pictures.
    """

    shards: tuple[Path, ...]
    table: Table
    classes: tuple[str, ...]
    sha256: dict[str, str]
    faults: Faults
    home: Path
    side: int = 0
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.table["offset"])

    @property
    def labels(self) -> Indices:
        """int64 [N]."""
        return np.asarray(self.table["label"])

    @property
    def withheld(self) -> bool:
        """Whether nobody here is to know the labels."""
        return not self.classes

    def read(self, index: int) -> bytes:
        """The bytes of a picture; PictureError when they are not those that were catalogued."""
        shard, offset, size = (int(self.table[name][index]) for name in ("shard", "offset", "size"))
        try:
            content = _read(self.shards[shard], offset, size)
        except OSError as error:
            raise PictureError(f"can't be read ({error.strerror})", kind=CHANGED, place=self.place(index)) from error
        if zlib.crc32(content) != self.table["crc"][index]:
            raise PictureError("its checksum is another", kind=CHANGED, place=self.place(index))
        return content

    def place(self, index: int) -> str:
        """Where a picture is, for a message."""
        return f"{self.shards[int(self.table['shard'][index])]}: byte {int(self.table['offset'][index])}"

    def counts(self) -> dict[str, int]:
        """Pictures by class; none where labels are withheld."""
        if self.withheld:
            return {}
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def kept(self, keep_N: npt.NDArray[np.bool_]) -> Catalogue:
        """Only the pictures where `keep_N` is true."""
        return replace(self, table={name: column[keep_N] for name, column in self.table.items()})

    def of_shards(self, names: Collection[str], home: Path) -> Catalogue:
        """Only the shards of these names, with the classes of all; `home` is this part's own."""
        chosen = np.array([path.name in names for path in self.shards])
        shards = tuple(path for path in self.shards if path.name in names)
        part = self.kept(chosen[self.table["shard"]])
        number = (np.cumsum(chosen) - 1).astype(COLUMNS["shard"])
        table = {**part.table, "shard": number[part.table["shard"]]}
        sha256 = {path.name: self.sha256[path.name] for path in shards}
        return replace(self, shards=shards, table=table, sha256=sha256, home=home)

    def as_classes_of(self, classes: Sequence[str]) -> Catalogue:
        """The same with another split's classes; pictures of a class that it does not have become faults.

        Withheld labels stay so.
        """
        if self.withheld:
            return self
        to_label = np.array([classes.index(name) if name in classes else -1 for name in self.classes], np.int64)
        labels = to_label[self.labels] if len(to_label) else self.labels
        faults = Faults()
        faults.merge(self.faults)
        for name, count in self.counts().items():
            if count and name not in classes:
                faults.add(STRANGE_CLASS, f"{self.home}: class {name}", count)
        renamed = replace(self, table={**self.table, "label": labels}, classes=tuple(classes), faults=faults)
        return renamed.kept(labels >= 0)


def with_empty_classes_told(catalogue: Catalogue) -> Catalogue:
    """The catalogue, with a fault for each class that has no picture."""
    faults = Faults()
    faults.merge(catalogue.faults)
    for name, count in catalogue.counts().items():
        if not count:
            faults.add(EMPTY_CLASS, f"{catalogue.home}: class {name}")
    return replace(catalogue, faults=faults)


def table_of(rows: Sequence[tuple[int, int, int, int, int]]) -> Table:
    """The columns of rows (shard, offset, size, crc, label)."""
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return {name: np.array(column, kind) for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)}


def members_bytes(table: Table) -> bytes:
    """members.npz, the same bytes for the same table."""
    packed = io.BytesIO()
    np.savez(packed, **table)  # type: ignore[arg-type]  # numpy's zip members bear no time of day
    return packed.getvalue()


def write_index(folder: Path, document: dict[str, Any], table: Table) -> None:
    """Write members.npz, then index.json, whose presence says that all is there."""
    content = members_bytes(table)
    write_bytes(folder / MEMBERS, content)
    document = {"schema": SCHEMA, "members_sha256": hashlib.sha256(content).hexdigest(), **document}
    write_bytes(folder / INDEX, (json.dumps(document, indent=1) + "\n").encode())


def read_index(folder: Path) -> tuple[dict[str, Any], Table]:
    """index.json and members.npz of a folder; ChecksumMismatch or DataError when they are not what they were."""
    document, content = read_document(folder / INDEX), _content(folder / MEMBERS)
    if document.get("members_sha256") != hashlib.sha256(content).hexdigest():
        raise ChecksumMismatch("not the file that index.json was written with", place=str(folder / MEMBERS), fix=AGAIN)
    return document, _table(content, folder / MEMBERS)


def from_index(folder: Path) -> Catalogue:
    """The catalogue that was made with the shards. Their sizes are compared; `mlcore data check` reads them whole."""
    document, table = read_index(folder)
    place = str(folder / INDEX)
    try:
        entries, classes = document["shards"], tuple(map(str, document["classes"]))
        shards = tuple(folder / Path(entry["name"]).name for entry in entries)
        sizes = np.array([entry["bytes"] for entry in entries], np.int64)
        faults, side = Faults.of(document["left_out"]), int(document["side"])
        sha256 = {path.name: str(entry["sha256"]) for path, entry in zip(shards, entries, strict=True)}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"not an index of shards ({error!r})", place=place, fix=AGAIN) from error
    for path, size in zip(shards, sizes, strict=True):
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"missing, or not of {size} bytes", place=str(path), fix=AGAIN)
    _demand_inside(table, sizes, len(classes), place)
    return Catalogue(shards, table, classes, sha256, faults, folder, side)


AGAIN = "restore it, or make the shards again with `mlcore data shards`"


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object of at most 64 MiB; DataError when it is something else."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise DataError(f"longer than {MOST_JSON} bytes", place=str(path), fix=AGAIN)
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"can't be read ({error})", place=str(path), fix=AGAIN) from error
    if not isinstance(document, dict):
        raise DataError("not a JSON object", place=str(path), fix=AGAIN)
    return document


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", place=str(path), fix=AGAIN) from error


def _table(content: bytes, path: Path) -> Table:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            table = {name: np.asarray(stored[name], kind) for name, kind in COLUMNS.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"not a table of members ({error})", place=str(path), fix=AGAIN) from error
    if len({column.shape for column in table.values()}) != 1 or table["offset"].ndim != 1:
        raise DataError("its columns differ in length", place=str(path), fix=AGAIN)
    return table


def _demand_inside(table: Table, sizes: Indices, classes: int, place: str) -> None:
    """Every member within its shard, every label within the classes."""
    shard, offset, size, label = (table[name] for name in ("shard", "offset", "size", "label"))
    if not len(shard):
        return
    if shard.min() < 0 or shard.max() >= len(sizes) or (offset < 0).any() or (size < 0).any():
        raise DataError("a member outside of its shard", place=place, fix=AGAIN)
    if (offset > sizes[shard] - size).any():
        raise DataError("a member outside of its shard", place=place, fix=AGAIN)
    if label.min() < 0 or label.max() >= classes:
        raise DataError(f"a label outside of 0..{classes - 1}", place=place, fix=AGAIN)


def _read(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
