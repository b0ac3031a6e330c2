"""The pen that draws strokes into small images; a kernel, imported only when something is drawn."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]


def _draw(ends_NSEC: Any, width_N: Any, side: int) -> Any:
    """Ink falls off over one pixel at the rim of the pen: coverage of a disc swept along each segment."""
    images = np.zeros((ends_NSEC.shape[0], side, side), np.uint8)
    nearest = np.empty((side, side), np.float32)
    for n in range(ends_NSEC.shape[0]):
        reach = width_N[n] / 2 + np.float32(0.5)
        nearest[:] = reach * reach
        for s in range(ends_NSEC.shape[1]):
            x0, y0 = ends_NSEC[n, s, 0, 0], ends_NSEC[n, s, 0, 1]
            dx, dy = ends_NSEC[n, s, 1, 0] - x0, ends_NSEC[n, s, 1, 1] - y0
            squared = max(dx * dx + dy * dy, np.float32(1e-12))
            top, bottom = max(0, int(min(y0, y0 + dy) - reach)), min(side, int(max(y0, y0 + dy) + reach) + 2)
            left, right = max(0, int(min(x0, x0 + dx) - reach)), min(side, int(max(x0, x0 + dx) + reach) + 2)
            for y in range(top, bottom):
                for x in range(left, right):
                    along = ((x - x0) * dx + (y - y0) * dy) / squared
                    along = min(max(along, np.float32(0)), np.float32(1))
                    away_x, away_y = x - x0 - along * dx, y - y0 - along * dy
                    nearest[y, x] = min(nearest[y, x], np.float32(away_x * away_x + away_y * away_y))
        for y in range(side):
            for x in range(side):
                ink = min(max(reach - np.sqrt(nearest[y, x]), np.float32(0)), np.float32(1))
                images[n, y, x] = np.uint8(np.float32(255) * ink + np.float32(0.5))
    return images


draw: Callable[[Floats, Floats, int], Bytes] = numba.njit(cache=True, nogil=True)(_draw)
"""ends_NSEC: float32, segments' start and end as x, y in pixels; width_N: float32 pixels. uint8 [N,side,side]."""
