"""A pytest plugin that the gate mounts beside the tests: it counts what ran, and signs the count with the gate's nonce.

pytest's exit code alone can be faked by the code under test (`os._exit(0)` gives 0). The nonce comes over standard
input before any test module is imported; the line with it is written when the session has really ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

_out = os.dup(1)  # before pytest captures it
_nonce = sys.stdin.readline().strip()
_outcomes: Counter[str] = Counter()
_collected = 0


def pytest_collection_finish(session: Any) -> None:
    global _collected
    _collected = len(session.items)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.outcome] += 1


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    line = {"nonce": _nonce, "collected": _collected, "exit": int(exitstatus), **_outcomes}
    os.write(_out, f"\n{json.dumps(line)}\n".encode())
