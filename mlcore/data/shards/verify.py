"""Whether shards are still what they were: sha256 of each file, and every picture where that was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import INDEX, Catalogue, read_document
from mlcore.data.shards.decode import Look, decode
from mlcore.data.shards.faults import PictureError
from mlcore.data.shards.files import Tell, reading
from mlcore.errors import DataError
from mlcore.files import sha256_of

PER_WORKER = 8
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Verified:
    """One file, or all pictures: what was looked at, what was seen."""

    name: str
    saw: str
    passed: bool


def expected(files: Sequence[Path]) -> dict[Path, str]:
    """sha256 by file, as index.json or MANIFEST.json beside the files has them."""
    known = dict[Path, str]()
    for folder in {file.parent for file in files}:
        for document, entries, name in ((INDEX, "shards", "name"), (MANIFEST, "files", "file")):
            if (folder / document).is_file():
                listed = read_document(folder / document).get(entries, [])
                told = [one for one in listed if isinstance(one, dict) and name in one]
                known |= {folder / str(one[name]): str(one["sha256"]) for one in told}
    return known


def check_files(files: Sequence[Path], tell: Tell) -> Iterator[Verified]:
    """Each file's sha256 against the one that is known of it."""
    known = expected(files)
    for number, file in enumerate(files, start=1):
        tell(f"reading {file.name} ({number} of {len(files)})")
        with reading(file):
            digest, wanted = sha256_of(file), known.get(file)
        if wanted is None:
            yield Verified(file.name, f"no sha256 is known of it; it is {digest}", True)
        else:
            yield Verified(file.name, "sha256 as known" if digest == wanted else f"sha256 {digest}", digest == wanted)


def check_pictures(catalogue: Catalogue, look: Look, tell: Tell) -> Verified:
    """Every picture's checksum, and that it can be decoded."""

    def fault(index: int) -> str:
        try:
            decode(catalogue.read(index), 1, look.most_pixels)
        except PictureError as error:
            return error.what if error.place else f"{catalogue.place(index)}: {error.what}"
        return ""

    count, bad = len(catalogue), list[str]()
    for done, said in enumerate(ahead(fault, range(count), look.workers, PER_WORKER * look.workers)):
        bad += [said] if said else []
        if done % 1000 == 0:
            tell(f"decoding {done:,} of {count:,} pictures")
    saw = f"{len(bad)} of {count:,} are bad, the first: {bad[0]}" if bad else f"all {count:,} can be decoded"
    return Verified("pictures", saw, not bad)


def lacking(files: Sequence[Path]) -> list[Verified]:
    """The shards that index.json lists and that are not there."""
    folder = files[0].parent
    if not (folder / INDEX).is_file():
        return []
    listed = read_document(folder / INDEX).get("shards", [])
    names = [str(one.get("name")) for one in listed if isinstance(one, dict)]
    if not names:
        raise DataError("lists no shards", place=str(folder / INDEX), fix="make the shards again")
    return [Verified(name, "missing", False) for name in names if not (folder / Path(name).name).is_file()]
