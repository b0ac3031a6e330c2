"""Predictions + labels -> error rates, in a process that loads nothing an agent can edit.

Run as a script with `python -I`: only the standard library and NumPy. The predictions come from code that is not
trusted: nothing is unpickled, and shape, type and range are checked before a number is made of them. Weights are
counted from the header of their safetensors file, which must account for every byte of it.

Legend: N test images, M training images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 24
SNAPSHOT = re.compile(r"train_predictions_(\d{1,6})\.npy")  # + epoch: predictions on the training images after it
TOP = 5
# A network's trained arrays in a checkpoint; its buffers and what the optimiser remembers are not parameters.
PARAMETER = re.compile(r"(?:model/)?[^/]*\b(?:weight|bias)")
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class NotScorable(Exception):
    """The predictions can't be scored; the message says why."""


def load_predictions(path: Path, count: int, classes: int, each: int = 1) -> NDArray[np.int64]:
    """int64 [count], or [count, each] for several guesses an image, all in [0, classes). Raises NotScorable."""
    shape = (count,) if each == 1 else (count, each)
    if not path.is_file() or path.is_symlink():
        raise NotScorable(f"{path.name} was not written")
    if path.stat().st_size > MAX_BYTES:
        raise NotScorable(f"{path.name} is too large")
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
    except Exception as error:  # a hostile header makes NumPy raise what it likes: BadZipFile, TokenError, MemoryError
        raise NotScorable(f"{path.name} is not a plain .npy file: {error}") from error
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind not in "iu":
        raise NotScorable(f"{path.name} must hold {' x '.join(map(str, shape))} integers")
    predictions = np.array(found, dtype=np.int64)
    if predictions.min(initial=0) < 0 or predictions.max(initial=0) >= classes:
        raise NotScorable(f"{path.name} holds classes outside 0..{classes - 1}")
    return predictions


def error_pct(predictions: NDArray[Any], labels: NDArray[Any] | np.bool_) -> float:
    """Percentage of predictions that differ from the labels."""
    return 100.0 * float(np.count_nonzero(predictions != labels)) / len(predictions)


def score(predictions_path: Path, answers: NDArray[Any], made: NDArray[np.bool_]) -> dict[str, Any]:
    """Error on the published test set, and on the gate's own images."""
    classes = int(answers.max()) + 1
    predictions = load_predictions(predictions_path, len(answers), classes)
    return {
        "test_error_pct": error_pct(predictions[~made], answers[~made]),
        "gate_split_error_pct": error_pct(predictions[made], answers[made]),
        "count": int(np.count_nonzero(~made)),
        "classes": classes,
        "predicted_classes": len(np.unique(predictions)),
        "sha256": hashlib.sha256(predictions_path.read_bytes()).hexdigest(),
    }


def score_top5(path: Path, answers: NDArray[Any], made: NDArray[np.bool_]) -> dict[str, float]:
    """An image is wrong when none of its five guesses is its label, which must differ from each other."""
    guesses = load_predictions(path, len(answers), int(answers.max()) + 1, TOP)
    if (np.diff(np.sort(guesses, axis=1), axis=1) == 0).any():
        raise NotScorable(f"{path.name} repeats a guess")
    right = (guesses == answers[:, None]).any(axis=1)
    return {
        "test_top5_error_pct": error_pct(right[~made], np.True_),
        "gate_split_top5_error_pct": error_pct(right[made], np.True_),
    }


def score_snapshots(folder: Path, answers: NDArray[Any]) -> Iterator[tuple[str, float]]:
    """Yields ("train_error_pct_EEE", error on the training images) of each snapshot, in the files' order."""
    classes = int(answers.max()) + 1
    for path in sorted(folder.iterdir()):
        if match := SNAPSHOT.fullmatch(path.name):
            epoch = int(match[1])
            yield f"train_error_pct_{epoch:03}", error_pct(load_predictions(path, len(answers), classes), answers)


def copied_pct(folder: Path, given: NDArray[Any], planted: NDArray[np.bool_]) -> float:
    """The largest share of planted wrong labels that any snapshot repeats: chance for a learner, all for a copier."""
    classes = int(given.max()) + 1
    paths = [path for path in folder.iterdir() if SNAPSHOT.fullmatch(path.name)]
    loaded = (load_predictions(path, len(given), classes) for path in paths)
    return max((100.0 - error_pct(each[planted], given[planted]) for each in loaded), default=0.0)


def count_parameters(path: Path) -> int:
    """Values in the weights and biases of a safetensors file. Raises NotScorable for a file that is none."""
    header, body = _header(path)
    total, claimed = 0, 0
    for name, entry in header.items():
        if name != "__metadata__":
            values = _values_in(path, name, entry)
            claimed += values * ITEM_BYTES[entry["dtype"]]
            total += values if PARAMETER.fullmatch(name) else 0
    if claimed != body:
        raise NotScorable(f"{path.name} holds {body} bytes of arrays, its header says {claimed}")
    return total


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes follow it."""
    if not path.is_file() or path.is_symlink():
        raise NotScorable(f"{path.name} was not written")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= MAX_HEADER_BYTES:
            raise NotScorable(f"{path.name} is not a safetensors file")
        try:
            header = json.loads(file.read(size))
        except (ValueError, RecursionError) as error:
            raise NotScorable(f"{path.name} is not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise NotScorable(f"{path.name} is not a safetensors file")
    return header, path.stat().st_size - 8 - size


def _values_in(path: Path, name: str, entry: Any) -> int:
    shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
    if not isinstance(shape, list) or not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise NotScorable(f"{path.name}: {name[:60]} is not an array")
    if not all(type(side) is int and 0 <= side < 2**40 for side in shape):
        raise NotScorable(f"{path.name}: {name[:60]} has no such shape")
    return math.prod(shape)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Whatever can be measured of the files that were named."""
    found: dict[str, Any] = {}
    if args.predictions:
        answers, made = _load(args.answers), _load(args.made)
        found |= score(args.predictions, answers, made)
        if args.top5:
            found |= score_top5(args.top5, answers, made)
        if args.centre:
            centre = load_predictions(args.centre, len(answers), int(answers.max()) + 1)
            found["test_centre_error_pct"] = error_pct(centre[~made], answers[~made])
            found["gate_split_centre_error_pct"] = error_pct(centre[made], answers[made])
    if args.snapshots:
        found |= dict(score_snapshots(args.snapshots, _load(args.train_answers)))
        if args.planted:
            given, planted = _load(args.given), _load(args.planted)
            found["copied_pct"] = copied_pct(args.snapshots, given, planted)
    if args.weights:
        found["parameters"] = count_parameters(args.weights)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--predictions", type=Path, help="integers [N]")
    add("--top5", type=Path, help="integers [N, 5], the five likeliest classes of each image")
    add("--centre", type=Path, help="integers [N], by the centre view alone, where the others are by several views")
    add("--answers", type=Path, help=".npy, labels in the folder's order")
    add("--made", type=Path, help="bool .npy, true where the gate made the image")
    add("--snapshots", type=Path, help="folder with train_predictions_EEE.npy, integers [M] each")
    add("--train-answers", type=Path, help=".npy, the training images' true labels")
    add("--given", type=Path, help=".npy, the training labels that were handed out, some of them wrong")
    add("--planted", type=Path, help="bool .npy, true where the label that was handed out is wrong")
    add("--weights", type=Path, help="safetensors file whose weights and biases are counted")
    add("--nonce", required=True, help="repeated in the answer, to tell it from anything else printed")
    args = parser.parse_args()
    try:
        result = measure(args)
    except NotScorable as error:
        result = {"error": str(error)}
    json.dump({"nonce": args.nonce, **result}, sys.stdout)
    return 0


def _load(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    return array


if __name__ == "__main__":
    sys.exit(main())
