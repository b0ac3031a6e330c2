"""A run's calls as a recording: JSON lines that `--provider replay:FILE` plays again (providers/replay.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from orchestrator import demo
from orchestrator.errors import InputError
from orchestrator.house import State
from orchestrator.providers.replay import VERSION

PLACE = "/repository"  # stands in a recording for the folder of the run


def lines(state: State, run_id: str, how: str) -> Iterator[str]:
    """The recording, a line at a time. `how`: who answered, in honest words. Raises InputError if nobody was asked."""
    root = json.dumps(str(state.folder.parent))[1:-1]
    for record in _records(state, run_id, how):
        yield json.dumps(record).replace(root, PLACE)  # where it was recorded is nobody's business


def _records(state: State, run_id: str, how: str) -> Iterator[dict[str, Any]]:
    row = state.ledger.run(run_id)
    calls = [call for call in state.ledger.calls(run_id) if call["state"] == "done" and call["request"]]
    if not calls:
        raise InputError(f"run `{run_id}` asked no language model, so there is nothing to record")
    head = {
        "odyssey_recording": VERSION,
        "run": run_id,
        "plan": row["plan"],
        "base_commit": row["base_commit"],
        "provider": row["provider"],
        "recorded_at": row["created_at"],
        "how": how,
        "demo": demo.trailers(state.folder.parent, row["base_commit"]) if row["base_commit"] else {},
        "pulls": demo.pulls(state, run_id),
    }
    yield head
    for call in calls:
        asked = json.loads(call["request"])
        place = {"who": asked.pop("who"), "turn": asked.pop("turn"), "tier": call["tier"], "model": call["model"]}
        yield {**place, **asked, "reply": json.loads(call["reply"])}
