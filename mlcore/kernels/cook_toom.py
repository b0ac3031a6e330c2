"""Short convolutions with few multiplications: the matrices, exactly, from the points where polynomials meet.

The outputs y_i = sum_j g_j d_(i+j) of a filter of r taps, m of them, cost m + r - 1 = n multiplications instead of
m * r: y = A^T [(G g) * (B^T d)]. A product of polynomials is known from its values at n places, the last of them
infinity; turned round, that is a filter. The same numbers give the gradient of the taps, since the sum of
y_i g_j d_(i+j) can be read in any direction: dg = G^T [(A dy) * (B^T d)].

Source: Winograd 1980, "Arithmetic complexity of computations", ch. 4; Lavin and Gray 2015, arXiv:1509.09308, sec. 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

Matrix = tuple[tuple[Fraction, ...], ...]


class Algorithm(NamedTuple):
    """F(m, r). outputs [m, n] is A^T, taps [n, r] is G, inputs [n, n] is B^T; exact."""

    outputs: Matrix
    taps: Matrix
    inputs: Matrix


def algorithm(outputs: int, points: Sequence[Fraction], taps: int) -> Algorithm:
    """F(outputs, taps) on distinct finite points, outputs + taps - 2 of them; infinity is added."""
    assert len(set(points)) == len(points) == outputs + taps - 2, "one point too few or too many, or one twice"
    at_infinity = Fraction(1)
    powers = [[point**i for point in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    rows = [[point**j / _distances(point, points) for j in range(taps)] for point in points]
    rows.append([Fraction(0)] * (taps - 1) + [at_infinity])
    roots = [[other for other in points if other != point] for point in points]
    inputs = [[*_coefficients(some), Fraction(0)] for some in roots] + [_coefficients(points)]
    return Algorithm(_frozen(powers), _frozen(rows), _frozen(inputs))


def transposed(matrix: Matrix) -> Matrix:
    """The matrix with rows and columns exchanged."""
    return tuple(zip(*matrix, strict=True))


def _distances(point: Fraction, points: Sequence[Fraction]) -> Fraction:
    return math.prod((point - other for other in points if other != point), start=Fraction(1))


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """Of the polynomial with these roots, from the constant up."""
    known = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *known], [*(-root * c for c in known), Fraction(0)]
        known = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return known


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
