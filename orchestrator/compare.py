"""`orchestrate compare`: a plan with and without one layer, over several seeds, each run in a repository of its own.

A layer is taken off by a commit (see `ablation`), so that both sides go through the same commands, gate and ledger.
Both sides of a seed get the same signing key, hence the same secret draws of the gate. What each finished run came to
is kept, and a run that was cut off is resumed: a comparison that was interrupted goes on where it was, and no reply is
asked for twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import ablation, intervals
from orchestrator.ablation import Layer
from orchestrator.calls import PROCEDURE
from orchestrator.config import STATE_FOLDER, Settings
from orchestrator.conversation import CHARS_PER_TOKEN
from orchestrator.engine import APPLICATION_VERSION
from orchestrator.errors import InputError, OrchestratorError, Problem
from orchestrator.house import State, base_files
from orchestrator.intervals import Interval
from orchestrator.ledger import Ledger
from orchestrator.lint import read_plan
from orchestrator.providers.base import Reply
from orchestrator.providers.mailbox import ASKER
from orchestrator.records import TIERS
from orchestrator.review import is_review
from orchestrator.workspace import Checkout, git

PASSED = ("accepted", "unmeasured")  # on other data than the plan's nothing is ever accepted; the gate found no fault
ENDED_WELL = (0, 3, 5)  # exit codes of a run that says what it came to
LAST_LINES = 8  # of a run that broke
WHO = {f"GIT_{role}_{key}": "compare" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
WORDS = {"usd": "dollars", "wall_s": "time"}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What one run of the plan came to."""

    status: dict[str, str]  # task -> how it ended
    blocked: dict[str, str]  # task -> why
    usd: float
    wall_s: float  # from the run's beginning to its end, interruptions and waiting for replies by mail included
    calls: dict[str, int]  # of language models, by tier
    tokens: int
    estimated: bool  # some calls brought no count of tokens, so theirs are told from their size
    attempts: int
    reviews: int

    @property
    def passed(self) -> int:
        return sum(status in PASSED for status in self.status.values())

    @property
    def share(self) -> float:
        return self.passed / len(self.status)

    @property
    def all_calls(self) -> int:
        return sum(self.calls.values())


# What a run costs, and how it is written.
COSTS: dict[str, tuple[Callable[[Measured], float], str]] = {
    "usd": (lambda run: run.usd, "{:.3f}"),
    "wall_s": (lambda run: run.wall_s, "{:.1f}"),
    "calls": (lambda run: run.all_calls, "{:.1f}"),
    "tokens": (lambda run: run.tokens, "{:.0f}"),
    "attempts": (lambda run: run.attempts, "{:.1f}"),
    "reviews": (lambda run: run.reviews, "{:.1f}"),
}
HEADINGS = "".join(f" {name:>9}" for name in ("$ a run", "s a run", *list(COSTS)[2:]))


@dataclass(frozen=True)
class Experiment:
    """A plan at HEAD's commit, the layer that is taken off, and where the repositories of the runs stand."""

    checkout: Checkout
    state: State
    plan: str
    layer: Layer
    settings: Settings  # as its runs will have them
    tell: Tell

    def run(self, seeds: int, keep: bool) -> dict[str, Any]:
        """Both sides for every seed, one run after the other. Returns the comparison as JSON."""
        sides: dict[bool, list[Measured]] = {True: [], False: []}
        for seed in range(seeds):
            for whole, runs in sides.items():
                runs.append(self._measured(whole, seed, keep))
        return summary(self.plan, self.layer, self.settings.provider, sides[True], sides[False])

    def _measured(self, whole: bool, seed: int, keep: bool) -> Measured:
        """A run that was done before, by this version with these settings, is not done again."""
        name = "whole" if whole else f"without-{self.layer}"
        settings = self.settings.model_dump_json()
        key = f"{APPLICATION_VERSION}/{self.checkout.commit}/{self.plan}/{name}/{seed}/{settings}"
        place = self.state.path("compare", hashlib.sha256(key.encode()).hexdigest()[:16])
        kept = place / "measured.json"
        said = f"seed {seed}, {name}"
        if not kept.exists():
            self.tell(f"{said}: running in {place / 'repo'}")
            (place / ASKER).write_text(f"compare {self.plan}, {said}")
            found = self._run(place / "repo", whole, seed, said)
            kept.with_suffix(".new").write_text(json.dumps(found.__dict__))
            kept.with_suffix(".new").rename(kept)
        if not keep:
            shutil.rmtree(place / "repo", ignore_errors=True)
        measured = Measured(**json.loads(kept.read_text()))
        done = f"{measured.passed} of {len(measured.status)} passed, {measured.all_calls} calls"
        self.tell(f"{said}: {done}, {measured.wall_s:.0f} s")
        return measured

    def _run(self, root: Path, whole: bool, seed: int, said: str) -> Measured:
        """A run that was cut off goes on: what it was answered, or paid for, is not asked for again."""
        begun = _begun(root)
        if not begun:
            self._prepare(root, whole, seed)
        started = time.monotonic()
        code, printed, last = self._follow(root, self._argv(begun), said)
        if code not in ENDED_WELL:
            raise _broke(code, last, root)
        content = json.loads(printed)
        wall_s = _from_its_beginning_s(content["run"]) if begun else time.monotonic() - started
        return _read(content, wall_s, State.of(root).ledger)

    def _argv(self, begun: str) -> list[str]:
        argv = [sys.executable, "-P", "-m", "orchestrator.cli"]
        if begun:
            return [*argv, "resume", begun, "--json"]
        argv += ["run", self.plan, "--again", "--json", "--provider", self.settings.provider]
        return argv + (["--data", str(self.settings.data)] if self.settings.data else [])

    def _follow(self, root: Path, argv: list[str], said: str) -> tuple[int, str, list[str]]:
        """Run a command; its lines on stderr are told as they come. Exit code, stdout, the last of those lines."""
        last: deque[str] = deque(maxlen=LAST_LINES)
        printed = root.with_suffix(".stdout")
        with (
            printed.open("w") as out,
            subprocess.Popen(
                argv, cwd=root, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True
            ) as process,
        ):
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    last.append(line.rstrip())
                    self.tell(f"{said}: {last[-1]}")
            except BaseException:  # whoever stops the comparison stops the run with it; both can go on
                process.terminate()
                raise
        return process.returncode, printed.read_text(), list(last)

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


def summary(
    plan: str, layer: Layer, provider: str, whole: Sequence[Measured], bare: Sequence[Measured]
) -> dict[str, Any]:
    """Both sides and their differences (with the layer minus without it), with 95 % intervals."""
    sides = {"with": _side(whole), f"without {layer}": _side(bare)}
    pairs = list(zip(whole, bare, strict=True))
    acceptance = intervals.of_shares([a.share - b.share for a, b in pairs])  # tasks of one run fail together
    costs = {name: intervals.mean([of(a) - of(b) for a, b in pairs]) for name, (of, _) in COSTS.items()}
    return {
        "plan": plan,
        "without": layer,
        "provider": provider,
        "seeds": len(pairs),
        "sides": sides,
        "difference": {name: found.__dict__ for name, found in {"acceptance": acceptance, **costs}.items()},
        "verdict": verdict(layer, acceptance, {name: costs[name] for name in currency([*whole, *bare])}),
    }


def currency(runs: Sequence[Measured]) -> tuple[str, ...]:
    """What a layer has to save. Where replies cost nothing, their number and size count, not who was how quick."""
    unpaid = any(run.calls for run in runs) and not any(run.usd for run in runs)
    return ("calls", "tokens") if unpaid else ("usd", "wall_s")


def verdict(layer: str, acceptance: Interval, costs: Mapping[str, Interval]) -> str:
    """Whether the layer earned its keep, in words. Only an interval that leaves zero out shows anything."""
    if acceptance.low is not None and acceptance.low > 0:
        return f"{layer}: earns its keep; more is accepted with it"
    if acceptance.high is not None and acceptance.high < 0:
        return f"{layer}: does harm; less is accepted with it"
    if acceptance.value:
        more = "more" if acceptance.value > 0 else "less"
        return f"{layer}: not shown to earn its keep; {more} was accepted with it, in too few runs to be sure"
    saved = [WORDS.get(name, name) for name, found in costs.items() if found.high is not None and found.high < 0]
    lost = [WORDS.get(name, name) for name, found in costs.items() if found.low is not None and found.low > 0]
    if saved and not lost:
        return f"{layer}: earns its keep; it saves {' and '.join(saved)}, and as much is accepted"
    if any(found.low is None and found.value for found in costs.values()):
        return f"{layer}: not shown to earn its keep; as much is accepted without it, and one seed bounds no cost"
    if lost:
        return f"{layer}: not shown to earn its keep; it costs {' and '.join(lost)}, and as much is accepted without"
    return f"{layer}: not shown to earn its keep; no difference is shown (more --seeds show smaller ones)"


def table(content: dict[str, Any]) -> str:
    """The comparison for people."""
    lines = [f"{content['plan']}: {content['seeds']} seeds, with and without {content['without']}"]
    lines += [f"answered by: {content['provider']}", "", f"{'':<20} {'passed':>9} {'share':>9}{HEADINGS}"]
    for name, side in content["sides"].items():
        passed, share = f"{side['passed']}/{side['tasks']}", f"{side['acceptance']:.0%}"
        costs = "".join(f" {form.format(side[cost]):>9}" for cost, (_, form) in COSTS.items())
        lines += [f"{name:<20} {passed:>9} {share:>9}{costs}"]
    lines += ["", "the layer's share in it (with minus without):"]
    for name, form in {"acceptance": "{:.0%}", **{cost: form for cost, (_, form) in COSTS.items()}}.items():
        lines += [f"  {name:<12} {_bounds(content['difference'][name], form.replace(':', ':+'))}"]
    for name, side in content["sides"].items():
        lines += [f"  calls {name}: {_by_tier(side['calls_by_tier'])}"]
        lines += [f"  blocked {name}: {task}: {why}" for task, why in side["blocked"].items()]
    if any(side["tokens_estimated"] for side in content["sides"].values()):
        lines += [f"  tokens are told from the size of what was sent and answered, {CHARS_PER_TOKEN} characters each"]
    return "\n".join([*lines, "", content["verdict"]])


def _side(runs: Sequence[Measured]) -> dict[str, Any]:
    tasks, passed = sum(len(run.status) for run in runs), sum(run.passed for run in runs)
    by_tier: Counter[str] = sum((Counter(run.calls) for run in runs), Counter())
    return {
        "tasks": tasks,
        "passed": passed,
        "accepted": sum(status == "accepted" for run in runs for status in run.status.values()),
        "acceptance": passed / tasks,
        **{name: intervals.mean([of(run) for run in runs]).value for name, (of, _) in COSTS.items()},
        "calls_by_tier": {tier: by_tier[tier] for tier in TIERS if tier in by_tier},
        "tokens_estimated": any(run.estimated for run in runs),
        "blocked": {task: why for run in runs for task, why in run.blocked.items()},
        "runs": [run.__dict__ for run in runs],
    }


def _by_tier(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{tier} {count}" for tier, count in calls.items()) or "none"


def _bounds(found: dict[str, Any], form: str) -> str:
    if found["low"] is None:
        return f"{form.format(found['value'])} (too few seeds to bound)"
    return f"{form.format(found['value'])} [{form.format(found['low'])}, {form.format(found['high'])}]"


def _begun(root: Path) -> str:
    """The run that was begun there, if one was."""
    rows = State.of(root).ledger.runs() if (root / STATE_FOLDER / "ledger.db").exists() else []
    return str(rows[0]["id"]) if rows else ""


def _from_its_beginning_s(run: dict[str, Any]) -> float:
    """Seconds from the beginning of a run that was cut off to its end, or to now if it is paused."""
    ended = datetime.fromisoformat(run["finished_at"]) if run["finished_at"] else datetime.now(UTC)
    return (ended - datetime.fromisoformat(run["created_at"])).total_seconds()


def _read(content: dict[str, Any], wall_s: float, ledger: Ledger) -> Measured:
    tasks, run = content["tasks"], content["run"]
    asked = [call for call in ledger.calls(run["id"]) if call["provider"] != PROCEDURE and call["state"] == "done"]
    sizes = [_tokens(call) for call in asked]
    return Measured(
        status={task["id"]: task["status"] for task in tasks},
        blocked={task["id"]: task["detail"] or "" for task in tasks if task["status"] == "blocked"},
        usd=run["spent"]["usd"],
        wall_s=round(wall_s, 2),
        calls=dict(Counter(call["tier"] for call in asked)),
        tokens=sum(tokens for tokens, _ in sizes),
        estimated=any(estimated for _, estimated in sizes),
        attempts=attempts(ledger, run["id"]),
        reviews=len({call["node"] for call in asked if is_review(call["node"].rpartition("/")[2])}),
    )


def attempts(ledger: Ledger, run: str) -> int:
    """All attempts of a run, those after a miss that was published among them."""
    return sum(row["judged"] or row["attempt"] or 0 for row in ledger.each_task(run))


def _tokens(call: Mapping[str, Any]) -> tuple[int, bool]:
    """A call's tokens as its reply counts them, or by size; and whether it was by size."""
    reply = Reply.model_validate_json(call["reply"])
    sent = json.loads(call["request"])["chars"]
    return reply.usage.total or (sent + len(json.dumps(reply.content))) // CHARS_PER_TOKEN, not reply.usage.total


def _broke(code: int, last: Sequence[str], root: Path) -> OrchestratorError:
    said = "\n".join(last)
    fix = "mend what is wrong, and compare again: it goes on from there"
    error = OrchestratorError(f"the run in {root} ended with {code} and is kept to look at; {fix}\n{said}")
    error.exit_code = code if code in (2, 4, 6, 75) else 1
    return error


def _write(root: Path, files: ablation.Files) -> None:
    for path, text in files.items():
        if text is None:
            (root / path).unlink()
        else:
            (root / path).write_text(text)
