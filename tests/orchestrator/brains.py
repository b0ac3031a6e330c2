"""A tiny repository whose plan needs language models, what they say, and the orchestrator run on it in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.house import State
from tests.orchestrator import helpers
from tests.orchestrator.fakeapi import FakeApi, Turn

AGENT = """---
name: {name}
description: {name} does what a {name} does
tools: [{tools}]
model: {model}
level: {level}
{more}---
You are the {name}.
"""
SKILL = """---
name: {name}
description: {name}s things
allowed-tools: {tools}
metadata:
{bounds}  risk: low
---
How to {name}: carefully.
"""
ALL = "read, list, search, write, edit, run, delegate"
LOOKS = "read, list, search, delegate"
TASK = """
- [ ] `{id}` Write the note {id}
  - skill: note
  - needs: {needs}
  - writes: notes/{id}.md
  - accept: grep -q {id} notes/{id}.md
"""


def files(tasks: int = 2, budget: str = "{usd: 10, tokens: 2000000, minutes: 20}") -> dict[str, str]:
    made = {
        "agents/chief.md": agent("chief", "opus", 0, LOOKS, "delegates_to: [lead]\n"),
        "agents/lead.md": agent("lead", "sonnet", 1, LOOKS, "delegates_to: [worker]\n"),
        "agents/worker.md": agent("worker", "haiku", 2, ALL, "skills: [note]\ndelegates_to: [junior]\n"),
        "agents/junior.md": agent("junior", "haiku", 3, "read, write, edit, run", "skills: [note]\n"),
        "agents/reader.md": agent("reader", "haiku", 3, "read, list, search", "skills: [review-change]\n"),
        "skills/note/SKILL.md": skill("note", "read list search write edit run", "notes/**", "grep *"),
        "skills/review-change/SKILL.md": skill("review-change", "read list search", "", ""),
        "notes/old.md": "old\n",
        "pyproject.toml": "[tool.odyssey.tests]\nlow = []\nmedium = []\nhigh = []\n",
    }
    made["agents/lead.md"] = made["agents/lead.md"].replace("[worker]", "[worker, reader]")
    needs = ["", "a", "b", "c"]
    body = "".join(
        TASK.format(id="abcd"[number], needs=needs[number]).replace("  - needs: \n", "") for number in range(tasks)
    )
    front = f"title: Notes\nbudget: {budget}\n"
    prose = "# Notes\n\nNotes are good.\n\n## First\n\nA note holds its name.\n"
    made["plans/p.md"] = f"---\n{front}---\n{prose}{body}"
    return made


def agent(name: str, model: str, level: int, tools: str, more: str) -> str:
    return AGENT.format(name=name, model=model, level=level, tools=tools, more=more)


def skill(name: str, tools: str, writes: str, commands: str) -> str:
    bounds = f"  writes: {writes}\n  commands: {commands}\n" if writes else ""
    return SKILL.format(name=name, tools=tools, bounds=bounds)


def repository(folder: Path, tasks: int = 2, **options: Any) -> Path:
    helpers.repository(folder, files(tasks, **options))
    return folder


def said(value: Any) -> Turn:
    return Turn(json.dumps(value))


FINE = {"findings": [{"severity": "none", "what": "nothing", "evidence": "I read all of it"}]}


def hand_out(*tasks: str, to: str = "worker") -> Turn:
    handed = [{"task": task, "agent": to, "brief": f"Write {task}, and nothing else."} for task in tasks]
    return said({"why": "small and clear, so two levels", "tasks": handed})


def scripts(tasks: int = 2) -> dict[str, list[Turn]]:
    """What everybody says when all goes well: three turns a task, a review each, one delegation."""
    names = "abcd"[:tasks]
    found = {"# The tasks to hand out": [hand_out(*names)]}
    for name in names:
        path = f"notes/{name}.md"
        edit = {"path": path, "old": "one", "new": "two"}
        found[f"# Task `{name}`"] = [
            Turn("First I look.", (("read", {"path": "notes/old.md"}), ("list", {"path": "notes"}))),
            Turn("I write.", (("write", {"path": path, "content": f"{name} one\n"}), ("edit", edit))),
            Turn("I check.", (("run", {"argv": ["grep", "-c", name, path]}), ("search", {"pattern": name}))),
            Turn(f"The note {name} is written."),
        ]  # fmt: skip
        found[f"# Review task `{name}`"] = [Turn("I look.", (("read", {"path": path}),)), said(FINE)]
    return found


def api(tasks: int = 2) -> FakeApi:
    return FakeApi(scripts=scripts(tasks))


def place(made: FakeApi, body: dict[str, Any]) -> tuple[str, int]:
    """Of which script a request is, and which of its turns is due."""
    first = json.dumps(body["messages"][0])
    key = next(key for key in made.scripts if key in first)
    return key, sum(message["role"] == "assistant" for message in body["messages"])


def two_apart(folder: Path, limit: str) -> Path:
    """Tasks `a`, with a budget of its own, and `b`, which does not need it."""
    made = files(2)
    plan = made["plans/p.md"].replace("  - needs: a\n", "")
    made["plans/p.md"] = plan.replace("  - writes: notes/a.md\n", f"  - writes: notes/a.md\n  - budget: {limit}\n")
    helpers.repository(folder, made)
    return folder


def statuses(repo: Path) -> dict[str, str]:
    """How each task of the first run stands."""
    return State.of(repo).ledger.statuses("p-1")
