"""What a trained network says about images, and how often it is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.autograd import no_grad
from mlcore.data.images import Bytes, Floats, Normaliser
from mlcore.errors import NotFinite
from mlcore.kernels.loss import cross_entropy_forward
from mlcore.layers import Layer
from mlcore.tensor import Array, Tensor

BATCH = 500

Classes: TypeAlias = npt.NDArray[np.int64]
Logits: TypeAlias = Callable[[Floats], Array]  # images float32 [N,1,H,W] to [N, classes]


@dataclass(frozen=True)
class Evaluation:
    """`predictions` int64 [N], one class per image in their order; mean `loss` and `error_pct`, None without labels."""

    predictions: Classes
    loss: float | None
    error_pct: float | None


def evaluate(
    model: Layer, normaliser: Normaliser, images_NHW: Bytes, labels_N: Bytes | None, step: int = 0
) -> Evaluation:
    """Run `model` over all images without a tape; NotFinite (naming `step`) when its outputs are not numbers."""
    return evaluate_by(on_tape(model), normaliser, images_NHW, labels_N, step)


def evaluate_by(
    logits_of: Logits, normaliser: Normaliser, images_NHW: Bytes, labels_N: Bytes | None, step: int = 0
) -> Evaluation:
    """The same for whatever gives logits."""
    predictions = np.empty(len(images_NHW), dtype=np.int64)
    loss = 0.0
    for start in range(0, len(images_NHW), BATCH):
        part = slice(start, start + BATCH)
        logits = logits_of(normaliser.apply(images_NHW[part]))
        if not np.isfinite(logits).all():
            raise NotFinite("the evaluated network's outputs are not finite", step=step, layer="output")
        predictions[part] = logits.argmax(axis=1)
        if labels_N is not None:
            loss += float(cross_entropy_forward(logits, labels_N[part].astype(np.int64))[0]) * len(logits)
    if labels_N is None:
        return Evaluation(predictions, None, None)
    return Evaluation(predictions, loss / len(labels_N), error_pct(predictions, labels_N))


def on_tape(model: Layer) -> Logits:
    """A model's logits, without dropout and without keeping a tape."""

    def logits(images: Floats) -> Array:
        with no_grad():
            return model(Tensor(images), None).data

    return logits


def error_pct(predictions_N: npt.NDArray[np.integer], labels_N: npt.NDArray[np.integer]) -> float:
    """The share of wrong predictions, in percent of N."""
    return 100.0 * int(np.count_nonzero(predictions_N != labels_N)) / len(labels_N)


def confusion(predictions_N: Classes, labels_N: Bytes, classes: int = 10) -> Classes:
    """int64 [classes, classes]: how often the class of the row was taken for the class of the column."""
    counts = np.bincount(labels_N.astype(np.int64) * classes + predictions_N, minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.int64)
