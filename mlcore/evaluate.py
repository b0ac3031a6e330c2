"""What a trained network says about images, and how often it is wrong.

Legend: N images, V views of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.autograd import no_grad
from mlcore.data.images import Floats
from mlcore.data.views import Stream
from mlcore.data.windows import CENTRE_OF_TEN
from mlcore.errors import NotFinite
from mlcore.kernels.loss import cross_entropy_forward
from mlcore.layers import Layer
from mlcore.tensor import Array, Tensor

TEN = 10  # views
MANY = 10  # classes up to which only the first guess counts
SMALLEST = 1e-37  # of a mean of chances; its logarithm is a number in float32

Classes: TypeAlias = npt.NDArray[np.int64]
Logits: TypeAlias = Callable[[Floats], Array]  # images float32 [N,C,H,W] to [N, classes]


@dataclass(frozen=True)
class Evaluation:
    """`predictions` int64 [N], one class per image in their order; mean `loss` and `error_pct`, None without labels.

    `top5` int64 [N, 5]: the likeliest classes, likeliest first; `top5_error_pct`: how many images have their label in
    none of them. Both None with MANY classes or fewer, where five guesses say little. `centre` int64 [N]: what the
    centre alone would have said, where ten views were averaged.
    """

    predictions: Classes
    loss: float | None
    error_pct: float | None
    top5: Classes | None = None
    top5_error_pct: float | None = None
    centre: Classes | None = None


def evaluate(model: Layer, stream: Stream, step: int = 0) -> Evaluation:
    """Run `model` over all images without a tape; NotFinite (naming `step`) when its outputs are not numbers."""
    return evaluate_by(on_tape(model), stream, step)


def evaluate_by(logits_of: Logits, stream: Stream, step: int = 0) -> Evaluation:
    """The same for whatever gives logits."""
    labels, guesses, loss, start = stream.labels, [np.empty((0, 1), np.int64)], 0.0, 0
    centres = list[Classes]()
    for piece in stream.pieces():
        of_views = _of_views(logits_of, piece)
        logits = _averaged(of_views)
        if not np.isfinite(logits).all():
            raise NotFinite("the evaluated network's outputs are not finite", step=step, layer="output")
        guesses.append(likeliest(logits))
        if of_views.shape[1] == TEN:
            centres.append(of_views[:, CENTRE_OF_TEN].argmax(axis=1).astype(np.int64))
        if labels is not None:
            right = labels[start : start + len(piece)].astype(np.int64)
            loss += float(cross_entropy_forward(logits, right)[0]) * len(piece)
        start += len(piece)
    best = np.concatenate(guesses[1:] or guesses)
    top5 = best if best.shape[1] > 1 else None
    centre = np.concatenate(centres) if centres else None
    if labels is None:
        return Evaluation(best[:, 0], None, None, top5, centre=centre)
    top5_error = None if top5 is None else top5_error_pct(top5, labels)
    return Evaluation(best[:, 0], loss / len(labels), error_pct(best[:, 0], labels), top5, top5_error, centre)


def likeliest(logits: Array) -> Classes:
    """int64 [N, 5] classes by falling logits; [N, 1] of up to MANY classes. Of equal logits the first class leads."""
    if logits.shape[1] <= MANY:
        first: Classes = logits.argmax(axis=1)[:, None].astype(np.int64)
        return first
    order: Classes = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int64)
    return order


def _of_views(logits_of: Logits, piece_NVCHW: Floats) -> Array:
    """[N, V, classes]: the logits of every view."""
    count, views = piece_NVCHW.shape[:2]
    logits = logits_of(piece_NVCHW.reshape(count * views, *piece_NVCHW.shape[2:]))
    return logits.reshape(count, views, -1)


def _averaged(logits_NVK: Array) -> Array:
    """[N, classes]: logits of images with one view; of several, the logarithm of their softmax's mean.

    That is what the logits of one view become but for a number added to all of an image's, so both are used alike.
    Source: Krizhevsky 2012, sec. 4.1: the softmax is averaged, not the logits.
    """
    if logits_NVK.shape[1] == 1:
        return logits_NVK[:, 0]
    wide = logits_NVK.astype(np.float64)
    chances = np.exp(wide - wide.max(axis=2, keepdims=True))
    chances /= chances.sum(axis=2, keepdims=True)
    mean: Array = np.log(np.maximum(chances.mean(axis=1), SMALLEST)).astype(logits_NVK.dtype)
    return mean


def on_tape(model: Layer) -> Logits:
    """A model's logits, without dropout and without keeping a tape."""

    def logits(images: Floats) -> Array:
        with no_grad():
            return model(Tensor(images), None).data

    return logits


def error_pct(predictions_N: npt.NDArray[np.integer], labels_N: npt.NDArray[np.integer]) -> float:
    """The share of wrong predictions, in percent of N."""
    return 100.0 * int(np.count_nonzero(predictions_N != labels_N)) / len(labels_N)


def top5_error_pct(guesses_N5: Classes, labels_N: npt.NDArray[np.integer]) -> float:
    """The share of images whose label is none of their five guesses, in percent of N."""
    return 100.0 * int(np.count_nonzero((guesses_N5 != labels_N[:, None]).all(axis=1))) / len(labels_N)


def confusion(predictions_N: Classes, labels_N: npt.NDArray[np.integer], classes: int = 10) -> Classes:
    """int64 [classes, classes]: how often the class of the row was taken for the class of the column."""
    counts = np.bincount(labels_N.astype(np.int64) * classes + predictions_N, minlength=classes**2)
    return counts.reshape(classes, classes).astype(np.int64)
