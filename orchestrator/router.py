"""Which tier takes this task: the procedure if there is one, then the ladder that costs least per accepted change.

Legend: p a tier's chance to pass the gate, usd what an attempt on it costs, seed what the draws come from.

A pure function: past attempts in, decision out. Each p is Beta-Bernoulli: a guess worth two attempts, sharpened by all
attempts on the tier, then by those with the skill, then by those of the same kind of task; a nearer group starts from
the wider one's mean. What an attempt leads to when it is refused counts: the next tiers, and at the end a person, so
that every way ends with an accepted change and ways can be compared by dollars alone. p is drawn, not averaged
(Thompson sampling), so that a tier with little behind it is tried now and then; the seed fixes the draws.

Source: Thompson 1933; Chapelle and Li 2011, "An empirical evaluation of Thompson sampling".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.globs import matches
from orchestrator.records import TIERS, Agent, Skill, Task, Tier

# Guesses, each worth GUESS_ATTEMPTS, until there are outcomes: chance to pass, dollars an attempt.
GUESSES: dict[Tier, tuple[float, float]] = {
    "procedure": (0.8, 0.0),
    "haiku": (0.5, 0.02),
    "sonnet": (0.65, 0.30),
    "opus": (0.75, 0.60),
}
GUESS_ATTEMPTS = 2.0
PERSON_USD = 20.0  # what it costs when no tier's change is accepted: about half an hour of a person

# The first glob that covers a path that the task writes says what kind of work it is.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kernels", ("mlcore/kernels/**",)),
    ("recipes", ("mlcore/recipes/**",)),
    ("tests", ("tests/**",)),
    ("code", ("**/*.py", "mlcore/**", "orchestrator/**")),
    ("prose", ("**/*.md",)),
    ("evidence", ("plans/**", "runs/**")),
)


@dataclass(frozen=True)
class Case:
    """What is known of a task before anyone tries it."""

    skill: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class PastAttempt:
    """One attempt that the gate judged. `escalated`: a cheaper tier's attempt at the same task was refused before."""

    case: Case
    tier: Tier
    escalated: bool
    accepted: bool
    usd: float


@dataclass(frozen=True)
class Estimate:
    """p ~ Beta(alpha, beta). `attempts` and `accepted` count this kind of task only; `usd` is shrunk to the guess."""

    tier: Tier
    attempts: int
    accepted: int
    alpha: float
    beta: float
    usd: float

    @property
    def mean(self) -> float:
        return self.alpha / (self.alpha + self.beta)


@dataclass(frozen=True)
class Way:
    """Tiers in the order in which they are tried, and the expected dollars until a change is accepted."""

    tiers: tuple[Tier, ...]
    usd: float


@dataclass(frozen=True)
class Decision:
    """The ladder to climb and why, in one line for the record. `others`: the best way from every other first tier."""

    tiers: tuple[Tier, ...]
    usd: float
    why: str
    others: tuple[Way, ...]


Estimates = Mapping[tuple[Tier, bool], Estimate]  # by tier, and whether a cheaper one was refused before
Chances = Mapping[tuple[Tier, bool], float]
Begin = Callable[[Tier, tuple[Tier, ...], bool], Way]  # first tier, the tiers open, whether one was refused before


def permitted(task: Task, skill: Skill, agent: Agent) -> tuple[Tier, ...]:
    """The tiers that a task may be tried on, cheapest first: what skill and agent both allow, or the pinned one.

    An agent's own model is its floor. Empty when floors and ceilings leave nothing; the library's lint says so.
    """
    if task.tier:
        return (task.tier,)
    return between(skill, agent)


def between(skill: Skill, agent: Agent) -> tuple[Tier, ...]:
    """The procedure, if there is one, and the models from the higher floor to the lower ceiling."""
    lowest = max(TIERS.index(agent.model), TIERS.index(skill.floor or agent.model))
    highest = min(TIERS.index(ceiling) for ceiling in (agent.ceiling, skill.ceiling, TIERS[-1]) if ceiling)
    models = TIERS[lowest : highest + 1]
    return ("procedure", *models) if skill.procedure else models


def case_of(task: Task) -> Case:
    """The kinds of files that it writes, and whether a published number is measured on it."""
    kinds = {kind for path in task.writes if (kind := _kind(path))}
    return Case(task.skill, (*sorted(kinds), *(("measured",) if task.targets else ())))


def choose(
    tiers: Sequence[Tier],
    past: Iterable[PastAttempt],
    case: Case,
    seed: str | None = None,
    person_usd: float = PERSON_USD,
) -> Decision:
    """The ladder to climb among `tiers` (cheapest first, not empty). Without a seed p is its mean: no exploring."""
    return decide(tiers, estimate_all(tiers, [*past], case), seed, person_usd)


def decide(tiers: Sequence[Tier], estimates: Estimates, seed: str | None, person_usd: float = PERSON_USD) -> Decision:
    """`choose`, for those who choose often and estimate once."""
    chances = _chances(estimates, seed)
    cheapest = _cheapest(estimates, chances, person_usd)
    free = tuple(tier for tier in tiers if tier == "procedure")
    firsts = free or _undominated(tuple(tiers), estimates, escalated=False)
    ways = sorted((cheapest(first, tuple(tiers), False) for first in firsts), key=lambda way: way.usd)
    best = ways[0]
    return Decision(best.tiers, best.usd, _why(best, ways[1:], estimates, chances, seed), tuple(ways[1:]))


def estimate_all(tiers: Sequence[Tier], past: list[PastAttempt], case: Case) -> Estimates:
    """Every tier's estimate as a first attempt, and after a refusal: what others failed at is never the easier one."""
    found: dict[tuple[Tier, bool], Estimate] = {}
    for tier in tiers:
        first, later = (estimate(tier, past, case, escalated) for escalated in (False, True))
        if later.mean > first.mean:
            first = replace(first, alpha=later.alpha, beta=later.beta)
        found |= {(tier, False): first, (tier, True): later}
    return found


def estimate(tier: Tier, past: Iterable[PastAttempt], case: Case, escalated: bool) -> Estimate:
    """From the guess through ever nearer groups of attempts; the nearest is the same kind of task in the same place."""
    mean, usd = GUESSES[tier]
    alpha, beta = mean * GUESS_ATTEMPTS, (1 - mean) * GUESS_ATTEMPTS
    group = [each for each in past if each.tier == tier]
    for nearer, at_most in GROUPS:
        group = [each for each in group if nearer(each, case, escalated)]
        weight = min(alpha + beta, at_most)
        mean, accepted = alpha / (alpha + beta), sum(each.accepted for each in group)
        alpha, beta = mean * weight + accepted, (1 - mean) * weight + len(group) - accepted
        usd = (usd * weight + sum(each.usd for each in group)) / (weight + len(group))
    return Estimate(tier, len(group), sum(each.accepted for each in group), alpha, beta, usd)


def _any(each: PastAttempt, case: Case, escalated: bool) -> bool:
    return True


def _same_skill(each: PastAttempt, case: Case, escalated: bool) -> bool:
    return each.case.skill == case.skill


def _same_kind(each: PastAttempt, case: Case, escalated: bool) -> bool:
    return each.case == case


def _same_place(each: PastAttempt, case: Case, escalated: bool) -> bool:
    """What a cheaper tier failed at is harder than the rest, so that a tier's first attempts are counted apart."""
    return each.escalated == escalated


# Each group narrows the one before; how many attempts the wider one may count for in it, at most.
GROUPS: tuple[tuple[Callable[[PastAttempt, Case, bool], bool], float], ...] = (
    (_any, GUESS_ATTEMPTS),
    (_same_skill, 8.0),
    (_same_kind, 8.0),
    (_same_place, 30.0),
)


def _kind(path: str) -> str:
    return next((kind for kind, globs in KINDS if matches(path, globs)), "")


def _chances(estimates: Estimates, seed: str | None) -> Chances:
    if seed is None:
        return {key: each.mean for key, each in estimates.items()}
    drawn = {key: _draw(each, f"{seed}/{each.tier}") for key, each in estimates.items()}
    return {(tier, later): min(drawn[tier, later], drawn[tier, False]) for tier, later in drawn}


def _draw(each: Estimate, seed: str) -> float:
    return random.Random(seed).betavariate(each.alpha, each.beta)  # a text gives the same draws in every process


def _cheapest(
    estimates: Estimates, chances: Chances, person_usd: float
) -> Callable[[Tier, tuple[Tier, ...], bool], Way]:
    """The best way that begins with a tier: what it costs, then if refused the best through those above it."""

    def begin(first: Tier, tiers: tuple[Tier, ...], escalated: bool) -> Way:
        rest = after(tiers[tiers.index(first) + 1 :])
        usd = estimates[first, escalated].usd + (1 - chances[first, escalated]) * rest.usd
        return Way((first, *rest.tiers), usd)

    def after(tiers: tuple[Tier, ...]) -> Way:
        ways = [begin(tier, tiers, True) for tier in _undominated(tiers, estimates, escalated=True)]
        return min([*ways, Way((), person_usd)], key=lambda way: way.usd)

    return begin


def _undominated(tiers: tuple[Tier, ...], estimates: Estimates, escalated: bool) -> tuple[Tier, ...]:
    """Without those that another one equals or beats in dollars and in mean chance, in one of them truly."""
    found = [estimates[tier, escalated] for tier in tiers]
    return tuple(each.tier for each in found if not any(_dominates(other, each) for other in found))


def _dominates(one: Estimate, other: Estimate) -> bool:
    as_good = one.usd <= other.usd and one.mean >= other.mean
    return as_good and (one.usd < other.usd or one.mean > other.mean)


def _why(best: Way, others: list[Way], estimates: Estimates, chances: Chances, seed: str | None) -> str:
    first = best.tiers[0]
    each = estimates[first, False]
    seen = f"{each.accepted} of {each.attempts} such attempts accepted" if each.attempts else "no such attempt yet"
    chance = f"p {chances[first, False]:.2f}" + ("" if seed is None else f" drawn around {each.mean:.2f}")
    then = " then ".join([*best.tiers[1:], "a person"])
    line = f"{first} ({seen}; {chance}, ${each.usd:.2f} each), then {then}: ${best.usd:.2f} per accepted change"
    if others:
        line += "; " + ", ".join(f"${way.usd:.2f} from {way.tiers[0]}" for way in others)
    return line + ("; what is free is tried first" if first == "procedure" else "")
