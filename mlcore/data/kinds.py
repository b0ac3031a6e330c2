"""The datasets that mlcore knows, by name: what is known before their files are read, and how to get at them.

Adding one is a line in KINDS. What `read` returns must have what `Dataset` says of itself; how its images become
batches is chosen in `feeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlcore.data import cifar, mnist
from mlcore.data.dataset import SURROGATE_SUFFIX, Dataset, Shape
from mlcore.data.mirrors import Say, Source
from mlcore.data.surrogate import write_surrogate
from mlcore.errors import RecipeError
from mlcore.hints import did_you_mean, nearest


@dataclass(frozen=True)
class Kind:
    """`image_shape` (C, H, W) and `class_names` of its images; the rest are ways to its files.

    `holds`: whether a folder has them. `read`: the folder's dataset, named by the checksums given. `download`: into a
    folder, what is lacking there. `copy`: a dataset's files into a folder. `draw`: a stand-in, where there is one.
    """

    name: str
    title: str
    files: str
    image_shape: Shape
    class_names: tuple[str, ...]
    holds: Callable[[Path], bool]
    read: Callable[[Path, Mapping[str, str]], Dataset]
    download: Callable[[Path, Say, Source], None]
    copy: Callable[[Dataset, Path], None]
    source: Source
    draw: Callable[[Path], Path] | None = None

    @property
    def surrogate(self) -> str | None:
        """The name of its stand-in."""
        return f"{self.name}{SURROGATE_SUFFIX}" if self.draw else None

    def read_folder(self, folder: Path) -> Dataset:
        """The dataset in `folder`, held against the official checksums."""
        return self.read(folder, self.source.official)


KINDS: dict[str, Kind] = {
    "mnist": Kind(
        name="mnist",
        title="MNIST",
        files="the IDX files",
        image_shape=(1, mnist.SIDE, mnist.SIDE),
        class_names=mnist.CLASS_NAMES,
        holds=mnist.holds_mnist,
        read=mnist.read_mnist,
        download=mnist.download,
        copy=mnist.copy_files,
        source=mnist.SOURCE,
        draw=write_surrogate,
    ),
    "cifar10": Kind(
        name="cifar10",
        title="CIFAR-10",
        files="the binary batches",
        image_shape=cifar.SHAPE,
        class_names=cifar.CLASS_NAMES,
        holds=cifar.holds_cifar10,
        read=cifar.read_cifar10,
        download=cifar.download,
        copy=cifar.copy_files,
        source=cifar.SOURCE,
    ),
}


def names() -> list[str]:
    """Every name that a recipe may give, stand-ins too."""
    return list(KINDS) + [kind.surrogate for kind in KINDS.values() if kind.surrogate]


def kind_of(name: str) -> Kind:
    """The kind of a dataset or of a stand-in, by name; RecipeError lists the names there are."""
    kind = KINDS.get(name.removesuffix(SURROGATE_SUFFIX))
    if kind is None or name not in (kind.name, kind.surrogate):
        hint = did_you_mean(nearest(name, names()))
        raise RecipeError(f"no dataset '{name}'", place="data.dataset", fix=f"{hint}known: {', '.join(names())}")
    return kind
