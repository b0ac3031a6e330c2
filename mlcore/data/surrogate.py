"""Drawn digits that stand in for MNIST when it can't be had: the same files and shapes, never its numbers.

A digit is a style of `glyphs.py`: its control points jittered, bent by a smooth random field (elastic), turned,
sheared and stretched, fitted into 20 x 20 and centred by mass as MNIST's were (LeCun 1998, sec. III-A), then
drawn anti-aliased with a pen of random width. The same seed and counts give the same files on a machine.

Legend: N images, S segments, the last axis x then y.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.glyphs import GLYPHS, Stroke, Style
from mlcore.data.idx import write_idx
from mlcore.data.mnist import MARK
from mlcore.files import write_bytes
from mlcore.rng import Rng

SIDE = 28
BOX = 20.0  # MNIST's digits fill a box of this many pixels
SEGMENTS = 56
CHUNK = 4096

TRAIN_COUNT, TEST_COUNT, SEED = 60_000, 10_000, 1998

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Hand:
    """How unsteady the writing is: standard deviations, in units of the digit's height or in radians."""

    jitter: float = 0.055
    elastic: float = 0.044
    turn: float = 0.19
    shear: float = 0.25
    stretch: float = 0.18
    pen_px: tuple[float, float] = (1.3, 3.4)
    skipped: float = 0.13  # at most this share of the strokes' ends is not drawn


def write_surrogate(folder: Path, train: int = TRAIN_COUNT, test: int = TEST_COUNT, seed: int = SEED) -> Path:
    """Draw both splits into `folder` as the four IDX files plus the mark; returns the folder.

    The mark is written last: a folder with it is whole. Raises OSError when the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).unlink(missing_ok=True)
    for split, stem, count in (("train", "train", train), ("test", "t10k", test)):
        images, labels = draw_digits(count, Rng(seed).child("surrogate", split))
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    mark = {"surrogate": True, "what": "digits drawn by mlcore, not MNIST", "seed": seed, "train": train, "test": test}
    write_bytes(folder / MARK, (json.dumps(mark, indent=2) + "\n").encode())
    return folder


def draw_digits(count: int, rng: Rng, hand: Hand | None = None) -> tuple[Bytes, Bytes]:
    """Draw `count` digits in random order: images uint8 [N,28,28], labels uint8 [N]."""
    labels = rng.child("labels").generator().integers(0, len(GLYPHS), count).astype(np.uint8)
    images = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        images[part] = _draw_chunk(labels[part], rng.child("chunk", start).generator(), hand or Hand())
    return images, labels


def _draw_chunk(labels: Bytes, generator: np.random.Generator, hand: Hand) -> Bytes:
    from mlcore.data.pen import draw  # numba, compiled on first use

    images = np.zeros((len(labels), SIDE, SIDE), dtype=np.uint8)
    choice = generator.random(len(labels))
    for digit, styles in enumerate(GLYPHS):
        of_style = np.where(labels == digit, (choice * len(styles)).astype(int), -1)
        for number, style in enumerate(styles):
            chosen = np.flatnonzero(of_style == number)
            if len(chosen):
                images[chosen] = draw(*_written(style, len(chosen), generator, hand), SIDE)
    return images


def _written(style: Style, count: int, generator: np.random.Generator, hand: Hand) -> tuple[Floats, Floats]:
    """`count` writings of a style: segment ends [N,S,2,2] in pixels, pen widths [N] in pixels."""
    control = np.concatenate([np.asarray(stroke) for stroke in style])
    control = control + generator.normal(0, hand.jitter, (count, *control.shape))
    ends = np.einsum("sp,npc->nsc", _spline_basis(style), control)
    ends = _bent(ends, generator, hand.elastic)
    ends = np.einsum("nsc,ncd->nsd", ends, _affine(count, generator, hand))
    width = generator.uniform(*hand.pen_px, count)
    ends = _fitted(ends, width, generator).reshape(count, SEGMENTS, 2, 2)
    return _skipped(ends, generator, hand.skipped).astype(np.float32), width.astype(np.float32)


def _spline_basis(style: Style) -> npt.NDArray[np.float64]:
    """The matrix that takes a style's control points to its 2 S segment ends (start, end, start, end, ...)."""
    lengths = np.array([np.linalg.norm(np.diff(np.asarray(s), axis=0), axis=1).sum() for s in style])
    shares = np.maximum(2, np.floor(SEGMENTS * lengths / lengths.sum()).astype(int))
    shares[np.argmax(shares)] += SEGMENTS - shares.sum()
    basis = np.zeros((2 * SEGMENTS, sum(map(len, style))))
    row = column = 0
    for stroke, share in zip(style, shares, strict=True):
        samples = _stroke_basis(stroke, int(share) + 1)
        ends = np.stack([samples[:-1], samples[1:]], axis=1).reshape(2 * int(share), len(stroke))
        basis[row : row + len(ends), column : column + len(stroke)] = ends
        row, column = row + len(ends), column + len(stroke)
    return basis


def _stroke_basis(stroke: Stroke, samples: int) -> npt.NDArray[np.float64]:
    """Catmull-Rom weights of each control point at `samples` places evenly spaced along the parameter."""
    last = len(stroke) - 1
    place = np.linspace(0, last, samples)
    knot = np.minimum(place.astype(int), last - 1)
    t = place - knot
    weights = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    basis = np.zeros((samples, len(stroke)))
    for offset, weight in enumerate(weights, start=-1):
        np.add.at(basis, (np.arange(samples), np.clip(knot + offset, 0, last)), weight)
    return basis


def _bent(ends: npt.NDArray[Any], generator: np.random.Generator, strength: float) -> npt.NDArray[Any]:
    """Move the points by a smooth random field: three plane waves of about one period per digit."""
    count, bent = len(ends), ends.copy()
    for _ in range(3):
        waves = generator.normal(0, 2 * np.pi * 0.7, (count, 2))
        phases = np.einsum("nsc,nc->ns", ends, waves) + generator.uniform(0, 2 * np.pi, (count, 1))
        bent += np.sin(phases)[..., None] * generator.normal(0, strength, (count, 1, 2))
    return bent


def _affine(count: int, generator: np.random.Generator, hand: Hand) -> npt.NDArray[np.float64]:
    """Random turn x shear x stretch, [N,2,2], to be multiplied from the right."""
    turn, shear = generator.normal(0, hand.turn, count), generator.normal(0, hand.shear, count)
    stretch = np.exp(generator.normal(0, hand.stretch, count))
    rotation = np.stack([np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)], axis=-1).reshape(-1, 2, 2)
    zero = np.zeros(count)
    slant = np.stack([stretch * 0.8, zero, -shear, 1 + zero], axis=-1).reshape(-1, 2, 2)
    return np.asarray(slant @ rotation)


def _fitted(ends: npt.NDArray[Any], width: npt.NDArray[Any], generator: np.random.Generator) -> npt.NDArray[Any]:
    """Scale into MNIST's box, pen included, and put the centre of mass on the image's centre (to half a pixel)."""
    extent = np.ptp(ends, axis=1).max(axis=1)
    scale = (BOX - width) / extent * generator.uniform(0.88, 1.0, len(ends))
    ends = ends * scale[:, None, None]
    starts, stops = ends[:, 0::2], ends[:, 1::2]
    lengths = np.linalg.norm(stops - starts, axis=-1, keepdims=True)
    mass = ((starts + stops) / 2 * lengths).sum(axis=1) / lengths.sum(axis=1)
    return np.asarray(ends + ((SIDE - 1) / 2 + generator.uniform(-0.5, 0.5, mass.shape) - mass)[:, None, :])


def _skipped(ends: npt.NDArray[Any], generator: np.random.Generator, share: float) -> npt.NDArray[Any]:
    """Let the pen come late and leave early: the outermost segments fold into their neighbour's end."""
    late, early = (generator.uniform(-share, share, (2, len(ends))).clip(0) * SEGMENTS).astype(int)
    segment = np.clip(np.arange(SEGMENTS)[None, :], late[:, None], SEGMENTS - 1 - early[:, None])
    return np.asarray(np.take_along_axis(ends, segment[:, :, None, None], axis=1))
