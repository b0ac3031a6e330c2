"""A language model reads the pages too: more and better candidates, each held against the page before it is shown.

The model gets text and gives JSON; it has no tools. A claim whose quote is not on the page that it names, or whose
value is not in its quote, is dropped and counted. What is kept is as unconfirmed as what the program found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator import prompts
from orchestrator.calls import Calls, Place
from orchestrator.papers.claims import value_in
from orchestrator.papers.pages import Page, Paper, clean
from orchestrator.providers.base import CallFailed, Request
from orchestrator.records import Candidate, Tier

CHUNK_CHARS = 24_000  # of text a request: some ten pages
CLAIM: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("unit", "metric", "dataset", "place", "quote")},
        "value": {"type": "number"},
        "page": {"type": "integer"},
    },
    "required": ["value", "page", "quote"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"claims": {"type": "array", "items": CLAIM}},
    "required": ["claims"],
    "additionalProperties": False,
}
NODE = "@paper"  # where its cost is put
SAID_CHARS = 300  # of an answer that can't be used, in the error
REMEDY = "the same command asks again, --tier asks another model; without --provider the program reads alone"


@dataclass(frozen=True)
class Reader:
    """A language model beside the program: its calls are bought, once, for this run."""

    calls: Calls
    run: str
    tier: Tier
    model: str


async def reread(paper: Paper, found: tuple[Candidate, ...], reader: Reader) -> tuple[tuple[Candidate, ...], int]:
    """The model's candidates that hold, then the program's that it did not name; and how many were dropped."""
    pages = {page.number: page for page in paper.pages}
    kept: list[Candidate] = []
    dropped = 0
    for chunk in chunks(paper):
        for claim in _array(await _answer(chunk, reader)):
            candidate = checked(claim, pages, f"m{len(kept) + 1}")
            kept += [candidate] if candidate and candidate.page in {page.number for page in chunk} else []
            dropped += not candidate
    named = {(each.page, each.value) for each in kept}
    return (*kept, *(each for each in found if (each.page, each.value) not in named)), dropped


async def _answer(chunk: tuple[Page, ...], reader: Reader) -> str:
    """What the model says of these pages. What ended otherwise is none, and is asked for anew the next time."""
    ledger, unusable = reader.calls.ledger, f"{reader.run} unusable/{chunk[0].number}"
    again = ledger.begun(unusable)
    reply = await reader.calls.whole(Place(reader.run, "", NODE), _request(chunk, reader, again))
    if reply.stop_reason in ("end_turn", "stop_sequence"):
        return reply.text
    ledger.begin(f"{unusable}/{again}")
    said = " ".join(filter(None, (reply.detail, reply.text[:SAID_CHARS]))) or "nothing"
    pages = f"pages {chunk[0].number} to {chunk[-1].number}"
    raise CallFailed(reply.stop_reason, f"{pages} were not read ({reply.stop_reason}): {said}\n{REMEDY}")


def chunks(paper: Paper) -> Iterator[tuple[Page, ...]]:
    """Pages in a row that fit into one request; a longer page is cut."""
    chunk, size = list[Page](), 0
    for page in paper.pages:
        if chunk and size + len(page.text) > CHUNK_CHARS:
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(page)
        size += len(page.text)
    if chunk:
        yield tuple(chunk)


def checked(claim: Any, pages: dict[int, Page], name: str) -> Candidate | None:
    """The claim as a candidate if the page says what it quotes, and the quote holds the number; else None."""
    try:
        words = {key: clean(str(claim.get(key, ""))) for key in ("unit", "metric", "dataset", "place", "quote")}
        candidate = Candidate(id=name, value=claim["value"], page=claim["page"], **words)
    except (AttributeError, KeyError, TypeError, ValidationError):
        return None
    page = pages.get(candidate.page)
    if page is None or _plain(candidate.quote) not in _plain(page.text):
        return None
    return candidate if value_in(candidate.quote, candidate.value) else None


def _request(chunk: tuple[Page, ...], reader: Reader, again: int) -> Request:
    text = "\n\n".join(f"[page {page.number}]\n{page.text}" for page in chunk)[: 2 * CHUNK_CHARS]
    text = re.sub(r"</?\s*paper\s*>", "", text, flags=re.IGNORECASE)  # the paper can't end its own quotation
    return Request(
        who=f"{NODE}/{again}" if again else NODE,
        turn=chunk[0].number,  # a page of its own for every chunk
        tier=reader.tier,
        model=reader.model,
        system=prompts.render("paper.md.j2", {}),
        messages=({"role": "user", "content": f"<paper>\n{text}\n</paper>"},),
        answer_schema=SCHEMA,
    )


def _array(text: str) -> list[Any]:
    """The JSON array in a reply; nothing where there is none."""
    start, end = text.find("["), text.rfind("]")
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def _plain(text: str) -> str:
    """Letters and digits only: spaces, hyphens and quotation marks are what typesetting changes."""
    return "".join(char for char in clean(text).lower() if char.isalnum() or char == ".")
