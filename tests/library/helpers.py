"""What the tests of agents, skills and plans share: paths, running a script as a person would, small datasets."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "verify-dataset": "verify.py",
    "train-model": "train.py",
    "tune-recipe": "tune.py",
    "measure-reproduction": "preflight.py",
    "write-report": "no_numbers.py",
}
RECIPE = """\
# Chosen on a validation split; see plans/LOG.md.
name = "lenet5_mnist"

[optimiser]
rate = 0.5         # far too high, on purpose
momentum = 0.9     # the paper of 2012

[train]
epochs = 4
batch = 64
"""

# Stands in for mlcore: the error is a bowl around a rate of 0.05, lower with more epochs; a rate above 2 is not finite.
# It counts what it was asked to do, lists the data that it could see, and plants a test error that none may use.
FAKE_MLCORE = """\
#!{python} -IS
import json, math, os, pathlib, sys, time, tomllib
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
with open(here / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(words) + chr(10))
if words[0] == "check":
    sys.exit(int(os.environ.get("FAKE_CHECK", "0")))
option = lambda name: words[words.index(name) + 1] if name in words else None
out = pathlib.Path(option("--out"))
if (out / "result.json").exists():
    sys.exit(0)
recipe = tomllib.loads(pathlib.Path(words[1]).read_text())
flat = {{f"{{t}}.{{k}}": v for t, table in recipe.items() if isinstance(table, dict) for k, v in table.items()}}
flat |= dict((w.partition("=")[0], json.loads(w.partition("=")[2])) for w in words[2:] if "=" in w)
time.sleep(float(os.environ.get("FAKE_SECONDS", "0")) * flat["train.epochs"])
rate, broken = flat["optimiser.rate"], flat["optimiser.rate"] > 2
error = 0.7 + math.log10(rate / 0.05) ** 2 + 0.4 / flat["train.epochs"] + 0.01 * (flat["seed"] % 3)
root = option("--data")
seen = sorted(p.name for p in pathlib.Path(root).rglob("*") if p.is_file()) if root else []
name = os.environ.get("FAKE_DATA", "mnist")
result = dict(status="failed" if broken else "finished", data=dict(name=name), seen=seen,
              validation_error_pct=None if broken else round(error, 4), test_error_pct=0.0,
              train_loss=None if broken else error)
out.mkdir(parents=True, exist_ok=True)
(out / "result.json").write_text(json.dumps(result))
sys.exit(4 if broken else int(os.environ.get("FAKE_EXIT", "0")))
"""


def script(skill: str) -> Path:
    return ROOT / "skills" / skill / "scripts" / SCRIPTS[skill]


def module(skill: str, name: str) -> types.ModuleType:
    """One of a skill's script files as a module. Their names differ from each other and from installed ones."""
    folder = str(script(skill).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def run(
    skill: str, *words: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script(skill), *words],
        cwd=cwd,
        env=clean_env(env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def complaint(kind: type[Exception], call: Callable[[], object]) -> str | None:
    """What the one documented error says; None when the call went well. Any other error comes through."""
    try:
        call()
    except kind as error:
        return str(error)
    return None


def clean_env(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment without what would point at this machine's datasets."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MLCORE_")} | (extra or {})


def fake_mlcore(folder: Path) -> dict[str, str]:
    """Puts a stand-in for mlcore into `folder`. Returns the environment in which it is found first."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "mlcore"
    program.write_text(FAKE_MLCORE.format(python=sys.executable))
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def calls(folder: Path, command: str = "train") -> list[list[str]]:
    """What the stand-in was asked to do, in order."""
    path = folder / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [words for line in lines if (words := json.loads(line))[0] == command]


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def small_dataset(folder: Path, count: int = 40, **replaced: Any) -> Path:
    """Four gzipped IDX files of random images, every class present; `train_images=...` replaces an array."""
    rng = np.random.default_rng(7)
    arrays = {
        "train_images": rng.integers(0, 256, (count, 28, 28), np.uint8),
        "train_labels": (np.arange(count) % 10).astype(np.uint8),
        "t10k_images": rng.integers(0, 256, (10, 28, 28), np.uint8),
        "t10k_labels": np.arange(10, dtype=np.uint8),
    } | replaced
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        split, kind = name.split("_")
        path = folder / f"{split}-{kind}-idx{array.ndim}-ubyte.gz"
        path.write_bytes(gzip.compress(idx_bytes(array), 1, mtime=0))
    return folder
