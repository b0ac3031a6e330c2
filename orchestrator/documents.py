"""The versioned JSON documents that `--json` puts on stdout: one a command, the same facts that people are shown."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.house import State
from orchestrator.records import PullRequest, Receipt, Task

VERSION = 1
TASK_KEYS = ("id", "status", "agent", "tier", "attempt", "detail")
Json = dict[str, Any]


def document(command: str, **content: Any) -> str:
    return json.dumps({"odyssey": VERSION, "command": command, **content}, indent=2)


def run(state: State, run_id: str, pulls: bool = True) -> Json:
    """A run with its tasks, verdicts and spending; and, unless they are read one by one, its pull requests."""
    ledger = state.ledger
    row = ledger.run(run_id)
    verdicts: list[Json] = []
    tasks: list[Json] = []
    for task in ledger.each_task(run_id):
        verdicts += json.loads(task["verdicts"] or "[]")
        doing = ledger.last_event(run_id, task["id"]) if task["status"] == "running" else None
        tasks.append(
            {key: task[key] for key in ("id", "status", "agent", "tier", "attempt", "detail")} | {"doing": doing}
        )
    spent = ledger.spent(run_id)
    return {
        "run": {
            "id": run_id,
            "plan": row["plan"],
            "status": row["status"],
            "at_work": row["status"] == "running" and state.at_work(),
            "base_commit": row["base_commit"],
            "base_branch": row["base_branch"] or None,
            "sandbox": row["sandbox"],
            "created_at": row["created_at"],
            "finished_at": row["finished_at"],
            "budget": json.loads(row["budget"]),
            "spent": {"usd": spent["usd"], "tokens": spent["tokens"], "minutes": spent["seconds"] / 60},
        },
        "tasks": tasks,
        "verdicts": verdicts,
        "pull_requests": [pull(each) for each in ledger.each_pull(run_id)] if pulls else [],
    }


def budget(task: Task) -> Json | None:
    """A task's own budget, where it has one."""
    return task.budget.model_dump(mode="json") if task.budget else None


def pull(each: PullRequest) -> Json:
    return each.model_dump(mode="json")


def receipts(found: list[Receipt]) -> list[Json]:
    return [receipt.model_dump(mode="json") for receipt in found]
