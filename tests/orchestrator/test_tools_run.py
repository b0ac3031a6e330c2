"""The tool that runs commands: which, on what, and what of their work is kept."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.house import State
from orchestrator.sandbox.base import Limits
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from orchestrator.tools import ToolContext, ToolResult, call_all
from orchestrator.tools.commands import fits
from orchestrator.tools.staging import scrub, staged
from tests.orchestrator.sandbox_helpers import context_for, files_of, use, worktree_at

FILES = {"src/a.py": "a\n", "src/b.py": "b\n", "docs/c.md": "c\n"}


def sh(context: ToolContext, script: str, **rest: object) -> ToolResult:
    return use(context, "run", argv=["sh", "-c", script], **rest)


@pytest.mark.parametrize(
    ("argv", "pattern", "allowed"),
    [
        (["pytest"], "pytest", True),
        (["pytest", "-q", "tests"], "pytest", True),
        (["pytest-evil"], "pytest", False),
        (["./pytest"], "pytest", False),
        (["/tmp/pytest"], "pytest", False),
        (["python", "-m", "pytest"], "pytest", False),
        (["mlcore", "check", "mlcore/recipes/a.toml"], "mlcore check *", True),
        (["mlcore", "check"], "mlcore check *", False),
        (["mlcore", "train", "x"], "mlcore check *", False),
        (["python", "skills/verify/scripts/verify.py", "--help"], "python skills/verify/scripts/*", True),
        (["python", "skills/verify/scripts/deep/x.py"], "python skills/verify/scripts/*", False),
        (["python", "skills/verify/scripts/../../../evil.py"], "python skills/verify/scripts/*", False),
        (["python", "skills/verify/scripts/.."], "python skills/verify/scripts/*", False),
        (["python", "skills/verify/scripts/"], "python skills/verify/scripts/*", False),
        (["python", "-c", "evil"], "python skills/verify/scripts/*", False),
        (["python", "skills/any/scripts/x.py"], "python skills/*/scripts/x.py", True),
        (["Python", "x"], "python *", False),
        (["sh"], "", False),
        (["sh"], "**", False),
    ],
)
def test_a_pattern_fits_the_beginning_of_argv_word_by_word(argv: list[str], pattern: str, allowed: bool) -> None:
    assert fits(argv, pattern) == allowed


@given(st.lists(st.text(max_size=6), min_size=1, max_size=4), st.text(st.sampled_from("ab/.*"), min_size=1, max_size=6))
def test_no_argv_fits_by_climbing_or_by_another_program(argv: list[str], word: str) -> None:
    if fits(["tool", f"{word}/../{argv[0]}"], "tool scripts/*"):
        pytest.fail("climbed out")
    assert fits([*argv, "x"], "tool") == (argv[0] == "tool")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["rm", "-rf", "/"], "this skill may not run that. Allowed beginnings: sh -c *; python -c *"),
        ([], "at least 1 item"),
        (["sh", "-c", "a\0b"], "a word holds a NUL"),
        (["sh", "-c", "\ud800"], "half a character"),
        (["--bind", "/", "/"], "looks like an option"),
        (["sh", "-c", "x" * 200_000], "too many"),
    ],
)
def test_a_hostile_argv_is_refused_with_a_reason(argv: list[str], reason: str, tmp_path: Path) -> None:
    result = use(context_for(worktree_at(tmp_path, FILES), sandbox=UnsandboxedSandbox()), "run", argv=argv)
    assert result.is_error
    assert reason in result.content


def test_a_command_sees_the_worktree_and_tells_how_it_ended(tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, FILES))
    result = sh(context, "pwd; cat src/a.py; echo oops >&2; exit 3")
    lines = result.content.splitlines()
    assert result.is_error
    assert lines[1].startswith("[exit code 3 after ")
    assert lines[2:] == [str(context.worktree), "a", "[stderr]", "oops"]


def test_a_command_runs_on_what_the_writes_before_it_in_the_turn_have_made(tmp_path: Path) -> None:
    write = ("write", {"path": "src/a.py", "content": "new\n"})
    edit = ("edit", {"path": "src/b.py", "old": "b", "new": "c"})
    show = ("run", {"argv": ["sh", "-c", "cat src/a.py src/b.py"]})
    context = context_for(worktree_at(tmp_path, FILES))
    results = call_all([show, write, edit, show], context, frozenset({"write", "edit", "run"}))
    assert [each.content.splitlines()[2:] for each in (results[0], results[3])] == [["a", "b"], ["new", "c"]]


def test_permitted_changes_come_back_and_others_do_not(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    script = (
        "echo new >src/a.py; rm src/b.py; mkdir src/deep; echo d >src/deep/d; chmod +x src/deep/d;"
        "echo evil >docs/c.md; echo evil >top; rm -f .git; mkdir -p .git; echo x >.gitmodules; echo r >runs/r"
    )
    result = sh(context_for(worktree), script)
    assert result.is_error
    assert "[changed: src/a.py, src/b.py, src/deep/d]" in result.content
    for path in (".gitmodules", "docs/c.md", "top"):
        assert f"{path}: outside what this task may write" in result.content
    assert files_of(worktree) == {
        ".git": "gitdir: /elsewhere\n",
        "docs/c.md": "c\n",
        "src/a.py": "new\n",
        "src/deep/d": "d\n",
    }
    assert (worktree / "src/deep/d").stat().st_mode & 0o777 == 0o755
    assert (worktree / "runs/r").read_text() == "r\n"


def test_files_replaced_by_renaming_come_back(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    context = context_for(worktree, writes=("src/a.py",))
    result = sh(context, "echo whole >src/.a.tmp && sync src/.a.tmp && mv src/.a.tmp src/a.py")
    assert result.content.splitlines()[-1] == "[changed: src/a.py]"
    assert not result.is_error
    assert (worktree / "src/a.py").read_text() == "whole\n"


def test_an_unchanged_rewrite_is_no_change(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    before = (worktree / "docs/c.md").stat()
    result = sh(context_for(worktree), "cp docs/c.md /tmp/c && rm docs/c.md && cp /tmp/c docs/c.md && touch src/a.py")
    assert not result.is_error
    assert "changed" not in result.content
    assert (worktree / "docs/c.md").stat() == before


def test_a_change_hidden_by_its_time_is_found(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    result = sh(context_for(worktree), "touch -r docs/c.md /tmp/t; printf 'X\\n' >docs/c.md; touch -r /tmp/t docs/c.md")
    assert "docs/c.md: outside" in result.content
    assert (worktree / "docs/c.md").read_text() == "c\n"


def test_links_pipes_and_swapped_folders_never_come_back(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "a.py").write_text("victim")
    worktree = worktree_at(tmp_path, FILES)
    script = (
        f"ln -s {tmp_path}/secret src/link; mkfifo src/pipe; ln -s {tmp_path}/victim src/folder;"
        f"rm -r docs; ln -s {tmp_path}/victim docs; rm src/a.py; ln -s {tmp_path}/secret src/a.py;"
        f"ln -s {tmp_path}/victim runs/out; ln -s r runs/in; mkfifo runs/pipe; echo >runs/r"
    )
    result = sh(context_for(worktree), script)
    assert result.is_error
    for path in ("src/link", "src/pipe", "src/folder", "src/a.py"):
        assert f"{path}: only plain files are kept" in result.content
    assert files_of(worktree) == {".git": "gitdir: /elsewhere\n", **FILES}
    assert sorted(path.name for path in (worktree / "runs").iterdir()) == ["in", "r"]
    assert (tmp_path / "victim" / "a.py").read_text() == "victim"


def test_odd_names_are_dropped_and_told(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    names = [b"src/-rf", b"src/a\nb", b"src/\xff", b"src/.GIT"]
    source = f"import os\nfor name in {names!r}: open(name, 'w').close()"
    result = use(context_for(worktree), "run", argv=["python", "-c", source])
    assert result.content.count("\nsrc/") >= 3
    assert "git's own files" in result.content
    assert result.content.encode(), "it can be sent"
    assert files_of(worktree) == {".git": "gitdir: /elsewhere\n", **FILES}


def test_a_flood_of_files_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tools.staging.CARRIED_FILES", 3)
    worktree = worktree_at(tmp_path, FILES)
    result = sh(context_for(worktree), "for i in 1 2 3 4 5; do echo $i >src/f$i; done")
    assert "src/f5: more or larger changes than one command may make" in result.content
    assert len(files_of(worktree)) == len(FILES) + 1 + 3


def test_scratch_that_is_a_link_runs_nothing(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    (tmp_path / "victim").mkdir()
    (worktree / "runs").symlink_to(tmp_path / "victim")
    result = sh(context_for(worktree), "echo x >runs/x")
    assert "is a symbolic link" in result.content
    assert list((tmp_path / "victim").iterdir()) == []


def test_the_time_limit_is_the_smaller_of_both(tmp_path: Path) -> None:
    from dataclasses import replace

    stopped = r"\[stopped by the time limit after (\d+\.\d) s"
    worktree = worktree_at(tmp_path, FILES)
    for limit_s in (0.5, 4, 16):  # on a busy machine a command may not have begun when its time is over
        result = sh(context_for(worktree), "echo part >src/a.py; sleep 300", timeout_s=limit_s)
        found = re.search(stopped, result.content)
        assert found is not None
        assert limit_s <= float(found[1]) < 300
        if (worktree / "src/a.py").read_text() == "part\n":
            break
    assert (worktree / "src/a.py").read_text() == "part\n"
    context = replace(context_for(worktree), limits=Limits(wall_s=0.5))
    assert re.search(stopped, sh(context, "sleep 300", timeout_s=1000).content)


def test_a_daemon_cannot_change_what_comes_back(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    daemon = "(setsid sh -c 'while :; do date +%N >src/a.py; done' >/dev/null 2>&1 &)"
    result = sh(context_for(worktree), f"{daemon}; until grep -q [0-9] src/a.py; do :; done")
    assert "[changed: src/a.py]" in result.content
    now = (worktree / "src/a.py").read_text()
    time.sleep(0.1)
    assert (worktree / "src/a.py").read_text() == now


def test_the_worktrees_packages_come_before_installed_ones(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, {"mlcore/__init__.py": "NAME = 'the worktree'\n"})
    result = use(context_for(worktree), "run", argv=["python", "-c", "import mlcore; print(mlcore.NAME)"])
    assert "the worktree" in result.content
    assert not result.is_error
    assert list((worktree / "runs/.cache/pyc").rglob("*.pyc")), "compiled code is kept for the next command"


def test_output_is_heard_while_a_command_runs(tmp_path: Path) -> None:
    from dataclasses import replace

    heard: list[str] = []
    sh(replace(context_for(worktree_at(tmp_path, FILES)), on_output=heard.append), "echo progress")
    assert heard == ["progress\n"]


def test_the_copy_is_gone_afterwards_also_the_one_of_a_killed_orchestrator(tmp_path: Path) -> None:
    worktree, outputs = worktree_at(tmp_path, FILES), tmp_path / "outputs"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    (outputs / f"staging-{gone.pid}-x" / "worktree").mkdir(parents=True)
    (outputs / f"staging-{os.getpid()}-other").mkdir()
    with staged(worktree, outputs) as staging:
        assert staging.root.is_dir()
        assert not (staging.root / ".git").exists()
    assert [path.name for path in outputs.iterdir()] == [f"staging-{os.getpid()}-other"]


def test_times_of_sources_stay_so_that_compiled_code_stays_valid(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    context = context_for(worktree)
    os.utime(worktree / "docs/c.md", ns=(5, 1_234_567_890_123_456_789))
    told = sh(context, "stat -c %.9Y docs/c.md; echo new >src/a.py; stat -c %.9Y src/a.py").content.splitlines()
    assert told[2] == "1234567890.123456789"
    assert sh(context, "stat -c %.9Y src/a.py").content.splitlines()[2] == told[3]


def test_tracked_links_stay_as_they_are(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    (worktree / "link").symlink_to("src/a.py")
    result = sh(context_for(worktree), "cat link")
    assert not result.is_error
    assert "\na" in result.content
    assert (worktree / "link").readlink() == Path("src/a.py")


def test_scrubbing_keeps_plain_files_and_links_among_them(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "1").mkdir(parents=True)
    (runs / "1" / "f").write_text("x")
    (runs / "latest").symlink_to("1")
    (runs / "up").symlink_to("..")
    (runs / "loop").symlink_to("loop")
    removed = scrub(runs)
    assert {line.split(":")[0] for line in removed} == {"runs/up", "runs/loop"}
    assert (runs / "latest" / "f").read_text() == "x"


def test_scrubbing_takes_the_bits_that_lend_their_owner(tmp_path: Path) -> None:
    """Where root runs the orchestrator, the file would be root's, for every user of the machine to start."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "x").write_text("x")
    (runs / "x").chmod(0o6755)
    (runs / "link").symlink_to("x")
    assert scrub(runs) == ["runs/x: it may not run as its owner or group"]
    assert stat.S_IMODE((runs / "x").stat().st_mode) == 0o755
    assert scrub(runs) == []


def test_nobody_else_gets_into_the_state_folder(tmp_path: Path) -> None:
    assert stat.S_IMODE(State.of(tmp_path).folder.stat().st_mode) == 0o700


PATHS = ["src/a.py", "src/b.py", "docs/c.md", "src/x/y", "new"]
EDITS = st.lists(
    st.tuples(st.sampled_from(["src/a.py", "src/b.py", "docs/c.md", "src/x/y", "new"]), st.sampled_from("wd")),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(EDITS)
def test_what_comes_back_is_exactly_the_permitted_part_of_what_was_done(edits: list[tuple[str, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        worktree = worktree_at(Path(folder), FILES)
        expected = files_of(worktree)
        with staged(worktree, Path(folder) / "outputs") as staging:
            for path, what in edits:
                place = staging.root / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("changed") if what == "w" else place.unlink(missing_ok=True)
                if path.startswith("src/"):
                    expected.pop(path, None)
                    expected |= {path: "changed"} if what == "w" else {}
            carried = staging.carry_back(("src/**",))
        assert files_of(worktree) == expected
        assert all(line.startswith(("docs/c.md", "new")) for line in carried.dropped)
