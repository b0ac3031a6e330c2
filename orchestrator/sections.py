"""A plan's sections: the prose around their tasks, for whoever works in one of them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from orchestrator.frontmatter import parse
from orchestrator.planlines import TASK_LINE, marked
from orchestrator.records import Plan, Task

MOST_CHARS = 4000
BLOCK = re.compile(r"<!-- odyssey:([\w-]+) -->.*?<!-- /odyssey:\1 -->", re.DOTALL)  # the harness's own


def prose(plan: Plan, task: Task) -> str:
    """What the task's section says around its tasks, cut where it is long; where the rest stands is said."""
    lines, texts = _sections(plan.text)
    text = texts[bisect_right(lines, task.line) - 1]
    if len(text) <= MOST_CHARS:
        return text
    return f"{text[:MOST_CHARS].rpartition(chr(10))[0]}\n\n[... cut here; the rest stands in {plan.path}]"


@lru_cache(maxsize=4)
def _sections(text: str) -> tuple[list[int], list[str]]:
    """Where each section begins, and its prose; the first is what stands above every heading."""
    document, _ = parse("", text)
    found: list[tuple[int, list[str]]] = [(0, [])]
    for number, line, kind in _kinds(document.body.split("\n"), document.body_line):
        if kind == "heading":
            found.append((number, []))
        elif kind == "prose":
            found[-1][1].append(line)
    return [number for number, _ in found], [BLOCK.sub("", "\n".join(lines)).strip() for _, lines in found]


def _kinds(lines: list[str], first: int) -> Iterator[tuple[int, str, str]]:
    """Each line with what it is: a heading, part of a task, or prose; fences and comments hold nothing but prose."""
    task = False
    for number, line, counts in marked(lines, first):
        heading = counts and line.startswith("#")
        if counts and TASK_LINE.match(line):
            task = True
        elif line.strip() and not line.startswith("  "):
            task = False
        yield number, line, "heading" if heading else "task" if task else "prose"
