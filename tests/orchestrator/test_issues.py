"""Issues and plans: twice is as good as once, both sides' edits live, what differs is named, and text stays text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import drafts, planfile
from orchestrator.errors import ForgeError, InputError
from orchestrator.issues import inward, outward
from orchestrator.issues.inward import Imported
from orchestrator.issues.issue import Issue, Take, from_json, printable
from orchestrator.issues.merge import merge
from orchestrator.issues.store import Export, GitHub, opened
from orchestrator.records import Plan
from tests.orchestrator.fake_github import REPO, FakeGitHub, running
from tests.orchestrator.helpers import PLAN, plan, repository, skill, write
from tests.orchestrator.test_cli_errors import FILES, orchestrate, refused

PATH = "plans/i.md"
SKILLS = {"implement-change": skill("implement-change", "mlcore/**"), "tune": skill("tune", "r.toml")}


def issue(number: int, title: str = "", body: str = "", **more: object) -> Issue:
    return Issue.model_validate({"number": number, "title": title or f"Do {number}", "body": body, **more})


def brought_in(text: str, *issues: Issue, take: Take = "") -> Imported:
    return inward.bring_in(text, PATH, REPO, issues, SKILLS, take)


def read(text: str) -> Plan:
    found, problems = planfile.read(PATH, text)
    assert problems == []
    assert found is not None
    return found


# In


def test_issues_become_tasks_with_sections_skills_and_needs() -> None:
    done = brought_in(
        "",
        issue(3, "Make it fast", "Blocked by #7.\nIt is slow.", milestone="Speed", labels=("skill: tune", "bug")),
        issue(7, "Measure it", state="closed", milestone="Speed"),
        issue(9, "Say how"),
    )
    found = read(done.text)
    assert [(t.id, t.title, t.section, t.skill, t.writes, t.needs, t.done) for t in found.tasks] == [
        ("issue-3", "Make it fast", "Speed", "tune", ("r.toml",), ("issue-7",), False),
        ("issue-7", "Measure it", "Speed", "implement-change", ("mlcore/**",), (), True),
        ("issue-9", "Say how", "Issues", "implement-change", ("mlcore/**",), (), False),
    ]
    assert "  > Blocked by #7.\n  > It is slow.\n" in done.text
    assert done.added == [3, 7, 9]


texts = st.text(st.characters(codec="utf-8"), max_size=60).map(printable)
issues_drawn = st.lists(
    st.builds(
        issue,
        st.integers(1, 30),
        texts.map(lambda text: " ".join(text.split())),
        texts,
        state=st.sampled_from(["open", "closed"]),
        milestone=st.sampled_from(["", "M1", "## `x`"]),
    ),
    max_size=6,
    unique_by=lambda each: each.number,
)


@settings(max_examples=80, deadline=None)
@given(issues_drawn, issues_drawn)
def test_an_import_twice_is_an_import_once_whatever_the_words(first: list[Issue], second: list[Issue]) -> None:
    once = brought_in("", *first)
    twice = brought_in(once.text, *first)
    assert twice.text == once.text
    assert (twice.added, twice.updated, twice.conflicts) == ([], [], [])
    later = brought_in(once.text, *second)
    assert later.conflicts == []
    assert brought_in(later.text, *second).text == later.text
    numbers = {each.number for each in (*first, *second)}
    if numbers:
        assert sorted(task.id for task in read(later.text).tasks) == sorted(f"issue-{number}" for number in numbers)


def test_news_of_an_issue_are_taken_and_a_persons_edits_stay() -> None:
    text = brought_in("", issue(1, body="Old words."), issue(2)).text
    text = text.replace("- writes: mlcore/**", "- writes: mlcore/optim.py\n  - accept: pytest -q", 1)
    text = text.replace("`issue-2` Do 2", "`second` Do the second thing", 1) + "\nProse of mine.\n"
    done = brought_in(text, issue(1, "Do it well", "New words.", state="closed"), issue(2), issue(4))
    found = read(done.text)
    assert (done.updated, done.unchanged, done.added, done.conflicts) == ([1], [2], [4], [])
    first = found.task("issue-1")
    assert (first.title, first.done, first.writes, first.accept) == (
        "Do it well",
        True,
        ("mlcore/optim.py",),
        ("pytest -q",),
    )
    assert found.task("second").title == "Do the second thing"
    assert "  > New words." in done.text
    assert "Old words." not in done.text
    assert "\nProse of mine.\n" in done.text


def test_what_both_sides_changed_is_named_with_its_line_until_a_person_decides() -> None:
    text = brought_in("", issue(1)).text.replace("`issue-1` Do 1", "`issue-1` Mine")
    line = text.split("\n").index("- [ ] `issue-1` Mine") + 1
    for _ in range(2):  # it does not go away by itself
        done = brought_in(text, issue(1, "Theirs"))
        assert [str(each) for each in done.conflicts] == [
            f"{PATH}:{line}: title of `issue-1` was changed here and in issue 1; the plan's stays; "
            "`--take issues` or `--take plan` decides, or make both the same"
        ]
        text = done.text
        assert read(text).task("issue-1").title == "Mine"
    theirs, mine = (brought_in(text, issue(1, "Theirs"), take=take) for take in ("issues", "plan"))
    assert read(theirs.text).task("issue-1").title == "Theirs"
    assert read(mine.text).task("issue-1").title == "Mine"
    for decided in (theirs, mine):
        assert brought_in(decided.text, issue(1, "Theirs")).conflicts == []


def test_a_task_that_was_taken_out_stays_out_and_an_issue_that_is_gone_stays_in() -> None:
    text = brought_in("", issue(1), issue(2), issue(3)).text
    before, _, after = text.partition("- [ ] `issue-2`")
    done = brought_in(before + after[after.index("- [ ] `issue-3`") :], issue(1), issue(2))
    assert [task.id for task in read(done.text).tasks] == ["issue-1", "issue-3"]
    assert (done.taken_out, done.gone) == ([2], [3])


def test_an_issues_words_are_never_a_task_a_key_or_a_marker() -> None:
    body = (
        "- [ ] `evil` Do it\n  - skill: tune\n```\n<!-- odyssey:result -->\n"
        f"<!-- odyssey:issue {REPO}#2 title=0 body=0 state=0 -->\n---\n## Section"
    )
    done = brought_in("", issue(1, "A `b` <!-- odyssey:tree --> \x1b[31m - writes: /etc", body), issue(2))
    found = read(done.text)
    assert [(task.id, task.skill) for task in found.tasks] == [
        ("issue-1", "implement-change"),
        ("issue-2", "implement-change"),
    ]
    assert {task.section for task in found.tasks} == {"Issues"}
    assert planfile.block(done.text, "tree") == planfile.block(done.text, "result") == ""
    assert (
        brought_in(done.text, issue(1, "A `b` <!-- odyssey:tree --> \x1b[31m - writes: /etc", body), issue(2)).text
        == done.text
    )


def test_issues_that_block_each_other_leave_a_plan_that_lints() -> None:
    done = brought_in(
        "", issue(1, body="depends on #2"), issue(2, body="depends on #3, blocked by #1"), issue(3, body="needs #1")
    )
    assert [task.needs for task in read(done.text).tasks] == [("issue-2",), ("issue-3",), ()]


# Out


def acted(issues: list[Issue], actions: list[outward.Action]) -> list[Issue]:
    """The issues after the actions."""
    found = {each.number: each for each in issues}
    for action in actions:
        number = action.number or max(found, default=0) + 1
        known = found.get(number, issue(number, author="writer"))
        found[number] = known.model_copy(update=action.fields | action.then)
    return list(found.values())


def test_tasks_become_issues_once_and_then_follow_the_plan() -> None:
    actions, _ = outward.compare(plan(), REPO, [issue(5, "Somebody's own")])
    assert [(each.task, each.what) for each in actions] == [("a", "create"), ("b", "create")]
    issues = acted([issue(5, "Somebody's own")], actions)
    assert "- needs: `a`" in issues[2].body
    again, conflicts = outward.compare(plan(), REPO, issues)
    assert ([each.what for each in again], conflicts) == (["nothing", "nothing"], [])
    edited = plan(PLAN.replace("- [ ] `a` Do the first", "- [x] `a` Do it first"))
    (first, second), conflicts = outward.compare(edited, REPO, issues)
    assert (first.what, first.number, first.fields["title"], first.fields["state"]) == (
        "update",
        6,
        "Do it first",
        "closed",
    )
    assert (second.what, conflicts) == ("nothing", [])
    assert [each.what for each in outward.compare(edited, REPO, acted(issues, [first]))[0]] == ["nothing", "nothing"]


def test_what_people_write_around_the_marker_stays_and_what_they_change_in_it_is_a_conflict() -> None:
    issues = acted([], outward.compare(plan(), REPO, [])[0])
    first = issues[0].model_copy(update={"body": f"Please!\n\n{issues[0].body}\n\nThanks."})
    edited = plan(PLAN.replace("writes: r.toml", "writes: s.toml", 1))
    (action, _), conflicts = outward.compare(edited, REPO, [first, issues[1]])
    assert conflicts == []
    assert action.fields["body"].startswith("Please!\n\n<!-- odyssey:task plans/p.md#a ")
    assert action.fields["body"].endswith("<!-- /odyssey:task -->\n\nThanks.")
    assert "`s.toml`" in action.fields["body"]
    touched = first.model_copy(update={"body": first.body.replace("`r.toml`", "`/etc/passwd`")})
    (action, _), conflicts = outward.compare(edited, REPO, [touched, issues[1]])
    assert action.what == "nothing"
    assert [each.what for each in conflicts] == ["text between the markers of `a` was changed in issue 1 too"]


def test_an_issue_that_moved_on_is_not_overwritten_before_the_plan_has_taken_it() -> None:
    issues = acted([], outward.compare(plan(), REPO, [])[0])
    closed = [issues[0].model_copy(update={"state": "closed", "title": "Do the first, please"}), issues[1]]
    for _ in range(2):
        actions, conflicts = outward.compare(plan(), REPO, closed)
        assert not any({"title", "state"} & set(each.fields) for each in actions)
        assert conflicts == []
        closed = acted(closed, actions)
    text = inward.bring_in(PLAN, "plans/p.md", REPO, closed, SKILLS).text
    taken = plan(text)
    assert (taken.task("a").title, taken.task("a").done) == ("Do the first, please", True)
    assert [task.id for task in taken.tasks] == ["a", "b"], "an exported task is not imported as another one"
    actions, conflicts = outward.compare(taken, REPO, closed)
    assert conflicts == []
    assert not any({"title", "state"} & set(each.fields) for each in actions)


def test_a_copied_marker_does_not_take_a_task_over() -> None:
    issues = acted([], outward.compare(plan(), REPO, [])[0])
    forged = issue(99, "Mine now", issues[0].body)
    actions, _ = outward.compare(plan(), REPO, [forged, *issues])
    assert [each.number for each in actions] == [1, 2]


def test_an_imported_task_goes_back_to_its_own_issue() -> None:
    text = brought_in("", issue(4, "Do 4", "Words.")).text.replace("- [ ] `issue-4`", "- [x] `issue-4`")
    found = planfile.read(PATH, text)[0]
    assert found is not None
    (action,), conflicts = outward.compare(found, REPO, [issue(4, "Do 4", "Words.")])
    assert (action.number, action.fields["state"], conflicts) == (4, "closed", [])
    assert action.fields["body"].startswith("Words.\n\n<!-- odyssey:task")
    assert "title" not in action.fields


@given(st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from("abc"))
def test_a_merge_settles_and_loses_nothing_silently(ours: str, theirs: str, base: str) -> None:
    from orchestrator.issues.issue import mark

    found = merge(ours, theirs, mark(base))
    assert found.conflict == (len({ours, theirs, base}) == 3)
    assert found.value == (theirs if ours == base else ours)
    assert merge(found.value, theirs, found.base) == found


# A file


def test_an_export_by_gh_and_one_by_the_api_say_the_same(tmp_path: Path) -> None:
    gh = {
        "number": 1,
        "title": "T",
        "body": "B",
        "state": "CLOSED",
        "labels": [{"name": "bug"}],
        "milestone": {"title": "M"},
    }
    api = {**gh, "state": "closed", "html_url": f"https://github.com/{REPO}/issues/1", "body": None}
    pull = {"number": 2, "title": "P", "pull_request": {"url": "x"}}
    write(tmp_path, {"gh.json": json.dumps([gh]), "api.json": json.dumps([api, pull])})
    one, other = Export(tmp_path / "gh.json"), Export(tmp_path / "api.json")
    assert one.issues() == [issue(1, "T", "B", state="closed", labels=["bug"], milestone="M")]
    assert other.issues() == [issue(1, "T", "", state="closed", labels=["bug"], milestone="M")]
    assert (one.repo, other.repo) == ("export/gh", REPO)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ":1: is no JSON"),
        ('{"issues": 3}', ": holds no list of issues; see `gh issue list --help`"),
        ('[{"number": 1, "title": "t"}, {"title": "t"}]', ": entry 1 is no issue: it has no `number` or no `title`"),
        ('{"repository": "../..", "issues": []}', ": repository `../..` is no `owner/repo`"),
    ],
)
def test_a_file_that_is_no_export_is_refused_with_the_place(tmp_path: Path, content: str, words: str) -> None:
    write(tmp_path, {"x.json": content})
    with pytest.raises(InputError) as caught:
        Export(tmp_path / "x.json").issues()
    assert f"x.json{words}" in str(caught.value)


names = st.sampled_from(["number", "title", "body", "state", "labels", "milestone", "name"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_any_entry_is_an_issue_or_an_input_error(raw: object) -> None:
    try:
        found = from_json("x.json", 0, raw)
    except InputError:
        return
    assert found is not None
    assert found.title == " ".join(found.title.split())
    found.model_dump_json().encode()


# GitHub, on a socket


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    with running(FakeGitHub()) as fake:
        yield fake


def store(fake: FakeGitHub, repo: str = REPO) -> GitHub:
    env = {"GITHUB_API_URL": fake.url} | ({"GITHUB_TOKEN": fake.token} if fake.token else {})
    return GitHub(repo, env, write_pause_s=0)


def test_hundreds_of_issues_are_read_a_hundred_a_request_without_their_pull_requests(github: FakeGitHub) -> None:
    for number in range(1, 251):
        github.add(f"Number {number}", None, **({"pull_request": {}, "draft": False} if number % 50 == 1 else {}))
        if number % 50 == 1:
            github.issues[-1]["pull_request"] = {"url": "x"}
    found = store(github).issues()
    assert len(found) == 245
    assert found[-1] == issue(250, "Number 250")
    assert len(github.requests) == 3


def test_a_plan_goes_out_once_comes_back_as_nothing_new_and_a_token_is_sent(github: FakeGitHub, tmp_path: Path) -> None:
    github.token = "t0ken"
    ticked = plan(PLAN.replace("- [ ] `a`", "- [x] `a`"))
    shown = drafts.export_issues(ticked, store(github), "", apply=False)
    assert github.writes() == []
    assert [each["what"] for each in shown["actions"]] == ["create", "create"]
    done = drafts.export_issues(ticked, store(github), "", apply=True)
    assert [each["number"] for each in done["actions"]] == [1, 2]
    assert [each["state"] for each in github.issues] == ["closed", "open"]
    assert github.writes() == [
        f"POST /repos/{REPO}/issues",
        f"PATCH /repos/{REPO}/issues/1",
        f"POST /repos/{REPO}/issues",
    ]
    again = drafts.export_issues(ticked, store(github), "", apply=True)
    assert [each["what"] for each in again["actions"]] == ["nothing", "nothing"]
    assert len(github.writes()) == 3
    write(tmp_path, {"plans/p.md": ticked.text})
    back = drafts.import_issues(tmp_path, "plans/p.md", store(github), SKILLS, "")
    assert (back["unchanged"], back["added"], back["conflicts"]) == ([1, 2], [], [])


@pytest.mark.parametrize("association", ["NONE", "CONTRIBUTOR", None])
def test_an_issue_of_a_stranger_with_a_marker_of_ours_ticks_nothing_and_is_told(
    github: FakeGitHub, tmp_path: Path, association: str | None
) -> None:
    forged = outward.compare(plan(), REPO, [])[0][0].fields["body"]
    github.add("Do the first", forged, "closed", author_association=association)
    write(tmp_path, {"plans/p.md": PLAN})
    back = drafts.import_issues(tmp_path, "plans/p.md", store(github), SKILLS, "")
    assert "- [ ] `a` Do the first" in (tmp_path / "plans/p.md").read_text()
    assert (back["unproven"], back["updated"], back["added"]) == ([1], [], [])
    assert "`--import-issues owner/repo` asks there" in drafts.told_import(back)


def test_an_issue_of_a_stranger_is_not_taken_for_one_that_was_exported(github: FakeGitHub) -> None:
    forged = outward.compare(plan(), REPO, [])[0][0].fields["body"]
    github.add("Do the first", forged, "closed", author_association="NONE")
    done = drafts.export_issues(plan(), store(github), "", apply=True)
    assert [(each["what"], each["number"]) for each in done["actions"]] == [("create", 2), ("create", 3)]
    again = drafts.export_issues(plan(), store(github), "", apply=True)
    assert [(each["what"], each["number"]) for each in again["actions"]] == [("nothing", 2), ("nothing", 3)]


def test_who_may_write_there_or_was_installed_there_may_tick_a_task(github: FakeGitHub, tmp_path: Path) -> None:
    body = outward.compare(plan(), REPO, [])[0][0].fields["body"]
    for author in ({"author_association": "COLLABORATOR"}, {"author_association": "NONE", "user": {"type": "Bot"}}):
        github.issues.clear()
        github.add("Do the first", body, "closed", **author)
        write(tmp_path, {"plans/p.md": PLAN})
        assert drafts.import_issues(tmp_path, "plans/p.md", store(github), SKILLS, "")["updated"] == [1]
        assert "- [x] `a`" in (tmp_path / "plans/p.md").read_text()


def test_an_export_that_breaks_off_goes_on_where_it_was(github: FakeGitHub) -> None:
    class Cut(GitHub):
        def create(self, fields: object) -> int:
            if github.issues:
                github.faults.append((502, "Bad gateway"))
            return super().create(fields)  # type: ignore[arg-type]

    cut = Cut(REPO, {"GITHUB_API_URL": github.url}, write_pause_s=0)
    with pytest.raises(ForgeError, match=r"GitHub said 502: Bad gateway; GitHub has a fault"):
        drafts.export_issues(plan(), cut, "", apply=True)
    assert len(github.issues) == 1
    drafts.export_issues(plan(), store(github), "", apply=True)
    assert [each["title"] for each in github.issues] == ["Do the first", "Do the second"]


def test_a_done_task_whose_issue_could_not_be_closed_stays_done_and_is_closed_by_the_next_export(
    github: FakeGitHub, tmp_path: Path
) -> None:
    class Cut(GitHub):
        def update(self, number: int, fields: object) -> None:
            github.faults.append((403, "slow down"))
            super().update(number, fields)  # type: ignore[arg-type]

    ticked = plan(PLAN.replace("- [ ] `a`", "- [x] `a`"))
    cut = Cut(REPO, {"GITHUB_API_URL": github.url}, write_pause_s=0)
    with pytest.raises(ForgeError, match="GitHub said 403"):
        drafts.export_issues(ticked, cut, "", apply=True)
    assert [each["state"] for each in github.issues] == ["open"]
    write(tmp_path, {"plans/p.md": ticked.text})
    drafts.import_issues(tmp_path, "plans/p.md", store(github), SKILLS, "")
    assert "- [x] `a`" in (tmp_path / "plans/p.md").read_text()
    again = drafts.export_issues(ticked, store(github), "", apply=True)
    assert [(each["what"], each["number"]) for each in again["actions"]] == [("update", 1), ("create", 2)]
    assert github.issues[0]["state"] == "closed"
    last = drafts.export_issues(ticked, store(github), "", apply=True)
    assert [each["what"] for each in last["actions"]] == ["nothing", "nothing"]


def test_reading_survives_a_passing_fault_and_every_lasting_one_says_what_to_do(github: FakeGitHub) -> None:
    github.add("One")
    github.faults = [(502, "x"), (503, "x")]
    assert len(store(github).issues()) == 1
    for status, words in (
        (401, "set GITHUB_TOKEN"),
        (403, "wait an hour"),
        (404, "check the name"),
        (410, "switched off"),
    ):
        github.faults = [(status, "no")]
        with pytest.raises(ForgeError) as caught:
            store(github).issues()
        assert str(caught.value).startswith(f"{REPO}: GitHub said {status}: no; ")
        assert words in str(caught.value)
    nobody = GitHub(REPO, {"GITHUB_API_URL": "http://127.0.0.1:9"}, write_pause_s=0)
    with pytest.raises(ForgeError, match="GitHub can't be reached"):
        nobody.issues()


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(InputError, match="a token is sent over https only"):
        opened(REPO, {"GITHUB_TOKEN": "secret", "GITHUB_API_URL": "http://api.example.org"})
    with pytest.raises(InputError, match=r"neither `owner/repo` nor a `\.json` file"):
        opened("not a place", {})


# The command


def test_by_the_command_issues_become_a_plan_and_a_conflict_gives_exit_code_2(
    tmp_path: Path, github: FakeGitHub
) -> None:
    tune = {"labels": [{"name": "skill:tune"}]}
    github.add("Tune it", "It is slow.", **tune)
    repository(tmp_path, FILES)
    said = ("plan", PATH, "--import-issues", REPO)
    first = orchestrate(tmp_path, *said, GITHUB_API_URL=github.url)
    assert first.returncode == 0, first.stderr
    assert "1 added as tasks: #1" in first.stdout
    lint = orchestrate(tmp_path, "lint", PATH)
    assert lint.returncode == 0, lint.stderr
    assert "`issue-1` Tune it" in orchestrate(tmp_path, "plan", PATH).stdout

    github.issues[0]["title"] = "Tune it well"
    text = (tmp_path / PATH).read_text()
    (tmp_path / PATH).write_text(text.replace("Tune it", "Tune it at last"))
    second = orchestrate(tmp_path, *said, "--json", GITHUB_API_URL=github.url)
    assert second.returncode == 2
    document = json.loads(second.stdout)
    assert (document["odyssey"], document["command"], document["unchanged"]) == (1, "plan --import-issues", [1])
    assert document["conflicts"][0]["path"] == PATH
    assert second.stderr.startswith(f"{PATH}:11: title of `issue-1` was changed here and in issue 1")

    offline = ("plan", PATH, "--export-issues", "out.json")
    assert "nothing was changed; --apply does it" in orchestrate(tmp_path, *offline).stdout
    assert not (tmp_path / "out.json").exists()
    assert orchestrate(tmp_path, *offline, "--apply").returncode == 0
    assert json.loads((tmp_path / "out.json").read_text())["issues"][0]["title"] == "Tune it at last"
    assert "nothing  #1     issue-1: as it is" in orchestrate(tmp_path, *offline, "--apply").stdout
    assert refused(orchestrate(tmp_path, "plan", "--import-issues", "no.json")).startswith("no.json: no such file")
    assert (
        refused(orchestrate(tmp_path, *said, "--take", "mine")) == "--take mine: whose word counts, `issues` or `plan`?"
    )
