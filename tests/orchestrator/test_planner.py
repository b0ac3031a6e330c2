"""The planner: chains go down what agents may delegate, the same every time, and no task is given to nobody."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import library as lib
from orchestrator import planner, views
from orchestrator.errors import InputError
from orchestrator.house import State
from orchestrator.library import Library
from orchestrator.lint import read_plan
from orchestrator.records import Agent, Assignment
from tests.orchestrator import brains
from tests.orchestrator.helpers import BODY, FRONT, PLAN, ROOT, agent, library, plan, skill, small_library, write

SKILLS = ("tune", "write")
THIRD = "".join(f"- [ ] `{name}` Do {name}\n  - skill: tune\n  - writes: r.toml\n" for name in ("x", "y", "z"))
LARGE = f"{PLAN}{THIRD}"


def by_task(text: str, made: Library | None = None) -> dict[str, Assignment]:
    return {each.task: each for each in planner.assign(plan(text), made or small_library())}


def body(old: str, new: str) -> str:
    return f"---\n{FRONT}---\n{BODY.replace(old, new, 1)}"


def large(old: str, new: str) -> str:
    return body(old, new) + THIRD


def test_a_task_goes_down_the_shortest_chain_to_the_most_junior_who_can() -> None:
    found = by_task(LARGE)
    assert found["a"].chain == ("chief", "left", "junior")
    assert found["a"].agent == "junior"
    assert found["a"].writes == ("r.toml",)


def test_a_small_plan_has_two_levels_and_the_same_people_and_says_why_with_its_numbers() -> None:
    small, large = by_task(PLAN), by_task(LARGE)
    assert [small[name].chain for name in "ab"] == [("chief", "junior")] * 2
    assert [(small[name].agent, small[name].tiers) for name in "ab"] == [
        (large[name].agent, large[name].tiers) for name in "ab"
    ]
    assert small["a"].why == (
        "the most junior agent with `tune` on the shortest chain; two levels, the chief and those who do the tasks: "
        "2 tasks, 1 section, 1 level of risk; small is up to 4 tasks, 3 sections, 2 levels of risk"
    )


MORE = "\n- [ ] `{0}` Do {0}\n  - skill: tune\n  - writes: {1}\n"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("".join(MORE.format(name, "r.toml") for name in "cde"), "5 tasks, 1 section, 1 level of risk; over 4 tasks"),
        (
            "".join(f"\n## {name}\n{MORE.format(name, 'r.toml')}" for name in "cde"),
            "5 tasks, 4 sections, 1 level of risk; over 4 tasks, 3 sections",
        ),
        (
            MORE.format("c", "docs/c.md") + MORE.format("d", "mlcore/d.py"),
            "4 tasks, 1 section, 3 levels of risk; over 2 levels of risk",
        ),
    ],
)
def test_a_plan_that_is_over_one_measure_of_a_small_one_goes_by_leads(more: str, why: str) -> None:
    found = by_task(PLAN + more)["a"]
    assert found.chain == ("chief", "left", "junior")
    assert found.why.endswith(f"leads between the chief and those who do the tasks: {why}")


def test_a_plan_at_the_edge_of_small_is_small() -> None:
    edge = f"\n## Second\n{MORE.format('c', 'r.toml')}\n## Third\n{MORE.format('d', 'docs/d.md')}"
    deep = planner.depth(plan(PLAN + edge), small_library())
    assert (deep.small, "4 tasks, 3 sections, 2 levels of risk; small" in deep.why) == (True, True)


def test_a_pinned_agent_does_its_task() -> None:
    found = by_task(body("- skill: tune\n", "- skill: tune\n  - agent: worker\n"))
    assert found["a"].chain == ("chief", "worker")
    assert found["a"].why.startswith("pinned in the plan; two levels")
    assert found["b"].agent == "junior"


def test_a_section_goes_to_the_lead_who_reaches_the_most_of_it() -> None:
    made = small_library()
    made = Library({**made.agents, "chief": agent("chief", 0, "right", "left")}, made.skills)
    found = by_task(large("skill: tune", "skill: write"), made)
    assert found["a"].chain == ("chief", "left", "worker")  # `right` comes first, but reaches only this one
    assert found["b"].chain[1] == "left"


def test_what_a_sections_lead_cannot_reach_goes_by_another() -> None:
    made = small_library()
    made = Library({**made.agents, "worker": agent("worker", 2, skills=("tune",))}, made.skills)
    assert by_task(large("skill: tune", "skill: write"), made)["a"].chain == ("chief", "right", "writer")


def test_the_ladder_begins_with_the_procedure_and_climbs_from_the_agents_own_model() -> None:
    assert by_task(PLAN)["a"].tiers == ("procedure", "haiku", "sonnet", "opus")
    assert by_task(body("skill: tune", "skill: write"))["a"].tiers == ("sonnet", "opus")
    assert by_task(body("tune\n", "tune\n  - tier: opus\n"))["a"].tiers == ("opus",)


def test_every_task_that_nobody_can_do_is_named_with_its_line() -> None:
    made = small_library()
    lonely = {**made.agents, "left": made.agents["left"].model_copy(update={"delegates_to": ()})}
    with pytest.raises(InputError) as caught:
        planner.assign(plan(body("- needs: a", "- agent: worker")), Library(lonely, made.skills))
    assert str(caught.value).splitlines() == [
        "plans/p.md:11: an agent with the skill `tune` can't be reached from level 0; mend `delegates_to`",
        "plans/p.md:14: agent `worker` can't be reached from level 0; mend `delegates_to`",
    ]


@st.composite
def libraries(draw: st.DrawFn) -> Library:
    """Any hierarchy that goes down; skills anywhere."""
    levels = [[f"l{level}n{number}" for number in range(draw(st.integers(1, 3)))] for level in range(1, 5)]
    agents: list[Agent] = []
    for level, names in enumerate([["chief"], *levels]):
        lower = [name for below in levels[level : level + 2] for name in below]
        for name in names:
            below = draw(st.lists(st.sampled_from(lower), unique=True)) if lower else []
            held = tuple(draw(st.lists(st.sampled_from(SKILLS), unique=True)))
            agents.append(agent(name, level, *below, skills=held))
    return library(agents, *map(skill, SKILLS))


@settings(max_examples=100, deadline=None)
@given(libraries())
def test_chains_follow_delegation_and_are_the_same_every_time(made: Library) -> None:
    text = large("skill: tune", "skill: write")
    try:
        found = planner.assign(plan(text), made)
    except InputError:
        return
    assert found == planner.assign(plan(text), made)
    for each in found:
        assert each.chain[0] == "chief"
        assert each.skill in made.agents[each.agent].skills
        assert all(
            below in made.agents[above].delegates_to for above, below in zip(each.chain, each.chain[1:], strict=False)
        )
    small = planner.assign(plan(body("skill: tune", "skill: write")), made)
    assert [each.chain for each in small] == [("chief", each.agent)[-len(each.chain) :] for each in found[:2]]


def test_a_wide_and_deep_hierarchy_is_searched_in_no_time() -> None:
    names = [[f"l{level}n{number}" for number in range(40)] for level in range(1, 6)]
    agents = [agent("chief", 0, *names[0])]
    for level, row in enumerate(names, 1):
        agents += [agent(name, level, *(names[level] if level < 5 else ())) for name in row]
    with pytest.raises(InputError):
        planner.assign(plan(), library(agents, skill("tune")))


def test_the_tree_shows_each_agent_once_above_its_tasks() -> None:
    assignments = planner.assign(plan(LARGE), small_library())
    assert planner.tree(plan(LARGE), assignments).splitlines()[:5] == [
        "- chief",
        "  - left",
        "    - junior",
        "      - `a` Do the first (tune; procedure, then haiku, then sonnet, then opus)",
        "      - `b` Do the second (tune; procedure, then haiku, then sonnet, then opus)",
    ]


def test_a_procedure_costs_nothing_and_minutes_come_from_earlier_runs_when_there_are_any() -> None:
    first, made = planner.assign(plan(), small_library())[0], small_library()
    assert planner.estimate(first, made.skills["tune"], {}) == planner.Estimate(0.0, 5.0, "the skill's own figure")
    assert planner.estimate(first, made.skills["tune"], {"tune": 2.0}).minutes == 2.0
    read = planner.estimate(first, made.skills["tune"], {}, 20.0)
    assert (read.minutes, read.minutes_from) == (25.0, "the skill's own figure and its reviews'")
    assert planner.estimate(first, made.skills["tune"], {"tune": 2.0}, 20.0).minutes == 2.0  # theirs are in it
    pinned = first.model_copy(update={"tiers": ("opus",)})
    assert math.isnan(planner.estimate(pinned, made.skills["tune"], {}).usd)


def test_the_estimate_counts_who_will_read_what_a_model_does_and_says_how_deep_the_plan_goes(tmp_path: Path) -> None:
    write(tmp_path, brains.files(2))
    loaded, made, assignments = read_plan(tmp_path, "plans/p.md")
    costs = views.estimates(State.of(tmp_path), loaded, made, assignments)
    work, reading = made.skills["note"].minutes, made.skills["review-change"].minutes
    assert [(cost["reviews"], cost["minutes"]) for cost in costs.values()] == [(1, work + reading)] * 2
    why = planner.depth(loaded, made).why
    lines = views.plan(loaded, why, assignments, costs).splitlines()
    assert lines[2:5] == [why, "- chief", "  - worker"]
    assert f"{work + reading:.1f} min, 1 review  (from the skill's own figure and its reviews')" in lines[-4]
    assert lines[-2].endswith(f"{2 * (work + reading):.1f} min, 2 reviews")


def test_the_repositorys_plan_is_handed_out_the_same_way_twice() -> None:
    from orchestrator import planfile

    loaded = planfile.load(ROOT, "plans/mnist.md")
    assert planner.assign(loaded, lib.load(ROOT)) == planner.assign(loaded, lib.load(ROOT))
