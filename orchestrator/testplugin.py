"""A pytest plugin that the gate mounts beside the tests: it counts and names what ran, signed with the gate's nonce.

pytest's exit code alone can be faked by the code under test (`os._exit(0)` gives 0). The nonce comes over standard
input before any test module is imported; the line with it is written when the session has really ended.

The files under test come on the path only when pytest and its plugins are loaded: a `pytest.py`, `sitecustomize.py` or
`*.dist-info` among them would otherwise run first, with the nonce still to be read. Code under test shares the process
all the same: this keeps out tricks, not a program written against this very plugin.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from typing import Any

_out = os.dup(1)  # before pytest captures it
_nonce = sys.stdin.readline().strip()
_outcomes: Counter[str] = Counter()
_roots: set[str] = set()  # the top folders of the tests that were collected
_ended: set[str] = set()
_collected: list[str] = []
ID_CHARS = 120  # of a test's name in the line; a longer one ends in its digest


def pytest_configure() -> None:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    os.environ["PYTHONPATH"] = os.getcwd()  # noqa: PTH109  # for what the tests start


def pytest_collection_finish(session: Any) -> None:
    _collected.extend(_short(item.nodeid) for item in session.items)
    _roots.update(item.nodeid.split("/")[0] for item in session.items)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes["evaded" if _evaded(report) else report.outcome] += 1
        _ended.add(report.nodeid)


def _evaded(report: Any) -> bool:
    """Whether a test was skipped, or given up as expected to fail, by the code under test and not by the tests."""
    if report.outcome != "skipped":
        return False
    if hasattr(report, "wasxfail"):
        return "xfail" not in report.keywords
    place = os.path.relpath(report.longrepr[0]) if isinstance(report.longrepr, tuple) else ""
    return not place.startswith("..") and place.split("/")[0] not in _roots


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    counts = {"collected": len(_collected), "ended": len(_ended), "exit": int(exitstatus), **_outcomes}
    with os.fdopen(_out, "w", encoding="utf-8") as out:  # a pipe takes a long line in parts
        out.write(f"\n{json.dumps({'nonce': _nonce, **counts, 'ids': _collected})}\n")


def _short(nodeid: str) -> str:
    """A name that fits into the line and is still this test's alone."""
    if len(nodeid) <= ID_CHARS:
        return nodeid
    digest = hashlib.sha256(nodeid.encode(errors="replace")).hexdigest()[:16]
    return f"{nodeid[: ID_CHARS - 17]}~{digest}"
