"""From a person's words to a Run: a new one at HEAD's commit, or one of before, rebuilt from the ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator import config, datasets, inputs
from orchestrator.attempt import check_models, check_recording
from orchestrator.datasets import Dataset
from orchestrator.engine import DATABASE, check_version
from orchestrator.errors import InputError, NotFound, NothingToDo, Problem
from orchestrator.house import Run, Say, State, base_files
from orchestrator.lint import read_plan
from orchestrator.records import Budget, Plan, raised
from orchestrator.sandbox.base import Sandbox
from orchestrator.sandbox.probes import choose_sandbox
from orchestrator.sandbox.throttle import ThrottledSandbox
from orchestrator.workspace import Checkout


def start(
    checkout: Checkout,
    state: State,
    plan_path: str,
    flags: Mapping[str, Any],
    hear: Say,
    again: bool,
    only: Sequence[str] = (),
) -> Run:
    """A new run of the plan as HEAD's commit has it. Everything a person can mend is checked before it begins."""
    base = committed(checkout, state, plan_path)
    settings, _ = config.load(base, flags)
    plan, library, assignments = read_plan(base, plan_path)
    hashes = inputs.of_plan(plan, library, base)
    stale = inputs.stale(state, plan, hashes, checkout.commit)
    todo = _named(plan, only) or {task.id for task in plan.tasks if again or not task.done or task.id in stale}
    for task_id in sorted(todo & set(stale)):
        hear(task_id, "stale", f"is done again: changed since it was done: {', '.join(stale[task_id])}")
    if not todo:
        raise NothingToDo(f"{plan_path}: every task is ticked, so nothing is to be done; --again does them all again")
    _check_models(settings, state, hear)
    sandbox = _sandbox(settings)
    found = {name: _withheld(state, name, settings.data) for name in plan.datasets}
    run = Run(
        id=_new_id(state, plan),
        state=state,
        settings=settings,
        sandbox=sandbox,
        plan=plan,
        library=library,
        assignments=assignments,
        base_commit=checkout.commit,
        base_branch=checkout.branch,
        base_folder=base,
        datasets=found,
        hear=hear,
    )
    _record(run, todo, hashes)
    return run


def committed(checkout: Checkout, state: State, plan_path: str) -> Path:
    """HEAD's files. Raises InputError when the plan is not among them."""
    base = base_files(state, checkout.root, checkout.commit)
    if not (base / plan_path).is_file():
        fix = "commit it first: a run works from the commit, never from uncommitted files"
        raise InputError([Problem(plan_path, 0, f"is not in commit {checkout.commit[:12]}", fix)])
    return base


def _named(plan: Plan, only: Sequence[str]) -> set[str]:
    """The tasks that were named, ticked or not. Raises InputError if one doesn't exist, or needs what is not done."""
    tasks = {task.id: task for task in plan.tasks}
    for name in only:
        if name not in tasks:
            raise InputError(f"--only {name}: {plan.path} has no such task; it has {', '.join(tasks)}")
        if missing := [need for need in tasks[name].needs if need not in only and not tasks[need].done]:
            fix = " ".join(f"--only {need}" for need in missing)
            raise InputError(f"--only {name}: it needs {', '.join(missing)}, not done yet; add {fix}")
    return set(only)


def again(checkout: Checkout, state: State, run_id: str, hear: Say) -> Run:
    """A run of before, as it was: same commit, same settings, same datasets."""
    row = state.ledger.run(run_id)
    check_version(state.path("runs", run_id) / DATABASE, run_id, row["plan"])
    settings = config.Settings.model_validate_json(row["settings"])
    _check_models(settings, state, hear)
    base = base_files(state, checkout.root, row["base_commit"])
    plan, library, assignments = read_plan(base, row["plan"], begun=True)
    found = {each["name"]: Dataset(**{**each, "folder": Path(each["folder"])}) for each in json.loads(row["dataset"])}
    for dataset in found.values():
        datasets.demand_same(dataset)
    return Run(
        id=run_id,
        state=state,
        settings=settings,
        sandbox=_sandbox(settings),
        plan=plan,
        library=library,
        assignments=assignments,
        base_commit=row["base_commit"],
        base_branch=row["base_branch"],
        base_folder=base,
        datasets=found,
        hear=hear,
    )


def latest(state: State, unfinished: bool = False) -> str:
    """The newest run's id. Raises NotFound with what to do."""
    rows = [row for row in state.ledger.runs() if not unfinished or row["status"] == "running"]
    if not rows:
        what = "nothing to resume" if unfinished else "no run yet"
        raise NotFound(f"{what}; start one with `orchestrate run plans/NAME.md`")
    return str(rows[-1]["id"])


def extend_budget(
    state: State, run_id: str, minutes: float | None, usd: float | None, tokens: int | None, task: str | None = None
) -> None:
    """More of what ran out, added to what the run had; or one task of it, within what the run has."""
    if task is not None:
        state.ledger.raise_limits(run_id, task, usd or 0, tokens or 0, minutes or 0)
        return
    budget = Budget.model_validate_json(state.ledger.run(run_id)["budget"])
    more = raised(budget, usd or 0, tokens or 0, minutes or 0)
    state.ledger.set_run(run_id, budget=more.model_dump_json())


def change_provider(state: State, run_id: str, provider: str | None) -> None:
    """Another brain for what is left of a run; what was answered stays answered."""
    if provider is None:
        return
    settings = config.Settings.model_validate_json(state.ledger.run(run_id)["settings"])
    try:
        changed = config.Settings.model_validate({**settings.model_dump(), "provider": provider})
    except ValidationError:
        known = ", ".join(config.PROVIDERS)
        raise InputError(f"--provider {provider}: no such provider; there are {known}") from None
    check_recording(changed)
    state.ledger.set_run(run_id, settings=changed.model_dump_json(), provider=provider)


def _check_models(settings: config.Settings, state: State, hear: Say) -> None:
    for note in check_models(settings, state):
        hear("", "note", note)


def _sandbox(settings: config.Settings) -> Sandbox:
    return ThrottledSandbox(choose_sandbox(settings.unsafe_no_sandbox), settings.parallel)


def _withheld(state: State, name: str, data: Path | None) -> Dataset:
    dataset = datasets.locate(name, data)
    datasets.withhold(dataset, state.path("data"))
    return replace(dataset, folder=dataset.folder.resolve())


def _new_id(state: State, plan: Plan) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", Path(plan.path).stem.lower()).strip("-") or "plan"  # a part of branches' names
    taken = [row["id"] for row in state.ledger.runs() if row["id"].rpartition("-")[0] == name]
    return f"{name}-{len(taken) + 1}"


def _record(run: Run, todo: set[str], hashes: dict[str, inputs.Hashes]) -> None:
    """The run with its tasks, or nothing at all."""
    described = [{**asdict(each), "folder": str(each.folder)} for each in run.datasets.values()]
    with run.ledger.together():
        run.ledger.open_run(
            run.id,
            plan=run.plan.path,
            plan_sha256=run.plan.sha256,
            base_commit=run.base_commit,
            base_branch=run.base_branch,
            budget=run.plan.budget.model_dump_json(),
            settings=run.settings.model_dump_json(),
            provider=run.settings.provider,
            sandbox=run.sandbox.tier,
            dataset=json.dumps(described),
        )
        for position, task in enumerate(run.plan.tasks):
            if task.id in todo:
                who = run.assignments[task.id].agent
                if task.budget:
                    run.ledger.limit(run.id, task.id, task.budget)
                run.ledger.open_task(run.id, task.id, position=position, agent=who, inputs=json.dumps(hashes[task.id]))
