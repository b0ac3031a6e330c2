"""What an issue is here, and how its words are made safe for a plan and for a terminal."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from orchestrator.errors import InputError, Problem
from orchestrator.records import Record

MAX_TITLE = 200
State = Literal["open", "closed"]
Author = Literal["writer", "stranger", "unknown"]
Take = Literal["", "issues", "plan"]  # which side wins where both changed
WRITERS = ("OWNER", "MEMBER", "COLLABORATOR")


class Issue(Record):
    number: int
    title: str
    body: str = ""
    state: State = "open"
    labels: tuple[str, ...] = ()
    milestone: str = ""
    author: Author = "unknown"  # a marker of ours counts only from one who may write there: anyone may open an issue


def from_json(place: str, at: int, raw: Any) -> Issue | None:
    """An issue from what GitHub's API, or `gh issue list --json`, says of it; None for a pull request.

    Raises InputError naming the entry that is no issue.
    """
    if isinstance(raw, dict) and raw.get("pull_request"):
        return None
    number = raw.get("number") if isinstance(raw, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(raw.get("title"), str):
        fix = "write it with `gh issue list --state all --limit 5000 --json number,title,body,state,labels,milestone`"
        raise InputError([Problem(place, 0, f"entry {at} is no issue: it has no `number` or no `title`", fix)])
    labels = raw.get("labels")
    return Issue(
        number=number,
        title=one_line(raw["title"])[:MAX_TITLE] or "(no title)",
        body=printable(raw["body"]) if isinstance(raw.get("body"), str) else "",
        state="closed" if str(raw.get("state")).lower() == "closed" else "open",
        labels=tuple(_name(label, "name") for label in labels) if isinstance(labels, list) else (),
        milestone=_name(raw.get("milestone"), "title"),
        author=_author(raw),
    )


def printable(text: str) -> str:
    """Without control characters and halves of characters; line ends are `\\n`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return "".join(char for char in text if char == "\n" or (char.isprintable() and not "\ud800" <= char < "\ue000"))


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


def mark(text: str) -> str:
    """A short name for a text, by which a later change is seen."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def escaped(text: str) -> str:
    """So that no comment of somebody else's is read as a marker of ours."""
    return re.sub(r"<!(?=--)", "&lt;!", text)


def _author(raw: dict[str, Any]) -> Author:
    """As the API tells it; `gh issue list` does not. A bot writes where somebody with the right to has installed it."""
    user, association = raw.get("user"), raw.get("author_association")
    if association in WRITERS or (isinstance(user, dict) and user.get("type") == "Bot"):
        return "writer"
    return "stranger" if association else "unknown"


def _name(value: Any, key: str) -> str:
    return one_line(str(value.get(key, "")) if isinstance(value, dict) else value if isinstance(value, str) else "")
