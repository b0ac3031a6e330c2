"""Pictures of single digits, from IDX files or whatever Pillow opens, as the network wants them."""

from pathlib import Path

import numpy as np

from mlcore.data.dataset import SIDE
from mlcore.data.idx import IDX_SUFFIX, read_images
from mlcore.data.images import Bytes
from mlcore.errors import DataError

MOST_PIXELS = 4096 * 4096


def read_pictures(path: Path) -> Bytes:
    """uint8 [N,28,28] from an IDX file or one picture; DataError when it is neither."""
    if IDX_SUFFIX.search(path.name):
        images = read_images(path).array
        if images.shape[1:] != (SIDE, SIDE):
            raise DataError(f"images of {images.shape[1:]}", place=str(path), fix=f"they must be {SIDE}x{SIDE}")
        return images
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError("more than 4096x4096 pixels", place=str(path), fix="make the picture smaller")
            grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.uint8)
    except UnidentifiedImageError as error:  # its message, and OSError's, would name the path again
        raise DataError("not a picture", place=str(path), fix="give PNG or IDX") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"can't be read as a picture ({reason})", place=str(path), fix="give PNG or IDX") from error
    # MNIST is light ink on dark ground: a light rim means the opposite
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return (255 - grey if rim.mean() > 127 else grey)[None]
