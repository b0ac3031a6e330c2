"""Holding JSON against a JSON Schema: as much of it as pydantic writes for the tools and for structured answers.

Replies come from chat windows, people and small local models; what does not fit is told with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
KINDS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "null": lambda value: value is None,
}
LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (lambda value, limit: value >= limit, "at least {}"),
    "exclusiveMinimum": (lambda value, limit: value > limit, "above {}"),
    "maximum": (lambda value, limit: value <= limit, "at most {}"),
    "minLength": (lambda value, limit: len(value) >= limit, "{} characters or more"),
    "maxLength": (lambda value, limit: len(value) <= limit, "{} characters at most"),
    "minItems": (lambda value, limit: len(value) >= limit, "{} items or more"),
    "maxItems": (lambda value, limit: len(value) <= limit, "{} items at most"),
    "enum": (lambda value, limit: value in limit, "one of {}"),
    "const": (lambda value, limit: value == limit, "{}"),
}
WORDS = ("title", "description", "default")
SIZES = (
    "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems",
)  # fmt: skip


def closed(schema: Any) -> Any:
    """A schema without titles, descriptions and defaults, as an answer is asked for and held against."""
    return _without(schema, WORDS)


def unlimited(schema: Any) -> Any:
    """A schema without lengths, counts and bounds, which structured outputs don't take."""
    return _without(schema, SIZES)


def _without(schema: Any, dropped: tuple[str, ...]) -> Any:
    if isinstance(schema, list):
        return [_without(item, dropped) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # a property may have any of these names, and is a schema
    return {
        key: _without(value, dropped) for key, value in schema.items() if key not in dropped or isinstance(value, dict)
    }


def misfits(value: Any, schema: Schema, place: str = "", root: Schema | None = None) -> list[str]:
    """What is wrong with `value`, one line each, with its place; empty when it fits."""
    return list(_misfits(value, schema, place, schema if root is None else root))


def _misfits(value: Any, schema: Schema, place: str, root: Schema) -> Iterator[str]:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        yield from _any(value, schema["anyOf"], place, root)
        return
    kind = schema.get("type")
    if kind and not KINDS[kind](value):
        yield f"{place or 'the answer'}: {_shown(value)} is no {kind}"
        return
    for name, (holds, words) in LIMITS.items():
        if name in schema and not holds(value, schema[name]):
            yield f"{place or 'the answer'}: {_shown(value)} is not {words.format(schema[name])}"
    if kind == "object":
        yield from _object(value, schema, place, root)
    if kind == "array" and "items" in schema:
        for number, item in enumerate(value):
            yield from _misfits(item, schema["items"], f"{place}[{number}]", root)


def _any(value: Any, choices: list[Schema], place: str, root: Schema) -> Iterator[str]:
    tried = [misfits(value, choice, place, root) for choice in choices]
    if all(tried):
        yield from min(tried, key=len)


def _object(value: dict[str, Any], schema: Schema, place: str, root: Schema) -> Iterator[str]:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{_below(place, name)}: is missing"
    for name, item in value.items():
        if name in known:
            yield from _misfits(item, known[name], _below(place, name), root)
        elif schema.get("additionalProperties") is False:
            yield f"{_below(place, name)}: is unknown; there are {', '.join(known) or 'none'}"


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _shown(value: Any) -> str:
    return repr(value)[:80]
