"""Editing a recipe changes the values asked for and not one character more, or refuses."""

from __future__ import annotations

import json
import math
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.library.helpers import RECIPE, complaint, module

edit = module("tune-recipe", "recipe_edit")
space = module("tune-recipe", "search_space")
SCALAR = st.integers(-1000, 1000) | st.floats(-10, 10).map(lambda f: round(f, 4)) | st.booleans() | st.just("cosine")
KEY = st.sampled_from(["rate", "momentum", "name", "batch"])
TABLE = st.sampled_from(["optimiser", "train", "model.options"])
DOCUMENT = st.dictionaries(TABLE, st.dictionaries(KEY, SCALAR, max_size=3), max_size=3)


def written(document: dict[str, dict[str, object]]) -> str:
    lines = ["# a recipe", 'title = "x # y"', ""]
    for table, entries in document.items():
        lines += [f"[{table}]  # why", *(f"{k}  = {edit.toml_literal(v)}   # because" for k, v in entries.items()), ""]
    return "\n".join(lines)


@settings(max_examples=500, deadline=None)
@given(DOCUMENT, TABLE, KEY, SCALAR)
def test_one_value_is_set_and_no_other_line_is_touched(
    document: dict[str, dict[str, object]], table: str, key: str, value: object
) -> None:
    text = written(document)
    edited = edit.set_values(text, {f"{table}.{key}": value})
    wanted = tomllib.loads(text)
    edit.put(wanted, f"{table}.{key}", value)
    assert edit.same(tomllib.loads(edited), wanted)
    old, new = text.split("\n"), edited.split("\n")
    if key in document.get(table, {}):
        assert len(old) == len(new)
        assert sum(a != b for a, b in zip(old, new, strict=True)) <= 1
    else:
        assert [line for line in old if line] == [line for line in new if line in old and line]


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet="[]{}=\"'.#\n a1-", max_size=60))
def test_any_toml_text_is_edited_rightly_or_refused(text: str) -> None:
    try:
        wanted = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    try:
        edited = edit.set_values(text, {"a.a": 7})
    except edit.RecipeProblem:
        return
    edit.put(wanted, "a.a", 7)
    assert edit.same(tomllib.loads(edited), wanted)


def test_comments_and_layout_stay_as_a_person_wrote_them() -> None:
    edited = edit.set_values(RECIPE, {"optimiser.rate": 0.05, "train.batch": 128})
    assert edited == RECIPE.replace("rate = 0.5  ", "rate = 0.05  ").replace("batch = 64", "batch = 128")


def test_nothing_to_change_gives_the_very_same_text() -> None:
    assert edit.set_values(RECIPE, {}) == RECIPE
    assert edit.set_values(RECIPE, {"optimiser.rate": 0.5}) == RECIPE


def test_a_new_key_goes_to_the_end_of_its_table() -> None:
    edited = edit.set_values(RECIPE, {"optimiser.weight_decay": 0.0001})
    assert "of 2012\nweight_decay = 0.0001\n\n[train]" in edited


@pytest.mark.parametrize("text", ["optimiser = {rate = 0.1}\n", "[optimiser]\nrate = [\n0.1]\n", "optimiser = 3\n"])
def test_what_the_line_rules_do_not_understand_is_refused(text: str) -> None:
    with pytest.raises(edit.RecipeProblem, match="optimiser"):
        edit.set_values(text, {"optimiser.rate": 0.2})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "not JSON"),
        ("[]", "write an object"),
        ("{}", "write an object"),
        ('{"seed": {"choice": [1]}}', "not for a search to choose"),
        ('{"data.validation": {"choice": [1]}}', "not for a search to choose"),
        ('{"train.epochs": {"choice": [100]}}', "not for a search to choose"),
        ('{"a.b": {"guess": [1, 2]}}', "needs one of"),
        ('{"a.b": {"log": [0, 1]}}', "log can't be"),
        ('{"a.b": {"range": [2, 1]}}', "range can't be"),
        ('{"a.b": {"times": [0.5, NaN]}}', "times can't be"),
        ('{"a.b": {"choice": []}}', "choice can't be"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(space.RecipeProblem, match=complaint):
        space.read_space(text)


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet='{}[]":,01.e-abchoice', max_size=50))
def test_any_space_text_is_a_space_or_a_recipe_problem(text: str) -> None:
    said = complaint(space.RecipeProblem, lambda: space.read_space(text))
    assert said is None or said.startswith("--space: ")
    if said is None:
        assert all(rule.keys() <= space.DRAW.keys() for rule in json.loads(text).values())


def test_candidates_are_the_same_for_the_same_seed_and_none_is_the_recipe_itself() -> None:
    recipe = tomllib.loads(RECIPE)
    drawn = space.candidates(space.DEFAULT_SPACE, recipe, 9, 1)
    assert drawn == space.candidates(space.DEFAULT_SPACE, recipe, 9, 1)
    assert drawn != space.candidates(space.DEFAULT_SPACE, recipe, 9, 2)
    assert len({str(sorted(knobs.items())) for knobs in drawn}) == 9
    assert all(knobs.get("train.batch") != 64 for knobs in drawn)


def test_times_draws_around_the_recipes_own_value_and_only_if_it_has_one() -> None:
    recipe = tomllib.loads(RECIPE)
    rule = {"times": [0.25, 4.0]}
    drawn = [space.draw("optimiser.rate", rule, recipe, place) for place in (0.0, 0.5, 0.999)]
    assert drawn == [0.125, 0.5, 1.99]
    assert space.draw("optimiser.missing", rule, recipe, 0.5) is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_candidates_of_one_knob_leave_no_wide_gap(seed: int) -> None:
    recipe = tomllib.loads(RECIPE)
    drawn = space.candidates({"optimiser.rate": {"times": [0.25, 4.0]}}, recipe, 9, seed)
    places = [math.log(knobs["optimiser.rate"] / 0.125, 16) * 9 for knobs in drawn]
    assert all(
        part - 0.01 <= place <= part + 1.01 for part, place in enumerate(sorted(places))
    )  # three digits are kept
    assert places != sorted(places)


def test_whole_numbers_are_drawn_up_to_both_ends() -> None:
    assert {space.draw("x", {"range": [3, 5]}, {}, place / 100) for place in range(100)} == {3, 4, 5}


def test_a_space_smaller_than_asked_for_gives_what_there_is() -> None:
    drawn = space.candidates({"train.batch": {"choice": [32, 64]}}, tomllib.loads(RECIPE), 9, 1)
    assert drawn == [{"train.batch": 32}]
