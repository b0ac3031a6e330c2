"""What a model is made of, layer by layer: pure data, for the command and the page to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlcore.layers import Layer, Residual, Sequential, Shape

BYTES_PER_VALUE = 4  # float32, what training runs in


@dataclass(frozen=True)
class SummaryRow:
    """One layer; a layer inside others has a dotted name, and a Residual's own row is its sum.

    `macs` and `output_shape` are per example, `activation_bytes` for the whole batch.
    """

    layer: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The rows and their sums. `activation_bytes` is what one forward pass in training keeps for the way back."""

    rows: tuple[SummaryRow, ...]
    parameters: int
    macs: int
    activation_bytes: int


def summarise(model: Sequential, input_shape: tuple[int, ...], batch: int = 1) -> Summary:
    """Trace `model` for inputs of `input_shape` (without the batch axis); ShapeError if they don't fit."""
    rows = tuple(_row(*traced, batch) for traced in model.unfolded("", input_shape))
    return Summary(rows, *_sums(rows))


def _row(name: str, layer: Layer, input_shape: Shape, output_shape: Shape, batch: int) -> SummaryRow:
    has_rows_inside = isinstance(layer, Residual)
    return SummaryRow(
        layer=name,
        kind=type(layer).__name__,
        output_shape=output_shape,
        parameters=0 if has_rows_inside else sum(tensor.data.size for tensor in layer.parameters().values()),
        macs=0 if has_rows_inside else layer.macs(input_shape),
        activation_bytes=math.prod(output_shape) * batch * BYTES_PER_VALUE,
    )


def _sums(rows: Sequence[SummaryRow]) -> tuple[int, int, int]:
    return (
        sum(row.parameters for row in rows),
        sum(row.macs for row in rows),
        sum(row.activation_bytes for row in rows),
    )
