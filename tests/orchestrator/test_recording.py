"""The recordings that are shipped, played again: offline, to the same pull requests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator import demo
from orchestrator.errors import GitError
from orchestrator.providers.replay import read
from orchestrator.workspace import git
from tests.orchestrator.endtoend import Repo, has_bubblewrap

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "plans/recordings").glob("*.jsonl"))
MOST_BYTES = 500_000


def stands(recording: Path) -> bool:
    """Whether the recorded commit is in this clone: not in a shallow one."""
    try:
        return bool(git(ROOT, "rev-parse", "--verify", f"{read(recording)[0]['demo']['of']}^{{commit}}"))
    except GitError:
        return False


playable = pytest.mark.skipif(
    not has_bubblewrap() or not all(map(stands, SHIPPED)), reason="needs bubblewrap and the recorded commits"
)


def test_a_recording_is_shipped() -> None:
    assert [path.name for path in SHIPPED] == ["warmup.jsonl"]


@pytest.mark.parametrize("recording", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recording_is_small_says_who_answered_and_names_no_folder_of_a_machine(recording: Path) -> None:
    head, calls = read(recording)
    text = recording.read_text()
    assert len(text) < MOST_BYTES
    assert len(head["how"]) > 40
    assert {call["who"].split("/")[-1] for call in calls} >= {"chief-architect", "review"}
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt)/[^\s\"\\\\]*", text) == []


@playable
@pytest.mark.parametrize("recording", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recording_ends_in_the_same_pull_request(tmp_path: Path, recording: Path) -> None:
    """The command of `make demo`, which tells how long it took: under a minute on an idle machine."""
    git(tmp_path, "clone", "--quiet", "--shared", "--", str(ROOT), "clone")
    done = Repo(tmp_path / "clone", tmp_path).run("demo", str(recording))
    assert done.returncode == 0, done.stderr
    assert "spent $0.00" in done.stdout
    assert re.search(r"^the same pull requests as recorded, after \d+ s$", done.stderr, re.MULTILINE)


@playable
@pytest.mark.parametrize(
    ("within", "was", "becomes", "call"),
    [
        ('"comparable": ["read: ', "Learning-rate", "Mearning-rate", "call 2 of warmup-cosine/1"),
        ('"content": "# The plan: ', "never begins at 0", "mostly begins at 0", "call 1 of @plan/chief-architect"),
        ("From the agent above you:", "Add the schedule", "Mend the schedule", "call 1 of warmup-cosine/1"),
    ],
    ids=["what a tool gave", "the plan", "a brief"],
)
def test_a_change_in_the_shipped_recording_is_found_at_its_call(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], within: str, was: str, becomes: str, call: str
) -> None:
    text = (ROOT / "plans/recordings/warmup.jsonl").read_text()
    place = text.index(was, text.index(within))
    changed = tmp_path / "changed.jsonl"
    changed.write_text(text[:place] + becomes + text[place + len(was) :])
    assert demo.play(changed, ROOT, tmp_path / "repo") == ["0 pull requests instead of 1"]
    words = capfd.readouterr().err.split(f"{call} is the first that differs from the recording")[1]
    found, recorded = words.split("instead of")[:2]
    assert was in found
    assert becomes in recorded
