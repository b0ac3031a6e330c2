"""Calls that ask another agent: `delegate` hands a part of the work down, `escalate` takes a blocker one level up.

A sub-agent works in the same worktree, with no tool that its superior has not (but a look at skills of its own), on a
budget that is a part of what the run has left, within its superior's, who is told what it changed. A blocker goes to
whoever handed the work down, who may pass it on, level by level, until a person is left. Each level's word is a typed
event; how many an attempt may raise, its sub-agents' included, is limited, and nobody can change the plan.
One that is not cleared up ends the task, whatever its author would do next: no dearer tier is tried in its stead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pydantic import Field, ValidationError

from orchestrator import prompts
from orchestrator.attempt import allowed, bodies, others
from orchestrator.calls import Place
from orchestrator.conversation import error_result
from orchestrator.house import Run
from orchestrator.loop import Attempt, Loop, Outcome
from orchestrator.providers.base import Block, Request
from orchestrator.providers.shape import closed
from orchestrator.records import Budget, FileChange, Record, Task, TaskBudget
from orchestrator.review import is_review
from orchestrator.tools.base import Arguments, cut_text

MAX_DEPTH = 2  # sub-agents beneath sub-agents
SHARE = 0.5  # of what is left, at most, for one sub-agent
MAX_BLOCKERS = 2  # an attempt, with all its sub-agents
MOST_FILES = 40  # that one answer lists
PERSON = "a person"  # above the chief
Json = Any


class Delegate(Arguments):
    agent: str = Field(description="one of those below you")
    brief: str = Field(min_length=1, max_length=8000, description="what to do, in which files, how success is seen")


class Escalate(Arguments):
    what: str = Field(min_length=1, max_length=2000, description="what stops you, with file and line")
    needs: str = Field(min_length=1, max_length=2000, description="what would let you go on")


class Decision(Record):
    decision: Literal["answer", "up", "person", "stop"]
    text: str = Field(min_length=1, max_length=4000)


class Blocker(Record):
    """One blocker at one level of its way up, and what came back. `source`: whoever raised it."""

    task: str
    attempt: int
    source: str
    target: str
    what: str
    needs: str
    decision: str
    text: str


class Blocked(Exception):
    """A blocker that nobody below a person clears up, or that stops the task."""

    def __init__(self, blocker: Blocker) -> None:
        self.blocker = blocker
        super().__init__(blocker)

    @property
    def status(self) -> str:
        """How the task ends."""
        return "failed" if self.blocker.decision == "stop" else "blocked"

    def __str__(self) -> str:
        each = self.blocker
        decided = {
            "person": f"a person has to decide: {each.text}",
            "stop": f"{each.target} stops the task: {each.text}",
        }[each.decision]
        return f"{decided}\n{each.source} was stopped by: {each.what}\nit would need: {each.needs}"


@dataclass(frozen=True)
class Team:
    """The people around one attempt of one task."""

    run: Run
    task: Task
    loop: Callable[[], Loop]  # a fresh one, with this team in it

    @property
    def names(self) -> frozenset[str]:
        return frozenset({"delegate", "escalate"})

    def specs(self, attempt: Attempt) -> list[dict[str, Any]]:
        """What this agent may ask for: there must be somebody to ask."""
        specs = []
        people = self._below(attempt)
        if people:
            words = (
                f"Hand a part of the work to one below you: {', '.join(people)}. It works in your copy; "
                "then you go on, and answer for what it changed."
            )
            specs.append(_spec("delegate", words, Delegate))
        words = f"Tell {self._above(attempt)[0]}, who is above you, what stops you. At most {MAX_BLOCKERS} times."
        return [*specs, _spec("escalate", words, Escalate)]

    async def ask(self, attempt: Attempt, turn: int, call: Block) -> Block:
        if call["name"] not in {spec["name"] for spec in self.specs(attempt)}:
            return error_result(call, f"{call['name']}: there is nobody whom you could ask")
        try:
            if call["name"] == "delegate":
                return await self._delegate(attempt, turn, call, Delegate.model_validate(call["input"]))
            return await self._escalate(attempt, turn, call, Escalate.model_validate(call["input"]))
        except ValidationError as error:
            return error_result(call, f"{call['name']}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}")

    # Down

    def _below(self, attempt: Attempt) -> tuple[str, ...]:
        agent = self.run.library.agents.get(attempt.agent)
        deep = attempt.helper.count("/") + 1 if attempt.helper else 0
        if agent is None or "delegate" not in agent.tools or deep >= MAX_DEPTH or is_review(attempt.helper):
            return ()
        return agent.delegates_to

    async def _delegate(self, attempt: Attempt, turn: int, call: Block, wanted: Delegate) -> Block:
        if wanted.agent not in self._below(attempt):
            return error_result(call, f"delegate: `{wanted.agent}` is not below you; there are {self._below(attempt)}")
        sub = self._sub_attempt(attempt, turn, call, wanted)
        self.run.ledger.limit(self.run.id, sub.node, self._share(attempt))
        self.run.say(self.task.id, "delegated", f"{attempt.agent} to {wanted.agent}: {wanted.brief}")
        outcome: Outcome = await self.loop().work(sub)
        changed = _listed(self.run.repository.changed(attempt.tree, outcome.tree))
        ended = "says" if outcome.finished else "did not finish"
        file = attempt.tools.outputs / f"{sub.helper.replace('/', '-')}.txt"
        words = cut_text(f"{wanted.agent} {ended}: {outcome.text}\n\n{changed}", file)
        if not outcome.finished:
            return error_result(call, words)
        return {"type": "tool_result", "tool_use_id": call["id"], "content": words}

    def _sub_attempt(self, attempt: Attempt, turn: int, call: Block, wanted: Delegate) -> Attempt:
        agent, skill = self.run.library.agents[wanted.agent], self.run.skill(self.task.id)
        more = others(self.run, agent, skill)
        words = {"agent": agent, "skill": skill, "others": more, "writes": self.task.writes, "commands": skill.commands}
        helper = f"{turn}-{call['id'][-12:]}-{wanted.agent}"
        return replace(
            attempt,
            tier=agent.model,
            model=self.run.settings.models[agent.model],
            system=prompts.render("system.md.j2", words),
            brief=wanted.brief,
            allowed=allowed(agent, skill) & (attempt.allowed | {"skill"}),
            tools=replace(attempt.tools, skills=bodies(more)),
            max_turns=agent.turns(self.run.settings.max_turns),
            chain=(*attempt.chain, agent.name),
            helper=f"{attempt.helper}/{helper}" if attempt.helper else helper,
        )

    def _share(self, attempt: Attempt) -> TaskBudget:
        """Half of what the run has left; the limits above it bind as well."""
        whole = Budget.model_validate_json(self.run.ledger.run(self.run.id)["budget"])
        spent = self.run.ledger.spent(self.run.id)
        return TaskBudget(
            usd=max(whole.usd - spent["usd"], 0) * SHARE,
            tokens=max(int((whole.tokens - spent["tokens"]) * SHARE), 0),
            minutes=max((whole.minutes - spent["seconds"] / 60) * SHARE, 0.01),
        )

    # Up

    def _above(self, attempt: Attempt) -> tuple[str, ...]:
        """Who may be asked, the nearest first."""
        return (*attempt.chain[-2::-1], PERSON)

    async def _escalate(self, attempt: Attempt, turn: int, call: Block, wanted: Escalate) -> Block:
        """The answer of the nearest level above that gives one. Raises Blocked when there is none."""
        step = self.loop().durable.step
        raised = await step(f"{attempt.node} blocker {turn}", lambda: self._count(attempt, turn, call))
        if raised > MAX_BLOCKERS:
            return error_result(
                call, f"escalate: {MAX_BLOCKERS} blockers were raised; end your turn and say what stops you"
            )
        said: list[str] = []
        for level, above in enumerate(self._above(attempt), 1):
            name = f"blocker-{raised}" + (f"-{level}" if level > 1 else "")
            decided = await self._decision(attempt, name, above, wanted, said)
            blocker = Blocker(
                task=self.task.id, attempt=attempt.number, source=attempt.agent, target=above,
                what=wanted.what, needs=wanted.needs, decision=decided.decision, text=decided.text,
            )  # fmt: skip
            await step(f"{attempt.node} blocker {turn} at {above}", partial(self._note, blocker))
            if decided.decision == "answer":
                words = f"{above} decides (answer): {decided.text}"
                return {"type": "tool_result", "tool_use_id": call["id"], "content": words}
            if decided.decision != "up":
                raise Blocked(blocker)
            said.append(f"{above}: {decided.text}")
        raise AssertionError("a person passes nothing on")

    async def _count(self, attempt: Attempt, turn: int, call: Block) -> int:
        """How many blockers this attempt has raised, this one included; the same call counts once."""
        key = f"{attempt.run}/{attempt.task}/{attempt.number} blockers"
        self.run.ledger.begin(f"{key}/{attempt.helper}/{turn}/{call['id']}")
        return self.run.ledger.begun(key)

    async def _note(self, blocker: Blocker) -> None:
        self.run.say(self.task.id, "blocker", blocker.model_dump_json())

    async def _decision(self, attempt: Attempt, name: str, asked: str, wanted: Escalate, said: list[str]) -> Decision:
        """What this level decides. `said`: the words with which those between passed it on."""
        if asked == PERSON:
            return Decision(decision="person", text="; ".join(said) or f"nobody is above {attempt.agent}")
        above, node = self.run.library.agents[asked], f"{attempt.node}/{name}"
        words = {
            "author": attempt.agent, "task": self.task, "what": wanted.what, "needs": wanted.needs, "said": said,
            "brief": attempt.brief if attempt.helper else self.run.assignments[self.task.id].brief,
            "next": self._above(attempt)[len(said) + 1],
        }  # fmt: skip
        request = Request(
            who=node,
            turn=0,
            tier=above.model,
            model=self.run.settings.models[above.model],
            system=above.prompt,
            messages=({"role": "user", "content": prompts.render("blocker.md.j2", words)},),
            answer_schema=closed(Decision.model_json_schema()),
        )
        reply = await self.loop().calls.reply(Place(attempt.run, attempt.task, node, attempt.number), request)
        try:
            return Decision.model_validate(reply.answer)
        except (ValueError, ValidationError):
            return Decision(decision="person", text=f"{above.name} gave no answer that can be used")


def _listed(files: tuple[FileChange, ...]) -> str:
    """What a sub-agent changed, a line a file, for whoever answers for it."""
    if not files:
        return "It changed no file."
    lines = [f"- {each.status} {each.path}{_size(each)}" for each in files[:MOST_FILES]]
    lines += [f"- and {len(files) - MOST_FILES} more"] if len(files) > MOST_FILES else []
    return "\n".join(["It changed these files; you answer for them, so read them before you end your turn:", *lines])


def _size(file: FileChange) -> str:
    return f" (+{file.added} -{file.removed})" if file.added >= 0 else " (binary)"


def _spec(name: str, words: str, arguments: type[Arguments]) -> dict[str, Any]:
    schema = closed(json.loads(json.dumps(arguments.model_json_schema())))
    return {"name": name, "description": words, "input_schema": schema}
