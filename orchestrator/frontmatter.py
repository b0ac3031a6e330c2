"""Markdown files that open with YAML between two `---` lines: the one format of plans, agents and skills.

YAML's own loader forgets where things stood. A message that says `plans/mnist.md:14` needs the line, so the nodes
are composed first and kept beside the data. Refused while composing, for what they can do to the loader: aliases (a few
lines expand to gigabytes), explicit tags (`!!int ""` breaks it), deep nesting (minutes for a kilobyte).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import Problem

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1 << 20
MAX_FRONT_CHARS = 1 << 16  # YAML in pure Python takes a second for this much
MAX_DEPTH = 20
MAX_COMPARED = 200  # names that a misspelt one is compared with
TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Document:
    path: str
    data: dict[str, Any]
    node: yaml.MappingNode | None
    body: str
    body_line: int  # the line on which the body begins, from 1

    def line(self, *keys: str | int) -> int:
        """The line of a value in the front matter, or of the nearest parent that exists."""
        node: yaml.Node | None = self.node
        line = 1
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line


def read_text(root: Path, path: str) -> tuple[str, list[Problem]]:
    """The file's text, or why there is none: missing, too large, not UTF-8."""
    try:
        with (root / path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        return "", [Problem(path, 0, f"can't be read ({getattr(error, 'strerror', None) or error})", "check the path")]
    if len(raw) > MAX_BYTES:
        return "", [Problem(path, 0, f"is larger than {MAX_BYTES} bytes", "split it")]
    try:
        return raw.decode(), []
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return "", [Problem(path, line, "is not UTF-8 text", "save it as UTF-8")]


def parse(path: str, text: str) -> tuple[Document, list[Problem]]:
    """Split and load. Always gives a document, empty where nothing could be read, and what is wrong."""
    lines = text.removeprefix("\ufeff").split("\n")
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if lines[0].rstrip() != "---" or end is None:
        problem = Problem(path, 1, "has no front matter", "begin the file with YAML between two `---` lines")
        return Document(path, {}, None, text, 1), [problem]
    body = "\n".join(lines[end + 1 :])
    data, node, problems = _load(path, "\n".join(lines[1:end]))
    return Document(path, data, node, body, end + 2), problems


def validate(
    document: Document, model: type[M], data: dict[str, Any], *under: str | int
) -> tuple[M | None, list[Problem]]:
    """A record from part of the front matter; each of pydantic's complaints with its line and the fix."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, [
            Problem(
                document.path,
                document.line(*under, *item["loc"]),
                _complaint([*under, *item["loc"]], item["type"], item["msg"]),
                _fix(model, item["loc"], item["type"]),
            )
            for item in error.errors()
        ]


def unknown_key(key: str, known: Iterable[str]) -> str:
    return did_you_mean(key, list(known)) or f"known keys: {', '.join(sorted(known))}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    if len(word) > 100 or len(known) > MAX_COMPARED:
        return ""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else ""


def _complaint(loc: list[str | int], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in loc) or "front matter"
    if kind == "extra_forbidden":
        return f"unknown key `{where}`"
    if kind == "missing":
        return f"`{where}` is missing"
    return f"`{where}`: {message[0].lower()}{message[1:]}"


def _fix(model: type[BaseModel], loc: tuple[str | int, ...], kind: str) -> str:
    if kind == "missing":
        return f"add `{loc[-1]}: ...`"
    if kind != "extra_forbidden":
        return "write another value"
    return unknown_key(str(loc[-1]), _keys(_model_at(model, loc[:-1])))


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys as a person writes them."""
    return [each.alias or name for name, each in model.model_fields.items()]


def _model_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The record that stands at a place within another one."""
    for key in loc:
        if isinstance(key, str) and key in model.model_fields:
            model = next(_models(model.model_fields[key].annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


class _Loader(yaml.SafeLoader):
    """Plain YAML: text, numbers, lists and mappings, nested a little."""

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._level += 1
        wrong = {
            "aliases are not allowed; write the value out": isinstance(event, yaml.AliasEvent),
            "tags are not allowed; write the value plainly": getattr(event, "tag", None) is not None,
            f"nested deeper than {MAX_DEPTH} levels": self._level > MAX_DEPTH,
        }
        for problem, found in wrong.items():
            if found:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        return node


def _load(path: str, text: str) -> tuple[dict[str, Any], yaml.MappingNode | None, list[Problem]]:
    if len(text) > MAX_FRONT_CHARS:
        what = f"front matter is larger than {MAX_FRONT_CHARS} characters"
        return {}, None, [Problem(path, 1, what, "move prose below it")]
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problems = list(_key_problems(path, node)) if node else []
        data = loader.construct_document(node) if node else None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        what = getattr(error, "problem", None) or str(error).partition("\n")[0] or "it can't be parsed"
        return {}, None, [Problem(path, _line_of(error, text), f"YAML: {what}", "mend the front matter")]
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        return {}, None, [Problem(path, 1, "front matter must be `key: value` lines", "mend the front matter")]
    return {key: value for key, value in data.items() if isinstance(key, str)}, node, problems


def _line_of(error: Exception, text: str) -> int:
    position = getattr(error, "position", None)  # of a character that YAML refuses
    if isinstance(position, int):
        return text.count("\n", 0, position) + 2
    return _line(getattr(error, "problem_mark", None))


def _line(mark: Any) -> int:
    """YAML counts from 0 and doesn't see the opening `---`."""
    return mark.line + 2 if mark is not None else 1


def _key_problems(path: str, node: yaml.Node) -> Iterator[Problem]:
    """Keys that are no text, and keys that stand twice (YAML keeps the last), at every level."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _key_problems(path, item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        at = _line(key.start_mark)
        if key.tag != TEXT:
            yield Problem(path, at, f"key `{str(key.value)[:50]}` is not text", "quote it")
        elif key.value in seen:
            yield Problem(path, at, f"key `{key.value}` stands twice", "keep one")
        else:
            seen.add(key.value)
        yield from _key_problems(path, value)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == str(key):
                return _line(name.start_mark), value
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return _line(node.value[key].start_mark), node.value[key]
    return None
