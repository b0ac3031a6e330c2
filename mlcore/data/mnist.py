"""MNIST: its four IDX files read from a folder, and downloaded.

Test labels may be withheld: their file is absent then.
"""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlcore.data.dataset import Dataset, verified_name
from mlcore.data.idx import Idx, read_idx, read_images, read_labels
from mlcore.data.mirrors import Say, Source, check_sha256, download_one
from mlcore.errors import DataError, DatasetMissing, IdxWrongCount

MNIST, SURROGATE = "mnist", "mnist-surrogate"
MARK = "SURROGATE.json"  # its presence in a folder says: drawn by mlcore, not MNIST
CLASS_NAMES = tuple("0123456789")
CLASSES = len(CLASS_NAMES)
SIDE = 28
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# sha256 of the decompressed IDX bytes: the mirrors' gzip headers differ, these do not
OFFICIAL_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = OFFICIAL_SHA256
SOURCE = Source(MIRRORS, OFFICIAL_SHA256)


def file_in(folder: Path, stem: str) -> Path | None:
    """The file that holds `stem` in `folder`, gzip or not, in either of the two spellings in use."""
    dotted = stem.replace("-idx", ".idx")
    for name in (f"{stem}.gz", stem, f"{dotted}.gz", dotted):
        if (folder / name).is_file():
            return folder / name
    return None


def holds_mnist(folder: Path) -> bool:
    """Whether `folder` has the three files without which there is no dataset; test labels may be withheld."""
    return all(file_in(folder, stem) for stem in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES))


def read_mnist(folder: Path, official: Mapping[str, str] = OFFICIAL_SHA256) -> Dataset:
    """Read and check the IDX files in `folder`; they are "mnist" when their sha256 are the `official` ones.

    Raises DatasetMissing, IdxError (malformed, or counts that don't match), DataError (labels beyond 0..9).
    """
    found = {stem: path for stem in OFFICIAL_SHA256 if (path := file_in(folder, stem))}
    missing = [stem for stem in OFFICIAL_SHA256 if stem not in found and stem != TEST_LABELS]
    if missing:
        raise DatasetMissing(
            f"lacks {', '.join(missing)}[.gz]", place=str(folder), fix="run `mlcore fetch mnist` to get them"
        )
    train_images, train_labels = _read_pair(found[TRAIN_IMAGES], found[TRAIN_LABELS])
    test_images, test_labels = _read_pair(found[TEST_IMAGES], found.get(TEST_LABELS))
    assert train_labels is not None
    read = {TRAIN_IMAGES: train_images, TRAIN_LABELS: train_labels, TEST_IMAGES: test_images}
    sha256 = {stem: idx.sha256 for stem, idx in read.items()}
    if test_labels:
        sha256[TEST_LABELS] = test_labels.sha256
    name, warnings = _origin(folder, sha256, official)
    return Dataset(
        kind=MNIST,
        name=name,
        class_names=CLASS_NAMES,
        train_images=train_images.array[:, None],
        train_labels=train_labels.array,
        test_images=test_images.array[:, None],
        test_labels=test_labels.array if test_labels else None,
        sha256=sha256,
        path=folder,
        warnings=warnings,
    )


def _read_pair(images_path: Path, labels_path: Path | None) -> tuple[Idx, Idx | None]:
    images = read_images(images_path)
    if images.array.shape[1:] != (SIDE, SIDE) or len(images.array) == 0:
        raise IdxWrongCount(
            f"holds {'x'.join(map(str, images.array.shape))}, not one or more images of {SIDE}x{SIDE}",
            place=str(images_path),
            fix="fetch the file again",
        )
    if labels_path is None:
        return images, None
    labels = read_labels(labels_path)
    if len(labels.array) != len(images.array):
        raise IdxWrongCount(
            f"{len(labels.array)} labels for the {len(images.array)} images of {images_path.name}",
            place=str(labels_path),
            fix="fetch both files from one place",
        )
    if labels.array.max() >= CLASSES:
        at = int(np.argmax(labels.array >= CLASSES))
        raise DataError(
            f"label {labels.array[at]} at {at} is not a digit 0..{CLASSES - 1}",
            place=str(labels_path),
            fix="fetch the file again",
        )
    return images, labels


def _origin(folder: Path, sha256: dict[str, str], official: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The name these files deserve, and the warnings that go with it."""
    if (folder / MARK).is_file() or folder.name == SURROGATE:
        return SURROGATE, ("drawn surrogate digits: numbers made from them are not measured on MNIST",)
    return verified_name(MNIST, "MNIST", sha256, dict(official))


def download(folder: Path, say: Say, source: Source) -> None:
    """Fetch the files that `folder` lacks or holds otherwise than published. Raises DatasetMissing, OSError."""
    for stem, digest in source.official.items():
        if not _is_official(file_in(folder, stem), digest):
            path = folder / f"{stem}.gz"
            download_one(path, functools.partial(_check, digest), say, source)


def copy_files(dataset: Dataset, out: Path) -> None:
    """Copy a dataset's files into the folder `out`; raises OSError."""
    names = [path for stem in dataset.sha256 if (path := file_in(dataset.path, stem))]
    names += [dataset.path / MARK] if (dataset.path / MARK).is_file() else []
    for path in names:
        if path.parent.resolve() != out.resolve():
            shutil.copyfile(path, out / path.name)


def _check(digest: str, path: Path, url: str) -> None:
    check_sha256(read_idx(path).sha256, digest, url)


def _is_official(path: Path | None, digest: str) -> bool:
    try:
        return path is not None and read_idx(path).sha256 == digest
    except DataError:
        return False
