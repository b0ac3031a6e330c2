"""Pictures for a network to classify: IDX files, CIFAR batches or whatever Pillow opens, in a dataset's shape."""

import re
from pathlib import Path

import numpy as np

from mlcore.data import cifar
from mlcore.data.dataset import Bytes, Shape
from mlcore.data.idx import IDX_SUFFIX, read_images
from mlcore.data.shards.decode import DAMAGE, eight_bits
from mlcore.errors import DataError

MOST_PIXELS = 4096 * 4096


BATCH_SUFFIX = re.compile(r"\.bin(\.gz|\.xz)?$")


def read_pictures(path: Path, shape: Shape) -> Bytes:
    """uint8 [N,C,H,W] of that (C, H, W) from an IDX file, a CIFAR batch or one picture; DataError when it is none."""
    if IDX_SUFFIX.search(path.name):
        return _demand_shape(read_images(path).array[:, None], shape, path)
    if BATCH_SUFFIX.search(path.name):
        return _demand_shape(cifar.read_batch(path).images, shape, path)
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError("more than 4096x4096 pixels", place=str(path), fix="make the picture smaller")
            converted = eight_bits(picture).convert("L" if channels == 1 else "RGB")
            pixels = np.asarray(converted.resize((width, height), Image.Resampling.LANCZOS), dtype=np.uint8)
    except UnidentifiedImageError as error:  # its message, and OSError's, would name the path again
        raise DataError("not a picture", place=str(path), fix="give PNG or IDX") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"can't be read as a picture ({reason})", place=str(path), fix="give PNG or IDX") from error
    return _light_on_dark(pixels)[None, None] if channels == 1 else pixels.transpose(2, 0, 1)[None]


def _demand_shape(images_NCHW: Bytes, shape: Shape, path: Path) -> Bytes:
    if images_NCHW.shape[1:] != shape:
        said, wanted = ("x".join(map(str, size)) for size in (images_NCHW.shape[1:], shape))
        raise DataError(f"images of {said}", place=str(path), fix=f"they must be {wanted}")
    return images_NCHW


def _light_on_dark(grey_HW: Bytes) -> Bytes:
    """MNIST is light ink on dark ground: a light rim means the opposite."""
    rim = np.concatenate([grey_HW[0], grey_HW[-1], grey_HW[:, 0], grey_HW[:, -1]])
    return 255 - grey_HW if rim.mean() > 127 else grey_HW
