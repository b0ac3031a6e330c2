"""Options from a recipe to a frozen dataclass: typed, and closed to typos.

Models and schedules each declare their options as a dataclass; its fields are the known names, its defaults the
defaults. `Literal` fields list the words they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mlcore.errors import RecipeError
from mlcore.hints import did_you_mean, nearest

Options = TypeVar("Options")


def read_options(kind: type[Options], given: Mapping[str, Any], place: str) -> Options:
    """Build `kind` from `given`; RecipeError names an unknown option or a value of the wrong type.

    `place` says where the options stand, e.g. "model.options".
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise unknown_name("option", name, known, place)
    values = {name: _typed(value, hints[name], f"{place}.{name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(str(error), place=place) from error


def unknown_name(what: str, name: str, known: list[str], place: str) -> RecipeError:
    """The error for a name that is not in a table, with the nearest known one."""
    hint = did_you_mean(nearest(name, known))
    return RecipeError(f"unknown {what} '{name}'", place=place, fix=f"{hint}known: {', '.join(known) or 'none'}")


def _typed(value: Any, hint: Any, place: str) -> Any:
    """`value` as `hint` wants it; integers pass for floats, lists for tuples, nothing else is converted."""
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise unknown_name("value", str(value), [str(word) for word in get_args(hint)], place)
    if get_origin(hint) is tuple:
        return _typed_tuple(value, get_args(hint)[0], place)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    raise RecipeError(f"{value!r} is not {_article(hint)}", place=place, fix=f"write {_article(hint)}")


def _typed_tuple(value: Any, item: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"{value!r} is not a list", place=place, fix="write it in brackets: [300, 100]")
    return tuple(_typed(one, item, f"{place}[{i}]") for i, one in enumerate(value))


def _article(hint: Any) -> str:
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}.get(hint, str(hint))
