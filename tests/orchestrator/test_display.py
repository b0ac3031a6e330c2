"""What a person sees while a plan runs: whether anybody looks is nothing to the work."""

from __future__ import annotations

import os
import sys

import pytest

from orchestrator.display import Display


def test_a_display_that_nobody_reads_any_more_fails_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w", buffering=1))
    display = Display(live=False)
    display.say("a", "gate", "policy")
    assert os.read(reader, 100).endswith(b"a: gate policy\n")
    os.close(reader)  # as `2>&1 >/dev/null | head -n 1` does
    display.say("a", "gate", "tests of the base commit")
    display.say("a", "accepted", "")
    print("what else the command has to say", file=sys.stderr, flush=True)


def test_a_closed_terminal_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = os.fdopen(os.dup(2), "w")
    monkeypatch.setattr(sys, "stderr", stream)
    display = Display(live=True)
    display.expect([("a", "A", "worker", "waiting")])
    with display.shown():
        stream.close()
        display.say("a", "accepted", "")
