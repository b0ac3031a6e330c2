"""A run of pytest that the gate can believe: how it is called, what its plugin reports, and whether that is enough.

The base commit's tests, run on a change, have to be there by name: every one that the base commit collects. More may
be: a test that is parametrised over a table of the code grows with the table.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.sandbox.base import Completed

PLUGIN = Path(__file__).resolve().with_name("testplugin.py")  # never imported here: it reads standard input
OUTPUT_BYTES = 8_000_000  # half is the tail, with the names of some 30,000 tests
NAMED = 5  # missing tests in a refusal; more are counted


@dataclass(frozen=True)
class Ran:
    """What the plugin said. Empty `counts`: nothing, for the session did not come to its end."""

    counts: dict[str, int] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()


def argv(root: Path, selection: tuple[str, ...], *flags: str) -> tuple[str, ...]:
    """pytest over `selection` with nothing of the files' own configuration, and the plugin."""
    return (
        *(sys.executable, "-P", "-m", "pytest", "-c", "/dev/null", "--rootdir", str(root), "--noconftest"),
        *("-p", PLUGIN.stem, "-p", "no:cacheprovider", "-p", "no:xdist", "-q", *flags, "--", *selection),
    )


def reported(stdout: str, nonce: str) -> Ran:
    """The plugin's report, if a line that carries our nonce is there."""
    for line in reversed(stdout.splitlines()):
        if nonce in line:
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            ids = frozenset(str(name) for name in found.get("ids", ()))
            return Ran({key: value for key, value in found.items() if isinstance(value, int)}, ids)
    return Ran()


def passed(done: Completed, ran: Ran, base: Ran | None) -> tuple[bool, str]:
    """Whether every test came to a good end, and in which words. base: what the base commit collects, to be there."""
    tail, counts = _tail(done.stdout), ran.counts
    if not counts:
        return False, f"the tests did not come to their end (exit code {done.exit_code}): {tail}"
    if done.exit_code != 0 or counts.get("failed") or counts["exit"] != 0:
        return False, f"tests failed: {tail}"
    if counts.get("evaded"):
        return False, f"{counts['evaded']} tests were skipped by what they test: {tail}"
    if counts["ended"] != counts["collected"]:
        return False, f"{counts['ended']} of {counts['collected']} tests came to their end: {tail}"
    if base and (missing := sorted(base.ids - ran.ids)):
        return False, f"{len(missing)} tests of the base commit are missing: {_named(missing)}"
    return True, f"{counts.get('passed', 0)} passed, {counts.get('skipped', 0)} skipped"


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def _tail(stdout: str) -> str:
    """The last words of pytest, without the plugin's line."""
    lines = [line for line in stdout.strip().splitlines() if not line.startswith('{"nonce": ')]
    return "\n".join(lines[-12:])[-1200:]
