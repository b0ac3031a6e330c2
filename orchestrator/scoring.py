"""Predictions + labels -> error rates, in a process that loads nothing an agent can edit.

Run as a script with `python -I`: only the standard library and NumPy. The predictions come from code that is not
trusted: nothing is unpickled, and shape, type and range are checked before a number is made of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 28


class NotScorable(Exception):
    """The predictions can't be scored; the message says why."""


def load_predictions(path: Path, count: int, classes: int) -> NDArray[np.int64]:
    """int64 [count], each in [0, classes). Raises NotScorable."""
    if not path.is_file() or path.is_symlink():
        raise NotScorable(f"{path.name} was not written")
    if path.stat().st_size > MAX_BYTES:
        raise NotScorable(f"{path.name} is too large")
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
    except Exception as error:  # a hostile header makes NumPy raise what it likes: BadZipFile, TokenError, MemoryError
        raise NotScorable(f"{path.name} is not a plain .npy file: {error}") from error
    if not isinstance(found, np.ndarray) or found.shape != (count,) or found.dtype.kind not in "iu":
        raise NotScorable(f"{path.name} must hold {count} integers")
    predictions = np.array(found, dtype=np.int64)
    if predictions.min(initial=0) < 0 or predictions.max(initial=0) >= classes:
        raise NotScorable(f"{path.name} holds classes outside 0..{classes - 1}")
    return predictions


def error_pct(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    """Percentage of predictions that differ from the labels."""
    return 100.0 * float(np.count_nonzero(predictions != labels)) / len(labels)


def score(predictions_path: Path, answers: NDArray[Any], made: NDArray[np.bool_]) -> dict[str, Any]:
    """Error on the published test set, and on the gate's own images."""
    classes = int(answers.max()) + 1
    predictions = load_predictions(predictions_path, len(answers), classes)
    return {
        "test_error_pct": error_pct(predictions[~made], answers[~made]),
        "gate_split_error_pct": error_pct(predictions[made], answers[made]),
        "count": int(np.count_nonzero(~made)),
        "predicted_classes": len(np.unique(predictions)),
        "sha256": hashlib.sha256(predictions_path.read_bytes()).hexdigest(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True, help="uint8 .npy, labels in the folder's order")
    parser.add_argument("--made", type=Path, required=True, help="bool .npy, true where the gate made the image")
    parser.add_argument("--nonce", required=True, help="repeated in the answer, to tell it from anything else printed")
    args = parser.parse_args()
    try:
        result = score(
            args.predictions, np.load(args.answers, allow_pickle=False), np.load(args.made, allow_pickle=False)
        )
    except NotScorable as error:
        result = {"error": str(error)}
    json.dump({"nonce": args.nonce, **result}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
