"""Change a few scalar values of a TOML file in place: comments, order and layout stay as a person wrote them.

The edit is made on the text, line by line, and then proved: the new text, parsed, must equal the old document with just
these values changed. Whatever the line rules don't understand (an inline table, say) is refused, never guessed at.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Scalar = bool | int | float | str
KEY = r'[A-Za-z0-9_-]+|"[^"\n]*"'
HEADER = re.compile(rf"^\s*\[\s*(?P<path>(?:{KEY})(?:\s*\.\s*(?:{KEY}))*)\s*\]\s*(?:#.*)?$")
ENTRY = re.compile(
    rf"^(?P<head>\s*(?P<key>(?:{KEY})(?:\s*\.\s*(?:{KEY}))*)\s*=\s*)"
    r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[\]{},]+)(?P<tail>\s*(?:\#.*)?)$"""
)


class RecipeProblem(Exception):
    """A recipe that can't be read or edited; the text names the place and the fix."""


def read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    """The recipe's text and what it says. Raises RecipeProblem."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeProblem(f"{path}: can't be read as a recipe ({error})") from error


def look_up(document: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name; None when there is none."""
    for key in name.split("."):
        document = document.get(key, {}) if isinstance(document, Mapping) else {}
    return None if document == {} else document


def set_values(text: str, changes: Mapping[str, Scalar]) -> str:
    """The text with each dotted name set to its value. Raises RecipeProblem if that can't be done cleanly."""
    wanted = tomllib.loads(text)
    changes = {name: value for name, value in changes.items() if not same(look_up(wanted, name), value)}
    lines = text.split("\n")
    for name, value in changes.items():
        put(wanted, name, value)
        lines = set_line(lines, name, toml_literal(value))
    edited = "\n".join(lines)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if same(tomllib.loads(edited), wanted):
            return edited
    raise RecipeProblem(f"can't set {', '.join(changes)} line by line; write each as `key = value` under its [table]")


def write_text(path: Path, text: str) -> None:
    """Replace the file by the text, wholly or not at all; its mode stays."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
    part.replace(path)


def same(one: Any, other: Any) -> bool:
    """Equal in value and in kind: 1, 1.0 and true are three things in a recipe."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)


def toml_literal(value: Scalar) -> str:
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)


def put(document: dict[str, Any], name: str, value: Scalar) -> None:
    *tables, key = name.split(".")
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise RecipeProblem(f"{name}: `{table}` is a value here, not a table")
    document[key] = copy.copy(value)


def set_line(lines: list[str], name: str, literal: str) -> list[str]:
    """The lines with one value replaced, or with a new line at the end of its table, or with a new table."""
    last_of: dict[str, int] = {}
    for number, table, entry in entries(lines):
        if entry and f"{table}.{names(entry['key'])}".lstrip(".") == name:
            return [*lines[:number], entry["head"] + literal + entry["tail"], *lines[number + 1 :]]
        last_of[table] = number
    table, _, key = name.rpartition(".")
    if table in last_of:
        at = last_of[table] + 1
        return [*lines[:at], f"{key} = {literal}", *lines[at:]]
    if not table:
        return [f"{key} = {literal}", *lines]
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return [*lines, "", f"[{table}]", f"{key} = {literal}", ""]


def entries(lines: list[str]) -> Iterator[tuple[int, str, re.Match[str] | None]]:
    """Yields (line number, table, entry or None for the table's own header) of what the line rules understand."""
    table = ""
    for number, line in enumerate(lines):
        if line.lstrip().startswith("[["):
            table = "[[]]"  # an array of tables: no dotted name leads here
        elif header := HEADER.match(line):
            table = names(header["path"])
            yield number, table, None
        elif entry := ENTRY.match(line):
            yield number, table, entry


def names(path: str) -> str:
    return ".".join(part.strip().strip('"') for part in path.split("."))
