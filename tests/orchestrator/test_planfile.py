"""Plans: every documented error with its place and fix, all in one go; writing back touches nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import planfile
from orchestrator.errors import InputError
from orchestrator.records import Plan, TaskBudget
from tests.orchestrator.fuzz import malformed
from tests.orchestrator.helpers import BODY, FRONT, PLAN, ROOT, fingerprint, plan, problems

MNIST = (ROOT / "plans/mnist.md").read_text()


def with_body(old: str, new: str) -> str:
    assert old in BODY
    return f"---\n{FRONT}---\n{BODY.replace(old, new, 1)}"


def with_front(old: str, new: str) -> str:
    assert old in FRONT
    return f"---\n{FRONT.replace(old, new, 1)}---\n{BODY}"


def test_a_plan_becomes_tasks_with_sections_needs_and_targets() -> None:
    found = plan()
    first, second = found.tasks
    assert (first.id, first.title, first.section, first.skill, first.done) == (
        "a",
        "Do the first",
        "First",
        "tune",
        False,
    )
    assert (second.needs, second.targets, second.writes) == (("a",), ("t1",), ("notes/*.md", "r.toml"))
    assert (found.targets_of(second)[0].seeds, found.budget.minutes, found.sections) == (3, 5, ("First",))
    assert PLAN.split("\n")[first.line - 1].startswith("- [ ] `a`")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (with_body("- [ ] `a` Do", "- [ ] Do"), "plans/p.md:11: task id `` is not usable; write `- [ ] `short-id` t"),
        (with_body("`a` Do", "`A!` Do"), "plans/p.md:11: task id `A!` is not usable; write `- [ ] `short-id` title`"),
        (with_body("`b` Do", "`a` Do"), "plans/p.md:14: task id `a` stands twice; first on line 11; rename one"),
        (with_body("Do the first", ""), "plans/p.md:11: task `a` has no title; say in one line what is to be done"),
        (with_body("needs: a", "needs: aa"), "plans/p.md:16: needs unknown task `aa`; did you mean `a`?"),
        (with_body("needs: a", "needs: zz"), "plans/p.md:16: needs unknown task `zz`; tasks here: a, b"),
        (with_body("needs: a", "needs: b"), "plans/p.md:16: tasks need each other: b -> b; take one `needs` away"),
        (
            with_body("  - skill: tune\n", "  - skill: tune\n  - needs: b\n"),
            "plans/p.md:13: tasks need each other: a -> b -> a; take one `needs` away",
        ),
        (with_body("- skill:", "- skil:"), "plans/p.md:12: unknown key `skil` in task `a`; did you mean `skill`"),
        (with_body("  - skill: tune\n", ""), "plans/p.md:11: task `a` has no `skill`; add a line `  - skill: ...`"),
        (with_body("  - writes: r.toml\n", ""), "plans/p.md:11: task `a` has no `writes`; add a line `  - writes:"),
        (with_body("tune\n", "tune\n  - skill: x\n"), "plans/p.md:13: `skill` stands twice in task `a`; keep one"),
        (
            with_body("r.toml", "../r.toml"),
            "plans/p.md:13: `../r.toml` is outside the repository; use a path relative to the repository's root",
        ),
        (
            with_body("tune\n", "tune\n  - tier: huge\n"),
            "plans/p.md:13: unknown tier `huge`; tiers: procedure, haiku, sonnet, opus",
        ),
        (with_body("tune\n", "tune\n  - options: x\n"), "plans/p.md:13: option `x` has no `=`; write key=value"),
        (with_body("tune\n", "tune\n  - accept: a 'b\n"), "plans/p.md:13: accept: No closing quotation; balance the"),
        (with_body("targets: t1", "targets: t2"), "plans/p.md:17: missing target `t2`; add it to `targets:` in"),
        (
            with_body("  - targets: t1\n", ""),
            "plans/p.md:4: no task measures target `t1`; add `  - targets: t1` to the task that measures it",
        ),
        (with_front("title: A plan\n", ""), "plans/p.md:1: `title` is missing; add `title: ...`"),
        (with_front("budget: {min", "budgt: {min"), "plans/p.md:5: unknown key `budgt`; did you mean `budget`?"),
        (with_front("margin", "margn"), "plans/p.md:4: unknown key `targets.0.margn`; did you mean `margin`?"),
        (with_front("{minutes", "{minuts"), "plans/p.md:5: unknown key `budget.minuts`; did you mean `minutes`?"),
        (with_front("value: 1.0", "value: -1"), "plans/p.md:4: `targets.0.value`: input should be greater than or equ"),
        (with_front("value: 1.0", "value: .nan"), "plans/p.md:4: `targets.0.value`: input should be a finite number"),
        (with_front("seeds: 3", "seeds: 0"), "plans/p.md:4: `targets.0.seeds`: input should be greater than or equal"),
        (with_front("test_error_pct", "speed"), "plans/p.md:4: `targets.0.metric`: input should be 'test_error_pct'"),
        (with_front("at_most", "below"), "plans/p.md:4: `targets.0.direction`: input should be 'at_most', "),
        (with_front("recipe: r", "recipe: /r"), "plans/p.md:4: recipe `/r.toml` is outside the repository; use a"),
        (with_front("budget", "  - {id: t1}\nbudget"), "plans/p.md:5: `targets.1.metric` is missing; add `metric: .."),
        (with_front("{min", "{usd: 5, min"), "plans/p.md:5: the budget has `usd` but no `tokens`; add `tokens: ...`"),
        (with_front("{min", "{tokens: 5, min"), "plans/p.md:5: the budget has `tokens` but no `usd`; add `usd: ...`"),
        (f"---\n{FRONT}---\n# No tasks\n", "plans/p.md: has no task; add `- [ ] `id` title` with its `skill:`"),
    ],
)  # fmt: skip
def test_each_error_names_its_line_and_the_fix(text: str, expected: str) -> None:
    assert [each for each in problems(text) if each.startswith(expected)], problems(text)


MEANT = "is read as prose; write `  - "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (with_body("- [ ] `b`", "* [ ] `b`"), "plans/p.md:14: `* [ ]` begins no task; write `- [ ] `short-id` title`"),
        (with_body("- [ ] `b`", "1. [x] `b`"), "plans/p.md:14: `1. [x]` begins no task; write `- [ ] `short-id` tit"),
        (with_body("- [ ] `b`", "- [] `b`"), "plans/p.md:14: `- []` begins no task; write `- [ ] `short-id` title`"),
        (with_body("- [ ] `b`", " - [ ] `b`"), "plans/p.md:14: `- [ ]` begins no task; write `- [ ] `short-id` titl"),
        (with_body("- needs: a", "- Needs: a"), f"plans/p.md:16: `Needs:` {MEANT}needs: ...`"),
        (with_body("- needs: a", "- depends-on: a"), f"plans/p.md:16: `depends-on:` {MEANT}needs: ...`"),
        (with_body("- needs: a", "- needs : a"), f"plans/p.md:16: `needs :` {MEANT}needs: ...`"),
        (with_body("- needs: a", "- needs:a"), f"plans/p.md:16: `needs:` {MEANT}needs: ...`"),
        (with_body("- needs: a", "- Need: a"), f"plans/p.md:16: `Need:` {MEANT}needs: ...`"),
        (with_body("- needs: a", "* needs: a"), f"plans/p.md:16: `needs:` {MEANT}needs: ...`"),
        (with_body("  - needs: a", "\t- needs: a"), f"plans/p.md:16: `needs:` {MEANT}needs: ...`"),
        (
            with_body("notes/*.md, r.toml", "notes/*.md r.toml"),
            "plans/p.md:18: `notes/*.md r.toml` holds blanks; put a comma between two paths, and no remark behind them",
        ),
        (with_body("writes: r.toml", "writes: r.toml  # the loader"), "plans/p.md:13: `r.toml  # the loader` holds bl"),
    ],
)
def test_what_a_person_plausibly_writes_is_understood_or_refused(text: str, expected: str) -> None:
    assert [each for each in problems(text) if each.startswith(expected)], problems(text)


@pytest.mark.parametrize("forbidden", ["usd", "tokens"])
def test_a_budget_of_nothing_needs_no_other(forbidden: str) -> None:
    assert problems(with_front("{min", f"{{{forbidden}: 0, min")) == []


def test_a_run_of_before_keeps_a_plan_that_only_a_later_version_refuses(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text(with_front("{min", "{usd: 5, min"))
    with pytest.raises(InputError, match="no `tokens`"):
        planfile.load(tmp_path, "p.md")
    assert [task.id for task in planfile.begun(tmp_path, "p.md").tasks] == ["a", "b"]
    (tmp_path / "p.md").write_text(with_body("- [ ] `b`", "- [ ] `b b`"))
    with pytest.raises(InputError, match="not usable"):
        planfile.begun(tmp_path, "p.md")


@pytest.mark.parametrize("opening", ["some prose <!-- taken out:", "<!-- one --> <!-- taken out:", "<!-- x\n--> <!--"])
def test_a_comment_may_begin_anywhere_on_a_line(opening: str) -> None:
    text = with_body("- [ ] `b`", f"{opening}\n- [ ] `c` Dropped\n  - skill: tune\n-->\n- [ ] `b`")
    assert promises(plan(text)) == promises(plan())


def test_code_that_shows_how_a_comment_begins_begins_none() -> None:
    text = with_body("- [ ] `b`", "A comment begins with `<!--` here.\n\n- [ ] `b`")
    assert promises(plan(text)) == promises(plan())


def test_bullets_of_prose_are_prose() -> None:
    prose = "  - Note: begin here\n  - Tests: none: see [x](y)\n  - [ ] look twice\n  - we need it: all of it\n"
    between = "Two things to know:\n\n- Needs: patience\n* budget: small\n  - Writes: slowly\n- [x](y)\n\n"
    text = with_body("- [ ] `b`", f"{prose}\n{between}- [ ] `b`")
    assert problems(text) == []
    assert promises(plan(text)) == promises(plan())


def test_what_is_commented_out_is_no_task() -> None:
    out = "<!--\n- [ ] `c` Dropped\n  - skill: tune\n```\n  - writes: r.toml -->\n"
    text = with_body("- [ ] `b`", f"{out}<!-- one line -->\n- [ ] `b`")
    assert promises(plan(text)) == promises(plan())
    ticked = planfile.tick(text, "a", "accepted", "x (level 2)", True)
    assert out in ticked
    assert plan(ticked).task("a").done
    assert [task.id for task in plan(with_body("- [ ] `b`", "```\n<!--\n```\n- [ ] `b`")).tasks] == ["a", "b"]


def test_a_mark_of_byte_order_is_no_part_of_the_front_matter(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text(PLAN, encoding="utf-8-sig")
    found = planfile.load(tmp_path, "p.md")
    assert promises(found) == promises(plan())
    assert plan(planfile.tick(found.text, "a", "accepted", "x", True)).task("a").done


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "usd=5",
            "budget `usd=5` of task `a` is more than the plan's 1; lower it, or raise `budget: usd` in the front",
        ),
        ("minutes=6", "budget `minutes=6` of task `a` is more than the plan's 5; lower it, or raise `budget: minutes`"),
        ("0.5", "budget `0.5` names none of usd, tokens, minutes; write as in `budget: usd=0.50, tokens=20000, minut"),
        ("minute=1", "budget `minute=1` names none of usd, tokens, minutes; did you mean `minutes`?"),
        ("", "budget `` names none of usd, tokens, minutes; write as in `budget: usd=0.50"),
        ("usd=x", "budget `usd=x`: input should be a valid number, unable to parse string as a number; write as in"),
        ("usd=-1", "budget `usd=-1`: input should be greater than or equal to 0; write as in"),
        ("minutes=nan", "budget `minutes=nan`: input should be "),
        ("tokens=1.5", "budget `tokens=1.5`: input should be a valid integer"),
        ("usd=0.5, usd=0.6", "`usd` stands twice in the budget of task `a`; keep one"),
    ],
)
def test_a_tasks_budget_that_cannot_be_kept_names_its_line_and_the_fix(line: str, expected: str) -> None:
    text = with_body("  - skill: tune\n", f"  - skill: tune\n  - budget: {line}\n")
    text = text.replace("budget: {minutes: 5}", "budget: {usd: 1, tokens: 100, minutes: 5}")
    (found,) = problems(text)
    assert found.startswith(f"plans/p.md:13: {expected}"), found


def test_a_tasks_budget_limits_what_it_names_and_nothing_else() -> None:
    text = with_body("  - skill: tune\n", "  - skill: tune\n  - budget: minutes=2.5, tokens=0\n")
    found, wrong = planfile.read("plans/p.md", text)
    assert found is not None
    assert not wrong
    assert found.task("a").budget == TaskBudget(minutes=2.5, tokens=0, line=13)
    assert str(found.task("a").budget) == "0 tokens, 2.5 min"
    assert found.task("b").budget is None


def test_a_target_that_stands_twice_is_one_problem() -> None:
    line = FRONT.split("\n")[2]
    assert problems(with_front(line, f"{line}\n{line}")) == ["plans/p.md:5: target id `t1` stands twice; rename one"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("dataset: mnist", "dataset: cifar10"),
            "recipe `r.toml` is asked for on cifar10 and mnist; write a",
        ),
        (("recipe: r.toml", "recipe: a/r.toml"), "recipes a/r.toml and r.toml have the same name; rename one, or"),
        (("recipe: r.toml", "recipe: a/s.toml"), ""),
    ],
)
def test_what_the_gate_would_take_for_one_training_is_named(change: tuple[str, str], expected: str) -> None:
    line = next(line for line in FRONT.splitlines() if "id: t1" in line)
    other = line.replace("id: t1", "id: t2").replace(*change)
    text = with_front(line, f"{line}\n{other}").replace("  - targets: t1\n", "  - targets: t1, t2\n")
    assert [problem.partition(": ")[2][: len(expected)] for problem in problems(text)] == [expected] * bool(expected)


def test_all_errors_of_a_plan_come_in_one_go_in_order_of_place(tmp_path: Path) -> None:
    text = PLAN.replace("margin: 0.1", "margn: 0.1").replace("needs: a", "needs: x").replace("skill: tune", "skil: t")
    (tmp_path / "p.md").write_text(text)
    before = fingerprint(tmp_path)
    with pytest.raises(InputError) as caught:
        planfile.load(tmp_path, "p.md")
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)
    assert {4, 11, 12, 14, 15, 16} <= set(lines)
    assert str(caught.value).count("\n") == len(lines) - 1
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("path", ["a/b", "a/*.toml", "**", "a/.gitignore", "a..b/c"])
def test_paths_within_the_repository_are_inside(path: str) -> None:
    assert planfile.inside(path)


@pytest.mark.parametrize(
    "path", ["", ".", "/a", "~/a", "-a", "a/../b", "..", ".git/hooks/x", "a/.GIT/x", ".odyssey/key", "a\\b", "a\0b"]
)
def test_paths_that_lead_elsewhere_are_not_inside(path: str) -> None:
    assert not planfile.inside(path)


def test_tasks_in_fences_are_examples() -> None:
    example = "~~~\n```\n- [ ] `c` An example\n~~~\n```\n- [ ] `a` Another\n  - status: x\n```\n"
    text = with_body("## First\n", f"{example}## First\n")
    assert [task.id for task in plan(text).tasks] == ["a", "b"]
    ticked = planfile.tick(text, "a", "accepted", "x (level 2)", True)
    assert example in ticked
    assert plan(ticked).task("a").done


def test_a_thousand_times_more_tasks_are_read_in_seconds_not_hours() -> None:
    tasks = [
        f"- [ ] `t{n}` x\n  - skill: tune\n  - writes: r.toml\n  - needs: t{n - 1}, q{n}\n" for n in range(1, 4000)
    ]
    found = problems(f"---\n{FRONT}---\n" + "".join(tasks))
    assert len(found) == 4000 + 1  # every q, t0, and the target
    assert max(map(len, found)) < 1000


# Written back


def promises(found: Plan) -> list[dict[str, object]]:
    return [task.model_dump(exclude={"line", "agent", "done"}) for task in found.tasks]


STATUS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([PLAN, MNIST]), st.integers(0, 3), STATUS, st.booleans())
def test_ticking_keeps_every_promise_and_twice_is_once(text: str, index: int, status: str, done: bool) -> None:
    before = plan(text)
    task = before.tasks[index % len(before.tasks)]
    once = planfile.tick(text, task.id, status, "engineer (level 3)", done)
    after = plan(once)
    assert promises(after) == promises(before)
    assert (after.task(task.id).done, after.task(task.id).agent) == (done, "engineer")
    assert planfile.tick(once, task.id, status, "engineer (level 3)", done) == once
    assert planfile.tick(
        planfile.tick(text, task.id, "other", "x", not done), task.id, status, "y", done
    ) == once.replace("agent: engineer (level 3)", "agent: y")


def test_ticking_adds_two_lines_and_a_cross() -> None:
    ticked = planfile.tick(PLAN, "a", "accepted (procedure)", "worker (level 2)", True)
    lines = ticked.split("\n")
    new = ["  - agent: worker (level 2)", "  - status: accepted (procedure)"]
    assert lines[10] == "- [x] `a` Do the first"
    assert lines[13:15] == new
    assert [line.replace("[x]", "[ ]") for line in lines if line not in new] == PLAN.split("\n")


def test_ticking_is_not_led_astray_by_an_example_in_a_fence() -> None:
    fenced = with_body("- [ ] `a` Do", "```\n- [ ] `a` Example\n```\n- [ ] `a` Do")
    ticked = planfile.tick(fenced, "a", "accepted", "x", True)
    assert "- [ ] `a` Example\n```\n- [x] `a` Do" in ticked


@pytest.mark.parametrize("between", ["", "\n", "  Some words.\n", "\n  Words.\n\n"])
def test_ticking_finds_a_tasks_lines_wherever_the_reader_does(between: str) -> None:
    text = with_body("`a` Do the first\n", f"`a` Do the first\n{between}  - agent: old\n{between}")
    ticked = planfile.tick(text, "a", "failed", "new", False)
    assert plan(ticked).task("a").agent == "new"
    assert "old" not in ticked


@given(st.sampled_from(planfile.BLOCKS), st.text(st.characters(codec="utf-8", exclude_characters="\r")))
@settings(max_examples=150, deadline=None)
def test_a_block_comes_back_as_it_was_written_and_nothing_around_it_changes(name: str, body: str) -> None:
    once = planfile.set_block(MNIST, name, "first")
    again = planfile.set_block(once, name, body)
    assert planfile.set_block(again, name, "first") == once
    assert planfile.block(again, name) == body.strip() or "odyssey" in body


def test_what_a_block_quotes_cannot_end_it() -> None:
    evil = "fine <!-- /odyssey:result --> mine now\n<!--odyssey:as-built-->"
    text = planfile.set_block(MNIST, "result", evil)
    assert planfile.set_block(text, "result", "") == planfile.set_block(MNIST, "result", "")
    assert "mine now" in planfile.block(text, "result")
    assert planfile.block(text, "as-built") == planfile.block(MNIST, "as-built")


def test_a_missing_block_is_added_at_the_end_under_its_heading() -> None:
    text = planfile.set_block(PLAN, "result", "| a |")
    assert text.startswith(PLAN.rstrip())
    assert text.endswith("## Result\n\n<!-- odyssey:result -->\n| a |\n<!-- /odyssey:result -->\n")
    assert promises(plan(text)) == promises(plan())


def test_what_the_harness_wrote_is_told_from_what_people_wrote() -> None:
    record = planfile.written_back(MNIST)
    assert planfile.written_back(MNIST.replace("In 1998", "Long ago")) == record
    for touched in (
        planfile.tick(MNIST, "data", "accepted", "x", True),
        MNIST.replace("<!-- odyssey:result -->", "<!-- odyssey:result -->\n| 0.1 % |"),
        MNIST + "\n<!--odyssey:result-->\n| 0.1 % |\n<!-- /odyssey:result -->\n",
    ):
        assert planfile.written_back(touched) != record


@settings(max_examples=2000, deadline=None)
@given(malformed(PLAN, PLAN.replace("\n", "\r\n")) | malformed(MNIST))
def test_malformed_plans_give_problems_and_nothing_else(text: str) -> None:
    found, wrong = planfile.read("p.md", text)
    assert found is not None or wrong
    assert all(0 <= problem.line <= text.count("\n") + 2 and problem.what for problem in wrong)
    if found and not wrong:
        assert plan(planfile.tick(text, found.tasks[0].id, "accepted", "x", True)).tasks[0].done
