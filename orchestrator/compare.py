"""`orchestrate compare`: a plan with and without one layer, over several seeds, each run in a repository of its own.

A layer is taken off by a commit (see `ablation`), so that both sides go through the same commands, gate and ledger.
Both sides of a seed get the same signing key, hence the same secret draws of the gate. What each finished run came to
is kept, so that a comparison that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import ablation, intervals
from orchestrator.ablation import Layer
from orchestrator.errors import InputError, OrchestratorError, Problem
from orchestrator.house import State, base_files
from orchestrator.intervals import Interval
from orchestrator.lint import read_plan
from orchestrator.workspace import Checkout, git

PASSED = ("accepted", "unmeasured")  # on other data than the plan's nothing is ever accepted; the gate found no fault
ENDED_WELL = (0, 3, 5)  # exit codes of a run that says what it came to
WHO = {f"GIT_{role}_{key}": "compare" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What one run of the plan came to."""

    status: dict[str, str]  # task -> how it ended
    blocked: dict[str, str]  # task -> why
    usd: float
    wall_s: float

    @property
    def passed(self) -> int:
        return sum(status in PASSED for status in self.status.values())


@dataclass(frozen=True)
class Experiment:
    """A plan at HEAD's commit, the layer that is taken off, and where the repositories of the runs stand."""

    checkout: Checkout
    state: State
    plan: str
    layer: Layer
    data: Path | None
    tell: Tell

    def run(self, seeds: int, keep: bool) -> dict[str, Any]:
        """Both sides for every seed, one run after the other. Returns the comparison as JSON."""
        sides: dict[bool, list[Measured]] = {True: [], False: []}
        for seed in range(seeds):
            for whole, runs in sides.items():
                runs.append(self._measured(whole, seed, keep))
        return summary(self.plan, self.layer, sides[True], sides[False])

    def _measured(self, whole: bool, seed: int, keep: bool) -> Measured:
        """A run that was done before is not done again."""
        name = "whole" if whole else f"without-{self.layer}"
        key = f"{self.checkout.commit}/{self.plan}/{name}/{seed}/{self.data}"
        place = self.state.path("compare", hashlib.sha256(key.encode()).hexdigest()[:16])
        kept = place / "measured.json"
        if not kept.exists():
            self.tell(f"seed {seed}, {name}: running")
            found = self._run(place / "repo", whole, seed)
            kept.with_suffix(".new").write_text(json.dumps(found.__dict__))
            kept.with_suffix(".new").rename(kept)
        if not keep:
            shutil.rmtree(place / "repo", ignore_errors=True)
        measured = Measured(**json.loads(kept.read_text()))
        self.tell(f"seed {seed}, {name}: {measured.passed} of {len(measured.status)} passed, {measured.wall_s:.0f} s")
        return measured

    def _run(self, root: Path, whole: bool, seed: int) -> Measured:
        self._prepare(root, whole, seed)
        argv = [sys.executable, "-P", "-m", "orchestrator.cli", "run", self.plan, "--again", "--json"]
        argv += ["--data", str(self.data)] if self.data else []
        started = time.monotonic()
        done = subprocess.run(argv, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode not in ENDED_WELL:
            raise _broke(done, root)
        return _read(json.loads(done.stdout), time.monotonic() - started)

    def _prepare(self, root: Path, whole: bool, seed: int) -> None:
        """The commit's files, with the layer taken off, as the first commit of a repository of its own."""
        shutil.rmtree(root, ignore_errors=True)
        base = base_files(self.state, self.checkout.root, self.checkout.commit)
        shutil.copytree(base, root, symlinks=True)
        if not whole:
            plan, library, assignments = read_plan(base, self.plan)
            _write(
                root, ablation.without(self.layer, plan, library, assignments, lambda path: (base / path).read_text())
            )
        git(root, "init", "--quiet", "--initial-branch=main")
        git(root, "add", "--all", "--force")
        git(root, "commit", "--quiet", "--no-gpg-sign", "--message", f"{self.checkout.commit}, seed {seed}", env=WHO)
        key = State.of(root).folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(hashlib.sha256(f"odyssey compare {seed}".encode()).digest())


def check_dollars(plan: str, budget_usd: float, runs: int, limit_usd: float) -> None:
    """Raises InputError when the budgets of all runs together go over what a person allowed."""
    if budget_usd * runs > limit_usd:
        what = f"{runs} runs may cost ${budget_usd * runs:.2f} by the plan's budget, over the limit of ${limit_usd:.2f}"
        raise InputError([Problem(plan, 0, what, f"allow it with --usd {budget_usd * runs:g}, or take fewer --seeds")])


def summary(plan: str, layer: Layer, whole: Sequence[Measured], bare: Sequence[Measured]) -> dict[str, Any]:
    """Both sides and their differences (with the layer minus without it), with 95 % intervals."""
    sides = {"with": _side(whole), f"without {layer}": _side(bare)}
    one, other = sides.values()
    pairs = list(zip(whole, bare, strict=True))
    difference = {
        "acceptance": intervals.share_difference(one["passed"], one["tasks"], other["passed"], other["tasks"]),
        "usd": intervals.mean([a.usd - b.usd for a, b in pairs]),
        "wall_s": intervals.mean([a.wall_s - b.wall_s for a, b in pairs]),
    }
    return {
        "plan": plan,
        "without": layer,
        "seeds": len(pairs),
        "sides": sides,
        "difference": {name: found.__dict__ for name, found in difference.items()},
        "verdict": verdict(layer, difference["acceptance"], difference["usd"], difference["wall_s"]),
    }


def verdict(layer: str, acceptance: Interval, usd: Interval, wall_s: Interval) -> str:
    """Whether the layer earned its keep, in words. Only an interval that leaves zero out shows anything."""
    if acceptance.low is not None and acceptance.low > 0:
        return f"{layer}: earns its keep; more is accepted with it"
    if acceptance.high is not None and acceptance.high < 0:
        return f"{layer}: does harm; less is accepted with it"
    if acceptance.value:
        more = "more" if acceptance.value > 0 else "less"
        return f"{layer}: not shown to earn its keep; {more} was accepted with it, in too few runs to be sure"
    saved = [name for name, found in (("dollars", usd), ("time", wall_s)) if found.high is not None and found.high < 0]
    lost = [name for name, found in (("dollars", usd), ("time", wall_s)) if found.low is not None and found.low > 0]
    if saved and not lost:
        return f"{layer}: earns its keep; it saves {' and '.join(saved)}, and as much is accepted"
    if lost:
        return f"{layer}: not shown to earn its keep; it costs {' and '.join(lost)}, and as much is accepted without"
    return f"{layer}: not shown to earn its keep; no difference is shown (more --seeds show smaller ones)"


def table(content: dict[str, Any]) -> str:
    """The comparison for people."""
    lines = [f"{content['plan']}: {content['seeds']} seeds, with and without {content['without']}", ""]
    lines += [f"{'':<20} {'passed':>9} {'share, 95 %':>20} {'$ a run':>9} {'s a run':>9}"]
    for name, side in content["sides"].items():
        passed, bounds = f"{side['passed']}/{side['tasks']}", _bounds(side["acceptance"], "{:.0%}")
        lines += [f"{name:<20} {passed:>9} {bounds:>20} {side['usd']:>9.3f} {side['wall_s']:>9.1f}"]
    lines += ["", "the layer's share in it (with minus without):"]
    for name, form in (("acceptance", "{:+.0%}"), ("usd", "{:+.3f}"), ("wall_s", "{:+.1f}")):
        lines += [f"  {name:<12} {_bounds(content['difference'][name], form)}"]
    for name, side in content["sides"].items():
        lines += [f"  blocked {name}: {task}: {why}" for task, why in side["blocked"].items()]
    return "\n".join([*lines, "", content["verdict"]])


def _side(runs: Sequence[Measured]) -> dict[str, Any]:
    tasks, passed = sum(len(run.status) for run in runs), sum(run.passed for run in runs)
    return {
        "tasks": tasks,
        "passed": passed,
        "accepted": sum(status == "accepted" for run in runs for status in run.status.values()),
        "acceptance": intervals.share(passed, tasks).__dict__,
        "usd": intervals.mean([run.usd for run in runs]).value,
        "wall_s": intervals.mean([run.wall_s for run in runs]).value,
        "blocked": {task: why for run in runs for task, why in run.blocked.items()},
        "runs": [run.__dict__ for run in runs],
    }


def _bounds(found: dict[str, Any], form: str) -> str:
    if found["low"] is None:
        return f"{form.format(found['value'])} (too few seeds to bound)"
    return f"{form.format(found['value'])} [{form.format(found['low'])}, {form.format(found['high'])}]"


def _read(content: dict[str, Any], wall_s: float) -> Measured:
    tasks = content["tasks"]
    return Measured(
        status={task["id"]: task["status"] for task in tasks},
        blocked={task["id"]: task["detail"] or "" for task in tasks if task["status"] == "blocked"},
        usd=content["run"]["spent"]["usd"],
        wall_s=round(wall_s, 2),
    )


def _broke(done: subprocess.CompletedProcess[str], root: Path) -> OrchestratorError:
    said = "\n".join(done.stderr.strip().splitlines()[-8:])
    error = OrchestratorError(f"the run in {root} ended with {done.returncode} and is kept to look at:\n{said}")
    error.exit_code = done.returncode if done.returncode in (2, 4, 75) else 1
    return error


def _write(root: Path, files: ablation.Files) -> None:
    for path, text in files.items():
        if text is None:
            (root / path).unlink()
        else:
            (root / path).write_text(text)
