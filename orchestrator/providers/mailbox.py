"""A brain by mail: each request is a file that anybody can read, and the reply is awaited for as long as it takes.

    mailbox/outbox/<id>.json   the request     <id>.md   the same for people
    mailbox/inbox/<id>.json    the reply as it was written, put there by `orchestrate mailbox answer` or by hand
    mailbox/done/              requests with their replies

The id follows from the request alone. So a run that was killed asks the same thing again and finds the reply, and days
may pass between the two.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import Field, ValidationError

from orchestrator import prompts
from orchestrator.errors import InputError, NotFound
from orchestrator.providers.base import Block, Json, Reply, Request, json_in
from orchestrator.providers.rendering import message
from orchestrator.providers.shape import misfits
from orchestrator.records import Record
from orchestrator.terminal import printable

POLL_S = 0.5
HALF = re.compile("[\ud800-\udfff]")
ASKER = "asker.txt"  # beside the repository of a run that `compare` makes: which run of which comparison it is


class Call(Record):
    tool: str
    input: dict[str, Json] = Field(default_factory=dict)


class Answer(Record):
    """What a person, or whoever answers, writes: words, calls of tools, or why not."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    answer: Json = None  # where the request asks for JSON of a shape
    refuse: str = Field(default="", description="why this can't be answered")


class Mailbox:
    """The folder that both sides share."""

    def __init__(self, folder: Path) -> None:
        self.outbox, self.inbox, self.done = (folder / name for name in ("outbox", "inbox", "done"))
        for place in (self.outbox, self.inbox, self.done):
            place.mkdir(parents=True, exist_ok=True)

    def post(self, request: Request, subject: str) -> str:
        """Put a request out, once; its id."""
        document = {"subject": subject, **request.model_dump(mode="json")}
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:10]
        name = f"{subject.replace('/', '-')}-{digest}"
        if not (self.done / f"{name}.json").exists():
            _settle(self.outbox / f"{name}.md", rendered(name, subject, request))
            _settle(self.outbox / f"{name}.json", json.dumps(document, indent=1))
        return name

    def open(self) -> list[str]:
        """Requests without a reply, oldest first."""
        files = sorted(self.outbox.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [path.stem for path in files if not (self.inbox / path.name).exists()]

    def request(self, name: str) -> tuple[str, Request]:
        """Subject and request. Raises NotFound."""
        path = self.outbox / f"{name}.json"
        if name not in self.open():
            raise NotFound(f"no open request `{name}`; open are: {', '.join(self.open()) or 'none'}")
        document = json.loads(path.read_text())
        return document.pop("subject"), Request.model_validate(document)

    def show(self, name: str) -> str:
        """A request as people read it."""
        self.request(name)
        return printable((self.outbox / f"{name}.md").read_text())

    def answer(self, name: str, text: str) -> Reply:
        """Take a reply. Raises InputError with every reason why it can't be taken; then the request stays open."""
        _, request = self.request(name)
        reply = understood(text, request)
        _settle(self.inbox / f"{name}.json", text)
        return reply

    def taken(self, name: str) -> Reply | None:
        """The reply, if it is there. One put there by hand that can't be taken is moved aside, with the reason."""
        place = next(
            (path for path in (self.inbox / f"{name}.json", self.done / f"{name}.reply.json") if path.exists()), None
        )
        if place is None:
            return None
        try:
            return understood(_text(place.read_bytes()), self._wanted(name))
        except InputError as error:
            place.rename(place.with_suffix(".refused"))
            _settle(place.with_suffix(".reason.txt"), f"{error}\n")
            return None

    def close(self, name: str) -> None:
        """File a request with its reply."""
        for path, filed in (
            (self.inbox / f"{name}.json", self.done / f"{name}.reply.json"),
            (self.outbox / f"{name}.md", self.done / f"{name}.md"),
            (self.outbox / f"{name}.json", self.done / f"{name}.json"),
        ):
            if path.exists():
                path.replace(filed)

    def _wanted(self, name: str) -> Request:
        path = next(place / f"{name}.json" for place in (self.outbox, self.done) if (place / f"{name}.json").exists())
        document = json.loads(path.read_text())
        document.pop("subject")
        return Request.model_validate(document)


class ByMail:
    """Posts, and waits. Nobody is paid for by the harness, and nobody's time is counted."""

    name = "mailbox"
    billed = False

    def __init__(
        self,
        mailbox: Mailbox,
        run: str,
        tell: Callable[[str, str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._mailbox = mailbox
        self._run = run
        self._tell = tell
        self._sleep = sleep

    async def reply(self, request: Request) -> Reply:
        name = self._mailbox.post(request, f"{self._run}/{request.who}/{request.turn}")
        reply = self._mailbox.taken(name)
        if reply is None:
            self._tell("waiting", f"for a reply: orchestrate mailbox show {name}")
        while reply is None:
            await self._sleep(POLL_S)
            reply = self._mailbox.taken(name)
        self._mailbox.close(name)
        return reply


def understood(text: str, request: Request) -> Reply:
    """A reply from what somebody wrote. Raises InputError with every problem."""
    try:
        found = json_in(text)
    except ValueError as error:
        raise InputError(f"the reply {error}; write one JSON object, as the request's last lines show") from None
    if HALF.search(json.dumps(found, ensure_ascii=False)):
        raise InputError("the reply holds half a character (a lone surrogate), which no later request could carry")
    wanted = request.answer_schema
    if wanted and not (isinstance(found, dict) and found.keys() & {"answer", "refuse", "calls"}):
        found = {"answer": found}
    try:
        answer = Answer.model_validate(found)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'reply'}: {item['msg']}" for item in error.errors())
        raise InputError(f"the reply doesn't have the form that was asked for: {wrong}") from None
    problems = _problems(answer, request)
    if problems:
        raise InputError("\n".join(problems))
    return _reply(answer, request)


def _problems(answer: Answer, request: Request) -> list[str]:
    if answer.refuse:
        return ["refuse: can't go with calls or an answer"] if answer.calls or answer.answer is not None else []
    if request.answer_schema and not answer.calls:
        return misfits(answer.answer, request.answer_schema, "answer")
    if not answer.calls and not answer.text.strip():
        return ["text: is empty, and there are no calls; say what was done, or call a tool"]
    return [
        line for number, call in enumerate(answer.calls) for line in _call_problems(call, f"calls[{number}]", request)
    ]


def _call_problems(call: Call, place: str, request: Request) -> list[str]:
    schemas = {tool["name"]: tool["input_schema"] for tool in request.tools}
    if call.tool not in schemas:
        return [f"{place}.tool: there is no tool `{call.tool}`; there are {', '.join(schemas) or 'none'}"]
    return misfits(call.input, schemas[call.tool], f"{place}.input")


def _reply(answer: Answer, request: Request) -> Reply:
    if answer.refuse:
        return Reply(content=({"type": "text", "text": answer.refuse},), stop_reason="refusal", detail="by mail")
    words = json.dumps(answer.answer) if request.answer_schema and not answer.calls else answer.text
    text: tuple[Block, ...] = ({"type": "text", "text": words},) if words.strip() else ()
    calls: tuple[Block, ...] = tuple(
        {"type": "tool_use", "id": f"mail_{request.turn}_{number}", "name": call.tool, "input": call.input}
        for number, call in enumerate(answer.calls)
    )
    return Reply(content=(*text, *calls), stop_reason="tool_use" if calls else "end_turn")


def _text(reply: bytes) -> str:
    try:
        return reply.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the reply is no text in UTF-8: {error}") from None


def rendered(name: str, subject: str, request: Request) -> str:
    """The request as Markdown: paste it into any chat window."""
    words = {
        "name": name,
        "subject": subject,
        "request": request,
        "messages": [(each["role"], message(each)) for each in request.messages],
        "tools": [{**tool, "schema": json.dumps(tool["input_schema"])} for tool in request.tools],
        "schema": json.dumps(request.answer_schema) if request.answer_schema else "",
    }
    return prompts.render("mail.md.j2", words)


def _settle(path: Path, text: str) -> None:
    """Whole or not at all, whoever reads it meanwhile."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8", errors="replace")
    fresh.replace(path)
