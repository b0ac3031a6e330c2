"""Pictures: drawn from receipts and the run's files, the same each time; a hostile file costs only its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator import plots
from tests.orchestrator.helpers import target
from tests.orchestrator.test_measure import with_controls

FIG1 = {"metric": "epochs_to", "level": 25.0, "against": "s.toml", "compare": "ratio"}


def trained(out: Path) -> Path:
    folder = out / "r/seed-1"
    (folder / "checkpoints").mkdir(parents=True)
    rows = [{"kind": "epoch", "epoch": epoch, "train_loss": 2.0 / epoch} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"kind": "step"}, *rows]))
    filters = np.random.default_rng(0).normal(size=(7, 3, 5, 5)).astype(np.float32)
    save_file({plots.FIRST_LAYER: filters}, folder / "checkpoints/step-0000000003.safetensors")
    return folder


def test_training_errors_losses_and_filters_are_drawn_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    trained(tmp_path)
    made = plots.draw([target(**FIG1)], with_controls("r.toml", "s.toml"), tmp_path)
    assert made.keys() == {"t1.svg", "r-loss.svg", "r-filters.png"}
    assert made == plots.draw([target(**FIG1)], with_controls("r.toml", "s.toml"), tmp_path)
    assert b"<svg" in made["t1.svg"]
    assert made["r-filters.png"].startswith(b"\x89PNG")


def test_a_target_without_snapshots_or_files_has_no_picture(tmp_path: Path) -> None:
    assert plots.draw([target(), target(id="t2", **FIG1)], [], tmp_path) == {}


@pytest.mark.parametrize("planted", ["not json\n", '{"kind": "epoch"}\n', "[]\n"])
def test_files_that_cannot_be_read_cost_only_their_picture(tmp_path: Path, planted: str) -> None:
    folder = trained(tmp_path)
    (folder / "metrics.jsonl").write_text(planted)
    (folder / "checkpoints/step-0000000009.safetensors").write_bytes(b"{}")
    assert plots.draw([target()], [], tmp_path) == {}


def test_no_link_is_followed_for_a_picture(tmp_path: Path) -> None:
    folder = trained(tmp_path / "elsewhere")
    (tmp_path / "out/r").mkdir(parents=True)
    (tmp_path / "out/r/seed-1").mkdir()
    for name in ("metrics.jsonl", "checkpoints"):
        (tmp_path / "out/r/seed-1" / name).symlink_to(folder / name)
    assert plots.draw([target()], [], tmp_path / "out") == {}


def test_each_filter_is_stretched_to_its_own_range() -> None:
    sheet = plots._tiles(np.stack([np.full((3, 2, 2), 5.0), np.arange(12.0).reshape(3, 2, 2)]))
    assert sheet.shape == (4, 7, 3)
    assert (sheet[1:3, 1:3] == 0).all()
    assert (sheet[1:3, 4:6].min(), sheet[1:3, 4:6].max()) == (0.0, 1.0)
