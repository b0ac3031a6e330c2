"""A run's pictures: learning curves, the confusion matrix, a gallery of misclassified images.

Drawn by matplotlib without a display; it is loaded only here.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlcore.checkpoint import Row
from mlcore.evaluate import Classes, confusion
from mlcore.files import replacing
from mlcore.runs import Run
from mlcore.session import AnyDataset

GALLERY, ACROSS = 40, 8
SIDE = 0.78  # an image's longer side, in cells
MOST_NAMES = 20  # classes up to which a confusion matrix has numbers and names
CURVES = (("train_error_pct", "training"), ("validation_error_pct", "validation"))


def draw_all(run: Run, rows: Sequence[Row], dataset: AnyDataset, predictions: Classes) -> None:
    """Write curves.png, and with test labels confusion.png and mistakes.png, into the run's folder."""
    note = "drawn SURROGATE digits, not MNIST" if dataset.surrogate else dataset.name
    draw_curves(run.path / "curves.png", rows, note)
    if dataset.test_labels is not None:
        counts = confusion(predictions, dataset.test_labels, dataset.classes)
        draw_confusion(run.path / "confusion.png", counts, dataset.class_names, note)
        draw_mistakes(run.path / "mistakes.png", dataset, predictions, note)


def draw_curves(path: Path, rows: Sequence[Row], note: str) -> None:
    """The loss of single steps on the left, errors by epoch on the right."""
    figure = _figure(9, 3.5)
    left, right = figure.subplots(1, 2)
    steps = [row for row in rows if row["kind"] == "step"]
    left.plot([row["step"] for row in steps], [row["loss"] for row in steps])
    left.set(xlabel="step", ylabel="loss of the batch", yscale="log", title=note)
    for key, label in CURVES:
        epochs = [row for row in rows if row["kind"] == "epoch" and row[key] is not None]
        if epochs:
            right.plot([row["epoch"] for row in epochs], [row[key] for row in epochs], marker=".", label=label)
    right.set(xlabel="epoch", ylabel="error, %", ylim=(0, None))
    right.xaxis.get_major_locator().set_params(integer=True)
    if right.lines:
        right.legend()
    _write(figure, path)


def draw_confusion(path: Path, counts: Classes, names: Sequence[str], note: str) -> None:
    """Rows: the class that it is; columns: the class it was taken for. Only mistakes are coloured."""
    figure = _figure(5.5, 5.5)
    axes = figure.subplots()
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    axes.imshow(mistakes, cmap="Reds")
    for (truth, taken), count in np.ndenumerate(counts if len(names) <= MOST_NAMES else counts[:0]):
        colour = "white" if 2 * mistakes[truth, taken] > mistakes.max() else "black"
        axes.text(taken, truth, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="taken for", ylabel="is", title=note)
    if len(names) <= MOST_NAMES:
        turned = 45 if max(map(len, names)) > 2 else 0
        axes.set_xticks(range(len(names)), names, rotation=turned)
        axes.set_yticks(range(len(names)), names)
    _write(figure, path)


def draw_mistakes(path: Path, dataset: AnyDataset, predictions: Classes, note: str) -> None:
    """The first misclassified test images, each with its number, its label and what it was taken for."""
    assert dataset.test_labels is not None
    wrong, names = np.flatnonzero(predictions != dataset.test_labels), dataset.class_names
    figure = _figure(10, 6.8, layout=None)
    figure.suptitle(f"{len(wrong)} of {len(predictions)} wrong ({note})")
    axes = figure.add_axes((0, 0, 1, 0.92))  # one for all, in cells: forty of their own take seconds
    axes.axis("off")
    for place, index in enumerate(wrong[:GALLERY]):
        row, column = divmod(place, ACROSS)
        image = dataset.test_image(index).transpose(1, 2, 0)
        height, width = SIDE * np.array(image.shape[:2]) / max(image.shape[:2])
        left, top = column + (1 - width) / 2, row + 0.18
        shown = image[..., 0] if image.shape[2] == 1 else image
        axes.imshow(shown, cmap="gray_r", vmin=0, vmax=255, extent=(left, left + width, top + height, top))
        title = f"{index}: {names[dataset.test_labels[index]]} as {names[predictions[index]]}"
        axes.text(column + 0.5, top - 0.03, title, fontsize=6, ha="center")
    axes.set(xlim=(0, ACROSS), ylim=(GALLERY / ACROSS, 0))
    _write(figure, path)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """A figure in inches, on no screen."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it takes a temporary place, and says so
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, path: Path) -> None:
    with replacing(path) as stream:
        figure.savefig(stream, format="png")
