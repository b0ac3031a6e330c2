"""Reproduction: a recipe trained for each seed at the frozen commit, its predictions scored, held against the target.

The change's code runs in a fresh sandbox: the commit's files read-only, no git, no network, the test labels nowhere. It
writes integer predictions; `scoring.py` reads them in another process with the labels. What the code itself
says of its accuracy (`result.json`, logs) is never read. Controls show that the number comes from learning.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import datasets, scoring
from orchestrator.datasets import Dataset
from orchestrator.records import Change, Outcome, Receipt, Target, Verdict
from orchestrator.sandbox.base import Command, Completed, Limits, Mount, OnOutput, Sandbox

# Where things are inside the sandbox: the same in every run, so that compiled kernels are found again.
REPO, DATA, OUT, CACHE, ANSWERS, SCORER = (Path(p) for p in ("/repo", "/data", "/out", "/cache", "/answers", "/gate"))
CONTROLS = 3  # trials() asks for so many; a number without them could come from anything
CHANCE_SLACK_PCT = 15.0  # an untrained network's error lies up to this far below chance; a trained one's much farther
MEMORISED_PCT = 15.0  # a linear layer loses up to 8 points when images move by a pixel; a table of answers, 90


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


@dataclass(frozen=True)
class Trial:
    """One training that the gate asks for. `overrides` go to the recipe; `control` names what was taken away."""

    name: str
    seed: int
    overrides: tuple[str, ...] = ()
    control: datasets.Control | None = None
    expect_chance: bool = False


def trials(target: Target, commit: str, secret: bytes) -> tuple[Trial, ...]:
    """The controls, then one trial a seed. Seeds follow from the commit and a secret: nobody can choose them."""
    seeds = [_number(secret, commit, target.id, str(index)) for index in range(target.seeds)]
    control = _number(secret, commit, target.id, "control")
    one = ("train.epochs=1",)
    return (
        Trial("zero-steps", control, ("train.steps=0",), expect_chance=True),
        Trial("shuffled-labels", control, one, "shuffled labels", expect_chance=True),
        Trial("noise-images", control, one, "noise images", expect_chance=True),
        *(Trial(f"seed-{seed}", seed) for seed in seeds),
    )


def run_trial(trial: Trial, target: Target, change: Change, dataset: Dataset, site: Site, secret: bytes) -> Receipt:
    """Train, then score. The receipt says what was run, on what, and what came out; it is not signed yet."""
    share = _prepare(trial, target, change, dataset, site, secret)
    out = site.folder / "out" / f"{target.id}-{trial.name}"
    out.mkdir(parents=True, exist_ok=True)
    argv = (
        "mlcore",
        "train",
        str(REPO / target.recipe),
        f"seed={trial.seed}",
        *trial.overrides,
        *("--data", str(DATA), "--out", str(OUT), "--continue", "--no-pictures"),
    )
    done = site.sandbox.run(_training(argv, share, out, site), site.hear)
    scored = _score(out / "predictions.npy", share, site) if done.exit_code == 0 else {}
    return _receipt(trial, target, change, dataset, site, argv, done, scored)


def verdict(target: Target, dataset: Dataset, change: Change, receipts: list[Receipt]) -> Verdict:
    """The target against its receipts: pure, so that anyone can repeat it from the ledger."""
    seeds = [receipt for receipt in receipts if receipt.kind == "train"]
    values = {str(each.seed): each.values["test_error_pct"] for each in seeds if "test_error_pct" in each.values}
    mean = statistics.fmean(values.values()) if values else None
    outcome, reason = _outcome(target, dataset, receipts, values, mean)
    return Verdict(
        target=target.id,
        outcome=outcome,
        reason=reason,
        mean=mean,
        spread=statistics.stdev(values.values()) if len(values) > 1 else None,
        values=values,
        receipts=tuple(receipt.id for receipt in receipts),
        dataset=dataset.label,
        commit=change.commit,
    )


def half_width_pct(mean: float, count: int) -> float:
    """Half the width of the binomial 95 % interval of an error of `mean` % on `count` images."""
    rate = mean / 100
    return 100 * 1.96 * math.sqrt(rate * (1 - rate) / count)


def _outcome(
    target: Target, dataset: Dataset, receipts: list[Receipt], values: dict[str, float], mean: float | None
) -> tuple[Outcome, str]:
    broken = [receipt for receipt in receipts if not receipt.passed and receipt.kind == "train"]
    failed = [receipt for receipt in receipts if not receipt.passed and receipt.kind == "control"]
    controls = sum(receipt.passed and receipt.kind == "control" for receipt in receipts)
    if not dataset.official:
        return "not measured", f"not measured on {target.dataset.upper()}: the data is {dataset.label}"
    if failed:
        return "not measured", f"control failed: {failed[0].what}"
    if broken:
        return "did not finish", broken[0].what
    if controls < CONTROLS:
        return "not measured", f"{controls} of {CONTROLS} controls were run"
    if mean is None or len(values) < target.seeds:
        return "did not finish", f"{len(values)} of {target.seeds} seeds finished"
    ours = f"mean {mean:.2f} % of {len(values)} seeds, {target.limit} asked"
    return ("reproduced" if target.met_by(mean) else "not reproduced"), ours


def _prepare(trial: Trial, target: Target, change: Change, dataset: Dataset, site: Site, secret: bytes) -> Path:
    """The trial's dataset folder; trials without a control share one."""
    share = site.folder / "sets" / f"{target.dataset}-{(trial.control or 'split').replace(' ', '-')}"
    if not (share / "complete").exists():
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir(parents=True)
        seed = _number(secret, change.commit, target.dataset, "split")
        if trial.control:
            datasets.control(dataset, share, trial.control, seed)
        else:
            datasets.gate_split(dataset, share, seed)
    return share


def _training(argv: tuple[str, ...], share: Path, out: Path, site: Site) -> Command:
    cache = site.folder / "cache"
    cache.mkdir(exist_ok=True)
    return Command(
        argv=argv,
        cwd=REPO,
        mounts=(
            Mount(site.tree, REPO),
            Mount(share / "data", DATA),
            Mount(out, OUT, writable=True),
            Mount(cache, CACHE, writable=True),
        ),
        env={
            "PYTHONPATH": str(REPO),
            "MLCORE_DATA": str(DATA),
            "MLCORE_THREADS": str(site.threads),
            "NUMBA_CACHE_DIR": str(CACHE),
            "HOME": "/tmp",
        },
        limits=site.limits,
    )


def _score(predictions: Path, share: Path, site: Site) -> dict[str, Any]:
    """Another process, with the labels and without anything of the agent's but one file of integers."""
    nonce = secrets.token_hex(16)
    if predictions.is_symlink() or not predictions.is_file():
        return {"error": "predictions.npy was not written"}
    scorer = Path(scoring.__file__).resolve()
    flags = ("--predictions", "--answers", "--made")
    files = (OUT / predictions.name, ANSWERS / "answers.npy", ANSWERS / "made.npy")
    command = Command(
        argv=(
            sys.executable,
            "-I",
            str(SCORER / scorer.name),
            *(word for flag, file in zip(flags, files, strict=True) for word in (flag, str(file))),
            *("--nonce", nonce),
        ),
        cwd=Path("/tmp"),  # there with and without a sandbox; `-I` imports nothing from it
        mounts=(
            Mount(scorer, SCORER / scorer.name),
            Mount(predictions, OUT / predictions.name),
            Mount(share / "answers.npy", ANSWERS / "answers.npy"),
            Mount(share / "made.npy", ANSWERS / "made.npy"),
        ),
        limits=Limits(wall_s=120, memory_bytes=site.limits.memory_bytes),
    )
    done = site.sandbox.run(command)
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {}
    if done.exit_code != 0 or answer.get("nonce") != nonce:
        return {"error": f"the scorer failed: {done.stderr.strip()[-300:]}"}
    return {key: value for key, value in answer.items() if key != "nonce"}


def _receipt(
    trial: Trial,
    target: Target,
    change: Change,
    dataset: Dataset,
    site: Site,
    argv: tuple[str, ...],
    done: Completed,
    scored: dict[str, Any],
) -> Receipt:
    passed, what = _judge(trial, done, scored)
    return Receipt(
        run="",
        task=change.task,
        attempt=change.attempt,
        kind="control" if trial.expect_chance else "train",
        passed=passed,
        what=f"{trial.name}: {what}",
        commit=change.commit,
        argv=argv,
        exit_code=done.exit_code,
        seed=trial.seed,
        target=target.id,
        data=dataset.sha256,
        artefacts={"predictions.npy": scored["sha256"]} if "sha256" in scored else {},
        values={key: float(value) for key, value in scored.items() if key not in ("sha256", "error")},
        sandbox=site.sandbox.tier,
        machine=site.machine,
        environment=site.environment,
        wall_s=round(done.wall_s, 3),
        cpu_s=round(done.cpu_s, 3),
    )


def _judge(trial: Trial, done: Completed, scored: dict[str, Any]) -> tuple[bool, str]:
    if done.timed_out:
        return False, f"did not finish within {done.wall_s:.0f} s"
    if done.exit_code != 0:
        tail = (done.stderr.strip() or done.stdout.strip())[-400:]
        return False, f"training ended with exit code {done.exit_code}: {tail}"
    if "error" in scored:
        return False, str(scored["error"])
    error, moved = scored["test_error_pct"], scored["gate_split_error_pct"]
    if trial.expect_chance:
        chance = 90.0 - CHANCE_SLACK_PCT
        at_chance = min(error, moved) >= chance
        return at_chance, f"error {error:.2f} %, chance expected (at least {chance:.0f} %)"
    if moved - error > MEMORISED_PCT:
        return False, f"error {error:.2f} % on published images but {moved:.2f} % on the gate's: memorised?"
    return True, f"test error {error:.2f} %, {moved:.2f} % on images that the gate moved by a pixel"


def _number(secret: bytes, *parts: str) -> int:
    """31 bits from a secret and public parts: repeatable for the harness, not to be foreseen by anyone else."""
    digest = hashlib.sha256(secret + "\n".join(parts).encode()).digest()
    return int(np.frombuffer(digest[:4], "<u4")[0]) >> 1
