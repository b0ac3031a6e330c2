"""The tools that look at files and change them, as an agent uses and abuses them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ToolRefused
from orchestrator.globs import matches
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from orchestrator.tools import TOOLS, call, inside, specs
from orchestrator.tools.base import CONTENT_CHARS
from orchestrator.tools.paths import may_write, names_of, writable
from tests.orchestrator.sandbox_helpers import context_for, files_of, use, worktree_at

FILES = {"src/a.py": "one\ntwo\nthree\n", "docs/b.md": "# b\n"}


def test_read_gives_the_text_as_it_is(tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, FILES))
    assert use(context, "read", path="src/a.py").content == "one\ntwo\nthree\n"


def test_read_pages_by_lines(tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, FILES))
    assert use(context, "read", path="src/a.py", offset=2, limit=1).content == "two\n\n[lines 2-2 of 3]"
    assert use(context, "read", path="src/a.py", offset=9).content == "[no line 9: the file has 3 lines]"


def test_list_tells_folders_files_and_links_apart(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    (worktree / "link").symlink_to("/etc/passwd")
    assert use(context_for(worktree), "list").content.splitlines() == [
        ".git  19 bytes",
        "docs/",
        "link -> /etc/passwd",
        "src/",
    ]


def test_write_creates_folders_and_keeps_a_files_mode(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    (worktree / "src/a.py").chmod(0o755)
    context = context_for(worktree)
    assert use(context, "write", path="src/new/c.py", content="c").content == "created src/new/c.py (1 bytes)"
    assert use(context, "write", path="src/a.py", content="é").content == "replaced src/a.py (2 bytes)"
    assert files_of(worktree)["src/new/c.py"] == "c"
    assert (worktree / "src/a.py").stat().st_mode & 0o777 == 0o755
    assert (worktree / "src/new/c.py").stat().st_uid == os.getuid()


def test_edit_wants_one_match_unless_told_otherwise(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, {"src/a": "x y x\r\n"})
    context = context_for(worktree)
    assert "there 2 times" in use(context, "edit", path="src/a", old="x", new="z").content
    assert "not in the file" in use(context, "edit", path="src/a", old="q", new="z").content
    assert not use(context, "edit", path="src/a", old="y", new="Y").is_error
    assert not use(context, "edit", path="src/a", old="x", new="z", replace_all=True).is_error
    assert (worktree / "src/a").read_bytes() == b"z Y z\r\n"


def test_search_finds_lines_in_the_files_of_a_glob(tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, {**FILES, "src/deep/d.py": "two\n", "binary": "two\0"}))
    assert use(context, "search", pattern="^two$").content == "src/a.py:2: two\nsrc/deep/d.py:1: two"
    assert use(context, "search", pattern="t", glob="docs/*").content == "[nothing found]"
    assert "more than 1" in use(context, "search", pattern="two", limit=1).content


@pytest.mark.parametrize("glob", ["src/*.{py,md}", "src/[ab].py"])
def test_a_glob_of_another_kind_is_refused_instead_of_finding_nothing(glob: str, tmp_path: Path) -> None:
    result = use(context_for(worktree_at(tmp_path, FILES)), "search", pattern="two", glob=glob)
    assert result.is_error
    assert "has only *, ** and ?" in result.content


def test_every_tool_works_without_a_sandbox_too(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    context = context_for(worktree, sandbox=UnsandboxedSandbox())
    assert use(context, "read", path="src/a.py").content == FILES["src/a.py"]
    assert not use(context, "write", path="src/new", content="x\n" * 13_000).is_error
    listed = use(context, "run", argv=["sh", "-c", "cat src/new"])
    assert "the whole is in @outputs/0001-run.txt" in listed.content
    assert use(context, "read", path="@outputs/0001-run.txt", limit=1).content.startswith("$ sh -c")
    done = use(context, "run", argv=["sh", "-c", "echo made >src/made; echo no >docs/no; echo kept >runs/kept"])
    assert "docs/no: outside what this task may write" in done.content
    assert files_of(worktree).keys() == {*FILES, ".git", "src/new", "src/made"}
    assert (worktree / "runs/kept").read_text() == "kept\n"


def test_a_long_result_is_cut_and_kept_whole_where_read_finds_it(tmp_path: Path) -> None:
    lines = "".join(f"line {number}\n" for number in range(9000))
    context = context_for(worktree_at(tmp_path, {"src/long": lines}))
    cut = use(context, "read", path="src/long", limit=10_000).content
    assert len(cut) < CONTENT_CHARS + 300
    assert cut.startswith("line 0\n")
    assert cut.endswith("line 8999\n")
    assert "@outputs/0001-read.txt" in cut
    assert use(context, "read", path="@outputs/0001-read.txt", offset=5000, limit=1).content.startswith("line 4999\n")


OUTSIDE = ["/etc/passwd", "../secret", "src/../../secret", "~/x", "src/\0x", "src/a\nb", "x" * 300, "a/" * 3000]
GITS = [".git", ".git/config", ".GIT/hooks/x", "src/.Git/x", ".g\u200cit/x", "git~1/x", ".git./x", ".git::$DATA"]


@pytest.mark.parametrize("path", OUTSIDE + GITS)
@pytest.mark.parametrize("tool", ["read", "list", "write", "edit"])
def test_a_hostile_path_is_refused_with_a_reason(tool: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    worktree = worktree_at(tmp_path, FILES)
    rest = {"write": {"content": "x"}, "edit": {"old": "a", "new": "b"}}.get(tool, {})
    context = context_for(worktree, writes=("**",), sandbox=UnsandboxedSandbox())
    result = use(context, tool, path=path, **rest)
    assert result.is_error
    assert "token" not in result.content
    assert files_of(tmp_path).keys() == {"secret", "worktree/.git", *(f"worktree/{name}" for name in FILES)}


@pytest.mark.parametrize("path", ["docs/b.md", "Src/a.py", "src2/a", "a.py", "srcx", ".gitmodules", "src/-rf", "."])
def test_writing_outside_the_tasks_globs_is_refused_and_told_what_is_allowed(path: str, tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    result = use(context_for(worktree, sandbox=UnsandboxedSandbox()), "write", path=path, content="x")
    assert result.is_error
    assert "src/**" in result.content or "the worktree itself" in result.content
    assert files_of(worktree).keys() == {".git", *FILES}


def test_a_submodule_cannot_be_declared_even_where_everything_may_be_written() -> None:
    with pytest.raises(ToolRefused):
        writable(".gitmodules", ("**",))


def test_a_repository_inside_the_worktree_is_not_written(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, {"src/sub/.git": "gitdir: x", "src/sub/f": "same"})
    result = use(context_for(worktree), "write", path="src/sub/f", content="x")
    assert "a repository of its own" in result.content
    assert (worktree / "src/sub/f").read_text() == "same"


@pytest.mark.parametrize("tool", ["read", "list", "write", "edit"])
def test_links_are_not_followed_and_the_agent_is_told(tool: str, tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("token")
    worktree = worktree_at(tmp_path, FILES)
    (worktree / "src/link").symlink_to(secret)
    (worktree / "src/folder").symlink_to(secret.parent)
    rest = {"write": {"content": "x"}, "edit": {"old": "token", "new": "b"}}.get(tool, {})
    for sandbox in (None, UnsandboxedSandbox()):
        context = context_for(worktree, sandbox=sandbox)
        for path in ("src/link", "src/folder/secret"):
            result = use(context, tool, path=path, **rest)
            assert result.is_error
            assert "is a symbolic link" in result.content
            assert "token" not in result.content
    assert secret.read_text() == "token"


def test_search_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    worktree = worktree_at(tmp_path, FILES)
    (worktree / "src/link").symlink_to(tmp_path / "secret")
    (worktree / "src/folder").symlink_to(tmp_path)
    assert (
        use(context_for(worktree, sandbox=UnsandboxedSandbox()), "search", pattern="token").content == "[nothing found]"
    )


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    os.mkfifo(worktree / "src/pipe")
    context = context_for(worktree)
    for tool, rest in (("read", {}), ("write", {"content": "x"}), ("edit", {"old": "a", "new": "b"})):
        assert "neither a file nor a folder" in use(context, tool, path="src/pipe", **rest).content
    assert use(context, "search", pattern="token").content == "[nothing found]"


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    worktree = worktree_at(tmp_path, FILES)
    (worktree / "src/raw").write_bytes(b"\xff\xfe")
    assert "not UTF-8 text (2 bytes)" in use(context_for(worktree), "read", path="src/raw").content


def test_a_pattern_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from orchestrator.tools import files

    monkeypatch.setattr(files, "HELPER", replace(files.HELPER, wall_s=0.5))
    context = context_for(worktree_at(tmp_path, {"src/a": "a" * 60 + "b\n"}))
    assert "took longer" in use(context, "search", pattern="(a+)+$").content


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, FILES))
    assert "half a character" in use(context, "write", path="src/x", content="\ud800").content
    assert use(context, "read", path="src/\ud800").is_error


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("delete", {}, "no such tool for you; there are read, list"),
        ("write", {"path": "src/x", "content": ""}, "no such tool for you"),
        ("read", {}, "path: Field required"),
        ("read", {"path": "src/a.py", "ofset": 1}, "ofset: Extra inputs are not permitted"),
        ("read", {"path": 7}, "path: Input should be a valid string"),
        ("read", {"path": "src/a.py", "offset": "1"}, "offset: Input should be a valid integer"),
        ("read", {"path": "src/a.py", "offset": 0}, "greater than or equal to 1"),
        ("read", ["src/a.py"], "arguments: Input should be a valid dictionary"),
        ("read", None, "arguments: Input should be a valid dictionary"),
        ("r" * 500, {}, "no such tool"),
    ],
)
def test_a_malformed_call_is_answered_not_raised(name: str, arguments: dict, reason: str, tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, FILES), sandbox=UnsandboxedSandbox())
    result = call(name, arguments, context, frozenset({"read", "list"}))
    assert result.is_error
    assert reason in result.content


def test_specs_are_what_the_messages_api_takes() -> None:
    assert [spec["name"] for spec in specs(TOOLS)] == ["read", "list", "write", "edit", "search", "run", "skill"]
    assert [spec["name"] for spec in specs({"run", "read", "delegate"})] == ["read", "run"]
    for spec in specs(TOOLS):
        assert spec.keys() == {"name", "description", "input_schema"}
        assert spec["input_schema"]["type"] == "object"
        assert spec["input_schema"]["additionalProperties"] is False
        assert '"title"' not in str(spec).replace("'", '"')


ODD = st.text(st.sampled_from("ab./\\-~*?\0\n.gitGIT \u200c"), max_size=24)


@given(ODD | st.text(max_size=12))
def test_a_checked_path_never_leaves_the_worktree(path: str) -> None:
    try:
        names = names_of(path)
    except ToolRefused:
        return
    assert os.path.normpath(Path("/root/work", *names)) == "/".join(["/root/work", *names])
    assert not any(name.casefold() == ".git" or "\0" in name or name in ("", ".", "..") for name in names)


NAME = st.text(st.sampled_from("abAB.-_ é"), min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))


@given(st.lists(NAME, min_size=1, max_size=4), st.lists(st.sampled_from(["a", "b", "*", "?", "**", "a*"]), min_size=1))
def test_writes_allow_exactly_what_their_globs_match(names: list[str], glob: list[str]) -> None:
    path, pattern = "/".join(names), "/".join(glob)
    dashed = any(name.startswith("-") for name in names)
    assert may_write(path, (pattern,)) == (matches(path, [pattern]) and not dashed and path != ".gitmodules")


@given(st.lists(NAME, min_size=1, max_size=4))
def test_a_star_stays_within_a_name_and_two_cross_folders(names: list[str]) -> None:
    path = "/".join(["src", *names])
    if any(name.startswith("-") for name in names):
        return
    assert may_write(path, ("src/**",))
    assert may_write(path, ("src/*",)) == (len(names) == 1)
    assert not may_write(f"not-{path}", ("src/**",))


# in a process of its own, so that it is as fast as an attacker; RENAME_EXCHANGE leaves no moment between
SWAPPER = """
import ctypes, os, sys
libc, a, b = ctypes.CDLL(None), os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2])
print("swapping", flush=True)
while libc.renameat2(-100, a, -100, b, 2) == 0:
    pass
"""


@pytest.mark.parametrize("act", ["read", "write"])
def test_a_folder_swapped_for_a_link_meanwhile_never_leads_outside(act: str, tmp_path: Path) -> None:
    """The race that a check on the path alone would lose."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("token")
    worktree = worktree_at(tmp_path, {"src/folder/file": "own"})
    folder, link = worktree / "src/folder", worktree / "src/link"
    link.symlink_to(outside)
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, folder, link], stdout=subprocess.PIPE)
    assert swapper.stdout is not None
    assert swapper.stdout.readline() == b"swapping\n"
    seen: set[str] = set()
    tries, deadline = 0, time.monotonic() + 60
    least = 1000 if act == "read" else 300  # a write waits for the disk
    try:
        # on a busy machine one side of the race may not come up in that many tries: go on until both did
        while tries < least or ({"own", "Refused"} - seen and time.monotonic() < deadline):
            tries += 1
            try:
                if act == "read":
                    seen.add(inside.read(str(worktree), ["src", "folder", "file"], 1, 9)["text"])
                else:
                    inside.write(str(worktree), ["src", "folder", "new"], "own")
                    seen.add("own")
            except (inside.Refused, OSError) as error:
                seen.add(type(error).__name__)
    finally:
        swapper.kill()
        swapper.communicate()
    assert "token" not in seen
    assert {"own", "Refused"} <= seen, "both sides of the race were met"
    assert [path.name for path in outside.iterdir()] == ["file"]
