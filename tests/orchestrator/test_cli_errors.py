"""The command: documented exit codes, words that name the place and the fix, data on stdout and talk on stderr."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config import Settings
from orchestrator.errors import EXIT_CODES
from orchestrator.house import State
from orchestrator.records import Budget
from tests.orchestrator.helpers import PLAN, ROOT, commit, fingerprint, git, repository, write

AGENT = "---\nname: {0}\ndescription: d\ntools: [read, run, delegate]\nmodel: haiku\nlevel: {1}\n{2}\n---\nYou work.\n"
SKILL = "---\nname: tune\ndescription: d\nmetadata:\n  writes: '*.toml notes/*.md'\n  procedure: p.toml\n---\nDo it.\n"
PROCEDURE = "[[step]]\nsay = 'x'\ntool = 'list'\n[finish]\nsay = 'done'\n"
FILES: dict[str, str | bytes] = {
    "agents/chief.md": AGENT.format("chief", 0, "delegates_to: [worker]"),
    "agents/worker.md": AGENT.format("worker", 1, "skills: [tune]"),
    "skills/tune/SKILL.md": SKILL,
    "skills/tune/p.toml": PROCEDURE,
    "plans/p.md": PLAN,
    "r.toml": "",
}


def orchestrate(root: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "ODYSSEY_", "MLCORE_"))}
    kept |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(root / ".odyssey/none"), **env}
    argv = (sys.executable, "-m", "orchestrator.cli", *argv)
    return subprocess.run(argv, cwd=root, env=kept, capture_output=True, text=True, timeout=300, check=False)


def refused(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert (done.returncode, done.stdout) == (code, ""), done
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    repository(tmp_path, FILES)
    return tmp_path


def test_a_sound_repository_has_nothing_to_mend(root: Path) -> None:
    done = orchestrate(root, "lint")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.strip() == "2 agents, 1 skills, 1 plans: nothing to mend"


def test_lint_tells_every_error_of_every_file_in_one_go(root: Path) -> None:
    write(
        root,
        {
            "agents/worker.md": AGENT.format("worker", 1, "skill: [tune]"),
            "skills/tune/p.toml": "[[step",
            "plans/p.md": PLAN.replace("margin", "margn").replace("needs: a", "needs: c"),
            "plans/q.md": "words",
        },
    )
    said = refused(orchestrate(root, "lint")).splitlines()
    for expected in (
        "agents/worker.md:7: unknown key `skill`; did you mean `skills`?",
        "plans/p.md:4: unknown key `targets.0.margn`; did you mean `margin`?",
        "plans/p.md:16: needs unknown task `c`; tasks here: a, b",
        "plans/q.md:1: has no front matter; begin the file with YAML between two `---` lines",
        "skills/tune/p.toml:1: TOML: Expected ']]' at the end of an array declaration",
    ):
        assert any(line.startswith(expected) for line in said), said
    assert said == sorted(said, key=lambda line: line.split(":")[0])


def test_what_a_plan_says_reaches_the_terminal_as_words_alone(root: Path) -> None:
    forged = '"\\e]0;x\\a\\nbudget \\e[2K"'
    write(root, {"plans/p.md": PLAN.replace("title: A plan", f"title: {forged}").replace('"a paper"', forged)})
    shown = orchestrate(root, "plan", "plans/p.md")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count(r"\x1b]0;x\x07 budget \x1b[2K") == 2
    write(root, {"plans/p.md": PLAN.replace("title: A plan", f"title: A plan\n{forged}: 1")})
    said = refused(orchestrate(root, "lint", "plans/p.md"))
    assert r"\x1b]0;x\x07" in said
    assert "\x1b" not in shown.stdout + said


def test_a_plan_that_cannot_be_run_is_refused_before_anything_is_recorded(root: Path) -> None:
    write(root, {"plans/new.md": PLAN})
    assert refused(orchestrate(root, "run", "plans/new.md")).startswith("plans/new.md: is not in commit ")
    commit(root, {"plans/new.md": PLAN.replace("skill: tune", "skill: tun", 1)})
    assert "unknown skill `tun`; did you mean `tune`?" in refused(orchestrate(root, "run", "plans/new.md"))
    assert refused(orchestrate(root, "status")).startswith("no run yet; start one with `orchestrate run")
    assert git(root, "status", "--porcelain") == ""


def test_a_recording_that_cannot_be_read_is_refused_before_anything_is_recorded(root: Path) -> None:
    said = refused(orchestrate(root, "run", "plans/p.md", "--provider", "replay:nope"))
    assert said.startswith(f"{root / 'nope'}: is no recording: ")
    assert said.endswith("; give one that `orchestrate record` wrote")
    assert refused(orchestrate(root, "status")).startswith("no run yet")


@pytest.mark.parametrize(
    ("provider", "words"),
    [("replay:/nope", "/nope: is no recording: "), ("nobody", "--provider nobody: no such provider; there are none, ")],
)
def test_a_run_goes_on_with_nobody_who_cannot_answer(root: Path, provider: str, words: str) -> None:
    book, settings = State.of(root).ledger, Settings().model_dump_json()
    book.open_run("r-1", plan="plans/p.md", budget=Budget().model_dump_json(), settings=settings, provider="none")
    assert refused(orchestrate(root, "resume", "--provider", provider, "--usd", "1")).startswith(words)
    row = book.run("r-1")
    assert (row["settings"], row["provider"], row["budget"]) == (settings, "none", Budget().model_dump_json())


def test_a_plan_whose_tasks_are_all_ticked_says_how_to_do_them_again(root: Path) -> None:
    commit(root, {"plans/p.md": PLAN.replace("[ ]", "[x]").replace("notes/*.md, ", "")})
    done = orchestrate(root, "run", "plans/p.md")
    assert done.returncode == 0, "nothing is wrong with a plan that is done"
    assert done.stderr == "plans/p.md: every task is ticked, so nothing is to be done; --again does them all again\n"


def test_outside_of_a_repository_or_before_its_first_commit_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert "run this inside a git repository that has at least one commit" in refused(orchestrate(tmp_path, "lint"))
    git(tmp_path, "init", "--quiet")
    assert "run this inside a git repository that has at least one commit" in refused(orchestrate(tmp_path, "status"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("plan", "/etc/hostname"), "/etc/hostname is outside the repository"),
        (("plan", "plans/none.md"), "plans/none.md: can't be read (No such file or directory); check the path"),
        (("run", "plans/p.md", "--only", "c"), "--only c: plans/p.md has no such task; it has a, b"),
        (("run", "plans/p.md", "--only", "b"), "--only b: it needs a, not done yet; add --only a"),
        (("status", "r-9"), "there is no run `r-9`; the latest are: none"),
        (("report",), "no run yet; start one with `orchestrate run plans/NAME.md`"),
        (("resume",), "nothing to resume; start one with `orchestrate run plans/NAME.md`"),
        (("resume", "r-9"), "there is no run `r-9`"),
        (("pr", "show", "7"), "there is no pull request 7; `orchestrate pr list` shows what there is"),
        (("pr", "diff", "7"), "there is no pull request 7"),
        (("pr", "merge", "7"), "there is no pull request 7"),
        (("pr", "approve", "7"), "there is no pull request 7"),
        (("pr", "close", "7"), "there is no pull request 7"),
        (("pr", "reopen", "7"), "there is no pull request 7"),
        (("resume", "--usd", "-100"), "'--usd': -100 can't be given; give a number above 0"),
        (("resume", "--minutes", "nan"), "'--minutes': nan can't be given; give a number above 0"),
        (("resume", "--minutes", "inf", "--task", "a"), "'--minutes': inf can't be given"),
        (("resume", "--tokens", "0"), "'--tokens': 0 can't be given"),
        (("resume", "--tokens", "1.5"), "Invalid value for '--tokens'"),
        (("plan", "--from-paper", "p.pdf", "--provider", "mailbox", "--usd", "-3"), "'--usd': -3 can't be given"),
        (("compare", "plans/p.md", "--without", "tiers", "--usd", "nan"), "'--usd': nan can't be given"),
        (
            ("plan", "--from-paper", "p.pdf", "--confirm", "c1"),
            "--from-paper and --confirm can't go together; give one, then the other",
        ),
        (
            ("plan", "plans/p.md", "--import-issues", "i.json", "--write"),
            "--import-issues and --write can't go together",
        ),
        (
            ("plan", "plans/p.md", "--from-paper", "p.pdf"),
            "PLAN and --from-paper can't go together; --out names the draft",
        ),
        (("plan", "plans/p.md", "--margin", "1"), "--margin does nothing without --confirm; give both, or neither"),
        (("plan", "--from-paper", "p.pdf", "--usd", "1"), "--usd does nothing without --provider"),
        (("plan", "plans/p.md", "--take", "plan"), "--take does nothing without --import-issues or --export-issues"),
        (("bench", "--tasks", "x"), "--tasks x: give numbers above 0, separated by commas, such as 10,100"),
        (("run",), "Missing argument 'PLAN'"),
        (("pr", "show", "x"), "Invalid value for"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_a_wrong_word_is_answered_with_exit_code_2_and_the_fix(root: Path, argv: tuple[str, ...], words: str) -> None:
    assert words in " ".join(refused(orchestrate(root, *argv, COLUMNS="200")).split())


def test_a_wrong_setting_names_its_place(root: Path) -> None:
    assert refused(orchestrate(root, "config", ODYSSEY_PARALLEL="many")).startswith("environment: `parallel`: ")
    commit(root, {"pyproject.toml": "[tool.odyssey]\nunsafe_no_sandbox = true\n"})
    assert refused(orchestrate(root, "run", "plans/p.md")) == (
        "pyproject.toml: `unsafe_no_sandbox` is for the operator to set; give it as a flag"
    )


def test_a_second_orchestrator_is_told_who_works_and_changes_nothing(root: Path) -> None:
    orchestrate(root, "status")
    with (root / ".odyssey/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        before = fingerprint(root, ())
        for argv in (("run", "plans/p.md"), ("resume",)):
            assert refused(orchestrate(root, *argv), 75) == (
                "another orchestrator (process 4711) works on this repository; see `orchestrate status`"
            )
        assert fingerprint(root, ()) == before


def test_without_a_sandbox_nothing_runs(root: Path, tmp_path: Path) -> None:
    tools = tmp_path / ".odyssey/bin"
    tools.mkdir(parents=True)
    (tools / "git").symlink_to(shutil.which("git") or "")
    said = refused(orchestrate(root, "run", "plans/p.md", PATH=str(tools)), 4)
    assert "bubblewrap" in said
    assert "apt-get install" in said


def test_what_is_asked_for_as_json_is_one_versioned_document(root: Path) -> None:
    for argv in (("plan", "plans/p.md"), ("config",), ("pr", "list")):
        done = orchestrate(root, *argv, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (0, "")
        assert (found["odyssey"], found["command"]) == (1, " ".join(argv).removesuffix(" plans/p.md"))


def test_planning_shows_who_does_what_and_changes_nothing_unless_asked(root: Path) -> None:
    done = orchestrate(root, "plan", "plans/p.md")
    assert done.returncode == 0
    assert "- worker" in done.stdout
    assert "\ntwo levels, the chief and those who do the tasks: " in done.stdout
    assert "`a` Do the first (tune; procedure, then haiku" in done.stdout
    assert git(root, "status", "--porcelain") == ""
    assert orchestrate(root, "plan", "plans/p.md", "--write").returncode == 0
    assert (root / "plans/p.md").read_text().startswith(PLAN.rstrip())
    assert "<!-- odyssey:tree -->\n- chief\n  - worker\n" in (root / "plans/p.md").read_text()
    assert orchestrate(root, "lint").returncode == 0


def test_git_variables_of_a_hook_that_started_us_choose_nothing(root: Path, tmp_path: Path) -> None:
    repository(tmp_path / "other", {"x": "x"})
    done = orchestrate(root, "lint", GIT_DIR=str(tmp_path / "other/.git"), GIT_WORK_TREE=str(tmp_path / "other"))
    assert done.returncode == 0, done.stderr


def test_help_names_every_exit_code_and_answers_at_once(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = orchestrate(tmp_path, "--help", COLUMNS="200")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0
    for code, meaning in EXIT_CODES.items():
        assert f"{code:<4} {meaning}" in done.stdout
    assert seconds < 2  # of the processor's time, whatever else it does: 0.3 by itself
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from orchestrator.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "orchestrator.cli" in loaded
    heavy = {"dbos", "numpy", "numba", "git", "nacl", "pydantic", "jinja2", "yaml", "anthropic", "sqlalchemy"}
    assert not heavy & set(loaded)


def test_a_run_that_breaks_says_how_to_go_on() -> None:
    code = "from orchestrator.cli import _leave_broken as f; from orchestrator.errors import SandboxUnavailable as E; "
    for error, status, words in (
        ("E('no \\x1b sandbox')", 4, r"no \x1b sandbox"),
        ("KeyError('bug')", 1, "KeyError: 'bug'"),
    ):
        argv = [sys.executable, "-c", f"{code}f({error}, 'orchestrate resume mnist-1')"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert words in done.stderr
        assert done.stderr.endswith("go on with: orchestrate resume mnist-1\n")
