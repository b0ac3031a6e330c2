"""Steps by PyTorch: the same recipe, weights and batches as mlcore's, stopped and gone on with like any run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore import config
from mlcore.checkpoint import newest
from mlcore.engines import demand_engine
from mlcore.errors import RecipeError
from tests.mlcore.helpers import needs_compiler
from tests.mlcore.photographs import RECIPE, recipe, splits
from tests.mlcore.test_cli import call, document

CONVOLUTIONS = RECIPE.replace(
    'name = "mlp"\noptions.hidden = [16]', 'name = "alexnet_small"\noptions.hidden = 24\noptions.dropout = 0.0'
).replace("side = 24\ncrop = 20", "side = 70\ncrop = 64")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("torch")
    monkeypatch.setenv("MLCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos.toml").write_text(CONVOLUTIONS)
    return splits(tmp_path)


def trained(data: Path, name: str, *overrides: str) -> dict[str, Any]:
    where = ("--data", data, "--out", data / name, "-q", "--no-pictures")
    return document("train", data / "photos.toml", *overrides, *where)


def weights(data: Path, run: str) -> dict[str, np.ndarray]:
    found = newest(data / run / "checkpoints", print)
    assert found
    return {**found.group("model"), **found.group("optimiser")}


@needs_compiler
def test_pytorch_moves_the_same_weights_to_the_same_place_on_the_same_batches(data: Path) -> None:
    short = (
        "train.steps=6",
        "optimiser.rate=0.0005",
        "optimiser.weight_decay=0.01",
        "optimiser.bias_rate=2.0",
        "data.views=ten",
    )
    ours, theirs = trained(data, "ours", *short), trained(data, "theirs", *short, "engine=torch")
    assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-4)
    assert theirs["weights_sha256"] != ours["weights_sha256"]  # rounding: it was PyTorch that trained
    one, other = weights(data, "ours"), weights(data, "theirs")
    assert one.keys() == other.keys()
    for name, array in one.items():  # rounding may move a maximum of a pooling to its neighbour
        assert np.linalg.norm(other[name] - array) <= 5e-3 * np.linalg.norm(array), name
    assert theirs["test_loss"] == pytest.approx(ours["test_loss"], rel=1e-3)


def test_a_run_by_pytorch_goes_on_to_the_same_bits(data: Path) -> None:
    overrides = ("engine=torch", "model.options.dropout=0.5", "train.epochs=2", "threads=1")
    whole = trained(data, "whole", *overrides)
    session_overrides = (*overrides, "train.checkpoint_every_s=0")
    part = trained(data, "part", *session_overrides)
    assert part["weights_sha256"] == whole["weights_sha256"]
    for path in (data / "part" / "checkpoints").glob("step-*8.*"):
        path.unlink()
    (data / "part" / "result.json").unlink()
    resumed = document("train", "--resume", data / "part", "--no-pictures", "-q")
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_what_pytorch_does_not_do_here_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for override, words in (("optimiser.name=adam", "adam"), ("precision=bf16", "bf16")):
        with pytest.raises(RecipeError, match=words):
            demand_engine(recipe("engine=torch", override))
    with pytest.raises(RecipeError, match="several ranks"):
        demand_engine(recipe("engine=torch"), 2)
    demand_engine(recipe("optimiser.name=adam"), 2)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RecipeError, match="PyTorch is not installed; pip install"):
        demand_engine(recipe("engine=torch"))


def test_without_pytorch_a_run_ends_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "photos.toml").write_text(RECIPE)
    splits(tmp_path)
    call(
        "train",
        tmp_path / "photos.toml",
        "engine=torch",
        "--data",
        tmp_path,
        "--out",
        tmp_path / "r",
        fails=RecipeError,
    )


def test_resolved_recipes_of_mlcores_own_do_not_name_an_engine() -> None:
    assert "engine" not in config.to_toml(recipe())
    assert 'engine = "torch"' in config.to_toml(recipe("engine=torch"))
    with pytest.raises(RecipeError, match="engine"):
        recipe("engine=tensorflow")
