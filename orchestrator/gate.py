"""The gate: change -> Judgement. Policy, risk, tests, the task's acceptance commands, then reproduction.

Everything it holds a change against (targets, margins, tests, who may write what) comes from the base commit. Each
check leaves a receipt under a key of its own, by which the ledger finds it again: nothing runs twice after a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import itertools
import os
import platform
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from orchestrator import measure, policy, risk, suite, trials, verdicts
from orchestrator.calls import BUDGET, Durable
from orchestrator.datasets import Dataset
from orchestrator.errors import BudgetExhausted
from orchestrator.house import Run
from orchestrator.measure import CACHE, DATA, REPO, SCORER, Site
from orchestrator.meter import MeteredSandbox
from orchestrator.records import RISK_LEVELS, Change, Judgement, Receipt, Risk, Target, Task, Verdict
from orchestrator.sandbox.base import Command, Completed, Limits, Mount, Sandbox
from orchestrator.trials import Trial


@dataclass(frozen=True)
class Gate:
    run: Run
    task: Task
    change: Change
    durable: Durable
    secret: bytes

    async def judge(self) -> Judgement:
        """The cheapest check first; the first that fails ends it, with words for the next attempt."""
        found = risk.assess(self.change, self.run.skill(self.task.id).risk)
        receipts: list[Receipt] = []
        for name, check in self._checks(found):
            receipt = await self._receipt(name, check)
            receipts.append(receipt)
            if not receipt.passed:
                return self._refused(found, receipts, receipt)
        targets = self.run.plan.targets_of(self.task)
        measured = await self._measure(targets)
        made = [verdicts.verdict(each, self._dataset(each.dataset), self.change.commit, measured) for each in targets]
        return self._judged(found, [*receipts, *measured], made)

    # What is checked, in order

    def _checks(self, found: Risk) -> list[tuple[str, Callable[[], Receipt]]]:
        checks: list[tuple[str, Callable[[], Receipt]]] = [("policy", self._policy)]
        selection = self._selection(found)
        if selection:
            checks.append(("tests of the base commit", lambda: self._tests(selection, "base-tests")))
        if any(file.path.startswith("tests/") for file in self.change.files):
            checks.append(
                ("tests of the change", lambda: self._tests(selection or ("tests",), "own-tests", base=False))
            )
        for command in self.task.accept:
            checks.append((f"accept: {command}", partial(self._accept, tuple(shlex.split(command)))))
        return checks

    def _selection(self, found: Risk) -> tuple[str, ...]:
        """The tests of this risk and of every lower one, in the order in which the settings name them."""
        levels = RISK_LEVELS[: RISK_LEVELS.index(found.level) + 1]
        return tuple(dict.fromkeys(path for level in levels for path in self.run.settings.tests.get(level, ())))

    def _policy(self) -> Receipt:
        run = self.run
        wrong = policy.violations(self.change, self.task, run.skill(self.task.id), run.plan, run.repository)
        return self._note("policy", not wrong, "; ".join(wrong) or "within what the task may write", None)

    def _tests(self, selection: tuple[str, ...], place: str, base: bool = True) -> Receipt:
        """The tests run with nothing of the change's configuration; of the base's, every one has to be there.

        place: the folder they run in.
        """
        tree = self._fresh_tree(place)
        if base:
            shutil.rmtree(tree / "tests", ignore_errors=True)
            if (self.run.base_folder / "tests").is_dir():
                shutil.copytree(self.run.base_folder / "tests", tree / "tests", symlinks=True)
        present = tuple(path for path in selection if (tree / path.partition("::")[0]).exists())
        if not present:
            return self._note("tests", False, f"none of {', '.join(selection)} exists", None)
        expected = self._pytest(self.run.base_folder, present, "--collect-only")[1] if base else None
        if expected and not expected.counts:
            return self._note("tests", False, "the base commit's own tests can't be collected", None)
        done, ran = self._pytest(tree, present)
        passed, what = suite.passed(done, ran, expected)
        if base and not passed and self._fails_at_base(present):
            what = f"these tests fail at the base commit too, so mend them first: {what}"
        return self._note("tests", passed, what, done, counted=ran.counts)

    def _fails_at_base(self, present: tuple[str, ...]) -> bool:
        return not suite.passed(*self._pytest(self.run.base_folder, present), None)[0]

    def _pytest(self, tree: Path, selection: tuple[str, ...], *flags: str) -> tuple[Completed, suite.Ran]:
        nonce = secrets.token_hex(16)
        place = self._folder / "plugin"  # a folder of its own: without a sandbox only folders can stand for each other
        place.mkdir(exist_ok=True)
        shutil.copyfile(suite.PLUGIN, place / suite.PLUGIN.name)
        mounts = (Mount(tree, REPO, writable=tree != self.run.base_folder), Mount(place, SCORER))
        env = {"PYTHONPATH": str(SCORER)}  # the plugin adds the change's files, once pytest itself is loaded
        limits = replace(self.run.limits, output_bytes=suite.OUTPUT_BYTES)
        done = self._run(suite.argv(REPO, selection, *flags), mounts, env, f"{nonce}\n".encode(), limits)
        return done, suite.reported(done.stdout, nonce)

    def _accept(self, argv: tuple[str, ...]) -> Receipt:
        env = {"PYTHONPATH": str(REPO), "MLCORE_THREADS": str(self.run.settings.threads)}
        done = self._run(argv, (Mount(self._fresh_tree("accept"), REPO, writable=True),), env)
        tail = (done.stderr.strip() or done.stdout.strip())[-600:]
        what = "ended with 0" if done.exit_code == 0 else f"ended with {done.exit_code}: {tail}"
        return self._note("accept", done.exit_code == 0, f"`{shlex.join(argv)}` {what}", done, argv=argv)

    # Reproduction

    async def _measure(self, targets: tuple[Target, ...]) -> list[Receipt]:
        """A recipe's first trial alone, for it compiles the kernels that the others find; then the rest side by side.

        A recipe whose first trial fails is given up. Without a dataset there is nothing to train on.
        """
        receipts: list[Receipt] = []
        wanted = trials.trials(targets, self.change.commit, self.secret)
        possible = [trial for trial in wanted if trials.can_run(trial, self._dataset(trial.dataset))]
        for _, group in itertools.groupby(possible, key=lambda trial: trial.recipe):
            first, *rest = group
            receipts.append(await self._trial(first))
            if receipts[-1].passed:
                receipts += await asyncio.gather(*(self._trial(trial) for trial in rest))
        return receipts

    async def _trial(self, trial: Trial) -> Receipt:
        dataset = self._dataset(trial.dataset)
        check = partial(measure.run_trial, trial, self.change, dataset, self._site, self.secret)
        receipt = await self._receipt(trial.key, partial(self._compare, trial) if trial.kind == "tests" else check)
        self.run.say(self.task.id, "measured", f"{trial.targets}: {receipt.what}")
        return receipt

    def _compare(self, trial: Trial) -> Receipt:
        """Tests of the base commit as a measurement: how many failed. None ran where what they need is missing."""
        receipt = self._tests((trial.recipe,), trial.name)
        ran = receipt.values.get("passed", 0) + receipt.values.get("failed", 0)
        what = receipt.what if ran else f"{trial.recipe}: all skipped, is what they compare with installed?"
        known = {"argv": ("pytest", trial.recipe), "seed": trial.seed, "target": trial.targets}
        return receipt.model_copy(update={"what": f"{trial.name}: {what}", **known})

    def _dataset(self, name: str) -> Dataset | None:
        return self.run.datasets[name] if name else None

    # Judgements

    def _refused(self, found: Risk, receipts: list[Receipt], failed: Receipt) -> Judgement:
        return Judgement(
            outcome="refused", risk=found, receipts=_ids(receipts), feedback=f"{failed.kind}: {failed.what}"
        )

    def _judged(self, found: Risk, receipts: list[Receipt], made: list[Verdict]) -> Judgement:
        outcomes = {verdict.outcome for verdict in made} - {"reproduced", "reported"}
        feedback = "; ".join(f"{v.target}: {v.outcome}: {v.reason}" for v in made if v.outcome in outcomes)
        outcome: Any = "missed" if outcomes else "accepted"
        stand_ins = [] if made else self.run.stand_ins  # verdicts speak for their own data
        if outcomes & {"not measured", "did not finish"} or (stand_ins and outcome == "accepted"):
            outcome = "unmeasured"
            feedback = feedback or f"done on {', '.join(stand_ins)}: it says nothing of the real data"
        return Judgement(
            outcome=outcome,
            risk=found,
            verdicts=tuple(made),
            receipts=_ids(receipts),
            feedback=feedback,
        )

    # How a check becomes a receipt, once

    async def _receipt(self, name: str, check: Callable[[], Receipt]) -> Receipt:
        key = f"{self.run.id}/{self.task.id}/{self.change.attempt}/{self.change.commit}/{name}"
        ledger = self.run.ledger
        known = ledger.receipt(key)
        if known is not None:
            return known
        self.run.say(self.task.id, "gate", name)
        try:
            made = await asyncio.to_thread(check)
        except BudgetExhausted as error:  # not a failed check: it is run again when there is more
            made = await self.durable.pause(str(error), BUDGET, error.task)
        return ledger.add_receipt(key, made.model_copy(update={"run": self.run.id}))

    def _note(
        self,
        kind: Any,
        passed: bool,
        what: str,
        done: Completed | None,
        argv: tuple[str, ...] = (),
        counted: dict[str, int] | None = None,
    ) -> Receipt:
        return Receipt(
            run=self.run.id,
            task=self.task.id,
            attempt=self.change.attempt,
            kind=kind,
            passed=passed,
            what=what,
            commit=self.change.commit,
            argv=argv,
            exit_code=done.exit_code if done else None,
            values={key: float(value) for key, value in (counted or {}).items()},
            sandbox=self.run.sandbox.tier,
            machine=machine(),
            environment=environment(),
            wall_s=round(done.wall_s, 3) if done else 0.0,
            cpu_s=round(done.cpu_s, 3) if done else 0.0,
        )

    # Places

    @cached_property
    def _folder(self) -> Path:
        return gate_folder(self.run, self.task.id, self.change)

    @cached_property
    def _sandbox(self) -> Sandbox:
        return MeteredSandbox(self.run.sandbox, self.run.ledger, self.run.id, self.task.id, self.task.id, "gate")

    @cached_property
    def _site(self) -> Site:
        tree = self._folder / "tree"
        if not (self._folder / "tree.complete").exists():
            self.run.repository.export(self.change.commit, tree)
            (self._folder / "tree.complete").touch()
        return Site(
            folder=self._folder,
            tree=tree,
            sandbox=self._sandbox,
            limits=self.run.limits,
            threads=self.run.settings.threads,
            machine=machine(),
            environment=environment(),
            hear=self._hear,
        )

    def _hear(self, text: str) -> None:
        self.run.say(self.task.id, "output", text)

    def _fresh_tree(self, name: str) -> Path:
        tree = self._folder / name
        self.run.repository.export(self.change.commit, tree)
        return tree

    def _run(
        self,
        argv: tuple[str, ...],
        mounts: tuple[Mount, ...],
        env: dict[str, str],
        stdin: bytes = b"",
        limits: Limits | None = None,
    ) -> Completed:
        """A command over the change's files, with the datasets (test labels withheld) and kernels of its own."""
        cache = self._folder / "cache"
        cache.mkdir(exist_ok=True)
        command = Command(
            argv=argv,
            cwd=REPO,
            mounts=(*mounts, Mount(self.run.state.path("data"), DATA), Mount(cache, CACHE, writable=True)),
            env={"MLCORE_DATA": str(DATA), "NUMBA_CACHE_DIR": str(CACHE), "HOME": "/tmp", **env},
            stdin=stdin,
            limits=limits or self.run.limits,
        )
        return self._sandbox.run(command)


def gate_folder(run: Run, task_id: str, change: Change) -> Path:
    """Where the gate works on a change; trainings are under `out/`, by recipe and trial."""
    return run.state.path("gate", f"{run.id}-{task_id}-{change.attempt}", change.commit[:12])


def _ids(receipts: list[Receipt]) -> tuple[str, ...]:
    return tuple(receipt.id for receipt in receipts)


@lru_cache(maxsize=1)
def machine() -> str:
    """This machine in a line: processor, hardware threads, system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} threads, {platform.system()} {platform.release()}"


@lru_cache(maxsize=1)
def environment() -> str:
    """sha256 over the interpreter's and every installed package's version."""
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    return hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()
