"""One picture: decoded to its own pixels whatever its format, or refused with its kind."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlcore.data.pictures import read_pictures
from mlcore.data.shards import faults
from mlcore.data.shards.decode import decode, decode_square
from mlcore.data.shards.faults import PictureError
from mlcore.data.shards.photos import read_photo
from mlcore.errors import DataError
from tests.mlcore.photographs import SIDE, bomb, cmyk, jpeg, pixels, png, recipe


def test_a_jpeg_is_decoded_to_the_librarys_own_pixels() -> None:
    assert np.array_equal(decode(jpeg(1)), simplejpeg.decode_jpeg(jpeg(1)))


def test_png_under_a_jpegs_name_cmyk_and_grey_become_rgb() -> None:
    assert np.array_equal(decode(png(3)), pixels(3))
    assert decode(cmyk(3)).shape == (SIDE, 30, 3)
    assert abs(decode(cmyk(3)).astype(int) - pixels(3)).mean() < 12
    grey = decode(bytes(simplejpeg.encode_jpeg(pixels(3)[..., :1].copy(), colorspace="GRAY")))
    assert grey.shape == (SIDE, 30, 3)
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize("ending", ["png", "pgm"])  # modes I;16 and I of Pillow
def test_grey_of_sixteen_bits_keeps_its_upper_eight(tmp_path: Path, ending: str) -> None:
    grey, path = pixels(3)[..., 0].astype(np.uint16), tmp_path / f"deep.{ending}"
    grey[0, :3] = 0, 1, 255
    Image.fromarray(grey * 257).save(path)
    want = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(read_pictures(path, (3, *grey.shape))[0].transpose(1, 2, 0), want)
    if ending == "png":
        assert np.array_equal(decode(path.read_bytes()), want)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"these are words, not pixels", faults.NO_PICTURE),
        (b"", faults.NO_PICTURE),
        (b"\xff\xd8\xff", faults.DAMAGED),
        (jpeg(1)[:-60], faults.DAMAGED),
        (png(1)[:-60], faults.DAMAGED),
        (bomb(), faults.TOO_LARGE),
    ],
)
def test_what_is_no_picture_is_refused_with_its_kind(content: bytes, kind: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode(content, most_pixels=1 << 26)
    assert caught.value.kind == kind


def test_a_bomb_is_refused_by_its_header_in_no_time() -> None:
    began = time.process_time()
    for _ in range(100):
        with pytest.raises(PictureError, match="9000x9000"):
            decode(bomb())
    assert time.process_time() - began < 1
    assert decode(jpeg(1, 100, 100), most_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(PictureError, match="max_pixels"):
        decode(jpeg(1, 100, 101), most_pixels=10_000)


@given(st.integers(0, 800), st.binary(min_size=1, max_size=6))
@settings(max_examples=150, deadline=None, database=None)
def test_a_jpeg_with_changed_bytes_is_decoded_or_refused(at: int, patch: bytes) -> None:
    whole = jpeg(2)
    with contextlib.suppress(PictureError):
        assert decode(whole[:at] + patch + whole[at + len(patch) :], most_pixels=1 << 22).ndim == 3


@pytest.mark.parametrize(("height", "width"), [(24, 31), (31, 24), (48, 70), (20, 20), (100, 25)])
def test_the_central_square_has_the_side_that_was_asked_for(height: int, width: int) -> None:
    square = decode_square(jpeg(1, height, width), SIDE)
    rows, columns = square.image_HW3.shape[:2]
    assert square.top + SIDE <= rows
    assert square.left + SIDE <= columns
    assert abs(square.top - (rows - SIDE) / 2) < 1
    assert abs(square.left - (columns - SIDE) / 2) < 1


def test_a_picture_that_is_none_is_refused_with_its_file_and_a_fix(tmp_path: Path) -> None:
    torn, at = png(1), png(1).index(b"IDAT")
    torn = torn[: at - 4] + (100).to_bytes(4) + torn[at : at + 104] + bytes(200)  # a SyntaxError of Pillow's
    for name, content in {"words.png": b"words", "torn.png": torn, "cut.jpg": jpeg(1)[:-60]}.items():
        (tmp_path / name).write_bytes(content)
        for read in (lambda path: read_pictures(path, (3, SIDE, 30)), lambda path: read_photo(path, recipe().data)):
            with pytest.raises(DataError, match=rf"{name}: .*; give .*PNG"):
                read(tmp_path / name)
