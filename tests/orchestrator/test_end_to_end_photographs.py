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
crop = 23
flip = false
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
PEER = f"""\
  - {{id: peer, metric: test_error_pct, compare: difference, against: mlcore/recipes/photos_torch.toml, value: 0,
     margin: 3, direction: equal, {SAME}}}
"""
PLAN = f"""---
title: Photographs
targets:
  - {{id: error, metric: test_error_pct, value: 40, margin: 1, direction: at_most, {SAME}}}
  - {{id: five, metric: test_top5_error_pct, value: 20, margin: 1, direction: at_most, {SAME}}}
  - {{id: views, metric: views_gain, value: 0, margin: 1, direction: reported, {SAME}}}
{PEER}budget: {{minutes: 20}}
---
# Photographs

## Measurement
- [ ] `measure` Measure them
  - skill: measure-reproduction
  - targets: error, five, views, peer
  - writes: plans/photos.md
"""
ONE_RECIPE = PLAN.replace(PEER, "").replace(", peer", "")
# What mlcore in the sandbox writes down: every file that it can see but the system's and its own, and those in which an
# original name of a test photograph is.
LOOK = """

def _look() -> None:
    import os, pathlib, re, sys, tarfile
    own = tuple({"/proc", "/sys", "/dev", "/usr", "/repo", sys.prefix, sys.base_prefix})
    seen = []
    for folder, _, names in os.walk("/"):
        if not folder.startswith(own):
            for path in (pathlib.Path(folder, name) for name in names):
                told = path.is_file() and re.search(TESTED, path.read_bytes())
                seen.append(f"{path} {'TELLS' if told else 'silent'}")
    for shard in pathlib.Path("/data").glob("*/*-val-*"):
        seen += [f"member {member.name} {member.mtime} {member.uname}." for member in tarfile.open(shard)]
    pathlib.Path("/out/seen.txt").write_text("\\n".join(seen))
    sys.exit("that was all")


TESTED = rb"_000010[0-9][0-9][.]jpg"
_look()
"""


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
    gains: dict[str, float] = {}
    for each in sorted(trained, key=lambda each: "photos_torch" not in each["what"] + str(each["argv"])):
        assert each["passed"], each["what"]  # controls at chance, trainings no memorised labels
        error, five = each["values"]["test_error_pct"], each["values"]["test_top5_error_pct"]
        assert five < error
        if each["kind"] == "train":
            assert error < 70, "a learner does better than chance, which errs 92 % of the time"
            assert each["values"]["test_centre_error_pct"] < 70
            gains[str(each["seed"])] = each["values"]["test_centre_error_pct"] - error
    verdicts = {each["target"]: each for each in report["verdicts"]}
    assert {each["outcome"] for each in verdicts.values()} == {"not measured"}
    assert "imagenette, unverified files" in verdicts["error"]["reason"]
    assert verdicts["views"]["values"] == pytest.approx(gains)  # ours come last
    assert len(verdicts["peer"]["values"]) == 3
    assert all(abs(value) < 25 for value in verdicts["peer"]["values"].values())


def test_from_inside_the_sandbox_nothing_tells_a_test_photographs_class(tmp_path: Path) -> None:
    repo = photo_repo(tmp_path, ONE_RECIPE)
    launch = repo.root / "mlcore" / "launch.py"
    launch.write_text(launch.read_text() + LOOK)
    repo.commit("look around")

    repo.run("run", "plans/photos.md")

    seen = next((repo.root / ".odyssey" / "gate").rglob("out/photos/zero-steps/seen.txt")).read_text().splitlines()
    assert not [line for line in seen if line.endswith("TELLS")]
    assert not [line for line in seen if "answers" in line or "made.npy" in line]
    data = {line.removesuffix(" silent") for line in seen if line.startswith("/data")}
    names = ("train-0000", "train-0001", "val-0000")
    assert data == {f"/data/imagenette2-160/imagenette2-160-{name}.tar" for name in names}
    members = [line for line in seen if line.startswith("member ")]
    assert members == [f"member {number:07}.jpg 0 ." for number in range(2 * photographs.TEST)]
