"""Where a dataset is found: the folder that was named, the cache, a download, and at last drawn digits.

1. `--data DIR` or MLCORE_DATA: a folder that holds `mnist/` (or `mnist-surrogate/`), or is it. One that does not
   exist is an error; one without the data is an error for --data, and a warning for MLCORE_DATA.
2. the cache: MLCORE_CACHE, else XDG_CACHE_HOME/mlcore, else ~/.cache/mlcore.
3. the mirrors, file by file; what they send is kept only when its decompressed sha256 is the official one.
4. where allowed: the surrogate, drawn into the cache, labelled in every output.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlcore.data.dataset import (
    MARK,
    MNIST,
    SURROGATE,
    UNVERIFIED,
    Dataset,
    file_in,
    holds_dataset,
    read_dataset,
)
from mlcore.data.idx import read_idx
from mlcore.data.mirrors import Say, Source, download_one
from mlcore.errors import DataError, DatasetMissing


@dataclass(frozen=True)
class Places:
    """The folders to look in: `named` came from a flag, `environment` from MLCORE_DATA, `cache` is writable."""

    named: Path | None
    environment: Path | None
    cache: Path

    @property
    def named_by(self) -> str:
        """Who named the folder: the flag, the variable, or both (as when a caller passes the variable on)."""
        both = self.named is not None and self.named == self.environment
        return "--data and MLCORE_DATA" if both else "--data" if self.named else "MLCORE_DATA"

    @staticmethod
    def of(data: Path | None, environ: Mapping[str, str]) -> "Places":
        """The places according to a flag and the process's environment."""
        cache = environ.get("MLCORE_CACHE")
        base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".cache")
        variable = environ.get("MLCORE_DATA")
        return Places(data, Path(variable) if variable else None, Path(cache) if cache else base / "mlcore")


def find(
    name: str, places: Places, allow_surrogate: bool = True, say: Say = print, source: Source | None = None
) -> Dataset:
    """Find, verify and read the dataset `name` ("mnist" or "mnist-surrogate").

    A folder named by flag must hold it: falling through to other data would be a surprise. For "mnist" a folder
    with only a surrogate counts when `allow_surrogate`. Raises DatasetMissing, DataError.
    """
    source = source or Source()
    _demand_folder(places)
    dataset = _located(name, places, allow_surrogate, say, source)
    if dataset is None and name == MNIST:
        dataset = _downloaded(places.cache / MNIST, allow_surrogate, say, source)
    if dataset is None:
        dataset = read_dataset(_drawn(places.cache / SURROGATE, say), source.official)
    if dataset.surrogate and name == MNIST and not allow_surrogate:
        raise DatasetMissing(
            "holds drawn surrogate digits, not MNIST", place=str(dataset.path), fix="name a folder with the real files"
        )
    for warning in dataset.warnings:
        say(f"warning: {dataset.path}: {warning}")
    return dataset


def locate(name: str, places: Places, say: Say, allow_surrogate: bool = True) -> Path | None:
    """The folder that already holds the dataset, or None.

    Without it, a flag's folder raises DatasetMissing, and of MLCORE_DATA's `say` is told.
    """
    names = [name] if name == SURROGATE or not allow_surrogate else [MNIST, SURROGATE]
    if places.named:
        found = _inside(places.named, names)
        if found is None:
            raise DatasetMissing(
                _lack(places, names),
                place=str(places.named),
                fix=f"name the folder that does, or {_without(places)} to search the cache and the mirrors",
            )
        return found
    if places.environment:
        if found := _inside(places.environment, names):
            return found
        say(f"warning: {places.environment}: {_lack(places, names)}; looking in the cache and at the mirrors")
    return _inside(places.cache, [name])  # its surrogate counts only after the mirrors failed (see `find`)


def copy_to(dataset: Dataset, out: Path) -> Path:
    """Copy a dataset's files into `out`; returns it. Raises DataError when it can't be written."""
    names = [path for stem in dataset.sha256 if (path := file_in(dataset.path, stem))]
    names += [dataset.path / MARK] if (dataset.path / MARK).is_file() else []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in names:
            if path.parent.resolve() != out.resolve():
                shutil.copyfile(path, out / path.name)
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", place=str(out), fix="choose another --out") from error
    return out


def _demand_folder(places: Places) -> None:
    """Raise DatasetMissing when the folder to look in first is none: whoever named it meant some data by it."""
    folder = places.named or places.environment
    if folder and not folder.is_dir():
        raise DatasetMissing(
            f"named by {places.named_by}, {'is not a folder' if folder.exists() else 'does not exist'}",
            place=str(folder),
            fix=f"name a folder that holds mnist/, or {_without(places)}",
        )


def _lack(places: Places, names: list[str]) -> str:
    return f"named by {places.named_by}, holds no {' or '.join(f'{name}/' for name in names)} with the IDX files"


def _without(places: Places) -> str:
    return "leave --data away" if places.named_by == "--data" else "unset MLCORE_DATA"


def _inside(root: Path, names: list[str]) -> Path | None:
    candidates = [root / name for name in names]
    if SURROGATE in names or not (root / MARK).is_file():
        candidates.append(root)
    return next((folder for folder in candidates if holds_dataset(folder)), None)


def _located(name: str, places: Places, allow_surrogate: bool, say: Say, source: Source) -> Dataset | None:
    """The dataset that is there already; a damaged copy in our own cache counts as none, and is fetched again."""
    folder = locate(name, places, say, allow_surrogate)
    if folder is None or folder != places.cache / MNIST:
        return read_dataset(folder, source.official) if folder else None
    try:
        dataset = read_dataset(folder, source.official)
    except DataError as error:
        say(f"the cache is damaged: {error}")
        return None
    if dataset.name == UNVERIFIED:
        say(f"the cache is damaged: {folder}: {'; '.join(dataset.warnings)}")
        return None
    return dataset


def _downloaded(folder: Path, allow_surrogate: bool, say: Say, source: Source) -> Dataset | None:
    """MNIST, downloaded into `folder`; None when that failed and the surrogate may stand in."""
    say(f"fetching MNIST into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stem, digest in source.official.items():
            if not _is_official(file_in(folder, stem), digest):
                download_one(folder / f"{stem}.gz", digest, say, source)
        return read_dataset(folder, source.official)
    except (DataError, OSError) as error:
        if not allow_surrogate:
            fix = "name a folder that holds it with --data"
            raise DatasetMissing(f"MNIST can't be had: {error}", place=str(folder), fix=fix) from error
        say(f"warning: MNIST can't be had: {error}")
        return None


def _is_official(path: Path | None, digest: str) -> bool:
    try:
        return path is not None and read_idx(path).sha256 == digest
    except DataError:
        return False


def _drawn(folder: Path, say: Say) -> Path:
    """The surrogate in `folder`, drawn unless it is there and whole (its mark is written last)."""
    if holds_dataset(folder) and (folder / MARK).is_file():
        return folder
    from mlcore.data.surrogate import write_surrogate

    say(f"drawing SURROGATE digits into {folder}: numbers made from them are not measured on MNIST")
    try:
        return write_surrogate(folder)
    except OSError as error:
        raise DataError(
            f"can't be written ({error.strerror})", place=str(folder), fix="set MLCORE_CACHE to a folder that can"
        ) from error
