"""The datasets that verdicts stand on: where they are on this machine, and what each room gets to see of them.

An agent's sandbox gets a copy without the test labels. The gate trains on a folder of its own: the test images in a
secret order, mixed with as many that the gate made by moving each one a pixel (against tables of public images and
their labels), still without labels. Of photographs it makes a thousand. Controls get folders in which there is nothing
left to learn.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator import shards
from orchestrator.errors import InputError
from orchestrator.formats import FORMATS, Bytes, Format, Split
from orchestrator.shards import PHOTOGRAPHS

Control = Literal["shuffled labels", "noise images", "changed labels"]
MADE_PHOTOGRAPHS = 1000  # enough to tell memorised labels, and a test of ten views takes minutes
CONTROL_PHOTOGRAPHS = 20_000  # that a control trains on: more than it sees
CHANGED_SHARE = 0.2  # of the training labels, in the control that looks for copied labels
CHANGE = np.uint8(1)  # added to a label, modulo the classes


@dataclass(frozen=True)
class Dataset:
    """A dataset on this machine. `official` says that every file's checksum is the published one.

    absent: there is nothing to train on; a plan still runs, and its verdicts say "not measured".
    """

    name: str  # as the plan calls it
    folder: Path
    sha256: dict[str, str]
    official: bool
    surrogate: bool
    absent: bool = False

    @property
    def label(self) -> str:
        if self.official:
            return self.name
        if self.absent:
            return f"{self.name}, which is not on this machine"
        return f"a drawn surrogate for {self.name}" if self.surrogate else f"{self.name}, unverified files"

    @property
    def format(self) -> Format:
        return {**FORMATS, **PHOTOGRAPHS}[self.name]

    @property
    def place(self) -> str:
        """The folder of this dataset, below a folder of datasets."""
        return PHOTOGRAPHS[self.name].folder if self.name in PHOTOGRAPHS else self.name


def locate(name: str, data: Path | None) -> Dataset:
    """Have mlcore find, download or draw the dataset, then check its files here. Raises InputError with the fix."""
    if name in PHOTOGRAPHS:
        return _photographs(name, data)
    if name not in FORMATS:
        raise InputError(f"dataset `{name}` can't be measured; measurable: {', '.join((*FORMATS, *PHOTOGRAPHS))}")
    mlcore = str(Path(sys.executable).with_name("mlcore"))
    argv = [mlcore, "fetch", name, "--surrogate", "--json", *(["--data", str(data)] if data else [])]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise InputError(f"dataset `{name}` could not be had; give its folder with --data (see the message above)")
    found = json.loads(done.stdout)
    folder, official = Path(found["path"]), dict(FORMATS[name].official)
    hashes = _digests(name, folder, official)
    return Dataset(name, folder, hashes, hashes == official, bool(found["surrogate"]))


def _photographs(name: str, data: Path | None) -> Dataset:
    """Large, and not fetched: a machine may well be without them."""
    given, kind = os.environ.get("MLCORE_DATA"), PHOTOGRAPHS[name]
    root = data or (Path(given) if given else None)
    folder = root / kind.folder if root else Path(kind.folder)
    if not (root and folder.is_dir()):
        return Dataset(name, folder, {}, official=False, surrogate=False, absent=True)
    hashes = _digests(name, folder, kind.official)
    return Dataset(name, folder, hashes, hashes == kind.official, surrogate=False)


def _digests(name: str, folder: Path, parts: Iterable[str]) -> dict[str, str]:
    raw = {**FORMATS, **PHOTOGRAPHS}[name].raw
    return {part: hashlib.sha256(raw(folder, part)).hexdigest() for part in parts}


def demand_same(dataset: Dataset) -> None:
    """InputError when the files are no longer those that the dataset was known by."""
    present = _digests(dataset.name, dataset.folder, dataset.sha256)
    if other := [part for part, digest in dataset.sha256.items() if present[part] != digest]:
        what = f"{dataset.folder}: {', '.join(other)} changed since the run began"
        raise InputError(f"{what}; put the files back, or start a new run with `orchestrate run`")


def withhold(dataset: Dataset, target: Path) -> Path:
    """The folder that an agent's sandbox mounts: `target/<folder's name>` without the test labels."""
    if dataset.absent:
        return target
    folder, complete = target / dataset.folder.name, target / f"{dataset.folder.name}.complete"
    copied = json.dumps(dataset.sha256, sort_keys=True)
    if not (complete.exists() and complete.read_text() == copied):
        complete.unlink(missing_ok=True)
        _fresh(folder)
        dataset.format.copy_train(dataset.folder, folder)
        dataset.format.copy_test_images(dataset.folder, folder)
        complete.write_text(copied)
    return target


def gate_split(dataset: Dataset, target: Path, seed: int) -> None:
    """Write `target/data/<name>/` for the sandbox and three arrays beside it for the scorer.

    answers.npy: [N + made] labels in the folder's order; made.npy: bool, as many, true where the gate moved the image;
    train_answers.npy: [M], the training images' true labels in the files' order.
    """
    rng = np.random.default_rng(seed)
    train, test = dataset.format.train(dataset.folder), dataset.format.test(dataset.folder)
    for images, labels, what in ((test.images, test.labels, "test"), (train.images, train.labels, "training")):
        if len(images) != len(labels):
            raise InputError(f"{dataset.folder}: {len(images)} {what} images but {len(labels)} labels; fetch it again")
    chosen = _to_be_moved(dataset, len(test.images), rng)
    both = np.concatenate([test.images, _moved_ones(dataset, test.images[chosen], rng)])
    order = rng.permutation(len(both))
    folder = _fresh(target / "data" / dataset.place)
    dataset.format.copy_train(dataset.folder, folder)
    dataset.format.write_test_images(folder, both[order])
    answers = {
        "answers": np.concatenate([test.labels, test.labels[chosen]])[order],
        "made": (np.arange(len(both)) >= len(test.images))[order],
        "train_answers": train.labels,
    }
    for name, array in answers.items():
        np.save(target / f"{name}.npy", array, allow_pickle=False)
    (target / "complete").touch()


def control(dataset: Dataset, target: Path, kind: Control, seed: int) -> None:
    """As gate_split, with something taken away from the training files; see CONTROLS."""
    gate_split(dataset, target, seed)
    (target / "complete").unlink()
    rng = np.random.default_rng([seed, 1])
    train = _fewer(dataset, dataset.format.train(dataset.folder), rng)
    changed = CONTROLS[kind](train, rng)
    dataset.format.write_train(target / "data" / dataset.place, changed)
    np.save(target / "train_answers.npy", train.labels, allow_pickle=False)
    if kind == "changed labels":
        np.save(target / "planted.npy", changed.labels != train.labels, allow_pickle=False)
        np.save(target / "given.npy", changed.labels, allow_pickle=False)
    (target / "complete").touch()


def _shuffled(train: Split, rng: np.random.Generator) -> Split:
    """Labels dealt out anew: a learner must end at chance."""
    return replace(train, labels=rng.permutation(train.labels))


def _noise(train: Split, rng: np.random.Generator) -> Split:
    """Images of noise: likewise."""
    if train.names:
        return replace(train, images=shards.noise(train.images, rng))
    return replace(train, images=rng.integers(0, 256, train.images.shape, dtype=np.uint8))


def _changed(train: Split, rng: np.random.Generator) -> Split:
    """A share of the labels is wrong: who learns for an epoch does not repeat them, who copies labels does."""
    labels, chosen = train.labels.copy(), rng.random(len(train.labels)) < CHANGED_SHARE
    labels[chosen] = (labels[chosen] + CHANGE) % (train.labels.max() + CHANGE)
    return replace(train, labels=labels)


CONTROLS: dict[Control, Callable[[Split, np.random.Generator], Split]] = {
    "shuffled labels": _shuffled,
    "noise images": _noise,
    "changed labels": _changed,
}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _to_be_moved(dataset: Dataset, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which test images the gate makes another one of."""
    if dataset.name not in PHOTOGRAPHS or count <= MADE_PHOTOGRAPHS:
        return np.arange(count)
    return rng.choice(count, MADE_PHOTOGRAPHS, replace=False)


def _fewer(dataset: Dataset, train: Split, rng: np.random.Generator) -> Split:
    """What a control trains on: all, but of very many photographs a part."""
    if dataset.name not in PHOTOGRAPHS or len(train.labels) <= CONTROL_PHOTOGRAPHS:
        return train
    kept = np.sort(rng.choice(len(train.labels), CONTROL_PHOTOGRAPHS, replace=False))
    return replace(train, images=train.images[kept], labels=train.labels[kept])


def _moved_ones(dataset: Dataset, images: Any, rng: np.random.Generator) -> Any:
    return shards.moved(images, rng) if dataset.name in PHOTOGRAPHS else _moved(images, rng)


def _moved(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Each image moved by one pixel in a direction drawn at random; its edge is repeated where it was uncovered."""
    height, width = images.shape[-2:]
    framed = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    out = np.empty_like(images)
    steps = ((0, 1), (2, 1), (1, 0), (1, 2))  # where the window lies in the framed image
    choice = rng.integers(len(steps), size=len(images))
    for index, (top, left) in enumerate(steps):
        chosen = choice == index
        out[chosen] = framed[chosen, ..., top : top + height, left : left + width]
    return out
