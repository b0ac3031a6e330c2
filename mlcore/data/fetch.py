"""Where a dataset is found: the folder that was named, the cache, a download, and at last drawn digits.

1. `--data DIR` or MLCORE_DATA: a folder that holds `<name>/` (or `<name>-surrogate/`), or is it. One that does not
   exist is an error; one without the data is an error for --data, and a warning for MLCORE_DATA.
2. the cache: MLCORE_CACHE, else XDG_CACHE_HOME/mlcore, else ~/.cache/mlcore.
3. the mirrors, file by file; what they send is kept only when its decompressed sha256 is the official one.
4. where there is one and it is allowed: the surrogate, drawn into the cache, labelled in every output.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlcore.data.dataset import Dataset
from mlcore.data.kinds import Kind, kind_of
from mlcore.data.mirrors import Say, Source
from mlcore.data.mnist import MARK
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
    """Find, verify and read the dataset `name`: one of `kinds.names()`.

    A folder named by flag must hold it: falling through to other data would be a surprise. For "mnist" a folder
    with only a surrogate counts when `allow_surrogate`. Raises RecipeError, DatasetMissing, DataError.
    """
    kind = kind_of(name)
    source = source or kind.source
    _demand_folder(kind, places)
    dataset = _located(name, kind, places, allow_surrogate, say, source)
    if dataset is None and name == kind.name:
        dataset = _downloaded(kind, places.cache / name, allow_surrogate and bool(kind.draw), say, source)
    if dataset is None:
        dataset = kind.read(_drawn(kind, places.cache, say), source.official)
    if dataset.surrogate and name == kind.name and not allow_surrogate:
        raise DatasetMissing(
            f"holds drawn surrogate digits, not {kind.title}",
            place=str(dataset.path),
            fix="name a folder with the real files",
        )
    for warning in dataset.warnings:
        say(f"warning: {dataset.path}: {warning}")
    return dataset


def locate(name: str, places: Places, say: Say, allow_surrogate: bool = True) -> Path | None:
    """The folder that already holds the dataset, or None.

    Without it, a flag's folder raises DatasetMissing, and of MLCORE_DATA's `say` is told.
    """
    kind = kind_of(name)
    names = [name, kind.surrogate] if kind.surrogate and allow_surrogate and name == kind.name else [name]
    if places.named:
        found = _inside(kind, places.named, names)
        if found is None:
            raise DatasetMissing(
                _lack(kind, places, names),
                place=str(places.named),
                fix=f"name the folder that does, or {_without(places)} to search the cache and the mirrors",
            )
        return found
    if places.environment:
        if found := _inside(kind, places.environment, names):
            return found
        say(f"warning: {places.environment}: {_lack(kind, places, names)}; looking in the cache and at the mirrors")
    return _inside(kind, places.cache, [name])  # its surrogate counts only after the mirrors failed (see `find`)


def copy_to(dataset: Dataset, out: Path) -> Path:
    """Copy a dataset's files into `out`; returns it. Raises DataError when it can't be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        kind_of(dataset.kind).copy(dataset, out)
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", place=str(out), fix="choose another --out") from error
    return out


def _demand_folder(kind: Kind, places: Places) -> None:
    """Raise DatasetMissing when the folder to look in first is none: whoever named it meant some data by it."""
    folder = places.named or places.environment
    if folder and not folder.is_dir():
        raise DatasetMissing(
            f"named by {places.named_by}, {'is not a folder' if folder.exists() else 'does not exist'}",
            place=str(folder),
            fix=f"name a folder that holds {kind.name}/, or {_without(places)}",
        )


def _lack(kind: Kind, places: Places, names: list[str]) -> str:
    return f"named by {places.named_by}, holds no {' or '.join(f'{name}/' for name in names)} with {kind.files}"


def _without(places: Places) -> str:
    return "leave --data away" if places.named_by == "--data" else "unset MLCORE_DATA"


def _inside(kind: Kind, root: Path, names: list[str]) -> Path | None:
    candidates = [root / name for name in names]
    if kind.surrogate in names or not (root / MARK).is_file():
        candidates.append(root)
    return next((folder for folder in candidates if kind.holds(folder)), None)


def _located(name: str, kind: Kind, places: Places, allow_surrogate: bool, say: Say, source: Source) -> Dataset | None:
    """The dataset that is there already; a damaged copy in our own cache counts as none, and is fetched again."""
    folder = locate(name, places, say, allow_surrogate)
    if folder is None or folder != places.cache / kind.name:
        return kind.read(folder, source.official) if folder else None
    try:
        dataset = kind.read(folder, source.official)
    except DataError as error:
        say(f"the cache is damaged: {error}")
        return None
    if not dataset.surrogate and dataset.name != kind.name:
        say(f"the cache is damaged: {folder}: {'; '.join(dataset.warnings)}")
        return None
    return dataset


def _downloaded(kind: Kind, folder: Path, may_draw: bool, say: Say, source: Source) -> Dataset | None:
    """The dataset, downloaded into `folder`; None when that failed and the surrogate may stand in."""
    say(f"fetching {kind.title} into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kind.download(folder, say, source)
        return kind.read(folder, source.official)
    except (DataError, OSError) as error:
        if not may_draw:
            fix = "name a folder that holds it with --data"
            raise DatasetMissing(f"{kind.title} can't be had: {error}", place=str(folder), fix=fix) from error
        say(f"warning: {kind.title} can't be had: {error}")
        return None


def _drawn(kind: Kind, cache: Path, say: Say) -> Path:
    """The surrogate in the cache, drawn unless it is there and whole (its mark is written last)."""
    assert kind.surrogate
    assert kind.draw
    folder = cache / kind.surrogate
    if kind.holds(folder) and (folder / MARK).is_file():
        return folder
    say(f"drawing SURROGATE digits into {folder}: numbers made from them are not measured on {kind.title}")
    try:
        return kind.draw(folder)
    except OSError as error:
        raise DataError(
            f"can't be written ({error.strerror})", place=str(folder), fix="set MLCORE_CACHE to a folder that can"
        ) from error
