"""Agents, skills and the graph that they form: one failing example a rule, and malformed files by the thousand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from orchestrator import library as lib
from orchestrator.errors import InputError
from orchestrator.library import Library
from orchestrator.lint import check_procedures
from tests.orchestrator.fuzz import malformed
from tests.orchestrator.helpers import BODY, FRONT, ROOT, agent, plan, skill, small_library, write

AGENT = (ROOT / "agents/engineer.md").read_text()
SKILL = (ROOT / "skills/tune-recipe/SKILL.md").read_text()
AGENT_PATH, SKILL_PATH = "agents/engineer.md", "skills/tune-recipe/SKILL.md"


def of_agent(old: str, new: str) -> list[str]:
    assert old in AGENT
    return [str(problem) for problem in lib.parse_agent(AGENT_PATH, AGENT.replace(old, new, 1))[1]]


def of_skill(old: str, new: str) -> list[str]:
    assert old in SKILL
    return [str(problem) for problem in lib.parse_skill(SKILL_PATH, SKILL.replace(old, new, 1))[1]]


def graph(made: Library) -> list[str]:
    return [str(problem) for problem in lib.check_graph(made)]


def with_agent(name: str, **changed: object) -> Library:
    made = small_library()
    return Library({**made.agents, name: made.agents[name].model_copy(update=changed)}, made.skills)


def test_the_repositorys_own_library_passes_every_rule() -> None:
    loaded = lib.load(ROOT)
    assert graph(loaded) == []
    assert loaded.chief.level == 0
    assert check_procedures(loaded, ROOT) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: engineer", "name: other", "agents/engineer.md:2: name `other` differs from the file's; rename one"),
        ("name: engineer", "name: Engineer", "agents/engineer.md:2: `name`: string should match pattern"),
        ("model: sonnet", "model: gpt", "agents/engineer.md:5: `model`: input should be 'haiku', 'sonnet' or 'opus'"),
        ("level: 3", "level: 6", "agents/engineer.md:7: `level`: input should be less than or equal to 5"),
        ("level: 3", "levl: 3", "agents/engineer.md:7: unknown key `levl`; did you mean `level`?"),
        ("level: 3", "max-turns: 3", "agents/engineer.md:7: unknown key `max-turns`; did you mean `maxTurns`?"),
        ("level: 3", "permissionMode: plan", "agents/engineer.md:7: `permissionMode`: input should be 'default'"),
        ("level: 3", "effort: high", "agents/engineer.md:7: unknown key `effort`; known keys: ceiling, color, "),
        ("tools: [read,", "tools: [raed,", "agents/engineer.md:4: unknown tool `raed`; did you mean `read`?"),
        ("tools: [read,", "tools: [x1y2z3,", "agents/engineer.md:4: unknown tool `x1y2z3`; tools: read, list, write"),
        ("model: sonnet\n", "", "agents/engineer.md:1: `model` is missing; add `model: ...`"),
    ],
)
def test_each_error_of_an_agent_names_its_line_and_the_fix(old: str, new: str, expected: str) -> None:
    assert [each for each in of_agent(old, new) if each.startswith(expected)], of_agent(old, new)


def test_an_agents_own_limit_of_turns_binds_where_it_is_the_lower_one() -> None:
    limited, wrong = lib.parse_agent(AGENT_PATH, AGENT.replace("level: 3", "level: 3\nmaxTurns: 3"))
    free, _ = lib.parse_agent(AGENT_PATH, AGENT)
    assert limited
    assert free
    assert wrong == []
    assert [limited.turns(2), limited.turns(50), free.turns(50), free.turns(1000)] == [2, 3, 50, 1000]


def test_an_agent_without_a_prompt_is_refused() -> None:
    front = AGENT[: AGENT.index("---\n", 4) + 4]
    wrong = lib.parse_agent(AGENT_PATH, front)[1]
    assert [str(each) for each in wrong] == [
        f"{AGENT_PATH}:{front.count(chr(10)) + 1}: has no system prompt; write it below the front matter"
    ]


def test_tools_may_be_a_list_or_a_comma_string_less_what_is_disallowed() -> None:
    as_text = AGENT.replace(
        "[read, list, search, write, edit, run, delegate]", "read, edit, run\ndisallowedTools: edit"
    )
    found, wrong = lib.parse_agent(AGENT_PATH, as_text)
    assert (wrong, found and found.tools) == ([], ("read", "run"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: tune-recipe", "name: x", f"{SKILL_PATH}:2: name `x` differs from its folder's; rename one"),
        ("license:", "licence:", f"{SKILL_PATH}:4: unknown key `licence`; did you mean `license`?"),
        ("  risk: low", "  rsk: low", f"{SKILL_PATH}:10: unknown metadata `rsk`; did you mean `risk`?"),
        ("  risk: low", "  risk: none", f"{SKILL_PATH}:10: unknown risk `none`; low, medium or high"),
        ("mlcore/recipes/*.toml plans", "/etc plans", f"{SKILL_PATH}:8: `/etc` is outside the repository; use globs"),
        ('minutes: "5"', "minutes: soon", f"{SKILL_PATH}:12: minutes is not a number; for example `minutes: '5'`"),
        ('minutes: "5"', "minutes: 5", f"{SKILL_PATH}:12: `metadata.minutes`: input should be a valid string"),
        ("read list", "raed list", f"{SKILL_PATH}:6: unknown tool `raed`; did you mean `read`?"),
        ("scripts/proc", "../proc", f"{SKILL_PATH}:11: procedure is outside the skill's folder; for example"),
        ("Run the search", "\n" * 500 + "Run", f"{SKILL_PATH}:14: body is over 500 lines; move detail to references/"),
    ],
)
def test_each_error_of_a_skill_names_its_line_and_the_fix(old: str, new: str, expected: str) -> None:
    assert [each for each in of_skill(old, new) if each.startswith(expected)], of_skill(old, new)


def test_commas_between_a_skills_tools_and_writes_take_nothing_away() -> None:
    with_commas = SKILL.replace("read list edit run", "read, list,edit run").replace("*.toml plans", "*.toml, plans")
    assert with_commas.count(",") == SKILL.count(",") + 3
    found, wrong = lib.parse_skill(SKILL_PATH, with_commas)
    assert (wrong, found) == ([], lib.parse_skill(SKILL_PATH, SKILL)[0])


# The graph

BROKEN: dict[str, tuple[Callable[[], Library], str]] = {
    "_one_chief": (
        lambda: with_agent("left", level=0),
        "agents: exactly one agent must have level 0, found: chief, left; set `level`",
    ),
    "_names_exist": (
        lambda: with_agent("worker", skills=("tun",)),
        "agents/worker.md: unknown skill `tun`; did you mean `tune`?",
    ),
    "_delegation_goes_down": (
        lambda: with_agent("worker", delegates_to=("left",), tools=("run", "delegate")),
        "agents/worker.md: level 2 delegates to `left` of level 1; delegation goes one or two levels down",
    ),
    "_delegates_have_the_tool": (
        lambda: with_agent("left", tools=("read", "run")),
        "agents/left.md: delegates but lacks the tool for it; add `delegate` to `tools`",
    ),
    "_runners_have_a_shell": (
        lambda: with_agent("junior", tools=("read",)),
        "agents/junior.md: must run commands for tune; add `run` to `tools`",
    ),
    "_reviewers_cannot_write": (
        lambda: Library(
            with_agent("worker", skills=("tune", "review-change"), tools=("run", "edit")).agents,
            {**small_library().skills, "review-change": skill("review-change", commands=())},
        ),
        "agents/worker.md: reviews but can write; take `write` and `edit` away",
    ),
    "_all_reachable": (
        lambda: with_agent("right", delegates_to=()),
        "agents/writer.md: `writer` is not reachable from level 0; let an agent above delegate to it, or delete it",
    ),
    "_tiers_are_left": (
        lambda: Library(small_library().agents, {**small_library().skills, "tune": skill("tune", ceiling="haiku")}),
        "agents/worker.md: model `sonnet` and `tune` leave no tier between their floors and ceilings; "
        "lower a `floor`, raise a `ceiling`, or take the skill away",
    ),
    "_skills_are_held": (
        lambda: Library(small_library().agents, {**small_library().skills, "draw": skill("draw")}),
        "skills/draw/SKILL.md: no agent holds this skill; add it to an agent's `skills`",
    ),
}


def test_the_small_library_of_these_tests_passes() -> None:
    assert graph(small_library()) == []


@pytest.mark.parametrize("rule", [rule.__name__ for rule in lib.GRAPH_RULES])
def test_each_rule_of_the_graph_finds_its_own_example(rule: str) -> None:
    broken, expected = BROKEN[rule]
    found = [str(each) for each in next(each for each in lib.GRAPH_RULES if each.__name__ == rule)(broken())]
    assert found == [expected]
    assert expected in graph(broken())


@pytest.mark.parametrize("level", [1, 4])
def test_delegation_to_the_same_level_or_over_two_is_refused(level: int) -> None:
    made = with_agent("left", delegates_to=("worker", "junior", "odd"))
    made = Library({**made.agents, "odd": agent("odd", level)}, made.skills)
    assert any(f"delegates to `odd` of level {level}" in each for each in graph(made))


def test_an_unknown_agent_to_delegate_to_is_named_with_the_nearest() -> None:
    made = with_agent("right", delegates_to=("writer", "wrker"))
    assert "agents/right.md: delegates to unknown agent `wrker`; did you mean `worker`?" in graph(made)


# A plan against the library


def of_plan(text: str, root: Path, made: Library | None = None) -> list[str]:
    return [str(each) for each in lib.check_plan(plan(text), made or small_library(), root)]


def test_a_plan_is_held_against_the_library_and_the_files(tmp_path: Path) -> None:
    text = f"---\n{FRONT}---\n{BODY}"
    write(tmp_path, {"r.toml": ""})
    narrow = small_library()
    narrow = replace(narrow, skills={**narrow.skills, "tune": skill("tune", "r.toml", "notes/a.md")})
    assert of_plan(text, tmp_path) == []
    cases = {
        text.replace("tune", "tun", 1): "plans/p.md:11: unknown skill `tun`; did you mean `tune`?",
        text: "plans/p.md:14: `notes/*.md` is beyond what the skill may write; `tune` may write r.toml, notes/a.md",
        text.replace("- needs: a", "- agent: worke"): "plans/p.md:14: unknown agent `worke`; did you mean `worker`?",
        text.replace("- needs: a", "- agent: writer"): "plans/p.md:14: agent `writer` lacks the skill `tune`",
        text.replace(
            "- needs: a", "- tier: procedure"
        ): "plans/p.md:14: tier `procedure` is pinned, but `tune` carries none",
        text.replace("[ ] `b`", "[x] `b`").replace("notes/*.md", "notes/a.md"): (
            "plans/p.md:14: drift: `b` is ticked but `notes/a.md` is missing; untick the task or bring the file back"
        ),
        text.replace(
            "recipe: r.toml", "recipe: s.toml"
        ): "plans/p.md: recipe `s.toml` of `t1` does not exist; write it",
    }
    for changed, expected in cases.items():
        found = of_plan(changed, tmp_path, narrow)
        assert [each for each in found if each.startswith(expected)], found


def test_names_that_no_file_system_takes_are_missing_files_and_no_crash(tmp_path: Path) -> None:
    text = f"---\n{FRONT}---\n{BODY}".replace("recipe: r.toml", f"recipe: {'x' * 299}")
    assert any("does not exist" in each for each in of_plan(text, tmp_path))
    done = text.replace("[ ] `a`", "[x] `a`").replace("writes: r.toml", f"writes: {'y' * 999}", 1)
    assert any("drift" in each for each in of_plan(done, tmp_path))


def test_all_problems_of_all_files_come_in_one_go(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "agents/engineer.md": AGENT.replace("level: 3", "level: x"),
            "agents/bad.md": "no front matter",
            "agents/latin.md": b"\xff",
            "skills/tune-recipe/SKILL.md": SKILL,
            "skills/long/SKILL.md": SKILL.replace("name: tune-recipe", "name: long").replace("scripts/proc", "p" * 300),
        },
    )
    with pytest.raises(InputError) as caught:
        lib.load(tmp_path)
    places = {problem.path for problem in caught.value.problems}
    assert places == {f"agents/{n}.md" for n in ("engineer", "bad", "latin")} | {SKILL_PATH, "skills/long/SKILL.md"}


def test_procedures_are_read_before_anything_runs(tmp_path: Path) -> None:
    made = small_library()
    assert [str(each) for each in check_procedures(made, tmp_path)] == [
        "skills/tune/p.toml: can't be read (No such file or directory); check the path"
    ]
    write(tmp_path, {"skills/tune/p.toml": "[[step]]\nsay = 'x'\ntool = 'rn'\n[finish]\nsay = 'done'\n"})
    assert [str(each) for each in check_procedures(made, tmp_path)] == [
        "skills/tune/p.toml: unknown tool `rn`; did you mean `run`?"
    ]
    write(tmp_path, {"skills/tune/p.toml": "[[step"})
    assert str(check_procedures(made, tmp_path)[0]).startswith("skills/tune/p.toml:1: TOML: ")


@settings(max_examples=2000, deadline=None)
@given(malformed(AGENT, AGENT.replace("[", "").replace("]", "")))
def test_malformed_agents_give_problems_and_nothing_else(text: str) -> None:
    found, wrong = lib.parse_agent(AGENT_PATH, text)
    assert found is not None or wrong
    assert all(problem.what and problem.line <= text.count("\n") + 2 for problem in wrong)


@settings(max_examples=2000, deadline=None)
@given(malformed(SKILL))
def test_malformed_skills_give_problems_and_nothing_else(text: str) -> None:
    found, wrong = lib.parse_skill(SKILL_PATH, text)
    assert (found is None) == bool(wrong)
    assert all(problem.what and problem.line <= text.count("\n") + 2 for problem in wrong)
