"""Several seeds side by side: each as if it were alone, all of them stopped and gone on with together."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mlcore.crew import shares
from mlcore.errors import GroupFailed, RecipeError
from mlcore.group import Group, begin, demand_finished, load_group, summarise
from tests.mlcore.drawn import RECIPE, command, mlcore, surrogate_folder, tiny
from tests.mlcore.helpers import needs_compiler

QUIET = ("--json", "--quiet", "--no-pictures")


def recipe_file(folder: Path, *changes: tuple[str, str]) -> Path:
    text = RECIPE.replace("threads = 1\n", "")
    for old, new in changes:
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


@needs_compiler
def test_each_seed_ends_as_it_would_alone_and_the_summary_has_them_all(tmp_path: Path) -> None:
    recipe, out, data = recipe_file(tmp_path), tmp_path / "group", surrogate_folder()
    override = "optimiser.momentum=0.8"
    done = mlcore("train", recipe, override, "seed=4", "--seeds", "3", "--data", data, "--out", out, *QUIET)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads((out / "seeds.json").read_text())
    assert [row["seed"] for row in said["runs"]] == [4, 5, 6]
    errors = [row["test_error_pct"] for row in said["runs"]]
    assert said["over_seeds"]["test_error_pct"]["mean"] == pytest.approx(sum(errors) / 3)
    alone = mlcore("train", recipe, override, "seed=5", "--data", data, "--out", tmp_path / "alone", *QUIET)
    result = json.loads(alone.stdout)
    assert result["weights_sha256"] == said["runs"][1]["weights_sha256"]
    assert json.loads((out / "s5" / "result.json").read_text())["recipe"]["sha256"] == result["recipe"]["sha256"]
    assert said["data"]["surrogate"] is True


@needs_compiler
def test_one_signal_stops_all_seeds_with_their_checkpoints_and_they_go_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, ("epochs = 2", "epochs = 4"), ("batch = 16", "batch = 1\ncheckpoint_every_s = 0.05"))
    out, data = tmp_path / "group", surrogate_folder()
    argv = command("train", recipe, "--seeds", "2", "--data", data, "--out", out, "--no-pictures")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not (_saved(out / "s1") and _saved(out / "s2")):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, talk = process.communicate(timeout=150)
    assert process.returncode == 143
    assert f"mlcore train --resume {out}" in talk
    assert {json.loads((out / run / "result.json").read_text())["status"] for run in ("s1", "s2")} == {"interrupted"}
    resumed = json.loads(mlcore("train", "--resume", out, *QUIET).stdout)
    assert [row["status"] for row in resumed["runs"]] == ["finished"] * 2
    whole = mlcore("train", recipe, "seed=2", "--data", data, "--out", tmp_path / "alone", *QUIET)
    assert json.loads(whole.stdout)["weights_sha256"] == resumed["runs"][1]["weights_sha256"]


def _saved(run: Path) -> bool:
    return any(int(path.stem[5:]) > 0 for path in (run / "checkpoints").glob("step-*.json"))


def test_threads_are_shared_out_among_the_processes() -> None:
    free, two = tiny("threads=0"), tiny("threads=2")
    assert shares(free, 3, {"MLCORE_THREADS": "8"}) == (3, 2)
    assert shares(free, 3, {"MLCORE_THREADS": "2"}) == (2, 1)
    assert shares(two, 3, {"MLCORE_THREADS": "5"}) == (2, 2)
    assert shares(two, 3, {"MLCORE_THREADS": "1"}) == (1, 2)
    with pytest.raises(RecipeError, match="MLCORE_THREADS"):
        shares(free, 3, {"MLCORE_THREADS": "many"})


WANTED = Group(Path(), (1, 2), (), "/data", False)


def test_a_group_is_gone_on_with_only_if_it_is_the_same(tmp_path: Path) -> None:
    group = begin(tiny(), WANTED, tmp_path / "a", False)
    assert load_group(group.path) == group
    assert begin(tiny(), WANTED, tmp_path / "a", True) == group
    with pytest.raises(RecipeError, match="--continue"):
        begin(tiny(), WANTED, tmp_path / "a", False)
    with pytest.raises(RecipeError, match="another recipe"):
        begin(tiny("train.epochs=9"), WANTED, tmp_path / "a", True)
    with pytest.raises(RecipeError, match="other seeds"):
        begin(tiny(), Group(Path(), (1, 2, 3), (), "/data", False), tmp_path / "a", True)


def test_a_seed_that_failed_is_named_and_the_others_are_summed_up(tmp_path: Path) -> None:
    group = begin(tiny(), WANTED, tmp_path / "a", False)
    good: dict[str, Any] = {"status": "finished", "test_error_pct": 3.0, "data": None, "verdict": None}
    failed = {"status": "failed", "message": "loss: nan", "exit_code": 4}
    summary = summarise(group, [good, failed])
    assert summary["over_seeds"]["test_error_pct"] == {"mean": 3.0, "deviation": None, "lowest": 3.0, "highest": 3.0}
    assert [row["error"] for row in summary["runs"]] == [None, "loss: nan"]
    with pytest.raises(GroupFailed, match="1 of 2 seeds failed: seed 2: loss: nan") as caught:
        demand_finished(summary)
    assert caught.value.exit_code == 4
    demand_finished(summarise(group, [good, {**good, "test_error_pct": 5.0}]))
