"""Reproduction: one trial at the frozen commit, from its command to a receipt.

The change's code runs in a fresh sandbox: the commit's files read-only, no git, no network, the test labels nowhere. It
hands over integer predictions and weights; `scoring.py` makes numbers of them in another process with the labels. What
the code itself says of its accuracy (`result.json`, logs) is never read.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator import datasets, quantities, scoring, verdicts
from orchestrator.datasets import Dataset
from orchestrator.records import Change, Receipt
from orchestrator.sandbox.base import Command, Completed, Limits, Mount, OnOutput, Sandbox
from orchestrator.shards import PHOTOGRAPHS
from orchestrator.trials import Trial, number

# Where things are inside the sandbox: the same in every run, so that compiled kernels are found again.
REPO = Path(verdicts.REPO)
DATA, OUT, CACHE, ANSWERS, SCORER = (Path(p) for p in ("/data", "/out", "/cache", "/answers", "/gate"))
CHANCE_SLACK_PCT = 15.0  # an untrained network's error lies up to this far below chance; a trained one's much farther
MEMORISED_PCT = 15.0  # a linear layer loses up to 8 points when images move by a pixel; a table of answers, 90
COPIED_PCT = 40.0  # of planted wrong labels: a learner's first epoch repeats a tenth or so, copied labels all
PATIENCE = 4  # times the minutes that a target expects
TIMED_STEPS = (4, 24)  # the difference of two trainings' times is that of the steps between them
TIMED_SHARE = 0.2  # of the short training's time, which scatters: what the difference has to be at least
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Site:
    """Everything that one reproduction needs, none of it within the agent's reach."""

    folder: Path  # ours, on the host
    tree: Path  # the change's files
    sandbox: Sandbox
    limits: Limits
    threads: int
    machine: str
    environment: str
    hear: OnOutput | None = None  # progress, for a person
    preparing: threading.Lock = field(default_factory=threading.Lock)  # trials run side by side


def run_trial(trial: Trial, change: Change, dataset: Dataset | None, site: Site, secret: bytes) -> Receipt:
    """Run, then score. The receipt says what was run, on what, and what came out; it is not signed yet."""
    run = RUNS[trial.kind]
    out = site.folder / "out" / trial.key
    out.mkdir(parents=True, exist_ok=True)
    site = replace(site, limits=replace(site.limits, wall_s=max(site.limits.wall_s, PATIENCE * 60 * trial.minutes)))
    argv, done, scored = run(trial, change, dataset, site, secret, out)
    passed, what = _judge(trial, done, scored)
    return Receipt(
        run="",
        task=change.task,
        attempt=change.attempt,
        kind="control" if trial.expect else "train",
        passed=passed,
        what=f"{trial.name}: {what}",
        commit=change.commit,
        argv=argv,
        exit_code=done.exit_code,
        seed=trial.seed,
        target=trial.targets or None,
        data=dataset.sha256 if dataset else {},
        artefacts={"predictions.npy": scored["sha256"]} if "sha256" in scored else {},
        values={key: float(value) for key, value in scored.items() if key not in ("sha256", "error")},
        sandbox=site.sandbox.tier,
        machine=site.machine,
        environment=site.environment,
        wall_s=round(done.wall_s, 3),
        cpu_s=round(done.cpu_s, 3),
    )


# What is run for each kind

Ran = tuple[tuple[str, ...], Completed, dict[str, Any]]


def _train(trial: Trial, change: Change, dataset: Dataset | None, site: Site, secret: bytes, out: Path) -> Ran:
    """A training to its end, from wherever an earlier sitting left it."""
    assert dataset is not None
    share = _prepare(trial, change, dataset, site, secret)
    fresh = not any(out.iterdir())
    argv = _train_argv(trial, trial.overrides)
    done = site.sandbox.run(_command(argv, (Mount(share / "data", DATA),), out, site), site.hear)
    scored = _score(out, share, site) if done.exit_code == 0 else {}
    whole = {"train_wall_s": done.wall_s, "threads": site.threads} if fresh and not trial.expect else {}
    return argv, done, {**scored, **(whole if done.exit_code == 0 else {})}


def _time(trial: Trial, change: Change, dataset: Dataset | None, site: Site, secret: bytes, out: Path) -> Ran:
    """Images a second without start and compilation: a few steps twice, for the first compiles, then many.

    No number where the steps take so little time that their start hides it.
    """
    assert dataset is not None
    data = Mount(_prepare(trial, change, dataset, site, secret) / "data", DATA)
    batch = tomllib.loads((site.tree / trial.recipe).read_text()).get("train", {}).get("batch", 0)
    views = ("data.views=centre",) if dataset.name in PHOTOGRAPHS else ()  # ten of them take minutes
    few, many = TIMED_STEPS
    walls = []
    for turn, steps in enumerate((few, few, many)):
        argv = _train_argv(trial, (f"train.steps={steps}", *views))
        folder = out / str(turn)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        done = site.sandbox.run(_command(argv, (data,), folder, site), site.hear)
        if done.exit_code != 0:
            return argv, done, {}
        walls.append(done.wall_s)
    short, long = walls[1:]
    if not batch:
        return argv, done, {"error": f"{trial.recipe} says no train.batch, so images can't be counted"}
    if long - short < TIMED_SHARE * short:
        took = f"{many - few} steps took {long - short:.2f} s beside a start of {short:.2f} s"
        return argv, done, {"error": f"{took}: too little to be timed"}
    return argv, done, {"images_per_s": (many - few) * batch / (long - short), "threads": site.threads}


def _begin(trial: Trial, change: Change, dataset: Dataset | None, site: Site, secret: bytes, out: Path) -> Ran:
    """An untrained network's weights: no data, no step."""
    argv = ("mlcore", "init", trial.recipe, "--seed", str(trial.seed), "--out", str(OUT / WEIGHTS))
    done = site.sandbox.run(_command(argv, (), out, site), site.hear)
    return argv, done, _score(out, None, site) if done.exit_code == 0 else {}


RUNS: dict[quantities.Kind, Callable[[Trial, Change, Dataset | None, Site, bytes, Path], Ran]] = {
    "training": _train,
    "timing": _time,
    "untrained": _begin,
}


def _train_argv(trial: Trial, overrides: tuple[str, ...]) -> tuple[str, ...]:
    where = ("--data", str(DATA), "--out", str(OUT), "--continue", "--no-pictures")
    return ("mlcore", "train", str(REPO / trial.recipe), f"seed={trial.seed}", *overrides, *where)


def _prepare(trial: Trial, change: Change, dataset: Dataset, site: Site, secret: bytes) -> Path:
    """The trial's dataset folder; trials without a control share one."""
    share = site.folder / "sets" / f"{dataset.name}-{(trial.control or 'split').replace(' ', '-')}"
    with site.preparing:
        if not (share / "complete").exists():
            shutil.rmtree(share, ignore_errors=True)
            share.mkdir(parents=True)
            seed = number(secret, change.commit, dataset.name, "split")
            if trial.control:
                datasets.control(dataset, share, trial.control, seed)
            else:
                datasets.gate_split(dataset, share, seed)
    return share


def _command(argv: tuple[str, ...], data: tuple[Mount, ...], out: Path, site: Site) -> Command:
    cache = site.folder / "cache"
    cache.mkdir(exist_ok=True)
    return Command(
        argv=argv,
        cwd=REPO,
        mounts=(
            Mount(site.tree, REPO),
            *data,
            Mount(out, OUT, writable=True),
            Mount(cache, CACHE, writable=True),
        ),
        env={
            "PYTHONPATH": str(REPO),
            "MLCORE_DATA": str(DATA),
            "MLCORE_CACHE": str(CACHE / "mlcore"),  # photographs are looked at once, not in every trial
            "MLCORE_THREADS": str(site.threads),
            "NUMBA_CACHE_DIR": str(CACHE),
            "HOME": "/tmp",
        },
        limits=site.limits,
    )


# What was handed over, and its scoring

CHECKPOINTS, METRICS = "checkpoints/step-*.safetensors", "metrics.jsonl"
PREDICTIONS, TOP5, CENTRE = "predictions.npy", "predictions_top5.npy", "predictions_centre.npy"
SNAPSHOTS = "train_predictions_*.npy"


def _score(out: Path, share: Path | None, site: Site) -> dict[str, Any]:
    """Another process, with the labels and without anything of the agent's but files of integers and of weights."""
    handed = _handed_over(out)
    if share and not (handed / PREDICTIONS).exists():
        return {"error": f"{PREDICTIONS} was not written"}
    nonce, scorer = secrets.token_hex(16), Path(scoring.__file__).resolve()
    flags = _flags(handed, share)
    command = Command(
        argv=(
            sys.executable,
            "-I",
            str(SCORER / scorer.name),
            *(word for flag, path in flags.items() for word in (flag, path)),
            *("--nonce", nonce),
        ),
        cwd=Path("/tmp"),  # there with and without a sandbox; `-I` imports nothing from it
        mounts=(
            Mount(scorer, SCORER / scorer.name),
            Mount(handed, OUT),
            *((Mount(share, ANSWERS),) if share else ()),
        ),
        limits=Limits(wall_s=600, memory_bytes=site.limits.memory_bytes),
    )
    done = site.sandbox.run(command)
    shutil.rmtree(handed)
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {}
    if done.exit_code != 0 or answer.get("nonce") != nonce:
        return {"error": f"the scorer failed: {done.stderr.strip()[-300:]}"}
    return {key: value for key, value in answer.items() if key != "nonce"}


def _handed_over(out: Path) -> Path:
    """A copy of what may be scored: plain files under known names. No link of the agent's gets near the answers."""
    handed = out.with_name(f"{out.name}.handed")
    shutil.rmtree(handed, ignore_errors=True)
    handed.mkdir()
    for pattern in (PREDICTIONS, TOP5, CENTRE, SNAPSHOTS, WEIGHTS):
        for path in plain_files(out, pattern):
            shutil.copyfile(path, handed / path.name)
    if weights := plain_files(out, CHECKPOINTS):
        shutil.copyfile(weights[-1], handed / WEIGHTS)
    return handed


def plain_files(out: Path, pattern: str) -> list[Path]:
    """A run's files by their names, in order; nothing that a link leads to."""
    return [
        path
        for path in sorted(out.glob(pattern))
        if path.is_file() and path.resolve() == out.resolve() / path.relative_to(out)
    ]


def _flags(handed: Path, share: Path | None) -> dict[str, str]:
    """The scorer's arguments for what is there."""
    answers = ANSWERS if share else None
    flags: dict[str, Path | None] = {
        "--predictions": OUT / PREDICTIONS if (handed / PREDICTIONS).exists() else None,
        "--top5": OUT / TOP5 if (handed / TOP5).exists() else None,
        "--centre": OUT / CENTRE if (handed / CENTRE).exists() else None,
        "--answers": answers and answers / "answers.npy",
        "--made": answers and answers / "made.npy",
        "--snapshots": OUT if any(handed.glob(SNAPSHOTS)) else None,
        "--train-answers": answers and answers / "train_answers.npy",
        "--weights": OUT / WEIGHTS if (handed / WEIGHTS).exists() else None,
    }
    if share and (share / "planted.npy").exists():
        flags |= {"--planted": ANSWERS / "planted.npy", "--given": ANSWERS / "given.npy"}
    return {flag: str(path) for flag, path in flags.items() if path}


# What a network may have been told instead of learnt, by what would show it.
TWINS = {
    "test_error_pct": "gate_split_error_pct",
    "test_top5_error_pct": "gate_split_top5_error_pct",
    "test_centre_error_pct": "gate_split_centre_error_pct",
}
TOP5_ERRORS = ("test_top5_error_pct", "gate_split_top5_error_pct")
ERRORS = tuple(name for twins in TWINS.items() for name in twins if name not in TOP5_ERRORS)


def _judge(trial: Trial, done: Completed, scored: dict[str, Any]) -> tuple[bool, str]:
    if done.timed_out:
        return False, f"did not finish within {done.wall_s:.0f} s"
    if done.exit_code != 0:
        tail = (done.stderr.strip() or done.stdout.strip())[-400:]
        return False, f"ended with exit code {done.exit_code}: {tail}"
    if "error" in scored:
        return False, str(scored["error"])
    return JUDGES[trial.expect or trial.kind](scored)


def _learnt(scored: dict[str, Any]) -> tuple[bool, str]:
    """Every guess that a number may come from: the error on published images is hardly below that on moved ones."""
    for published, moved in TWINS.items():
        if published in scored and scored[moved] - scored[published] > MEMORISED_PCT:
            on_ours = f"{scored[moved]:.2f} % on the gate's: memorised?"
            return False, f"{_plain(published)} {scored[published]:.2f} % on published images but {on_ours}"
    error, moved_error = scored["test_error_pct"], scored["gate_split_error_pct"]
    return True, f"test error {error:.2f} %, {moved_error:.2f} % on images that the gate moved by a pixel"


def _at_chance(scored: dict[str, Any]) -> tuple[bool, str]:
    """Test errors, and those of any snapshot where the training labels are true ones."""
    for name in TOP5_ERRORS:
        chance = 100.0 * (1 - scoring.TOP / scored["classes"]) - CHANCE_SLACK_PCT
        if name in scored and scored[name] < chance:
            return False, f"{_plain(name)} {scored[name]:.2f} %, chance expected (at least {chance:.0f} %)"
    errors = [scored[name] for name in ERRORS if name in scored]
    errors += [error for _, error in quantities.snapshots(scored)]
    chance = 100.0 * (1 - 1 / scored["classes"]) - CHANCE_SLACK_PCT
    return min(errors) >= chance, f"error {min(errors):.2f} %, chance expected (at least {chance:.0f} %)"


def _plain(name: str) -> str:
    return name.removesuffix("_pct").replace("_", " ")


def _not_copied(scored: dict[str, Any]) -> tuple[bool, str]:
    if "copied_pct" not in scored:
        return False, f"{SNAPSHOTS} were not written"
    copied = scored["copied_pct"]
    return copied <= COPIED_PCT, f"{copied:.2f} % of planted wrong labels repeated (at most {COPIED_PCT:.0f} %)"


def _counted(scored: dict[str, Any]) -> tuple[bool, str]:
    return "parameters" in scored, f"{scored.get('parameters', 0):,} parameters"


def _timed(scored: dict[str, Any]) -> tuple[bool, str]:
    return True, f"{scored['images_per_s']:.1f} images/s on {scored['threads']} threads"


JUDGES: dict[str, Callable[[dict[str, Any]], tuple[bool, str]]] = {
    "training": _learnt,
    "chance": _at_chance,
    "own labels": _not_copied,
    "untrained": _counted,
    "timing": _timed,
}
