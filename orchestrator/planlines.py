"""The lines of a plan's body: what is a task's, what is prose, and what a person meant to be a task's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

from orchestrator.errors import Problem

TASK_LINE = re.compile(r"^- \[(?P<tick>[ xX])\] (?:`(?P<id>[^`]*)`)?\s*(?P<title>.*)$")
KEY_LINE = re.compile(r"^\s{2,}- (?P<key>[a-z_]+):(?:\s+(?P<value>.*))?$")
TASK_KEYS = ("skill", "writes", "needs", "targets", "accept", "agent", "tier", "options", "budget", "status")
FENCE = re.compile(r"^\s*(```|~~~)")
CODE = re.compile(r"`[^`]*`")

BOX = re.compile(r"^ ?(?P<box>(?:[-*+]|\d+[.)])\s*\[[ xX]?\])(?:\s|$)")
BULLET = re.compile(r"^\s+[-*+]\s+(?P<said>(?P<key>[A-Za-z][A-Za-z_-]*)\s*:)")
OTHER_NAMES = {"depends": "needs", "depends_on": "needs", "requires": "needs"}
NEAR = 0.8  # `need`, `writs`; not `tests` or `notes`, which prose begins with


def marked(lines: Iterable[str], first: int) -> Iterator[tuple[int, str, bool]]:
    """Each line with its number, and whether it counts: fences hold examples, comments what somebody took out."""
    fence, comment = "", False
    for number, line in enumerate(lines, first):
        if comment:
            comment = "-->" not in line or _opens(line)
            yield number, line, False
            continue
        if match := FENCE.match(line):
            fence = "" if fence == match[1] else fence or match[1]
        comment = not fence and _opens(line)
        yield number, line, not fence


def _opens(line: str) -> bool:
    """Whether a comment begins here that doesn't end here."""
    text = CODE.sub("", line)
    return text.rfind("<!--") > text.rfind("-->")


def misread(path: str, lines: Iterable[str], first: int) -> Iterator[Problem]:
    """Lines that the reader passes over as prose, and a person hardly meant so."""
    in_task = False
    for number, line, counts in marked(lines, first):
        if not counts:
            continue
        if TASK_LINE.match(line):
            in_task = True
        elif box := BOX.match(line):
            yield Problem(path, number, f"`{box['box']}` begins no task", "write `- [ ] `short-id` title`")
        elif in_task and (bullet := BULLET.match(line)) and not KEY_LINE.match(line):
            if key := _meant(bullet["key"]):
                yield Problem(path, number, f"`{bullet['said']}` is read as prose", f"write `  - {key}: ...`")
        elif line.strip() and not line.startswith("  "):
            in_task = False


def _meant(word: str) -> str:
    """The key that a word was meant to be; empty where it is no key's."""
    key = word.lower().replace("-", "_")
    near = difflib.get_close_matches(key[:20], TASK_KEYS, n=1, cutoff=NEAR)
    return OTHER_NAMES.get(key) or (near[0] if near else "")
