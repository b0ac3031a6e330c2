"""Bytes of a picture to RGB, refused by its header when it is too large.

JPEG goes through libjpeg-turbo (simplejpeg), scaled down while decoding where that is enough; CMYK, PNG under a JPEG's
name and what the strict decoder complains of go to Pillow, which has the last word.
Legend: H W of the decoded picture, S the side of its central square, 3 red green blue.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlcore.data.dataset import Bytes
from mlcore.data.shards.faults import DAMAGED, NO_PICTURE, TOO_LARGE, PictureError

JPEG_BEGIN = b"\xff\xd8\xff"
PLAIN_JPEG = ("YCbCr", "Gray", "RGB")
NUMBER = ".cls"  # a member that tells its picture's class
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MOST_PIXELS = 1 << 26  # ImageNet's largest has 61 million
MOST_BYTES = 1 << 28
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError)  # as Pillow's decoders word it


@dataclass(frozen=True)
class Look:
    """How pictures are decoded: by so many threads, none of more pixels than that."""

    workers: int = 2
    most_pixels: int = MOST_PIXELS


@dataclass(frozen=True)
class Square:
    """The central square of a picture: rows top to top+S and columns left to left+S of `image_HW3`, uint8."""

    image_HW3: Bytes
    top: int
    left: int


def decode(content: bytes, least: int = 0, most_pixels: int = MOST_PIXELS) -> Bytes:
    """uint8 [H,W,3], contiguous. `least` > 0 allows a JPEG to be scaled down while no side falls below it.

    Raises PictureError, whose `kind` tells no picture, a damaged one and one with too many pixels apart.
    """
    import simplejpeg

    if not content.startswith(JPEG_BEGIN):
        return _by_pillow(content, least, most_pixels)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return _by_pillow(content, least, most_pixels)
    _demand_size(height, width, most_pixels)
    if colours not in PLAIN_JPEG:
        return _by_pillow(content, least, most_pixels)
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, "RGB", min_height=least, min_width=least))
    except ValueError:
        return _by_pillow(content, least, most_pixels)


def decode_square(content: bytes, side: int, most_pixels: int = MOST_PIXELS) -> Square:
    """The central square of a picture whose shorter side is made `side` pixels; smaller pictures are enlarged."""
    image_HW3 = decode(content, side, most_pixels)
    height, width = image_HW3.shape[:2]
    if min(height, width) == side:
        return Square(image_HW3, (height - side) // 2, (width - side) // 2)
    return Square(_resized(image_HW3, side), 0, 0)


def shape_for(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) of a picture when its shorter side is made `shorter` pixels."""
    scale = shorter / min(height, width)
    return max(round(height * scale), shorter), max(round(width * scale), shorter)


def resize(image_HW3: Bytes, shape: tuple[int, int]) -> Bytes:
    """The whole picture, made that (height, width) (bicubic, averaging where it shrinks)."""
    from PIL import Image

    return np.array(Image.fromarray(image_HW3).resize(shape[::-1], Image.Resampling.BICUBIC))


def _resized(image_HW3: Bytes, side: int) -> Bytes:
    """The central square, made uint8 [side,side,3]."""
    from PIL import Image

    height, width = image_HW3.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    box = (left, top, left + short, top + short)
    return np.array(Image.fromarray(image_HW3).resize((side, side), Image.Resampling.BICUBIC, box=box))


def eight_bits(picture: Any) -> Any:
    """A Pillow picture; of 16-bit grey the upper eight bits, for Pillow's `convert` makes all above 255 white."""
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))


def _by_pillow(content: bytes, least: int, most_pixels: int) -> Bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        picture: Any = Image.open(io.BytesIO(content), formats=FORMATS)
        _demand_size(picture.height, picture.width, most_pixels)
        if least:
            picture.draft(None, (least, least))
        return np.array(eight_bits(picture).convert("RGB"))
    except UnidentifiedImageError as error:
        kind = DAMAGED if content.startswith(JPEG_BEGIN) else NO_PICTURE
        raise PictureError(kind, kind=kind) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("far too many pixels", kind=TOO_LARGE) from error
    except DAMAGE as error:
        raise PictureError(f"can't be decoded ({error})", kind=DAMAGED) from error


def _demand_size(height: int, width: int, most_pixels: int) -> None:
    if height * width > most_pixels:
        said = f"{width}x{height} pixels, more than {most_pixels}"
        raise PictureError(said, kind=TOO_LARGE, fix="raise data.max_pixels (--max-pixels) if it is meant")
    if height * width == 0:
        raise PictureError("without a pixel", kind=DAMAGED)
