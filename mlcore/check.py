"""Learning smoke checks: do the images reach the network intact, and can the network learn from them?

Each check states what it wants and what it saw. Data loaders fail silently: blanked images, shifted labels or a
transposed axis still train, only worse. So the batches are held against the files' own bytes, decoded here again
from scratch, and against what must happen when a network learns, or can't.

`make_loader` is a seam: tests hand in loaders with planted bugs.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mlcore.config import Recipe
from mlcore.data.dataset import CLASSES, TRAIN_IMAGES, TRAIN_LABELS, Dataset, file_in
from mlcore.data.images import Bytes
from mlcore.data.loader import Batch, Loader
from mlcore.errors import ShapeError
from mlcore.evaluate import evaluate
from mlcore.session import INPUT_SHAPE, Session, assemble, build_model, forward_backward

MakeLoader = Callable[[Loader], Loader]

HELD_OUT = 2000
LEARN_IMAGES = 16_000  # as many as short training looks at
OVERFIT_IMAGES, OVERFIT_STEPS, OVERFIT_LOSS = 32, 300, 0.05
CHANCE_PCT = 100 * (1 - 1 / CLASSES)
CHANCE_MARGIN_PCT = 8.0  # an untrained or misled network leans to a class or two; its share is not exactly a tenth
UNTRAINED_SEEDS = 5
LEARNS_PCT = 50.0


@dataclass(frozen=True)
class Check:
    """One check's outcome."""

    name: str
    wanted: str
    saw: str
    passed: bool


def run_checks(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader = lambda loader: loader) -> Iterator[Check]:
    """The checks, one after another as they are done; about twenty seconds for LeNet-5."""
    plain = _short(recipe, dataset, shuffle=False)
    images, labels = _files_bytes(dataset)
    yield check_round_trip(make_loader(assemble(recipe, dataset).loader), images, labels, recipe)
    yield check_shapes(recipe)
    yield check_overfit(recipe, dataset, make_loader)
    yield check_untrained(plain, dataset)
    yield check_learns(plain, dataset, make_loader)
    yield check_shuffled(_short(recipe, dataset, shuffle=True), dataset, make_loader)


def check_round_trip(loader: Loader, images: Bytes, labels: Bytes, recipe: Recipe) -> Check:
    """Every image of an epoch exactly once, each with its own bytes and label as the files have them."""
    seen = np.zeros(len(labels), dtype=np.int64)
    wrong_images = wrong_labels = blank = misshapen = 0
    for batch in loader.batches(0, loader.steps_per_epoch):
        if batch.images.shape != (len(batch.index), *INPUT_SHAPE) or batch.images.dtype != np.float32:
            misshapen += 1
            continue
        np.add.at(seen, batch.index, 1)
        bytes_NHW = loader.normaliser.undo(batch.images)
        differs = (bytes_NHW != images[batch.index]).any(axis=(1, 2)) | ~_is_normal(loader, batch)
        wrong_images += int(differs.sum())
        blank += int((~bytes_NHW.any(axis=(1, 2)) & images[batch.index].any(axis=(1, 2))).sum())
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
    """Every layer's output has something in it, and the last one is the ten classes."""
    try:
        traced = [(name, shape) for name, _, _, shape in build_model(recipe).trace(INPUT_SHAPE)]
    except ShapeError as error:
        return Check("shapes", f"{CLASSES} classes at the end", str(error), False)
    saw = " > ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in traced if "_" not in name)
    return Check("shapes", f"{CLASSES} classes at the end", saw, traced[-1][1] == (CLASSES,))


def check_overfit(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> Check:
    """A network that can learn anything learns one batch by heart."""
    batch_size = min(OVERFIT_IMAGES, len(dataset.train_labels))
    train = recipe.train.model_copy(update={"batch": batch_size, "steps": OVERFIT_STEPS, "epochs": OVERFIT_STEPS})
    data = recipe.data.model_copy(update={"limit": batch_size, "validation": 0, "shuffle_labels": False})
    session = assemble(recipe.model_copy(update={"train": train, "data": data}), dataset)
    batch = next(iter(make_loader(session.loader).batches(0, 1)))
    loss, wrong, step = float("inf"), batch_size, 0
    while step < OVERFIT_STEPS and (wrong or loss > OVERFIT_LOSS):
        loss, logits = forward_backward(session, batch, step)
        wrong = int((logits.argmax(axis=1) != batch.labels).sum())
        session.optimiser.step(session.rate(step))
        step += 1
    return Check(
        "one batch overfitted",
        f"{OVERFIT_IMAGES} images without error, loss below {OVERFIT_LOSS} within {OVERFIT_STEPS} steps",
        f"{wrong} wrong, loss {loss:.4f} after {step} steps",
        wrong == 0 and loss <= OVERFIT_LOSS,
    )


def check_untrained(recipe: Recipe, dataset: Dataset) -> Check:
    """Zero steps: fresh networks guess. The mean of a few, for a single one may lean to a frequent class."""
    errors = []
    for seed in range(UNTRAINED_SEEDS):
        session = assemble(recipe.model_copy(update={"seed": seed}), dataset)
        errors.append(_held_out_error(session))
    return _chance("zero steps", float(np.mean(errors)))


def check_learns(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> Check:
    """Short training on real labels gets far below chance on images held out."""
    error = _trained_error(recipe, dataset, make_loader)
    return Check("real labels learn", f"held-out error below {LEARNS_PCT:.0f} %", f"{error:.1f} %", error < LEARNS_PCT)


def check_shuffled(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> Check:
    """The same training on labels dealt out anew learns nothing that helps on images held out."""
    return _chance("shuffled labels", _trained_error(recipe, dataset, make_loader))


def _chance(name: str, error: float) -> Check:
    wanted = f"held-out error of {CHANCE_PCT:.0f} % ± {CHANCE_MARGIN_PCT:.0f}"
    return Check(name, wanted, f"{error:.1f} %", abs(error - CHANCE_PCT) <= CHANCE_MARGIN_PCT)


def _short(recipe: Recipe, dataset: Dataset, shuffle: bool) -> Recipe:
    """The recipe, cut to one pass over some thousand images, with others held out."""
    held_out = min(HELD_OUT, len(dataset.train_labels) // 4)
    limit = min(LEARN_IMAGES, len(dataset.train_labels) - held_out)
    data = recipe.data.model_copy(update={"validation": held_out, "limit": limit, "shuffle_labels": shuffle})
    steps = max(LEARN_IMAGES // recipe.train.batch, 50)
    return recipe.model_copy(
        update={"data": data, "train": recipe.train.model_copy(update={"steps": steps, "epochs": steps})}
    )


def _trained_error(recipe: Recipe, dataset: Dataset, make_loader: MakeLoader) -> float:
    session = assemble(recipe, dataset)
    loader = make_loader(session.loader)
    for step, batch in enumerate(loader.batches(0, session.total_steps)):
        forward_backward(session, batch, step)
        session.optimiser.step(session.rate(step))
    return _held_out_error(session)


def _held_out_error(session: Session) -> float:
    part = session.validation
    seen = evaluate(session.model, session.normaliser, part.images[part.index], part.labels[part.index])
    assert seen.error_pct is not None
    return seen.error_pct


def _is_normal(loader: Loader, batch: Batch) -> np.ndarray:
    """Per image: whether its values are within what normalisation can give (twice normalised ones are not)."""
    table = loader.normaliser.table()
    slack = np.float32(1e-3)
    low, high = batch.images.min(axis=(1, 2, 3)), batch.images.max(axis=(1, 2, 3))
    return np.asarray((low >= table[0] - slack) & (high <= table[-1] + slack))


def _files_bytes(dataset: Dataset) -> tuple[Bytes, Bytes]:
    """Training images and labels decoded by other code than the loader's: headers of 16 and 8 bytes, then bytes."""
    images = _payload(dataset, TRAIN_IMAGES, header=16)
    labels = _payload(dataset, TRAIN_LABELS, header=8)
    return images.reshape(len(labels), *INPUT_SHAPE[1:]), labels


def _payload(dataset: Dataset, stem: str, header: int) -> Bytes:
    path = file_in(dataset.path, stem)
    assert path is not None, "the dataset was read from this folder"
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return np.frombuffer(content, dtype=np.uint8, offset=header)
