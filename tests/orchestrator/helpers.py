"""What the orchestrator's tests share: tiny repositories and libraries, plans as text, a fake durable engine."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey

from orchestrator import planfile
from orchestrator.ledger import Ledger
from orchestrator.library import Library
from orchestrator.records import Agent, Budget, Change, FileChange, Plan, Receipt, Skill, Target, Task
from orchestrator.workspace import ATTRIBUTES

ROOT = Path(__file__).resolve().parents[2]
FRONT = """\
title: A plan
targets:
  - {id: t1, metric: test_error_pct, value: 1.0, margin: 0.1, direction: at_most, seeds: 3, dataset: mnist, recipe: r.toml, source: "a paper"}
budget: {minutes: 5}
"""  # noqa: E501
BODY = """\
# A plan

## First

- [ ] `a` Do the first
  - skill: tune
  - writes: r.toml
- [ ] `b` Do the second
  - skill: tune
  - needs: a
  - targets: t1
  - writes: notes/*.md, r.toml
"""
PLAN = f"---\n{FRONT}---\n{BODY}"


def problems(text: str, path: str = "plans/p.md") -> list[str]:
    """What is wrong with a plan, as a person reads it."""
    return [str(problem) for problem in planfile.read(path, text)[1]]


def plan(text: str = PLAN, path: str = "plans/p.md") -> Plan:
    found, wrong = planfile.read(path, text)
    assert found is not None
    assert wrong == []
    return found


def target(**changed: Any) -> Target:
    fields: dict[str, Any] = dict(plan().targets[0])
    return Target(**{**fields, **changed})


def agent(name: str, level: int, *below: str, skills: tuple[str, ...] = (), **changed: Any) -> Agent:
    fields: dict[str, Any] = {
        "name": name,
        "description": f"{name} does things",
        "level": level,
        "model": "sonnet",
        "tools": ("read", "run", "delegate") if below else ("read", "run"),
        "skills": skills,
        "delegates_to": below,
        "prompt": "You do things.",
        "path": f"agents/{name}.md",
    }
    return Agent(**{**fields, **changed})


def skill(name: str, *writes: str, **changed: Any) -> Skill:
    fields: dict[str, Any] = {
        "name": name,
        "description": "does it",
        "writes": writes or ("**",),
        "commands": ("python *",),
        "risk": "low",
        "minutes": 5.0,
        "procedure": None,
        "body": "Do it.",
        "path": f"skills/{name}/SKILL.md",
    }
    return Skill(**{**fields, **changed})


def library(agents: list[Agent], *skills: Skill) -> Library:
    return Library({each.name: each for each in agents}, {each.name: each for each in skills})


def small_library() -> Library:
    """A chief, two leads, three who work."""
    agents = [
        agent("chief", 0, "left", "right", model="opus"),
        agent("left", 1, "worker", "junior"),
        agent("right", 1, "writer"),
        agent("worker", 2, skills=("tune", "write")),
        agent("junior", 3, skills=("tune",), model="haiku"),
        agent("writer", 2, skills=("write",)),
    ]
    return library(agents, skill("tune", procedure="skills/tune/p.toml"), skill("write"))


def task(task_id: str = "a", **changed: Any) -> Task:
    fields: dict[str, Any] = {
        "id": task_id,
        "title": "Do it",
        "section": "First",
        "skill": "tune",
        "writes": ("r.toml",),
        "line": 1,
    }
    return Task(**{**fields, **changed})


def change(*files: FileChange, base: str = "0" * 40, commit: str = "1" * 40) -> Change:
    return Change(task="a", attempt=1, tier="procedure", base=base, commit=commit, tree="2" * 40, files=files)


def edited(path: str, **changed: Any) -> FileChange:
    fields: dict[str, Any] = {"path": path, "status": "modified", "added": 1, "removed": 1, "mode": "100644"}
    return FileChange(**{**fields, **changed})


# Repositories


def git(folder: Path, *argv: str, stdin: bytes = b"") -> str:
    """Git as a person runs it, but with no configuration of this machine's."""
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _PERSON.items()}
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **who}
    done = subprocess.run(["git", *argv], cwd=folder, input=stdin, env=env, capture_output=True, check=False)
    assert done.returncode == 0, f"git {argv}: {done.stderr.decode()}"
    return done.stdout.decode(errors="surrogateescape").strip()


_PERSON = {"NAME": "A Person", "EMAIL": "person@example.org"}


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def repository(folder: Path, files: Mapping[str, str | bytes]) -> str:
    """A repository on branch `main` with one commit of these files; the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "A Person")
    git(folder, "config", "user.email", "person@example.org")
    return commit(folder, files)


def commit(folder: Path, files: Mapping[str, str | bytes]) -> str:
    """A commit of everything, byte by byte: what .gitattributes would make of it is switched off."""
    write(folder, files)
    write(folder, {".git/info/attributes": ATTRIBUTES})
    git(folder, "add", "--all", "--force", "--", ".", ":!.odyssey")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "A commit")
    (folder / ".git/info/attributes").unlink()
    return git(folder, "rev-parse", "HEAD")


def fingerprint(folder: Path, without: tuple[str, ...] = (".odyssey",)) -> dict[str, str]:
    """Every file's mode and sha256 by path, links as their targets, folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in without:
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            found[name] = "folder"
    return found


# Ledgers


KEY = SigningKey(bytes(range(32)))


def ledger(folder: Path, key: SigningKey = KEY, budget: Budget | None = None) -> Ledger:
    """An empty ledger with one run, `r-1`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Ledger(folder / "ledger.db", key)
    made.open_run("r-1", plan="plans/p.md", budget=(budget or Budget(usd=1)).model_dump_json())
    return made


def receipt(what: str = "it ran", **changed: Any) -> Receipt:
    fields: dict[str, Any] = {"run": "r-1", "task": "a", "attempt": 1, "kind": "tests", "passed": True, "what": what}
    return Receipt(**{**fields, **changed})


class PausedHere(Exception):
    """What the fake engine's pause raises."""


@dataclass
class Journal:
    """A durable engine in memory: what steps returned, by position; `cut` names the step that dies, once, when done."""

    kept: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    cut: str = ""

    async def step(self, name: str, do: Callable[[], Awaitable[Any]]) -> Any:
        if name not in self.kept:
            self.ran.append(name)
            result = await do()
            if name == self.cut:
                self.cut = ""
                raise KeyboardInterrupt(name)
            self.kept[name] = result
        return self.kept[name]

    async def pause(self, reason: str, code: int = 5, task: str = "") -> Any:
        raise PausedHere(reason)
