"""Learning smoke checks: do the images reach the network intact, and can the network learn from them?

Each check states what it wants and what it saw. Data loaders fail silently: blanked images, shifted labels or a
transposed axis still train, only worse. So the batches are held against the files' own bytes, decoded here again
from scratch, and against what must happen when a network learns, or can't. Steps and evaluations are those of the
engine that trains the recipe.

`make_loader` is a seam: tests hand in loaders with planted bugs.
"""

import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlcore.config import Recipe, Schedule
from mlcore.data.dataset import Bytes, Dataset
from mlcore.data.loader import Batch, Loader
from mlcore.data.mnist import TRAIN_IMAGES, TRAIN_LABELS, file_in
from mlcore.engines import Engine, engine_for
from mlcore.errors import ShapeError
from mlcore.evaluate import evaluate_by
from mlcore.session import Session, assemble, build_model, network_input
from mlcore.train import fit

MakeLoader = Callable[[Loader], Loader]

HELD_OUT = 2000
LEARN_IMAGES = 16_000  # as many as short training looks at
PASSES = (1, 4)  # over them: some recipes begin slowly on purpose, with small weights or a low rate
OVERFIT_IMAGES, OVERFIT_STEPS, OVERFIT_LOSS = 32, 300, 0.05
CHANCE_MARGIN_PCT = 8.0  # an untrained or misled network leans to a class or two; its share is not exactly a tenth
UNTRAINED_SEEDS = 5
# What short training reaches on images held out: digits fast; on photographs 15 points below chance, which are twice
# what chance allows itself.
LEARNS_PCT = {"mnist": 50.0, "mnist-surrogate": 50.0}
LEARNS_BELOW_CHANCE_PCT = 15.0


@dataclass(frozen=True)
class Check:
    """One check's outcome."""

    name: str
    wanted: str
    saw: str
    passed: bool


def run_checks(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader = lambda loader: loader) -> Iterator[Check]:
    """The checks, one after another as they are done; seven CPU seconds for LeNet-5 once it is compiled."""
    images, labels = _files_bytes(dataset)
    yield check_round_trip(make_loader(_loader(assemble(recipe, dataset))), images, labels, recipe)
    yield check_shapes(recipe)
    yield check_overfit(recipe, dataset, make_loader)
    yield check_untrained(_short(recipe, dataset, shuffle=False), dataset)
    for passes in PASSES:
        learns = check_learns(_short(recipe, dataset, shuffle=False, passes=passes), dataset, make_loader)
        if learns.passed:
            break
    yield learns
    yield check_shuffled(_short(recipe, dataset, shuffle=True, passes=passes), dataset, make_loader)


def check_round_trip(loader: Loader, images: Bytes, labels: Bytes, recipe: Recipe) -> Check:
    """Every image of an epoch exactly once, each with its own bytes and label as the files have them."""
    seen, shape = np.zeros(len(labels), dtype=np.int64), network_input(recipe)[0]
    wrong_images = wrong_labels = blank = misshapen = 0
    for batch in loader.batches(0, loader.steps_per_epoch):
        if batch.images.shape != (len(batch.index), *shape) or batch.images.dtype != np.float32:
            misshapen += 1
            continue
        np.add.at(seen, batch.index, 1)
        got, files = loader.normaliser.undo(batch.images, batch.windows), _seen_of(images, batch, shape[1:])
        differs = (got != files).any(axis=(1, 2, 3)) | ~_is_normal(loader, batch)
        wrong_images += int(differs.sum())
        blank += int((~got.any(axis=(1, 2, 3)) & files.any(axis=(1, 2, 3))).sum())
        if not recipe.data.shuffle_labels:
            wrong_labels += int((batch.labels != labels[batch.index]).sum())
    astray = int((seen[loader.part.index] != 1).sum() + (seen.sum() - seen[loader.part.index].sum()))
    faults = {
        "misshapen batches": misshapen,
        "images differ": wrong_images,
        "of them blank": blank,
        "labels differ": wrong_labels,
        "not seen exactly once": astray,
    }
    found = ", ".join(f"{count} {name}" for name, count in faults.items() if count)
    return Check(
        "batch round trip",
        "each image once an epoch, with the files' own bytes and label",
        found or f"{int(seen.sum()):,} of {len(loader.part):,} images, all equal",
        not found,
    )


def check_shapes(recipe: Recipe) -> Check:
    """Every layer's output has something in it, and the last one is the classes."""
    input_shape, classes = network_input(recipe)
    wanted = f"{classes} classes at the end"
    try:
        traced = [(name, shape) for name, _, _, shape in build_model(recipe).trace(input_shape)]
    except ShapeError as error:
        return Check("shapes", wanted, str(error), False)
    saw = " > ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in traced if "_" not in name)
    return Check("shapes", wanted, saw, traced[-1][1] == (classes,))


def check_overfit(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> Check:
    """A network that can learn anything learns one batch by heart."""
    batch_size = min(OVERFIT_IMAGES, len(dataset.train_labels))
    train = recipe.train.model_copy(update={"batch": batch_size, "steps": OVERFIT_STEPS, "epochs": OVERFIT_STEPS})
    data = recipe.data.model_copy(update={"limit": batch_size, "validation": 0, "shuffle_labels": False})
    at_first_rate = {"schedule": Schedule()} if recipe.schedule.name == "epochs" else {}  # an epoch is one step here
    short = recipe.model_copy(update={"train": train, "data": data, **at_first_rate})
    session, engine = _begun(short, dataset, make_loader)
    batch = next(iter(session.loader.batches(0, 1)))
    for step in range(OVERFIT_STEPS):
        loss, logits = engine.step(batch, step)
        wrong = int((logits.argmax(axis=1) != batch.labels).sum())
        learnt = wrong == 0 and loss <= OVERFIT_LOSS
        if learnt or not np.isfinite(loss):
            break
        engine.move(session.rate(step))
    return Check(
        "one batch overfitted",
        f"{OVERFIT_IMAGES} images without error, loss below {OVERFIT_LOSS} within {OVERFIT_STEPS} steps",
        f"{wrong} wrong, loss {loss:.4f} after {step} steps",
        learnt,
    )


def check_untrained(recipe: Recipe, dataset: Dataset) -> Check:
    """Zero steps: fresh networks guess. The mean of a few, for a single one may lean to a frequent class."""
    errors = []
    for seed in range(UNTRAINED_SEEDS):
        errors.append(_held_out_error(*_begun(recipe.model_copy(update={"seed": seed}), dataset)))
    return _chance("zero steps", float(np.mean(errors)), dataset.classes)


def check_learns(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> Check:
    """Short training on real labels gets far below chance on images held out."""
    error = _trained_error(recipe, dataset, make_loader)
    limit = LEARNS_PCT.get(recipe.data.dataset, 100 * (1 - 1 / dataset.classes) - LEARNS_BELOW_CHANCE_PCT)
    assert recipe.train.steps is not None, "it is cut short"
    saw = f"{error:.1f} % after {recipe.train.steps * recipe.train.batch:,} images"
    return Check("real labels learn", f"held-out error below {limit:.0f} %", saw, error < limit)


def check_shuffled(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> Check:
    """The same training on labels dealt out anew learns nothing that helps on images held out."""
    return _chance("shuffled labels", _trained_error(recipe, dataset, make_loader), dataset.classes)


def _chance(name: str, error: float, classes: int) -> Check:
    chance_pct = 100 * (1 - 1 / classes)
    wanted = f"held-out error of {chance_pct:.0f} % ± {CHANCE_MARGIN_PCT:.0f}"
    return Check(name, wanted, f"{error:.1f} %", abs(error - chance_pct) <= CHANCE_MARGIN_PCT)


def _loader(session: Session) -> Loader:
    """The session's own: these checks are of datasets in memory."""
    assert isinstance(session.loader, Loader)
    return session.loader


def _short(recipe: Recipe, dataset: Dataset, shuffle: bool, passes: int = 1) -> Recipe:
    """The recipe, cut to so many passes over some thousand images, with others held out."""
    held_out = min(HELD_OUT, len(dataset.train_labels) // 4)
    limit = min(LEARN_IMAGES, len(dataset.train_labels) - held_out)
    data = recipe.data.model_copy(update={"validation": held_out, "limit": limit, "shuffle_labels": shuffle})
    steps = max(LEARN_IMAGES // recipe.train.batch, 50) * passes
    return recipe.model_copy(
        update={"data": data, "train": recipe.train.model_copy(update={"steps": steps, "epochs": steps})}
    )


def _begun(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader = lambda loader: loader) -> tuple[Session, Engine]:
    """A training that has not made a step, its batches by `make_loader`."""
    session = assemble(recipe, dataset)
    session = replace(session, feeds=replace(session.feeds, train=make_loader(_loader(session))))
    return session, engine_for(session)


def _trained_error(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> float:
    session, engine = _begun(recipe, dataset, make_loader)
    for _ in fit(session, 0, engine):
        pass
    return _held_out_error(session, engine)


def _held_out_error(session: Session, engine: Engine) -> float:
    seen = evaluate_by(engine.logits, session.validation)
    assert seen.error_pct is not None
    return seen.error_pct


def _seen_of(images_NCHW: Bytes, batch: Batch, size: Sequence[int]) -> Bytes:
    """uint8 [B,C,P,Q]: the files' bytes where the batch's windows are."""
    if batch.windows is None:
        return images_NCHW[batch.index]
    seen = []
    for index, (top, left, mirrored) in zip(batch.index, batch.windows, strict=True):
        part = images_NCHW[index, :, top : top + size[0], left : left + size[1]]
        seen.append(part[:, :, ::-1] if mirrored else part)
    return np.stack(seen)


def _is_normal(loader: Loader, batch: Batch) -> np.ndarray:
    """Per image: whether its values are within what normalisation can give (twice normalised ones are not)."""
    least, most = loader.normaliser.bounds
    slack = np.float32(1e-3)
    low, high = batch.images.min(axis=(1, 2, 3)), batch.images.max(axis=(1, 2, 3))
    return np.asarray((low >= least - slack) & (high <= most + slack))


def _files_bytes(dataset: Dataset) -> tuple[Bytes, Bytes]:
    """Training images [N,C,H,W] and labels decoded by other code than the loader's."""
    images, labels = DECODERS[dataset.kind](dataset)
    return images.reshape(len(labels), *dataset.image_shape), labels


def _decode_idx(dataset: Dataset) -> tuple[Bytes, Bytes]:
    """Headers of 16 and 8 bytes, then bytes."""
    paths = [file_in(dataset.path, stem) for stem in (TRAIN_IMAGES, TRAIN_LABELS)]
    content = [_content(path) for path in paths if path]
    return np.frombuffer(content[0], np.uint8, offset=16), np.frombuffer(content[1], np.uint8, offset=8)


def _decode_cifar(dataset: Dataset) -> tuple[Bytes, Bytes]:
    """A byte for the label, then the image's, five files long."""
    content = b"".join(_cifar_content(dataset.path, f"data_batch_{number}.bin") for number in range(1, 6))
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3072)
    return records[:, 1:], records[:, 0]


DECODERS: dict[str, Callable[[Dataset], tuple[Bytes, Bytes]]] = {"mnist": _decode_idx, "cifar10": _decode_cifar}


def _cifar_content(folder: Path, name: str) -> bytes:
    found = [path for place in (folder, folder / "cifar-10-batches-bin") for path in sorted(place.glob(f"{name}*"))]
    if found:
        return _content(found[0])
    with tarfile.open(folder / "cifar-10-binary.tar.gz") as archive:
        stream = archive.extractfile(f"cifar-10-batches-bin/{name}")
        assert stream is not None, "the dataset was read from this archive"
        return stream.read()


def _content(path: Path) -> bytes:
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    return unpack(path.read_bytes())
