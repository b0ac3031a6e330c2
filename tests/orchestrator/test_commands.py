"""The commands around language models, each started as a person starts it: processes, files, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.providers.mailbox import Mailbox
from tests.orchestrator import brains
from tests.orchestrator.endtoend import Repo, has_bubblewrap
from tests.orchestrator.fakeapi import serving

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


@contextmanager
def started(repo: Repo, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A command at work; at the end, or when the test fails, it is killed."""
    process = repo.start(*argv)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def awaited(process: subprocess.Popen[str]) -> str:
    """The request that a run says it waits for."""
    assert process.stderr is not None
    heard = []
    for line in process.stderr:
        heard.append(line)
        if found := re.search(r"waiting for a reply: orchestrate mailbox show (\S+)", line):
            return found[1]
    pytest.fail(f"it ended and asked nothing: {heard}")


def pulls(repo: Repo) -> list[tuple[str, str]]:
    return [(each["task"], each["title"]) for each in repo.json("pr", "list")["pull_requests"]]


HANDED = {"why": "small", "tasks": [{"task": "a", "agent": "worker", "brief": "Write a."}]}
WRITES = {"text": "I write.", "calls": [{"tool": "write", "input": {"path": "notes/a.md", "content": "a\n"}}]}
LATER: list[dict[str, Any]] = [WRITES, {"text": "The note a is written."}, {"answer": brains.FINE}]


def test_a_run_by_mail_is_killed_answered_meanwhile_and_goes_on_without_asking_again(tmp_path: Path) -> None:
    repo = Repo(brains.repository(tmp_path / "repo", 1), tmp_path)
    with started(repo, "run", "plans/p.md", "--provider", "mailbox") as process:
        asked = [awaited(process)]
    assert process.returncode == -9

    assert repo.run("mailbox", "list").stdout.split() == asked
    shown = repo.run("mailbox", "show", asked[0][:8])
    assert (shown.returncode, "# The tasks to hand out" in shown.stdout) == (0, True)
    assert f"orchestrate mailbox answer {asked[0]}" in shown.stdout

    (tmp_path / "bad.json").write_text(json.dumps({"why": "small", "tasks": [{"task": "a", "agent": "worker"}]}))
    bad = repo.run("mailbox", "answer", asked[0], str(tmp_path / "bad.json"))
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "answer.tasks[0].brief: is missing\n")
    lost = repo.run("mailbox", "answer", asked[0], str(tmp_path / "lost.json"))
    assert (lost.returncode, "lost.json: can't be read" in lost.stderr, "Traceback" in lost.stderr) == (2, True, False)
    listed = repo.json("mailbox", "list")
    assert (listed["requests"], listed["askers"]) == (asked, [{"request": asked[0], "asker": None}])

    (tmp_path / "good.json").write_text(json.dumps(HANDED))
    good = repo.run("mailbox", "answer", asked[0], str(tmp_path / "good.json"))
    assert (good.returncode, good.stderr) == (0, f"{asked[0]}: taken (end_turn)\n")
    nothing = repo.run("mailbox", "list")
    assert (nothing.stdout, nothing.stderr) == ("", "no request is waiting\n")

    with started(repo, "resume") as process:
        for reply in LATER:
            asked.append(awaited(process))
            Mailbox(repo.root / ".odyssey/mailbox").answer(asked[-1], json.dumps(reply))
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert len(set(asked)) == 1 + len(LATER)
    assert pulls(repo) == [("a", "Write the note a")]


def test_a_run_is_recorded_and_the_recording_played_again(tmp_path: Path) -> None:
    first, second = (Repo(brains.repository(tmp_path / name, 1), tmp_path) for name in ("one", "two"))
    unrecorded = first.run("record")
    assert (unrecorded.returncode, unrecorded.stdout) == (2, "")
    assert "no run yet" in unrecorded.stderr
    with serving(brains.api(1)) as api:
        done = first.run(
            "run", "plans/p.md", "--provider", "anthropic", ANTHROPIC_BASE_URL=api.url, ANTHROPIC_API_KEY="k"
        )
    assert done.returncode == 0, done.stderr

    recorded = first.run("record", "--how", "a script said all of it")
    assert (recorded.returncode, recorded.stderr) == (0, "")
    head, *calls = map(json.loads, recorded.stdout.splitlines())
    assert (head["odyssey_recording"], head["how"], head["run"]) == (1, "a script said all of it", "p-1")
    assert len(calls) == 7

    (tmp_path / "run.jsonl").write_text(recorded.stdout)
    played = second.run("run", "plans/p.md", "--provider", f"replay:{tmp_path / 'run.jsonl'}")
    assert played.returncode == 0, played.stderr
    assert "spent $0.00" in played.stdout
    assert pulls(second) == pulls(first) == [("a", "Write the note a")]

    table = first.run("tiers")
    assert (table.returncode, table.stderr) == (0, "")
    (line,) = re.findall(r"^note +haiku +(\d+) +(\d+) +(\d+) +\$0\.002 ", table.stdout, re.MULTILINE)
    assert line == ("1", "1", "0")
    assert "now: haiku (1 of 1 such attempts accepted" in table.stdout
    (note,) = [each for each in first.json("tiers")["skills"] if each["skill"] == "note"]
    assert [(row["tier"], row["accepted"]) for row in note["tiers"]] == [("haiku", 1), ("sonnet", 0), ("opus", 0)]


def test_the_orchestrators_own_cost_is_measured(tmp_path: Path) -> None:
    shown = Repo(tmp_path, tmp_path).run("bench", "--tasks", "2,3", "--turns", "20")
    assert shown.returncode == 0, shown.stderr
    turn, *table = shown.stdout.splitlines()
    assert re.fullmatch(r"a turn: [\d.]+ ms, 95 % within [\d.]+ ms \(20 turns\)", turn)
    assert table[:2] == ["| tasks | seconds | ms a task | peak MB |", "|---|---|---|---|"]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["2", "3"]
    assert [line.partition(":")[0] for line in shown.stderr.splitlines()] == ["2 tasks", "3 tasks"]
    found = Repo(tmp_path, tmp_path).json("bench", "--tasks", "2", "--turns", "20")
    assert (found["command"], found["turn"]["turns"]) == ("bench", 20)
    (one,) = found["tasks"]
    assert one["tasks"] == 2
    assert one["seconds"] > 0
    assert one["peak_mb"] > 10


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "name a recording, such as plans/recordings/warmup.jsonl, or give --prepare FOLDER"),
        (("none.jsonl",), "none.jsonl: is no recording"),
    ],
)
def test_a_demo_of_nothing_is_refused(tmp_path: Path, argv: tuple[str, ...], words: str) -> None:
    done = Repo(brains.repository(tmp_path, 1), tmp_path).run("demo", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(words)
