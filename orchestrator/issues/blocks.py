"""A plan's tasks as pieces of its text: the task's line, its keys, its marker, its quoted body.

- [ ] `issue-12` Title
  - skill: implement-change
  <!-- odyssey:issue owner/repo#12 title=3f... body=9a... state=c1... -->
  > what the issue says
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator import planfile
from orchestrator.issues.issue import escaped

MARKER = re.compile(
    r"^  <!-- odyssey:issue (?P<repo>[\w.-]+/[\w.-]+)#(?P<number>\d{1,12})(?P<marks>( \w+=\w*)*) -->\s*$"
)
KNOWN = re.compile(r"^<!-- odyssey:issues (?P<repo>[\w.-]+/[\w.-]+) known=(?P<numbers>[\d,]*) --> *$", re.MULTILINE)
FIELDS = ("title", "body", "state")
MAX_BODY = 2_000  # characters of an issue that a plan quotes
CUT = "(cut here; the whole stands in the issue)"


@dataclass(frozen=True)
class Block:
    """A task's lines from `start` up to `end`, counted from 0. `base`: the marks of its marker."""

    id: str
    title: str
    done: bool
    section: str
    start: int
    end: int
    repo: str
    number: int
    base: Mapping[str, str]
    body: str
    marker_at: int | None

    @property
    def state(self) -> str:
        return "closed" if self.done else "open"


def blocks(text: str) -> list[Block]:
    """Every task of the plan, in its order."""
    lines = text.split("\n")
    return [_block(lines, task) for task in planfile.located(text)]


def of_issue(repo: str, number: int, title: str, body: str, state: str, base: Mapping[str, str]) -> dict[str, str]:
    """The lines that an issue gives a task: `task` (to be filled with the id), `marker`, `body`."""
    marks = " ".join(f"{name}={base[name]}" for name in FIELDS)
    return {
        "task": f"- [{'x' if state == 'closed' else ' '}] `{{id}}` {title}",
        "marker": f"  <!-- odyssey:issue {repo}#{number} {marks} -->",
        "body": "\n".join(f"  > {line}".rstrip() for line in body.split("\n")) if body else "",
    }


def quoted(body: str) -> str:
    """An issue's body as a plan holds it: no marker in it is read as one, and it is not endless."""
    body = escaped("\n".join(line.rstrip() for line in body.strip().split("\n")))
    return body if len(body) <= MAX_BODY else f"{body[:MAX_BODY].rstrip()}\n{CUT}"


def known(text: str, repo: str) -> set[int]:
    """The issues that were imported before, those whose tasks a person took out included."""
    found = [match["numbers"] for match in KNOWN.finditer(text) if match["repo"] == repo]
    return {int(number) for numbers in found for number in numbers.split(",") if number}


def with_known(text: str, repo: str, numbers: set[int]) -> str:
    line = f"<!-- odyssey:issues {repo} known={','.join(map(str, sorted(numbers)))} -->"
    for match in KNOWN.finditer(text):
        if match["repo"] == repo:
            return text[: match.start()] + line + text[match.end() :]
    return f"{text.rstrip()}\n\n{line}\n"


def _block(lines: list[str], task: planfile.Located) -> Block:
    start = task.line - 1
    end = start + 1 + sum(1 for _ in _belonging(lines[start + 1 :]))
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    inner = range(start + 1, end)
    at = next((n for n in inner if MARKER.match(lines[n])), None)
    found = MARKER.match(lines[at]) if at is not None else None
    marks = dict(word.split("=", 1) for word in found["marks"].split()) if found else {}
    body = "\n".join(lines[n][4:] for n in inner if lines[n].startswith("  >"))
    return Block(
        id=task.id,
        title=task.title,
        done=task.done,
        section=task.section,
        start=start,
        end=end,
        repo=found["repo"] if found else "",
        number=int(found["number"]) if found else 0,
        base=marks,
        body=body,
        marker_at=at,
    )


def _belonging(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if line.strip() and not line.startswith("  "):
            return
        yield line
