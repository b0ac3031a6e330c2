"""`orchestrate tiers`: per skill and tier what was tried and accepted, and what the router would choose now and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator import router
from orchestrator.library import Library
from orchestrator.outcomes import History, Trial
from orchestrator.records import Skill, Tier
from orchestrator.router import Case, PastAttempt

SEEDS = 200  # draws that say how often the router would begin with another tier
LEGEND = (
    "accepted: the gate took the change; unmeasured: done on other data than the plan's, counted apart, teaches "
    "nothing; $/accepted: all dollars of these attempts by accepted change; p: the chance that the router reckons with"
)


@dataclass(frozen=True)
class Row:
    """A skill on a tier, over all its tasks. `usd_per_accepted` is None while nothing was accepted."""

    skill: str
    tier: Tier
    attempts: int
    accepted: int
    unmeasured: int
    usd: float
    chance: float

    @property
    def usd_per_accepted(self) -> float | None:
        return self.usd / self.accepted if self.accepted else None


def document(library: Library, history: History) -> dict[str, Any]:
    """Everything that the table shows, as JSON."""
    past = history.past
    skills = [_skill(skill, library, history.trials, past) for skill in library.skills.values()]
    return {"skills": skills, "attempts": len(history.trials), "runs_not_read": list(history.unread)}


def table(content: dict[str, Any]) -> str:
    heads = ("skill", "tier", "attempts", "accepted", "unmeasured", "$/accepted", "p")
    lines = ["{:<22} {:<10} {:>8} {:>8} {:>10} {:>10} {:>5}".format(*heads)]
    for skill in content["skills"]:
        lines += [_line(skill["skill"], row) for row in skill["tiers"]]
        lines += [f"  now: {choice['why']}" + _exploring(choice) for choice in skill["now"]] + [""]
    if content["runs_not_read"]:
        lines += [f"not read, their plan is gone: {', '.join(content['runs_not_read'])}"]
    return "\n".join([*lines, LEGEND])


def _skill(skill: Skill, library: Library, trials: Iterable[Trial], past: list[PastAttempt]) -> dict[str, Any]:
    tiers = _tiers(skill, library)
    mine = [trial for trial in trials if trial.case.skill == skill.name]
    rows = [_row(skill.name, tier, mine, past) for tier in dict.fromkeys([*tiers, *sorted(t.tier for t in mine)])]
    cases = sorted({trial.case.features for trial in mine}) or [()]
    return {
        "skill": skill.name,
        "tiers": [_as_json(row) for row in rows],
        "now": [_choice(Case(skill.name, features), tiers, past) for features in cases if tiers],
    }


def _tiers(skill: Skill, library: Library) -> tuple[Tier, ...]:
    """The tiers of the cheapest agent that holds the skill; a task's own agent may have fewer."""
    found = [router.between(skill, agent) for agent in library.agents.values() if skill.name in agent.skills]
    return max(found, key=len, default=())


def _row(skill: str, tier: Tier, trials: list[Trial], past: list[PastAttempt]) -> Row:
    mine = [trial for trial in trials if trial.tier == tier]
    judged = [trial for trial in mine if trial.ended != "unmeasured"]
    accepted = sum(trial.ended == "accepted" for trial in judged)
    chance = router.estimate(tier, past, Case(skill), escalated=False).mean
    return Row(skill, tier, len(mine), accepted, len(mine) - len(judged), sum(t.usd for t in judged), chance)


def _choice(case: Case, tiers: tuple[Tier, ...], past: list[PastAttempt]) -> dict[str, Any]:
    best = router.choose(tiers, past, case)
    firsts = Counter(router.choose(tiers, past, case, seed=str(seed)).tiers[0] for seed in range(SEEDS))
    shares = {tier: count / SEEDS for tier, count in firsts.items() if tier != best.tiers[0]}
    return {
        "features": list(case.features),
        "tiers": list(best.tiers),
        "usd_per_accepted": best.usd,
        "why": best.why,
        "begins_elsewhere": shares,
    }


def _as_json(row: Row) -> dict[str, Any]:
    return {**row.__dict__, "usd_per_accepted": row.usd_per_accepted}


def _line(skill: str, row: dict[str, Any]) -> str:
    dollars = "-" if row["usd_per_accepted"] is None else f"${row['usd_per_accepted']:.3f}"
    counts = f"{row['attempts']:>8} {row['accepted']:>8} {row['unmeasured']:>10}"
    return f"{skill:<22} {row['tier']:<10} {counts} {dollars:>10} {row['chance']:>5.2f}"


def _exploring(choice: dict[str, Any]) -> str:
    on = f" [{', '.join(choice['features'])}]" if choice["features"] else ""
    shares = [f"{tier} in {share:.0%}" for tier, share in sorted(choice["begins_elsewhere"].items())]
    return on + (f"; to learn more it begins with {', '.join(shares)} of tasks" if shares else "")
