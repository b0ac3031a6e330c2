"""What `orchestrate resume` says, and does to a run, where it can't simply go on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine import APPLICATION_VERSION, DATABASE
from orchestrator.house import State
from tests.orchestrator import brains
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, serving
from tests.orchestrator.forks import RUN, Forks, run

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


def killed(warm: Forks, repo: Path, api: FakeApi, at: str) -> None:
    """A run that died at this boundary, when it came to it first."""
    with serving(api):
        done = replace(warm, url=api.url).run(repo, RUN, at={at})
    assert done["code"] == -9, done["err"]


def test_a_run_that_another_version_left_under_way_is_not_waited_for(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    killed(warm, repo, api, "before tool read")
    with closing(sqlite3.connect(State.of(repo).path("runs", "p-1") / DATABASE)) as journal, journal:
        journal.execute("UPDATE workflow_status SET application_version = 'odyssey-1' WHERE status = 'PENDING'")
    code, err = run(warm, repo, api, "resume", "p-1")
    assert code == 2, err
    assert f"run `p-1` was begun by odyssey-1, and this is {APPLICATION_VERSION}" in err
    assert "start a new run with `orchestrate run plans/p.md`, or resume with the version that began it" in err
    assert "go on with" not in err
