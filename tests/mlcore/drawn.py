"""Small drawn datasets and recipes for tests: seconds become milliseconds, nothing is downloaded."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mlcore import config
from mlcore.data import cifar
from mlcore.data.dataset import Bytes, Dataset
from mlcore.data.mnist import read_mnist
from mlcore.data.surrogate import write_surrogate
from mlcore.display import Quiet
from mlcore.rng import Rng

RECIPE = """
name = "tiny"
threads = 1
[model]
name = "mlp"
options.hidden = [16]
[optimiser]
rate = 0.05
[schedule]
name = "one_cycle"
[train]
epochs = 2
batch = 16
"""


@functools.cache
def surrogate_folder(train: int = 600, test: int = 120) -> Path:
    """A surrogate of that size, drawn once per process."""
    return write_surrogate(Path(tempfile.mkdtemp(prefix="mlcore-test-")) / "mnist-surrogate", train, test)


@functools.cache
def surrogate(train: int = 600, test: int = 120) -> Dataset:
    """The same, read."""
    return read_mnist(surrogate_folder(train, test))


@functools.cache
def cifar_folder(batch: int = 60) -> Path:
    """CIFAR-10's six batches, of so many images each: noise, brighter in a band of rows and a channel by class."""
    folder = Path(tempfile.mkdtemp(prefix="mlcore-test-")) / "cifar10"
    folder.mkdir()
    for number, stem in enumerate(cifar.BATCHES):
        images, labels = coloured(batch, number)
        (folder / f"{stem}.bin").write_bytes(cifar.batch_bytes(images, labels))
    return folder


def coloured(count: int, seed: int) -> tuple[Bytes, Bytes]:
    """Images uint8 [count,3,32,32] and labels uint8 [count]."""
    generator = Rng(seed).child("coloured").generator()
    images = generator.integers(0, 120, (count, 3, 32, 32)).astype(np.uint8)
    labels = generator.integers(0, 10, count).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label % 3, 8 * (label // 3) : 8 * (label // 3) + 8] += 130
    return images, labels


@functools.cache
def small_cifar(batch: int = 60) -> Dataset:
    """The same, read."""
    return cifar.read_cifar10(cifar_folder(batch))


def tiny(*overrides: str) -> config.Recipe:
    """A recipe that trains in a blink."""
    return config.parse(RECIPE, "tiny.toml", overrides)


def real_data(name: str) -> Path | None:
    """The folder of a dataset's real files, or None where MLCORE_DATA names none."""
    root = os.environ.get("MLCORE_DATA")
    return Path(root) / name if root and (Path(root) / name).is_dir() else None


def real_mnist() -> Path | None:
    """The folder of the real MNIST files."""
    return real_data("mnist")


def command(*arguments: str | Path) -> list[str]:
    """argv of `mlcore ...` in a process of its own."""
    return [sys.executable, "-c", "from mlcore.cli import main; main()", *map(str, arguments)]


def mlcore(*arguments: str | Path, timeout: float = 400, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `mlcore ...`; env on top of this process's own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env={**os.environ, **env}, check=False
    )


class Heard(Quiet):
    """A display that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.views: list[Any] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(f"warning: {text}")

    def show(self, view: Any) -> None:
        self.views.append(view)
