"""Check that a dataset's files on this machine are what they claim to be, and write a dataset card.

Reads MNIST's IDX files and CIFAR-10's batches itself (it imports neither mlcore nor orchestrator), so that a bug in
mlcore's readers can't hide here. The card holds no time, path or machine: the same files give the same bytes, and
anyone may recompute it. The test labels are never part of the card: agents don't get them, and a card must not depend
on who wrote it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also under python -P
from cifar_bytes import find_cifar10, read_cifar10
from idx_bytes import DataProblem, find_file, find_folder, parse_idx, read_raw

Bytes = npt.NDArray[np.uint8]
SCHEMA = "odyssey/dataset-card-1"
CLASSES = 10
# name -> (sha256 of the decompressed bytes, dimensions). gzip headers differ between mirrors; these bytes don't.
OFFICIAL: dict[str, tuple[str, tuple[int, ...]]] = {
    "train-images-idx3-ubyte": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        (60000, 28, 28),
    ),
    "train-labels-idx1-ubyte": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        (60000,),
    ),
    "t10k-images-idx3-ubyte": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        (10000, 28, 28),
    ),
    "t10k-labels-idx1-ubyte": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        (10000,),
    ),
}
TEST_LABELS = "t10k-labels-idx1-ubyte"
CARD_FILES = tuple(name for name in OFFICIAL if name != TEST_LABELS)
EPILOG = """\
examples:
  python verify.py --dataset mnist --card plans/mnist/dataset.json     write the card
  python verify.py --dataset mnist --check plans/mnist/dataset.json    recompute it and compare
where the files come from: --data, else MLCORE_DATA, else mlcore's cache; a folder that holds mnist/ or is it.
exit codes: 0 all is well; 1 the data are faulty, or the card differs; 2 files missing or malformed, bad arguments
"""


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        card, folder = card_of(args.dataset, args.data)
        tell(describe(card, folder))
        if args.check:
            return check_card(card, args.check)
        return write_card(card, args.card, args.require_official)
    except DataProblem as problem:
        tell([f"verify: {problem}"])
        return 2


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verify.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dataset", default="mnist", choices=["mnist", "cifar10"], help="which dataset (default: mnist)"
    )
    parser.add_argument("--data", type=Path, help="folder that holds the dataset (default: MLCORE_DATA, the cache)")
    parser.add_argument("--card", type=Path, help="write the card to this file (stdout shows it in any case)")
    parser.add_argument("--check", type=Path, help="compare the data with this card instead of writing one")
    parser.add_argument("--require-official", action="store_true", help="exit 1 unless these are the official files")
    return parser


def tell(lines: list[str]) -> None:
    print(*lines, sep="\n", file=sys.stderr)


# ---------------------------------------------------------------- the card


def card_of(dataset: str, data: Path | None) -> tuple[dict[str, Any], Path]:
    if dataset == "cifar10":
        folder = find_cifar10(data)
        return make_cifar10_card(folder), folder
    folder, surrogate = find_folder(dataset, data)
    return make_card(dataset, folder, surrogate), folder


def make_cifar10_card(folder: Path) -> dict[str, Any]:
    train, labels, test, files = read_cifar10(folder)
    problems, statistics = examine(train, labels, test, [3, 32, 32])
    official = all(file["official"] for file in files.values())
    return {
        "schema": SCHEMA,
        "dataset": "cifar10" if official else "cifar10-unverified",
        "official": official,
        "files": files,
        **statistics,
        "test_labels": "withheld",
        "problems": problems,
    }


def make_card(dataset: str, folder: Path, surrogate: bool) -> dict[str, Any]:
    arrays, files = {}, {}
    for name in CARD_FILES:
        path = find_file(folder, name)
        if path is None:
            raise DataProblem(f"{folder / name}: missing (.gz or not); run `mlcore fetch`")
        raw = read_raw(path)
        arrays[name] = parse_idx(raw, str(path))
        digest = hashlib.sha256(raw).hexdigest()
        files[name] = {"raw_sha256": digest, "raw_bytes": len(raw), "official": digest == OFFICIAL[name][0]}
    problems, statistics = examine(*(arrays[name] for name in CARD_FILES), [28, 28])
    problems += check_test_labels(folder, official := all(file["official"] for file in files.values()))
    return {
        "schema": SCHEMA,
        "dataset": dataset if official else f"{dataset}-{'surrogate' if surrogate else 'unverified'}",
        "official": official,
        "files": files,
        **statistics,
        "test_labels": "withheld",
        "problems": problems,
    }


def check_test_labels(folder: Path, official: bool) -> list[str]:
    """Beside official files, test labels that are there must be the official ones. Only their digest is looked at."""
    path = find_file(folder, TEST_LABELS)
    if path is None or not official or hashlib.sha256(read_raw(path)).hexdigest() == OFFICIAL[TEST_LABELS][0]:
        return []
    return [f"{TEST_LABELS}: not the official file, beside official images"]


def examine(train: Bytes, labels: Bytes, test: Bytes, shape: list[int]) -> tuple[list[str], dict[str, Any]]:
    """Returns what is wrong with the contents, and the statistics that the card states. shape: of an image."""
    if train.ndim != 1 + len(shape) or test.ndim != train.ndim or labels.ndim != 1:
        raise DataProblem(f"images must have {1 + len(shape)} dimensions and labels 1; are the files swapped?")
    statistics: dict[str, Any] = {
        "train": {**image_statistics(train), "per_class": np.bincount(labels, minlength=CLASSES).tolist()},
        "test": image_statistics(test),
        "shared_train_test": len(set(rows(train)) & set(rows(test))),
    }
    problems = [p for split in ("train", "test") for p in image_problems(split, statistics[split], shape)]
    return problems + label_problems(len(train), labels), statistics


def rows(images: npt.NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() for image in images]


def image_statistics(images: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Exact integers, and a mean and deviation made from exact sums: equal on every machine."""
    count, total = len(images), int(images.sum(dtype=np.uint64))
    squares = int(np.square(np.arange(256)) @ np.bincount(images.ravel(), minlength=256))
    mean = total / images.size if images.size else 0.0
    return {
        "count": count,
        "shape": list(images.shape[1:]),
        "min": int(images.min(initial=255)) if images.size else 0,
        "max": int(images.max(initial=0)),
        "mean": round(mean, 6),
        "std": round(math.sqrt(max(squares / images.size - mean * mean, 0.0)), 6) if images.size else 0.0,
        "blank": count - int(images.reshape(count, -1).any(axis=1).sum()) if images.size else 0,
        "duplicates": count - len(set(rows(images))),
    }


def image_problems(split: str, seen: dict[str, Any], shape: list[int]) -> list[str]:
    found = []
    if seen["count"] == 0 or seen["shape"] != shape:
        found.append(f"{split}: {seen['count']} images of {seen['shape']}, wanted some of {shape}")
    if seen["blank"] * 1000 > seen["count"]:
        found.append(f"{split}: {seen['blank']} of {seen['count']} images are blank")
    if seen["duplicates"] * 100 > seen["count"]:
        found.append(f"{split}: {seen['duplicates']} of {seen['count']} images repeat another")
    return found


def label_problems(images: int, labels: npt.NDArray[np.uint8]) -> list[str]:
    found = []
    if images != len(labels):
        found.append(f"train: {images} images but {len(labels)} labels")
    present = sorted(set(labels.tolist()))
    if present != list(range(CLASSES)):
        found.append(f"train: labels are {present[:20]}, wanted every class from 0 to {CLASSES - 1}")
    return found


# ---------------------------------------------------------------- what to do with it


def describe(card: dict[str, Any], folder: Path) -> list[str]:
    name = "the official files" if card["official"] else "NOT the official files; no number from them is MNIST's"
    counts = f"{card['train']['count']} training and {card['test']['count']} test images"
    lines = [f"{folder}: {card['dataset']}, {name}; {counts}; test labels: {card['test_labels']}"]
    return lines + [f"  problem: {problem}" for problem in card["problems"]]


def write_card(card: dict[str, Any], path: Path | None, require_official: bool) -> int:
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in card.items()]
    text = "{\n  " + ",\n  ".join(lines) + "\n}\n"
    if path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise DataProblem(f"{path}: can't write the card ({error})") from error
    print(text, end="")
    return int(bool(card["problems"]) or (require_official and not card["official"]))


def check_card(card: dict[str, Any], path: Path) -> int:
    try:
        claimed = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataProblem(f"{path}: not a card ({error}); write one with --card") from error
    differences = list(compare(claimed, card, ""))
    tell([f"  {path}:{difference}" for difference in differences])
    print(json.dumps({"same": not differences, "differences": differences, "problems": card["problems"]}))
    return int(bool(differences or card["problems"]))


def compare(claimed: Any, found: Any, where: str) -> list[str]:
    """What differs, leaf by leaf, compared as JSON text: true is not 1."""
    if isinstance(claimed, dict) and isinstance(found, dict):
        keys = sorted(claimed.keys() | found.keys())
        return [d for key in keys for d in compare(claimed.get(key), found.get(key), f"{where}.{key}".lstrip("."))]
    if json.dumps(claimed) == json.dumps(found):
        return []
    return [f" {where or 'card'} claims {json.dumps(claimed)[:80]}, the files give {json.dumps(found)[:80]}"]


if __name__ == "__main__":
    sys.exit(main())
