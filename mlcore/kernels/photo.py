"""Decoded photographs to a network's input, and their sums.

Legend: H W a decoded picture, 3 red green blue, S the side of its central square, V views, P Q a view's pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel

Array = NDArray[Any]
Corner = tuple[int, int]


def cut_views(
    image_HW3: Array,
    corner: Corner,
    windows_V3: Array,
    scale_3: Array,
    less_3SS: Array,
    add_3: Array,
    out: Array,
) -> None:
    """out [V,3,P,Q] = byte * scale[c] - less[c] + add[c] of each window (top, left, mirrored) of a square.

    image: uint8. corner: the square's first row and column in it. windows: int32, in the square. scale, less, add and
    out: float32; `less` belongs to the square's pixels, and is mirrored with them.
    """
    _cut_views(image_HW3, corner[0], corner[1], windows_V3, scale_3, less_3SS, add_3, out)


def add_up(image_HW3: Array, corner: Corner, total_SS3: Array, products_33: Array) -> None:
    """Add a square's bytes to `total`, and the products of its pixels' colours to `products`; both int64, exact."""
    _add_up(image_HW3, corner[0], corner[1], total_SS3, products_33)


@kernel
def _cut_views(
    image: Array, first: int, second: int, windows: Array, scale: Array, less: Array, add: Array, out: Array
) -> None:
    views, _, rows, columns = out.shape
    scale_r, scale_g, scale_b = scale[0], scale[1], scale[2]
    add_r, add_g, add_b = add[0], add[1], add[2]
    last = np.uint64(columns - 1)
    width, values = image.shape[1], image.reshape(-1)
    for v in range(views):
        top, left, mirrored = windows[v]
        for p in range(rows):
            begin = 3 * ((first + top + p) * width + second + left)
            pixels = values[begin : begin + 3 * columns]  # the three colours in one loop: it becomes vector code
            less_r = less[0, top + p, left : left + columns]
            less_g = less[1, top + p, left : left + columns]
            less_b = less[2, top + p, left : left + columns]
            red, green, blue = out[v, 0, p], out[v, 1, p], out[v, 2, p]
            if mirrored:
                for q in range(columns):
                    to = last - np.uint64(q)  # unsigned: else each index would be tried for being negative
                    red[to] = np.float32(pixels[3 * q]) * scale_r - less_r[q] + add_r
                    green[to] = np.float32(pixels[3 * q + 1]) * scale_g - less_g[q] + add_g
                    blue[to] = np.float32(pixels[3 * q + 2]) * scale_b - less_b[q] + add_b
            else:
                for q in range(columns):
                    red[q] = np.float32(pixels[3 * q]) * scale_r - less_r[q] + add_r
                    green[q] = np.float32(pixels[3 * q + 1]) * scale_g - less_g[q] + add_g
                    blue[q] = np.float32(pixels[3 * q + 2]) * scale_b - less_b[q] + add_b


@kernel
def _add_up(image: Array, first: int, second: int, total: Array, products: Array) -> None:
    rr = rg = rb = gg = gb = bb = np.int64(0)
    rows, columns, _ = total.shape
    width, values = image.shape[1], image.reshape(-1)
    for p in range(rows):
        begin = 3 * ((first + p) * width + second)
        pixels, sums = values[begin : begin + 3 * columns], total[p].reshape(-1)
        for i in range(3 * columns):
            sums[i] += pixels[i]
        for q in range(columns):
            r, g, b = np.int64(pixels[3 * q]), np.int64(pixels[3 * q + 1]), np.int64(pixels[3 * q + 2])
            rr += r * r
            rg += r * g
            rb += r * b
            gg += g * g
            gb += g * b
            bb += b * b
    products[0, 0] += rr
    products[0, 1] += rg
    products[1, 0] += rg
    products[0, 2] += rb
    products[2, 0] += rb
    products[1, 1] += gg
    products[1, 2] += gb
    products[2, 1] += gb
    products[2, 2] += bb
