"""Where the time of a step goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlcore import models
from mlcore.layers import Residual
from mlcore.profile import FORWARD, INPUT, UPDATE, WEIGHTS, Clock, Key, _least, profile
from mlcore.rng import Rng
from mlcore.tables import profile_table
from mlcore.warm import Wanted
from tests.mlcore.helpers import needs_compiler


def test_inner_time_is_not_the_outer_ones() -> None:
    now = iter(range(100))
    clock = Clock(lambda: float(next(now)))
    with clock.at("conv", INPUT), clock.at(None, WEIGHTS):
        pass
    taken = clock.take()
    assert taken["conv", INPUT] == 2
    assert taken["conv", WEIGHTS] == 1
    assert sum(taken.values()) == 5


@needs_compiler
@pytest.mark.parametrize(
    ("model", "batch", "engine", "first"),
    [("mnist_cnn", 8, "planes", "conv1"), ("mlp", 8, "the tape", "fc1"), ("lenet5", 40, "lanes", "C1")],
)
def test_every_direction_of_every_layer_has_its_time(model: str, batch: int, engine: str, first: str) -> None:
    options = {"hidden": [16]} if model == "mlp" else {}
    wanted = Wanted(model, options, (1, 14, 14), 10, batch)
    document = profile(wanted, 1, 2, lambda text: None)
    assert document["engine"] == engine
    rows = {(row["layer"], row["direction"]): row for row in document["rows"]}
    assert {direction for _, direction in rows} == {FORWARD, INPUT, WEIGHTS, UPDATE}
    assert (first, FORWARD) in rows
    assert rows["output", WEIGHTS]["gflops"] > 0
    assert rows.get((first, INPUT), {"gflops": 0})["gflops"] == 0  # nobody wants the gradient of the images
    if engine != "lanes":  # where each part runs by itself
        assert sum(row["ms"] for row in rows.values()) == pytest.approx(document["step_ms"], rel=0.5)
    assert 90 < sum(row["share_pct"] for row in rows.values()) < 100.1
    assert len(profile_table(document).splitlines()) == len(rows) + 2


def test_a_residual_block_has_times_and_no_rates() -> None:
    """Its time may be that of its sum alone: the whole block's arithmetic in it was 190 times the peak."""
    wanted = Wanted("resnet_small", {}, (3, 16, 16), 10, 8)
    model = models.build(wanted.model, {}, Rng(0), wanted.input_shape, wanted.classes)
    blocks = [name for name, layer in model.layers.items() if isinstance(layer, Residual)]
    least = _least(model, list(model.layers), wanted)
    assert blocks
    assert {least[name, direction] for name in blocks for direction in (FORWARD, INPUT, WEIGHTS)} == {(0.0, 0.0)}


@needs_compiler
def test_bf16_is_profiled_where_the_processor_has_no_peak_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.profile.measured_peaks", lambda threads: {"fp32": 100.0})
    document = profile(Wanted("mlp", {"hidden": [16]}, (1, 4, 4), 10, 8, "bf16"), 1, 1, lambda text: None)
    assert document["engine"] == "planes"
    assert {row["peak_pct"] for row in document["rows"]} == {None}
    line = next(line for line in profile_table(document).splitlines() if line.startswith("output") and FORWARD in line)
    assert line.endswith("-")


@needs_compiler
def test_a_recipe_with_adam_is_profiled_on_the_tape_where_it_trains() -> None:
    in_lanes = Wanted("mlp", {"hidden": [16]}, (1, 14, 14), 10, 40)
    document = profile(replace(in_lanes, optimiser="adam"), 1, 1, lambda text: None)
    assert document["engine"] == "the tape"
    (row,) = (row for row in document["rows"] if row["layer"] == "(optimiser)")
    every = 14 * 14 * 16 + 16 + 16 * 10 + 10
    moved = 4 * 7 * every  # weights and two running means in and out, gradients in
    assert row["gbytes_per_s"] * row["ms"] * 1e6 == pytest.approx(moved)


def test_bytes_are_counted_as_each_array_is_kept() -> None:
    full, half = (_bytes(Wanted("mlp", {"hidden": [16]}, (1, 4, 4), 10, 8, kind)) for kind in ("fp32", "bf16"))
    weights = 16 * 10 + 10
    images = 8 * (16 + 10)
    assert full["output", FORWARD] == full["output", WEIGHTS] == 4 * (images + weights)
    assert half["output", FORWARD] == half["output", INPUT] == 2 * (images + weights)
    assert half["output", WEIGHTS] == 2 * images + 4 * weights
    assert half["output", UPDATE] == full["output", UPDATE] == 5 * 4 * weights


def _bytes(wanted: Wanted) -> dict[Key, float]:
    model = models.build(wanted.model, wanted.options, Rng(1), wanted.input_shape, wanted.classes)
    return {key: size for key, (_, size) in _least(model, list(model.layers), wanted).items()}
