"""The router: the cheapest way that the outcomes allow, within floors and ceilings, and the same one twice."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import router
from orchestrator.records import TIERS, Tier
from orchestrator.router import Case, PastAttempt
from tests.orchestrator.helpers import agent, skill, task

MODELS: tuple[Tier, ...] = TIERS[1:]
CASE = Case("tune", ("recipes",))


def tried(
    tier: Tier, accepted: int, of: int, usd: float, case: Case = CASE, escalated: bool = False
) -> list[PastAttempt]:
    return [PastAttempt(case, tier, escalated, number < accepted, usd) for number in range(of)]


cases = st.builds(Case, st.sampled_from(["tune", "write"]), st.sampled_from([(), ("recipes",), ("code", "measured")]))
attempts = st.builds(
    PastAttempt, cases, st.sampled_from(TIERS), st.booleans(), st.booleans(), st.floats(0, 5, allow_nan=False)
)
tables = st.lists(attempts, max_size=60)
ladders = st.sets(st.sampled_from(TIERS), min_size=1).map(lambda found: tuple(t for t in TIERS if t in found))
seeds = st.one_of(st.none(), st.text(max_size=8))


@settings(max_examples=150, deadline=None)
@given(ladders, tables, cases, seeds)
def test_no_tier_is_picked_that_another_open_one_equals_or_beats(
    tiers: tuple[Tier, ...], past: list[PastAttempt], case: Case, seed: str | None
) -> None:
    estimates = router.estimate_all(tiers, past, case)
    ladder = router.choose(tiers, past, case, seed).tiers
    open_tiers, escalated = tiers, False
    for picked in ladder:
        mine = estimates[picked, escalated]
        for other in (estimates[tier, escalated] for tier in open_tiers if picked != "procedure"):
            better = other.usd <= mine.usd and other.mean >= mine.mean
            assert not (better and (other.usd < mine.usd or other.mean > mine.mean))
        open_tiers, escalated = open_tiers[open_tiers.index(picked) + 1 :], True


@settings(max_examples=150, deadline=None)
@given(ladders, tables, cases, seeds, st.randoms(use_true_random=False))
def test_a_ladder_climbs_within_what_is_permitted_and_is_the_same_for_the_same_outcomes(
    tiers: tuple[Tier, ...], past: list[PastAttempt], case: Case, seed: str | None, rng: random.Random
) -> None:
    found = router.choose(tiers, past, case, seed)
    assert found.tiers == tuple(tier for tier in tiers if tier in found.tiers)
    assert ("procedure" in tiers) == (found.tiers[0] == "procedure")
    assert found == router.choose(tiers, past, case, seed)
    assert "\n" not in found.why
    assert all(way.usd >= found.usd for way in found.others)
    rng.shuffle(past)
    assert router.choose(tiers, past, case, seed).usd == pytest.approx(found.usd)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.floats(0.05, 0.95)] * 3), st.tuples(st.floats(0.01, 0.2), st.floats(0.2, 0.5), st.floats(0.5, 4.0))
)
def test_with_the_chances_known_the_way_is_the_cheapest_of_all_ways(
    chances: tuple[float, ...], usd: tuple[float, ...]
) -> None:
    """2,000 attempts a tier say what its chance is; every subset of the tiers is priced by hand."""
    past = [
        each
        for tier, chance, cost in zip(MODELS, chances, usd, strict=True)
        for escalated in (False, True)
        for each in tried(tier, round(2000 * chance), 2000, cost, escalated=escalated)
    ]
    found = router.choose(MODELS, past, CASE)
    best = min(_price(ladder, chances, usd) for size in (1, 2, 3) for ladder in combinations(range(3), size))
    assert found.usd == pytest.approx(best, rel=0.02)


def _price(ladder: tuple[int, ...], chances: tuple[float, ...], usd: tuple[float, ...]) -> float:
    spent, left = 0.0, 1.0
    for index in ladder:
        spent += left * usd[index]
        left *= 1 - chances[index]
    return spent + left * router.PERSON_USD


TRUTHS = {  # chance and dollars a tier; the tier that a run should begin with, worked out with _price
    "the cheap tier does": ((0.85, 0.95, 0.97), (0.03, 0.4, 0.9), "haiku"),
    "the cheap tier never does and is not cheap": ((0.02, 0.9, 0.92), (0.3, 0.4, 1.5), "sonnet"),
    "only the dear tier does": ((0.01, 0.05, 0.9), (0.8, 1.5, 1.0), "opus"),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_simulated_outcomes_bring_it_to_the_best_tier(truth: str) -> None:
    chances, usd, best = TRUTHS[truth]
    world, past, firsts = random.Random(truth), list[PastAttempt](), list[Tier]()
    for number in range(300):
        ladder = router.choose(MODELS, past, CASE, seed=f"run/{number}").tiers
        firsts.append(ladder[0])
        for place, tier in enumerate(ladder):
            accepted = world.random() < chances[MODELS.index(tier)]
            past.append(PastAttempt(CASE, tier, place > 0, accepted, usd[MODELS.index(tier)]))
            if accepted:
                break
    assert Counter(firsts[-100:])[best] >= 85, Counter(firsts[-100:])
    assert router.choose(MODELS, past, CASE).tiers[0] == best


def test_a_tier_with_little_behind_it_is_tried_now_and_then() -> None:
    past = tried("haiku", 0, 1, 0.4) + tried("sonnet", 55, 60, 0.5)
    firsts = Counter(router.choose(MODELS, past, CASE, seed=str(seed)).tiers[0] for seed in range(200))
    assert firsts["sonnet"] > firsts["haiku"] > 10


def test_what_is_free_is_tried_first_whatever_it_did_before() -> None:
    past = tried("procedure", 0, 50, 0.0)
    found = router.choose(TIERS, past, CASE)
    assert found.tiers[:2] == ("procedure", "haiku")
    assert found.why.startswith("procedure (0 of 50 such attempts accepted; p 0.0")


def test_a_hopeless_ladder_ends_with_a_person_instead_of_with_the_dearest_tier() -> None:
    past = [
        each for tier in MODELS for escalated in (False, True) for each in tried(tier, 0, 400, 1.0, escalated=escalated)
    ]
    found = router.choose(MODELS, past, CASE)
    assert len(found.tiers) == 1
    assert "then a person" in found.why


def test_the_decision_is_told_in_one_line() -> None:
    past = tried("haiku", 9, 12, 0.05) + tried("opus", 4, 4, 0.7)
    assert router.choose(MODELS, past, CASE).why == (
        "haiku (9 of 12 such attempts accepted; p 0.75, $0.05 each), then sonnet then opus then a person: "
        "$0.25 per accepted change; $1.19 from opus"
    )


def test_outcomes_of_other_skills_say_something_and_those_of_the_same_kind_say_more() -> None:
    guess = router.estimate("haiku", [], CASE, False).mean
    other = router.estimate("haiku", tried("haiku", 0, 5, 0.1, Case("write")), CASE, False).mean
    skilled = router.estimate("haiku", tried("haiku", 0, 5, 0.1, Case("tune", ("code",))), CASE, False).mean
    same = router.estimate("haiku", tried("haiku", 0, 5, 0.1), CASE, False).mean
    assert guess > other > skilled > same


def test_floors_and_ceilings_of_agent_and_skill_bound_the_ladder() -> None:
    tune, senior = skill("tune", procedure="p.toml"), agent("a", 2, model="sonnet")
    assert router.permitted(task(), tune, senior) == ("procedure", "sonnet", "opus")
    assert router.permitted(task(), tune, agent("a", 2, model="haiku", ceiling="sonnet")) == TIERS[:3]
    assert router.permitted(task(), skill("tune", floor="opus"), senior) == ("opus",)
    assert router.permitted(task(), skill("tune", ceiling="haiku"), senior) == ()
    assert router.permitted(task(tier="opus"), tune, senior) == ("opus",)


def test_a_task_is_known_by_the_kinds_of_files_that_it_writes_and_by_whether_it_is_measured() -> None:
    assert router.case_of(task(writes=("mlcore/kernels/gemm.py", "tests/mlcore/test_x.py"))).features == (
        "kernels",
        "tests",
    )
    assert router.case_of(task(writes=("mlcore/recipes/a.toml",), targets=("t1",))).features == ("recipes", "measured")
    assert router.case_of(task(writes=("plans/mnist.md",))) == Case("tune", ("prose",))
