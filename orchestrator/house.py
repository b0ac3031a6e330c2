"""Where everything stands: the state folder with its lock, and what one run needs to know at any moment.

    .odyssey/   lock  key  ledger.db  repo.git/  worktrees/  base/  data/  gate/  outputs/  runs/

The folder ignores itself, so that neither git nor the user's own .gitignore ever sees it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator import planner
from orchestrator.config import STATE_FOLDER, Settings
from orchestrator.datasets import Dataset
from orchestrator.errors import Busy, InputError
from orchestrator.ledger import Ledger, load_key
from orchestrator.library import Library
from orchestrator.records import Assignment, Plan, Skill, Task
from orchestrator.sandbox.base import Limits, Sandbox
from orchestrator.workspace import Repository

FILE_BYTES = 16 << 30  # checkpoints and datasets fit in it, a full disk takes longer
PROCESSES = 4096  # threads count too
Say = Callable[[str, str, str], None]  # task, kind, text


@dataclass(frozen=True)
class State:
    """The state folder of one repository. Reading it needs no lock; running needs `locked`."""

    folder: Path

    @classmethod
    def of(cls, root: Path) -> State:
        folder = root / STATE_FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)  # what an agent's commands leave in it is for nobody else to start
        ignore = folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        return cls(folder)

    @cached_property
    def ledger(self) -> Ledger:
        database, key = self.folder / "ledger.db", self.folder / "key"
        if database.exists() and not key.exists():
            raise InputError(f"{key} is missing: what {database.name} holds can't be verified; bring the key back")
        return Ledger(database, load_key(key))

    @cached_property
    def repository(self) -> Repository:
        return Repository(self.folder / "repo.git", self.folder / "worktrees")

    def path(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def at_work(self) -> bool:
        """Whether an orchestrator holds the lock right now."""
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    @contextmanager
    def locked(
        self, name: str = "lock", does: str = "works on this repository; see `orchestrate status`"
    ) -> Iterator[None]:
        """One orchestrator a repository. Raises Busy, naming the other's process; the lock dies with its holder."""
        with (self.folder / name).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = f"another orchestrator (process {file.read().strip()})"
                raise Busy(f"{holder} {does}") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


@dataclass(frozen=True)
class Run:
    """One run of one plan, as it stood at the base commit. All of it can be rebuilt after a crash."""

    id: str
    state: State
    settings: Settings
    sandbox: Sandbox
    plan: Plan
    library: Library
    assignments: dict[str, Assignment]
    base_commit: str
    base_branch: str
    base_folder: Path  # the base commit's files, ours to trust
    datasets: dict[str, Dataset]
    hear: Say  # a person's display

    @property
    def ledger(self) -> Ledger:
        return self.state.ledger

    @property
    def repository(self) -> Repository:
        return self.state.repository

    @property
    def stand_ins(self) -> list[str]:
        """Datasets that are not what the plan names; nothing done on them is ever *accepted*."""
        return [dataset.label for dataset in self.datasets.values() if not dataset.official]

    @property
    def limits(self) -> Limits:
        """Of every command that an agent or the gate runs."""
        settings = self.settings
        return Limits(
            wall_s=settings.command_minutes * 60,
            memory_bytes=int(settings.memory_gb * 2**30),
            file_bytes=FILE_BYTES,
            processes=PROCESSES,
        )

    @property
    def stack(self) -> str:
        """The branch that accepted changes pile up on."""
        return f"odyssey/{self.id}/stack"

    def say(self, task: str, kind: str, text: str) -> None:
        """Tell the person, and the ledger. What commands print is only shown."""
        if kind != "output":
            self.ledger.note(self.id, task, kind, text)
        self.hear(task, kind, text)

    @cached_property
    def tree(self) -> str:
        """Who does what, for people; asked for once everything is handed out."""
        return planner.tree(self.plan, self.assignments.values())

    def task(self, task_id: str) -> Task:
        return self.plan.task(task_id)

    def skill(self, task_id: str) -> Skill:
        return self.library.skills[self.assignments[task_id].skill]


def base_files(state: State, root: Path, commit: str) -> Path:
    """The base commit's files in a folder of ours: agents, skills, targets and tests come from there."""
    folder = state.folder / "base" / commit
    if not folder.with_suffix(".complete").exists():
        state.repository.bring_in(root, commit)
        folder.parent.mkdir(exist_ok=True)
        state.repository.export(commit, folder)
        folder.with_suffix(".complete").touch()
    return folder
