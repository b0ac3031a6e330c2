"""Markdown files that open with YAML between two `---` lines: the one format of plans, agents and skills.

YAML's own loader forgets where things stood. A message that says `plans/mnist.md:14` needs the line, so the nodes
are composed first and kept beside the data. Aliases are refused: a few lines of them can expand to gigabytes.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import Problem

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1 << 20
MAX_DEPTH = 20


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
        raw = (root / path).read_bytes()[: MAX_BYTES + 1]
    except OSError as error:
        return "", [Problem(path, 0, f"can't be read ({error.strerror or error})", "check the path")]
    if len(raw) > MAX_BYTES:
        return "", [Problem(path, 0, f"is larger than {MAX_BYTES} bytes", "split it")]
    try:
        return raw.decode(), []
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return "", [Problem(path, line, "is not UTF-8 text", "save it as UTF-8")]


def parse(path: str, text: str) -> tuple[Document, list[Problem]]:
    """Split and load. Always gives a document, empty where nothing could be read, and what is wrong."""
    lines = text.split("\n")
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
        known = model.model_fields
        return None, [
            Problem(
                document.path,
                document.line(*under, *item["loc"]),
                _complaint([*under, *item["loc"]], item["type"], item["msg"]),
                unknown_key(str(item["loc"][-1]), known) if item["type"] == "extra_forbidden" else "",
            )
            for item in error.errors()
        ]


def unknown_key(key: str, known: Iterable[str]) -> str:
    return did_you_mean(key, list(known)) or f"known keys: {', '.join(sorted(known))}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else ""


def _complaint(loc: list[str | int], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in loc) or "front matter"
    if kind == "extra_forbidden":
        return f"unknown key `{where}`"
    if kind == "missing":
        return f"`{where}` is missing"
    return f"`{where}`: {message[0].lower()}{message[1:]}"


def _load(path: str, text: str) -> tuple[dict[str, Any], yaml.MappingNode | None, list[Problem]]:
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                at = _line(event.start_mark)
                return {}, None, [Problem(path, at, "YAML aliases are not allowed", "write the value out")]
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        too_deep = node is not None and _depth(node) > MAX_DEPTH
        data = None if too_deep else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        line = _line(getattr(error, "problem_mark", None))
        what = getattr(error, "problem", None) or str(error).partition(chr(10))[0] or "it can't be parsed"
        return {}, None, [Problem(path, line, f"YAML: {what}", "mend the front matter")]
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        return {}, None, [Problem(path, 1, "front matter must be `key: value` lines", "mend the front matter")]
    problems = [
        Problem(path, _line(key.start_mark), f"key `{key.value}` is not text", "quote it")
        for key, _ in node.value
        if key.tag != "tag:yaml.org,2002:str"
    ]
    problems += _duplicates(path, node)
    return {str(key): value for key, value in data.items()}, node, problems


def _line(mark: Any) -> int:
    """YAML counts from 0 and doesn't see the opening `---`."""
    return mark.line + 2 if mark is not None else 1


def _duplicates(path: str, node: yaml.MappingNode) -> list[Problem]:
    seen: set[str] = set()
    problems = []
    for key, _ in node.value:
        name = str(key.value)
        if name in seen:
            problems.append(Problem(path, _line(key.start_mark), f"key `{name}` stands twice", "keep one"))
        seen.add(name)
    return problems


def _depth(node: yaml.Node, level: int = 1) -> int:
    if level > MAX_DEPTH or isinstance(node, yaml.ScalarNode):
        return level
    children = node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in node.value]
    return max((_depth(child, level + 1) for child in children), default=level)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == str(key):
                return _line(name.start_mark), value
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return _line(node.value[key].start_mark), node.value[key]
    return None
