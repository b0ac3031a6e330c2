"""A small repository to run plans in, and the command `orchestrate` on it: real git, sandbox, training, processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.formats import FORMATS, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, write_idx

PROJECT = Path(__file__).resolve().parents[2]
ORCHESTRATE = Path(sys.executable).with_name("orchestrate")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")

RECIPE = """name = "small"
seed = 0

[model]
name = "mlp"
options.hidden = [24]

[optimiser]
rate = 0.05

[schedule]
name = "constant"

[train]
epochs = 1
batch = 64
"""
PLAN = """---
title: A small plan
targets:
  - {{id: small-error, metric: test_error_pct, value: {value}, margin: 0.5, direction: at_most, seeds: 3,
     dataset: mnist, recipe: mlcore/recipes/small.toml, source: "a test"}}
budget: {{minutes: {minutes}}}
---
# A small plan

{prose}

## Data
- [ ] `data` Look at the files
  - skill: verify-dataset
  - options: dataset=mnist
  - writes: plans/small/dataset.json
  - accept: python skills/verify-dataset/scripts/verify.py --dataset mnist --check plans/small/dataset.json

- [ ] `second` Look at the files again
  - skill: verify-dataset
  - options: dataset=mnist
  - writes: plans/again/dataset.json
"""
MEASUREMENT = """
## Measurement
- [ ] `measure` Measure the small network
  - skill: measure-reproduction
  - needs: data
  - targets: small-error
  - writes: plans/small.md
"""
SETTINGS = '[tool.odyssey.tests]\nlow = []\nmedium = []\nhigh = ["tests"]\n'


def has_bubblewrap() -> bool:
    return shutil.which("bwrap") is not None or bool(os.environ.get("CI"))


@dataclass(frozen=True)
class Repo:
    root: Path
    data: Path

    def git(self, *argv: str) -> str:
        return subprocess.run(["git", *argv], cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def commit(self, message: str = "a change") -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def start(self, *argv: str, **more: str) -> subprocess.Popen[str]:
        env = {**os.environ, "MLCORE_DATA": str(self.data), **more}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [str(ORCHESTRATE), *argv],
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def run(self, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*argv, **more)
        out, err = process.communicate(timeout=500)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def json(self, *argv: str) -> dict[str, Any]:
        done = self.run(*argv, "--json")
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ledger(self, sql: str) -> list[tuple[Any, ...]]:
        import sqlite3

        with sqlite3.connect(self.root / ".odyssey" / "ledger.db") as connection:
            return connection.execute(sql).fetchall()


def small_repo(
    folder: Path, data: Path, value: float = 50.0, minutes: float = 20, prose: str = "Prose.", measured: bool = True
) -> Repo:
    """The project's own agents, skills and mlcore with a plan that takes seconds."""
    root = folder / "repo"
    for name in ("agents", "skills", "mlcore"):
        shutil.copytree(PROJECT / name, root / name, ignore=LEFT_OUT)
    repo = Repo(root, data)
    repo.write("mlcore/recipes/small.toml", RECIPE)
    plan = PLAN.format(value=value, minutes=minutes, prose=prose)
    if measured:
        repo.write("plans/small.md", plan + MEASUREMENT)
    else:
        before, _, after = plan.partition("targets:")
        repo.write("plans/small.md", before + "budget:" + after.partition("budget:")[2])
    repo.write("pyproject.toml", SETTINGS)
    repo.write(".gitignore", "runs/\n__pycache__/\n")
    repo.git("init", "--quiet", "--initial-branch=main")
    repo.git("config", "user.name", "Ada")
    repo.git("config", "user.email", "ada@example.invalid")
    repo.commit("the beginning")
    return repo


def small_digits(folder: Path, train: int = 3000, test: int = 600) -> Path:
    """Files in MNIST's place that are not MNIST: easy patterns with noise. They can never yield `reproduced`.

    Ten patterns a class: of ten in all, one untrained network in fifty guesses three, which is no longer chance.
    """
    rng = np.random.default_rng(7)
    patterns = rng.integers(0, 2, (100, 7, 7), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2) * 200
    files = {}
    for images, labels, count in ((TRAIN_IMAGES, TRAIN_LABELS, train), (TEST_IMAGES, TEST_LABELS, test)):
        drawn = rng.integers(0, len(patterns), count)
        files[images] = patterns[drawn] + rng.integers(0, 56, (count, 28, 28), dtype=np.uint8)
        files[labels] = (drawn % 10).astype(np.uint8)
    target = folder / "mnist"
    target.mkdir(parents=True)
    for name in FORMATS["mnist"].official:
        write_idx(target / name, files[name])
    return folder


def real_mnist() -> Path | None:
    """The folder with the real datasets, when this machine has it."""
    data = os.environ.get("MLCORE_DATA")
    return Path(data) if data and (Path(data) / "mnist").is_dir() else None
