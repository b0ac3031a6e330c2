"""The guides in docs/ name every key that a plan and a recipe may have, no other, and their examples can be used."""

from __future__ import annotations

import re

import pytest

from mlcore import config, models, schedule
from mlcore.errors import RecipeError
from mlcore.rng import Rng
from orchestrator import planfile
from orchestrator.planlines import TASK_KEYS
from orchestrator.quantities import QUANTITIES
from orchestrator.records import Target
from tests.library.helpers import ROOT

PLANS, RECIPES = ((ROOT / "docs" / name).read_text() for name in ("plans.md", "recipes.md"))
CONFIG = {
    "At the top": set(config.Recipe.model_fields) - {"model", "data", "optimiser", "schedule", "train"},
    "[data]": set(config.Data.model_fields),
    "[optimiser]": set(config.Optimiser.model_fields),
    "[train]": set(config.Train.model_fields),
}


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without heads and rules."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [[*cells, ""][:3] for cells in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_cells(text: str) -> list[str]:
    return [name for cells in rows(text) for name in names(cells[0])]


def example(text: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    assert found
    return found[1]


@pytest.mark.parametrize("heading", CONFIG)
def test_the_guide_to_recipes_names_every_key_and_no_other(heading: str) -> None:
    assert sorted(first_cells(section(RECIPES, heading))) == sorted(CONFIG[heading])


def test_the_guide_to_recipes_names_every_model_and_schedule_with_its_options() -> None:
    for heading, known, build in (
        ("[model]", models.MODELS, lambda name: models.build(name, {"?": 1}, Rng(0))),
        ("[schedule]", schedule.SCHEDULES, lambda name: schedule.build(name, {"?": 1})),
    ):
        told = {name: names(cells[1]) for cells in rows(section(RECIPES, heading)) for name in names(cells[0])}
        assert told.keys() == known.keys()
        for name, options in told.items():
            with pytest.raises(RecipeError) as refused:
                build(name)
            listed = re.search(r"known: ([a-z_0-9, ]*)", str(refused.value))
            assert listed
            assert (sorted(options) or ["none"]) == sorted(listed[1].split(", "))


def test_the_guide_to_plans_names_every_key_and_metric_and_no_other() -> None:
    told = first_cells(section(PLANS, "Targets"))
    assert sorted(told) == sorted([*Target.model_fields, *QUANTITIES])
    assert sorted(first_cells(section(PLANS, "Tasks"))) == sorted(TASK_KEYS)


def test_the_examples_of_the_guides_can_be_used() -> None:
    plan, problems = planfile.read("plans/digits.md", example(PLANS, "markdown"))
    assert plan
    assert not problems
    assert config.parse(example(RECIPES, "toml"), "my_lenet.toml").model.name == "lenet5"
