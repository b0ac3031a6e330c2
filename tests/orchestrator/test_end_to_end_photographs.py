"""Photographs from a plan to verdicts, in the real sandbox: what it holds is looked at from inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator import photographs
from tests.orchestrator.endtoend import Repo, has_bubblewrap, small_repo

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")

RECIPE = """name = "photos"
{engine}
[model]
name = "mlp"
options.hidden = [24]
[data]
dataset = "shards"
train = "imagenette2-160/imagenette2-160-train-*"
test = "imagenette2-160/imagenette2-160-val-*"
classes = 12
side = 24
crop = 20
flip = true
colour_noise = 0.05
normalise = "channel"
views = "ten"
[optimiser]
rate = 0.02
[train]
epochs = 12
batch = 12
"""
SAME = 'seeds: 3, dataset: imagenette, recipe: mlcore/recipes/photos.toml, source: "a test"'
PLAN = f"""---
title: Photographs
targets:
  - {{id: error, metric: test_error_pct, value: 40, margin: 1, direction: at_most, {SAME}}}
  - {{id: five, metric: test_top5_error_pct, value: 20, margin: 1, direction: at_most, {SAME}}}
  - {{id: views, metric: views_gain, value: 0, margin: 1, direction: reported, {SAME}}}
  - {{id: peer, metric: test_error_pct, compare: difference, against: mlcore/recipes/photos_torch.toml, value: 0,
     margin: 3, direction: equal, {SAME}}}
budget: {{minutes: 20}}
---
# Photographs

## Measurement
- [ ] `measure` Measure them
  - skill: measure-reproduction
  - targets: error, five, views, peer
  - writes: plans/photos.md
"""
# What mlcore in the sandbox tells of every file that it can see under /data and /cache, wherever a label could be.
LOOK = '''

def _tell() -> None:
    import pathlib, sys, tarfile
    for path in sorted(pathlib.Path("/data").rglob("*")):
        if path.is_file():
            print("seen", path, file=sys.stderr)
        if "-val-" in path.name:
            for member in tarfile.open(path):
                print("seen", member.name, member.mtime, member.uname, file=sys.stderr)
    for secret in ("/answers", "/gate", "/work/answers.npy"):
        print("seen", secret, pathlib.Path(secret).exists(), file=sys.stderr)
    sys.exit("that was all")


import os
if os.environ.get("MLCORE_DATA") == "/data" and pathlib_exists():
    _tell()
'''


def photo_repo(tmp_path: Path, plan: str = PLAN) -> Repo:
    photographs.drawn(tmp_path / "data")
    repo = small_repo(tmp_path, tmp_path / "data", measured=False)
    repo.write("mlcore/recipes/photos.toml", RECIPE.format(engine=""))
    repo.write("mlcore/recipes/photos_torch.toml", RECIPE.format(engine='engine = "torch"'))
    repo.write("plans/photos.md", plan)
    repo.commit("photographs")
    return repo


def test_photographs_are_trained_and_scored_without_their_labels_and_pytorch_beside_us(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    repo = photo_repo(tmp_path)

    done = repo.run("run", "plans/photos.md")

    assert done.returncode == 3, done.stderr  # not Imagenette, so there is no verdict to be had
    report = repo.json("report", "--verify")
    assert report["wrong"] == []
    trained = [each for each in report["receipts"] if each["target"]]
    names = [each["what"].partition(":")[0] for each in trained]
    assert len(trained) == 12, done.stderr
    assert names.count("zero-steps") == names.count("shuffled-labels") == names.count("noise-images") == 2
    assert {each["sandbox"] for each in trained} == {"bubblewrap"}
    for each in trained:
        assert each["passed"], each["what"]
        error, five = each["values"]["test_error_pct"], each["values"]["test_top5_error_pct"]
        assert five < error
        if each["kind"] == "train":
            assert error < 70, "a learner does better than chance, which errs 92 % of the time"
            assert abs(each["values"]["test_centre_error_pct"] - error) < 30
    verdicts = {each["target"]: each for each in report["verdicts"]}
    assert {each["outcome"] for each in verdicts.values()} == {"not measured"}
    assert "imagenette, unverified files" in verdicts["error"]["reason"]
    assert len(verdicts["peer"]["values"]) == 3
    assert all(abs(value) < 25 for value in verdicts["peer"]["values"].values())


def test_from_inside_the_sandbox_nothing_tells_a_test_photographs_class(tmp_path: Path) -> None:
    plan = PLAN.replace("error, five, views, peer", "error")
    repo = photo_repo(tmp_path, plan)
    launch = repo.root / "mlcore" / "launch.py"
    launch.write_text(launch.read_text() + LOOK.replace(" and pathlib_exists()", ""))
    repo.commit("look around")

    repo.run("run", "plans/photos.md")

    (first,) = [each for each in repo.json("report")["receipts"] if each["target"]]
    assert first["what"].endswith("that was all"), first["what"]
    share = next((repo.root / ".odyssey" / "gate").rglob("sets/imagenette-split"))
    assert sorted(path.name for path in share.iterdir()) == [
        "answers.npy", "complete", "data", "made.npy", "train_answers.npy",
    ]  # fmt: skip
