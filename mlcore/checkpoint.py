"""Checkpoints: everything a run needs to go on to the bit, whole or not used.

A checkpoint is two files, `step-N.safetensors` (the arrays) and `step-N.json` (the rest). The arrays are written
first; the JSON carries their size and sha256 and its own, so it is what makes the checkpoint count. Both go through
a temporary file, fsync and rename. Whatever was cut, flipped or swapped since fails a checksum and is skipped with
a warning; the newest checkpoint that holds is used. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlcore.errors import CheckpointError
from mlcore.files import sha256_of, write_bytes
from mlcore.progress import Progress

KEEP = 2
LIMIT_BYTES = 64 << 20  # of the JSON part

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Row: TypeAlias = dict[str, str | int | float | None]
Warn: TypeAlias = Callable[[str], None]


class State(BaseModel):
    """What the arrays don't say. The loader's place and every random stream follow from the recipe and `step`.

    `epoch_*`: sums over the epoch under way. `rows`: the metrics so far. `data_dir`: what `--data` was given.
    `overrides`: as typed when the run began. `progress`: what the validation errors so far lead to.
    `ranks`: the processes that shared the batches of the last sitting.
    Times in seconds, over all the sittings of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal["mlcore.checkpoint/2"] = "mlcore.checkpoint/2"
    recipe_sha256: str
    data_sha256: dict[str, str]
    data_dir: str | None
    step: int = Field(ge=0)
    epoch_loss_sum: float = 0.0
    epoch_wrong: int = 0
    epoch_images: int = 0
    images: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    train_wall_s: float = 0.0
    ranks: int = 1
    overrides: tuple[str, ...] = ()
    progress: Progress = Progress()
    rows: tuple[Row, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A state and its arrays: "model/<parameter or buffer>", "optimiser/<what it remembers>", "normaliser/<moment>".

    With train.keep_best also "best/<parameter or buffer>". Before the first step of many, only "normaliser/".
    """

    state: State
    arrays: Arrays

    @property
    def weights(self) -> Arrays:
        """What evaluation goes by: those of the lowest validation error where the run keeps them, else the last."""
        return self.group("best") or self.group("model")

    def group(self, name: str) -> Arrays:
        """The arrays under "name/", by the rest of their names."""
        return {key.removeprefix(f"{name}/"): value for key, value in self.arrays.items() if key.startswith(f"{name}/")}


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, then remove all but the newest two; returns the JSON file.

    Raises CheckpointError when it can't be written (disk full, read-only); what was there before stays, and nothing
    of the new one. Needs room for a third checkpoint while it is being written.
    """
    from safetensors.numpy import save as pack

    path = folder / f"step-{checkpoint.state.step:010d}.json"
    arrays = path.with_suffix(".safetensors")
    packed = pack({name: np.ascontiguousarray(array) for name, array in checkpoint.arrays.items()})
    document = {
        "state": checkpoint.state.model_dump(mode="json"),
        "arrays_bytes": len(packed),
        "arrays_sha256": hashlib.sha256(packed).hexdigest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(arrays, packed)
        write_bytes(path, _sealed(document))
        _prune(folder, checkpoint.state.step)
    except OSError as error:
        with contextlib.suppress(OSError):
            if not path.exists():  # arrays that nothing will ever seal only take room
                arrays.unlink(missing_ok=True)
        raise CheckpointError(
            f"step {checkpoint.state.step} can't be saved: {error.strerror or error}",
            place=str(folder),
            fix="make room or correct the rights; the checkpoint before it is intact",
        ) from error
    return path


def newest(folder: Path, warn: Warn) -> Checkpoint | None:
    """The newest checkpoint that holds; `warn` is told of each newer one that does not. None: there are none.

    Raises CheckpointError when there are some and none holds.
    """
    paths = _paths(folder)
    for path in paths:
        try:
            return read(path)
        except CheckpointError as error:
            warn(f"checkpoint skipped: {error}")
    if paths:
        raise CheckpointError("no checkpoint here is sound", place=str(folder), fix="start the run anew")
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint of a JSON file and the arrays beside it; CheckpointError unless both are as written."""
    document = _unsealed(path)
    state = _state(path, document)
    arrays = path.with_suffix(".safetensors")
    try:
        size, digest = arrays.stat().st_size, ""
        if size == document["arrays_bytes"]:
            digest = sha256_of(arrays)
    except OSError as error:
        raise _unsound(arrays, f"can't be read ({error.strerror})") from error
    if not digest or digest != document["arrays_sha256"]:
        raise _unsound(arrays, "not the bytes that were saved")
    return Checkpoint(state, _load_arrays(arrays))


def _paths(folder: Path) -> list[Path]:
    """The checkpoints' JSON files, newest first."""
    found = [path for path in folder.glob("step-*.json") if _step_of(path) is not None]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _step_of(path: Path) -> int | None:
    match = re.match(r"step-(\d{10})\.(json|safetensors)$", path.name)
    return int(match.group(1)) if match else None


def _prune(folder: Path, step: int) -> None:
    """Keep this step and the one before; later ones can only be unsound, or they would have been used."""
    before = sorted({s for path in _paths(folder) if (s := _step_of(path)) is not None and s <= step})
    kept = set(before[-KEEP:])
    for path in _owned(folder):
        if _step_of(path) not in kept:
            path.unlink(missing_ok=True)


def _owned(folder: Path) -> Iterator[Path]:
    yield from folder.glob("step-*.json")
    yield from folder.glob("step-*.safetensors")
    yield from folder.glob(".step-*.part")


def _sealed(document: Mapping[str, Any]) -> bytes:
    """The one way to write a document, with the sha256 of the rest inside."""
    body = _canonical(document)
    return _canonical({**document, "sha256": hashlib.sha256(body).hexdigest()})


def _canonical(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _unsealed(path: Path) -> dict[str, Any]:
    """The document in a sealed file: its bytes must be exactly those that `_sealed` gives for it."""
    try:
        with path.open("rb") as stream:
            content = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise _unsound(path, f"can't be read ({error.strerror})") from error
    try:
        document = json.loads(content) if len(content) <= LIMIT_BYTES else None
        if isinstance(document, dict) and document.pop("sha256", None) and _sealed(document) == content:
            return document
    except (ValueError, RecursionError):
        pass  # not JSON at all: as unsound as any other
    raise _unsound(path, "torn or altered")


def _state(path: Path, document: Mapping[str, Any]) -> State:
    try:
        state = State.model_validate_json(json.dumps(document.get("state")))
    except ValidationError as error:
        raise _unsound(path, f"written by another version ({error.error_count()} fields differ)") from error
    if state.step != _step_of(path):
        raise _unsound(path, f"holds step {state.step}: the file was renamed")
    if not isinstance(document.get("arrays_bytes"), int) or not isinstance(document.get("arrays_sha256"), str):
        raise _unsound(path, "says nothing about its arrays")
    return state


def _load_arrays(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _unsound(path, f"not a safetensors file ({error})") from error


def _unsound(path: Path, what: str) -> CheckpointError:
    return CheckpointError(what, place=str(path), fix="an older checkpoint is used if there is one")
