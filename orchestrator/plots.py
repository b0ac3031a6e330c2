"""Pictures beside a plan: training errors by epoch from receipts, losses and first-layer filters from the run's files.

What is drawn from receipts was scored by the harness. Losses come from the training's own log and are marked so. The
same receipts and files give the same bytes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator import quantities, verdicts
from orchestrator.measure import CHECKPOINTS, METRICS, plain_files
from orchestrator.records import Receipt, Target

FIRST_LAYER = "model/conv1.weight"
MAX_LOG_BYTES = 64 << 20
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e5ea2")
Curve = list[tuple[int, float]]


def draw(targets: Sequence[Target], receipts: Sequence[Receipt], out: Path) -> dict[str, bytes]:
    """File name -> contents. What can't be drawn is left out: a picture never costs a measurement its record.

    out: the trainings' folders, `<recipe>/<trial>/`, as the gate left them.
    """
    made: dict[str, bytes] = {}
    for target in targets:
        if target.metric == "epochs_to":
            curves = {recipe: _training_errors(target, recipe, receipts) for recipe in target.recipes}
            _add(made, f"{target.id}.svg", partial(_errors_figure, target, curves))
    for recipe in dict.fromkeys(recipe for target in targets for recipe in target.recipes):
        stem = PurePosixPath(recipe).stem
        runs = sorted(path for path in (out / stem).glob("seed-*") if path.is_dir() and path.suffix != ".handed")
        _add(made, f"{stem}-loss.svg", partial(_losses_figure, stem, runs))
        _add(made, f"{stem}-filters.png", partial(_filters_figure, runs))
    return made


def _add(made: dict[str, bytes], name: str, figure: Callable[[], bytes | None]) -> None:
    try:
        drawn = figure()
    except Exception:  # files that an agent's code wrote make their readers raise what they like
        return
    if drawn:
        made[name] = drawn


def _training_errors(target: Target, recipe: str, receipts: Iterable[Receipt]) -> list[Curve]:
    """A curve a seed."""
    alone = target.model_copy(update={"recipe": recipe, "against": "", "compare": ""})
    trained = [each for each in receipts if each.kind == "train" and verdicts.is_of(each, alone.recipe)]
    return [curve for each in trained if (curve := quantities.snapshots(each.values))]


def _errors_figure(target: Target, curves: dict[str, list[Curve]]) -> bytes | None:
    """Fig. 1 of the paper: the training error against epochs, a line a seed, and the level that is waited for."""
    if not any(curves.values()):
        return None
    figure, axes = _axes()
    for colour, (recipe, seeds) in zip(COLOURS, curves.items(), strict=False):
        for number, curve in enumerate(seeds):
            label = PurePosixPath(recipe).stem if number == 0 else None
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.8, label=label)
    axes.axhline(target.level, color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel("epochs")
    axes.set_ylabel("training error in %, scored by the harness")
    axes.legend()
    return _svg(figure)


def _losses_figure(stem: str, runs: Sequence[Path]) -> bytes | None:
    """The mean training loss of every epoch, a line a seed, as the training's own log has it."""
    curves = [curve for run in runs if (curve := list(_losses(run)))]
    if not curves:
        return None
    figure, axes = _axes()
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color=COLOURS[0], alpha=0.7)
    axes.set_xlabel("epochs")
    axes.set_ylabel("training loss, from the training's own log")
    axes.set_title(stem)
    return _svg(figure)


def _losses(run: Path) -> Iterator[tuple[int, float]]:
    for path in plain_files(run, METRICS):
        for line in path.read_bytes()[:MAX_LOG_BYTES].splitlines():
            row = json.loads(line)
            if row.get("kind") == "epoch":
                yield int(row["epoch"]), float(row["train_loss"])


def _filters_figure(runs: Sequence[Path]) -> bytes | None:
    """Fig. 3 of the paper: the first layer's filters of the first seed, each stretched to its own range."""
    from safetensors import safe_open

    weights = [path for run in runs[:1] for path in plain_files(run, CHECKPOINTS)]
    if not weights:
        return None
    with safe_open(weights[-1], "np") as file:
        filters: NDArray[Any] = file.get_tensor(FIRST_LAYER)
    return _png(_tiles(filters)) if filters.ndim == 4 and filters.shape[1] == 3 else None


def _tiles(filters_OIHW: NDArray[Any]) -> NDArray[np.float64]:
    """[rows, columns, 3] in 0..1: the filters beside and under each other, a white line between them."""
    count, _, height, width = filters_OIHW.shape
    columns = math.ceil(math.sqrt(count))
    sheet = np.ones((math.ceil(count / columns) * (height + 1) + 1, columns * (width + 1) + 1, 3))
    for number, one in enumerate(filters_OIHW.astype(np.float64)):
        low, high = one.min(), one.max()
        top, left = number // columns * (height + 1) + 1, number % columns * (width + 1) + 1
        sheet[top : top + height, left : left + width] = ((one - low) / max(high - low, 1e-12)).transpose(1, 2, 0)
    return sheet


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "odyssey"}):  # the same figure, the same bytes
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _png(sheet: NDArray[np.float64]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.fromarray((255 * sheet).round().astype(np.uint8))
    picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(stream, format="PNG")
    return stream.getvalue()
