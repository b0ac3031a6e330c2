"""The records that pass between the rooms of the house: one meaning each, frozen, closed to typos.

Plan -> Task -> Assignment (who, which skill, which tiers) -> Change (commits of an attempt) -> Receipt (what the
harness ran and saw) -> Verdict (a target against its receipts) -> Judgement (what the gate says of a change).
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import cached_property
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator import quantities
from orchestrator.quantities import QUANTITIES

Tier = Literal["procedure", "haiku", "sonnet", "opus"]
TIERS: tuple[Tier, ...] = ("procedure", "haiku", "sonnet", "opus")  # cheapest first
RiskLevel = Literal["low", "medium", "high"]
RISK_LEVELS: tuple[RiskLevel, ...] = ("low", "medium", "high")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Direction(StrEnum):
    """How a measured value is held against a published one."""

    at_most = "at_most"  # lower is better: mean <= value + margin
    at_least = "at_least"  # higher is better: mean >= value - margin
    equal = "equal"  # |mean - value| <= margin
    reported = "reported"  # measured and shown beside the published value, without a verdict


class Target(Record):
    """A published number, with the margin that was fixed before anything ran. Value and margin share a unit.

    recipe: what is run: a recipe, a network's name (parameters), or the tests' node (failed_tests). With `against` it
    is a comparison of two recipes, seed by seed: `recipe` minus `against`, or divided by it. level: the training error
    in percent that `epochs_to` waits for. minutes: what one training is expected to take; one that takes four times as
    long is given up.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    metric: quantities.Name
    value: float = Field(ge=0, allow_inf_nan=False)
    margin: float = Field(ge=0, allow_inf_nan=False)
    direction: Direction
    seeds: int = Field(default=1, ge=1, le=100)
    dataset: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9-]{0,63})?$")
    recipe: str = Field(min_length=1, max_length=300)
    source: str = Field(min_length=1, max_length=500)
    against: str = Field(default="", max_length=300)
    compare: Literal["", "difference", "ratio"] = ""
    level: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    minutes: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _hangs_together(self) -> Target:
        if bool(self.against) != bool(self.compare):
            raise ValueError("a comparison needs both `against` (a recipe) and `compare` (difference or ratio)")
        if self.quantity.unit == " %" and max(self.value, self.margin) > 100:
            raise ValueError("`value` and `margin` are percentages: at most 100")
        if self.quantity.kind in ("training", "timing") and not self.dataset:
            raise ValueError(f"`{self.metric}` takes a training: add `dataset`")
        if self.quantity.kind in ("training", "timing") and "seeds" not in self.model_fields_set:
            raise ValueError(f"`{self.metric}` takes a training: add `seeds`")
        if (self.metric == "epochs_to") != bool(self.level):
            raise ValueError("`level` (a training error in percent) belongs to `epochs_to`, which needs it")
        return self

    @property
    def quantity(self) -> quantities.Quantity:
        return QUANTITIES[self.metric]

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe, self.against) if self.against else (self.recipe,)

    def shown(self, value: float) -> str:
        """A number with its unit: `0.95 %`, `60,965,224`, `2.00 points`, `6.00 times`."""
        if self.compare == "ratio":
            return f"{value:.2f} times"
        unit = " points" if self.compare and self.quantity.unit == " %" else self.quantity.unit
        return f"{value:,.{self.quantity.digits}f}{unit}"

    @property
    def limit(self) -> str:
        """The rule in words, e.g. `at most 1.00 %`."""
        if self.direction is Direction.at_most:
            return f"at most {self.shown(self.value + self.margin)}"
        if self.direction is Direction.at_least:
            return f"at least {self.shown(self.value - self.margin)}"
        if self.direction is Direction.reported:
            return "reported only"
        if not self.margin:
            return f"exactly {self.shown(self.value)}"
        return f"within {self.margin:.{self.quantity.digits or 2}f} of {self.shown(self.value)}"

    def met_by(self, mean: float) -> bool:
        slack = 1e-9  # 0.95 + 0.05 is not 1.0 in binary
        if self.direction is Direction.at_most:
            return mean <= self.value + self.margin + slack
        if self.direction is Direction.at_least:
            return mean >= self.value - self.margin - slack
        return self.direction is Direction.reported or abs(mean - self.value) <= self.margin + slack


class Candidate(Record):
    """A number that a program found in a paper. It becomes a target when a person has read the page, never before."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    value: float = Field(allow_inf_nan=False)
    unit: str = Field(default="", max_length=20)
    metric: str = Field(default="", max_length=100)  # the paper's own words
    dataset: str = Field(default="", max_length=64)
    page: int = Field(ge=1)
    place: str = Field(default="", max_length=100)  # e.g. `Table 2, LeNet-5`
    quote: str = Field(min_length=1, max_length=600)


class Paper(Record):
    title: str = Field(min_length=1)
    authors: str = ""
    year: int | None = None
    url: str = ""
    where: str = ""


class Budget(Record):
    """Hard limits of a run: dollars and tokens for language models, minutes of commands that the harness ran and of
    answers that were paid for."""

    usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    tokens: int = Field(default=0, ge=0)
    minutes: float = Field(default=60.0, gt=0, allow_inf_nan=False)


class TaskBudget(Record):
    """Hard limits of one task and of all beneath it, within what its run has left. None: no limit of its own.

    line: where the plan sets it.
    """

    usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    tokens: int | None = Field(default=None, ge=0)
    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    line: int = 0

    def __str__(self) -> str:
        usd = None if self.usd is None else f"${self.usd:.2f}"
        tokens = None if self.tokens is None else f"{self.tokens} tokens"
        minutes = None if self.minutes is None else f"{self.minutes:g} min"
        return ", ".join(filter(None, (usd, tokens, minutes)))


AnyBudget = TypeVar("AnyBudget", Budget, TaskBudget)


def raised(budget: AnyBudget, usd: float, tokens: int, minutes: float) -> AnyBudget:
    """With so much more of what it limits. Raises ValueError when that is no budget."""
    had = budget.model_dump()
    more = {"usd": usd, "tokens": tokens, "minutes": minutes}
    sums = {key: had[key] + amount for key, amount in more.items() if had[key] is not None}
    return budget.model_validate({**had, **sums})


class Task(Record):
    id: str
    title: str
    section: str
    skill: str
    writes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()  # command lines that the gate runs
    agent: str | None = None  # pinned by a person, or assigned and written back
    tier: Tier | None = None  # pinned by a person
    options: dict[str, str] = Field(default_factory=dict)
    budget: TaskBudget | None = None
    done: bool = False
    line: int = 0


class Plan(Record):
    path: str  # relative to the repository's root
    title: str
    paper: Paper | None
    targets: tuple[Target, ...]
    budget: Budget
    tasks: tuple[Task, ...]
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def sections(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task.section for task in self.tasks))

    def task(self, task_id: str) -> Task:
        return self._by_id[task_id]

    @cached_property
    def _by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self.tasks}

    @property
    def datasets(self) -> tuple[str, ...]:
        """What has to be at hand: the targets' datasets, and those that tasks name in their options."""
        named = [task.options["dataset"] for task in self.tasks if "dataset" in task.options]
        return tuple(dict.fromkeys([*(target.dataset for target in self.targets if target.dataset), *named]))

    def targets_of(self, task: Task) -> tuple[Target, ...]:
        return tuple(target for target in self.targets if target.id in task.targets)


class Agent(Record):
    name: str
    description: str
    level: int
    model: Literal["haiku", "sonnet", "opus"]
    tools: tuple[str, ...]
    skills: tuple[str, ...]
    delegates_to: tuple[str, ...]
    prompt: str
    path: str
    ceiling: Tier | None = None  # the dearest tier that may speak for it; its own model is the cheapest
    max_turns: int | None = None  # of one conversation, where it is lower than the run's

    def turns(self, most: int) -> int:
        return min(most, self.max_turns or most)


class Skill(Record):
    name: str
    description: str
    writes: tuple[str, ...]
    commands: tuple[str, ...]
    risk: RiskLevel
    tools: tuple[str, ...] = ()  # those that it needs; an agent has no others while it works by the skill. (): its own
    minutes: float
    procedure: str | None  # path of the procedure, relative to the repository's root
    body: str
    path: str
    floor: Tier | None = None  # the cheapest and the dearest model that may use it
    ceiling: Tier | None = None


class Assignment(Record):
    """Who does a task: the chain of agents from level 0 down to the one that does it, and the tiers to try."""

    task: str
    section: str
    chain: tuple[str, ...]
    skill: str
    tiers: tuple[Tier, ...]
    writes: tuple[str, ...]
    why: str
    brief: str = ""  # what the agent above says to whoever does it

    @property
    def agent(self) -> str:
        return self.chain[-1]


class FileChange(Record):
    path: str
    status: Literal["added", "modified", "deleted"]
    added: int  # lines; -1 for a binary file
    removed: int
    mode: str  # git's file mode after the change, e.g. 100644


class Change(Record):
    """The commits of one attempt: everything between `base` and `commit`."""

    task: str
    attempt: int
    tier: Tier
    base: str
    commit: str
    tree: str
    files: tuple[FileChange, ...]

    @property
    def lines(self) -> int:
        return sum(max(file.added, 0) + max(file.removed, 0) for file in self.files)


class Risk(Record):
    level: RiskLevel
    guarded: bool  # touches what guards the system: a person merges it, whoever wrote it
    reasons: tuple[str, ...]


class Receipt(Record):
    """What the harness ran and saw. `id`, `previous` and `signature` are given by the ledger."""

    run: str
    task: str
    attempt: int
    kind: Literal["policy", "tests", "accept", "train", "score", "control", "dataset"]
    passed: bool
    what: str
    commit: str = ""
    argv: tuple[str, ...] = ()
    exit_code: int | None = None
    seed: int | None = None
    target: str | None = None
    data: dict[str, str] = Field(default_factory=dict)  # file -> sha256
    artefacts: dict[str, str] = Field(default_factory=dict)  # file -> sha256
    values: dict[str, float] = Field(default_factory=dict)
    sandbox: str = ""
    machine: str = ""
    environment: str = ""  # sha256 of the interpreter's and packages' versions
    wall_s: float = 0.0
    cpu_s: float = 0.0
    at: str = ""
    id: str = ""
    previous: str = ""
    signature: str = ""


Outcome = Literal["reproduced", "not reproduced", "not measured", "did not finish", "reported"]


class Verdict(Record):
    """A target against what was measured. Every seed is there, in the order in which it ran.

    low, high: 95 % interval of the mean over seeds (`intervals.mean`); None with fewer than two. asked: the target as
    it stood, so that the verdict can be worked out again.
    """

    target: str
    outcome: Outcome
    reason: str
    mean: float | None = None
    spread: float | None = None  # sample standard deviation over seeds, in the target's unit
    values: dict[str, float] = Field(default_factory=dict)  # seed -> value
    receipts: tuple[str, ...] = ()
    dataset: str = ""
    commit: str = ""
    low: float | None = None
    high: float | None = None
    asked: Target | None = None


class Judgement(Record):
    """What the gate says of a change.

    accepted: all checks passed, every target of the task reproduced or reported; missed: measured, but one was missed;
    unmeasured: sound, but no verdict could be had; refused: a check failed, the change is not shown to anyone.
    """

    outcome: Literal["accepted", "missed", "unmeasured", "refused"]
    risk: Risk
    verdicts: tuple[Verdict, ...] = ()
    receipts: tuple[str, ...] = ()
    feedback: str = ""  # for the next attempt, when not accepted
    review: tuple[str, ...] = ()  # "agent: finding" of those above who read it, the nearest level first


class PullRequest(Record):
    number: int
    run: str
    task: str
    plan: str
    title: str
    body: str
    head: str  # branch
    commit: str
    base: str  # branch; "" when HEAD was detached: then it goes into whichever is checked out
    base_commit: str
    below: int | None  # the pull request that this one is stacked on
    risk: RiskLevel
    guarded: bool
    author: str
    status: Literal["open", "approved", "merged", "closed"]
    approved_by: str = ""
    created_at: str = ""
    seal: str = ""  # the harness's signature over what it says; given by the ledger
