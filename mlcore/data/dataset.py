"""A dataset in memory, with what can be said about its origin: official, unverified or drawn.

Legend: N images, C channels, H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]
Shape: TypeAlias = tuple[int, int, int]

SURROGATE_SUFFIX = "-surrogate"


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N,C,H,W] and labels uint8 [N] of both splits, and where they come from.

    `kind`: its name in `kinds.KINDS`. `name`: the same where every file is the official one, else
    "<kind>-unverified" or "<kind>-surrogate". `test_labels` is None where they are withheld. `sha256`: by file name,
    of the decompressed bytes. `warnings`: what a reader of any number made from this data must be told.
    """

    kind: str
    name: str
    class_names: tuple[str, ...]
    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes | None
    sha256: dict[str, str]
    path: Path
    warnings: tuple[str, ...] = ()

    @property
    def surrogate(self) -> bool:
        """Whether these images were drawn by mlcore: numbers from them say nothing about the dataset."""
        return self.name.endswith(SURROGATE_SUFFIX)

    @property
    def image_shape(self) -> Shape:
        """(C, H, W) of every image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.class_names)

    def test_image(self, index: int) -> Bytes:
        """uint8 [C,H,W], for a picture."""
        image: Bytes = self.test_images[index]
        return image


def verified_name(
    kind: str, title: str, sha256: dict[str, str], official: dict[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The name that files with these checksums deserve, and the warnings that go with it."""
    different = [stem for stem, digest in sha256.items() if digest != official[stem]]
    if different:
        return f"{kind}-unverified", (f"not the official {title} files: {', '.join(different)} differ by sha256",)
    return kind, ()
