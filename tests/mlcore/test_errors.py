"""Errors: codes, places, and that they survive what errors go through."""

from __future__ import annotations

import json
import pickle
import signal

import pytest

from mlcore import errors
from mlcore.errors import GroupFailed, Interrupted, MlcoreError, NotFinite, RecipeError, ShapeError


def _all_kinds(kind: type[MlcoreError] = MlcoreError) -> list[type[MlcoreError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _all_kinds(child))]


def _example(kind: type[MlcoreError]) -> MlcoreError:
    extra: dict[str, object] = {"step": 7, "layer": "C3"} if kind is NotFinite else {}
    extra |= {"code": 4} if kind is GroupFailed else {}
    return kind("something happened", place="a.toml:3", fix="do this", **extra)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", _all_kinds(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_and_json(kind: type[MlcoreError]) -> None:
    error = _example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.as_json() == error.as_json()
    assert str(copy) == str(error)
    assert json.loads(json.dumps(error.as_json()))["exit_code"] == error.exit_code


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("RecipeError", 2),
        ("ShapeError", 2),
        ("DataError", 2),
        ("IdxBadMagic", 2),
        ("IdxTruncated", 2),
        ("IdxWrongCount", 2),
        ("IdxOversize", 2),
        ("CifarMalformed", 2),
        ("DatasetMissing", 2),
        ("ChecksumMismatch", 2),
        ("CheckpointError", 2),
        ("NotFinite", 4),
        ("CheckFailed", 5),
        ("Interrupted", 130),
    ],
)
def test_exit_codes_are_the_documented_ones(kind: str, code: int) -> None:
    assert _example(getattr(errors, kind)).exit_code == code


def test_the_tree_drawn_in_the_module_names_every_error() -> None:
    assert errors.__doc__ is not None
    for kind in _all_kinds():
        assert kind.__name__ in errors.__doc__


def test_a_termination_exits_with_its_signals_code() -> None:
    assert Interrupted("stopped", signal_number=signal.SIGTERM).exit_code == 143


def test_a_message_reads_place_what_fix() -> None:
    assert str(RecipeError("no such key", place="r.toml:4", fix="remove it")) == "r.toml:4: no such key; remove it"


def test_a_place_can_be_put_in_front() -> None:
    error = ShapeError("too small", place="conv2d").at("layer 'C3'")
    assert isinstance(error, ShapeError)
    assert str(error) == "layer 'C3': conv2d: too small"


def test_not_finite_names_step_and_layer() -> None:
    error = NotFinite("gradient has 3 NaN", step=41, layer="F6")
    assert "step 41" in str(error)
    assert "'F6'" in str(error)
    assert (error.as_json()["step"], error.as_json()["layer"]) == (41, "F6")
