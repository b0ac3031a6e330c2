"""How weights begin. Each initialiser: (shape, fan_in, fan_out, generator) -> float64 array of that shape.

fan_in and fan_out count the connections into and out of one unit. A layer casts the array to its dtype and draws
it from the stream named after the parameter, so a weight depends on the seed and its own name only: adding a layer
elsewhere changes nothing here. Numbers come one after the other out of that stream, whatever the shape, and after each
STREAM of them out of the stream's next jump, so that threads can share the largest layers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from mlcore.errors import RecipeError
from mlcore.options import unknown_name

Array = NDArray[Any]
Shape = tuple[int, ...]
Initialiser = Callable[[Shape, int, int, np.random.Generator], Array]

STREAM = 1 << 20  # numbers
PIECE = 1 << 15  # numbers drawn at a time: what is thrown away stays in the cache
WORTH_SHARING = 1 << 20  # numbers


def he(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """N(0, 2 / fan_in), for ReLU. Source: He et al. 2015, arXiv:1502.01852, eq. 10."""
    return generator.standard_normal(shape) * math.sqrt(2.0 / fan_in)


def glorot(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """U(-b, b) with b = sqrt(6 / (fan_in + fan_out)), for tanh. Source: Glorot and Bengio 2010, eq. 16."""
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return generator.uniform(-bound, bound, shape)


def lecun(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """U(-b, b) with b = 2.4 / fan_in. Source: LeCun et al. 1998, appendix A, for a scaled tanh."""
    bound = 2.4 / fan_in
    return generator.uniform(-bound, bound, shape)


def uniform(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """U(-b, b) with b = 1 / sqrt(fan_in). Source: LeCun et al. 1998b, "Efficient BackProp", sec. 4.6."""
    bound = 1.0 / math.sqrt(fan_in)
    return generator.uniform(-bound, bound, shape)


def normal(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """N(0, 0.01^2), whatever the fans. Source: Krizhevsky et al. 2012, sec. 5."""
    return generator.standard_normal(shape) * 0.01


def normal_of(deviation: float) -> Initialiser:
    """N(0, deviation^2), whatever the fans: cuda-convnet's layers have one each."""

    def drawn(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
        return generator.standard_normal(shape) * deviation

    return drawn


def zeros(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """All zero: for biases."""
    return np.zeros(shape)


def ones(shape: Shape, fan_in: int, fan_out: int, generator: np.random.Generator) -> Array:
    """All one: for biases that should open ReLUs. Source: Krizhevsky et al. 2012, sec. 5."""
    return np.ones(shape)


INITIALISERS: dict[str, Initialiser] = {
    "he": he,
    "glorot": glorot,
    "lecun": lecun,
    "uniform": uniform,
    "normal": normal,
    "zeros": zeros,
    "ones": ones,
}


def initialiser(name: str) -> Initialiser:
    """The initialiser of that name, or "normal:0.04" for a normal one of that deviation.

    RecipeError lists the known ones, or says what is wrong with the deviation.
    """
    kind, colon, deviation = name.partition(":")
    if kind == "normal" and colon:
        return normal_of(_deviation(deviation))
    if name not in INITIALISERS:
        raise unknown_name("initialiser", name, list(INITIALISERS), "init")
    return INITIALISERS[name]


def _deviation(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise RecipeError(f"{text!r} is no standard deviation", place="init", fix="write for example normal:0.01")
    return value


@dataclass(frozen=True)
class Draw:
    """First values to be drawn: float32, C-contiguous, from the generator's present place on, by Philox."""

    values: Array
    make: Initialiser
    fan_in: int
    fan_out: int
    generator: np.random.Generator

    def do(self) -> None:
        """Fill the values."""
        for part in self.parts():
            part.fill()

    def parts(self) -> list[Draw]:
        """One for each stream; who does which when makes no difference."""
        flat, bits = self.values.reshape(-1), self.generator.bit_generator
        assert isinstance(bits, np.random.Philox)
        pieces = [flat[start : start + STREAM] for start in range(0, flat.size, STREAM)]
        streams = [self.generator, *(np.random.Generator(bits.jumped(n)) for n in range(1, len(pieces)))]
        return [
            replace(self, values=piece, generator=stream)
            for piece, stream in zip(pieces, streams[: len(pieces)], strict=True)
        ]

    def fill(self) -> None:
        """Out of one stream, in pieces."""
        for start in range(0, self.values.size, PIECE):
            piece = self.values[start : start + PIECE]
            piece[:] = self.make(piece.shape, self.fan_in, self.fan_out, self.generator)


def begin(draw: Draw) -> None:
    """Have the values drawn: now, or where `together` ends."""
    if _waiting is None:
        draw.do()
    else:
        _waiting.append(draw)


@contextlib.contextmanager
def together(really: bool = True) -> Iterator[None]:
    """What begins inside is drawn at its end, side by side; until then, or where it is not `really` wanted, it is 0."""
    global _waiting
    before, _waiting = _waiting, []
    try:
        yield
        draws = _waiting
    finally:
        _waiting = before
    if really and before is not None:
        before += draws
    elif really:
        _share(draws)


_waiting: list[Draw] | None = None


def _share(draws: list[Draw]) -> None:
    parts = [part for draw in draws for part in draw.parts()]
    threads = get_num_threads() if sum(part.values.size for part in parts) > WORTH_SHARING else 1
    if threads == 1:
        for part in parts:
            part.fill()
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(Draw.fill, parts))
