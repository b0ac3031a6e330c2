"""A run's folder: which files it holds, who may write them, and what is there already."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from mlcore import config
from mlcore.errors import DataError, MlcoreError, RecipeError
from mlcore.files import write_bytes

OWNED = (  # removed in this order: no moment leaves a result beside another run's recipe
    "result.json",
    "metrics.jsonl",
    "predictions.npy",
    "predictions_top5.npy",
    "predictions_centre.npy",
    "train_predictions_*.npy",
    "checkpoints",
    "events",
    "curves.png",
    "confusion.png",
    "mistakes.png",
    "recipe.toml",
)


@dataclass(frozen=True)
class Run:
    """The files of one run; RESULT.md says what is in them."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.npy"

    @property
    def top5_predictions(self) -> Path:
        return self.path / "predictions_top5.npy"

    @property
    def centre_predictions(self) -> Path:
        return self.path / "predictions_centre.npy"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        return self.path / "events"

    def load_recipe(self) -> config.Recipe:
        """The resolved recipe; RecipeError when there is none, which is no run then."""
        if not self.recipe.is_file():
            raise RecipeError("no run: there is no recipe.toml", place=str(self.path), fix="name a folder under runs/")
        return config.load(str(self.recipe))

    def finished(self) -> dict[str, Any] | None:
        """The document of result.json if the run was finished and all it promises is there, else None."""
        try:
            document = json.loads(self.result.read_bytes())
        except (OSError, ValueError):
            return None
        whole = isinstance(document, dict) and document.get("status") == "finished" and self.predictions.is_file()
        return document if whole else None

    def clear(self) -> None:
        """Remove this run's files, and only those that a run writes."""
        for path in [path for name in OWNED for path in self.path.glob(name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone; MlcoreError when another process trains in it."""
        with self._lock_file() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise MlcoreError(
                    "another process trains here", place=str(self.path), fix="wait for it, or choose another --out"
                ) from error
            yield

    def _lock_file(self) -> IO[str]:
        try:
            return (self.path / ".lock").open("w")
        except OSError as error:
            raise DataError(f"can't be written ({error.strerror})", place=str(self.path), fix="make room") from error


def create(recipe: config.Recipe, out: Path | None, now: datetime) -> Run:
    """A new run's folder with its resolved recipe: `out`, or runs/<time>-<recipe>-s<seed>.

    Raises RecipeError when `out` holds a run already, DataError when it can't be written.
    """
    try:
        path = _made(out) if out else fresh_folder(Path("runs") / f"{now:%Y%m%d-%H%M%S}-{recipe.name}-s{recipe.seed}")
        run = Run(path)
        write_bytes(run.recipe, config.to_toml(recipe).encode())
    except OSError as error:
        raise DataError(
            f"can't be written ({error.strerror or error})", place=str(out or "runs"), fix="choose another --out"
        ) from error
    return run


def _made(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    if (out / "recipe.toml").exists():
        raise RecipeError(
            "holds a run already", place=str(out), fix="add --continue to go on with it, or choose another --out"
        )
    return out


def fresh_folder(path: Path) -> Path:
    """The folder `path`, made, or path-2, path-3, ... if runs began in the same second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise RecipeError("holds a thousand runs of this second", place=str(path.parent), fix="choose a place with --out")
