"""Every plan in the repository loads, can be handed out, and fixes in advance what its verdict depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import library, planfile, planner
from orchestrator.records import Direction
from tests.library.helpers import ROOT, module

PLANS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("plans/*.md") if path.stem.islower())


@pytest.mark.parametrize("path", PLANS)
def test_a_plan_loads_and_fits_the_library(path: str) -> None:
    plan = planfile.load(ROOT, path)
    assert list(library.check_plan(plan, library.load(ROOT), ROOT)) == []
    assert len(planner.assign(plan, library.load(ROOT))) == len(plan.tasks)


@pytest.mark.parametrize("path", PLANS)
def test_a_plan_has_its_targets_measured_over_three_seeds_or_more(path: str) -> None:
    for target in planfile.load(ROOT, path).targets:
        if target.quantity.kind == "training":
            assert target.seeds >= 3
            assert target.margin > 0 or target.direction is Direction.reported


@pytest.mark.parametrize("path", PLANS)
def test_the_prose_of_a_plan_claims_no_measured_number(path: str) -> None:
    no_numbers = module("write-report", "no_numbers")
    assert list(no_numbers.claims((ROOT / path).read_text(), path)) == []


def test_the_mnist_plan_holds_lenet5_against_the_published_error() -> None:
    plan = planfile.load(ROOT, "plans/mnist.md")
    target = next(target for target in plan.targets if target.id == "lenet5-test-error")
    assert (target.value, target.margin, target.direction) == (0.95, 0.05, Direction.at_most)
    assert target.met_by(1.0)
    assert not target.met_by(1.001)


def test_the_two_measurements_of_the_mnist_plan_do_not_need_each_other() -> None:
    plan = planfile.load(ROOT, "plans/mnist.md")
    measuring = [task for task in plan.tasks if task.targets]
    assert len(measuring) == 2
    assert all(other.id not in task.needs for task in measuring for other in measuring)


def test_a_verdict_survives_being_written_into_the_plan() -> None:
    text = (ROOT / "plans/mnist.md").read_text()
    written = planfile.set_block(text, "result", "| seed | test error |\n| 1 | 0.93 % |")
    plan, problems = planfile.read("plans/mnist.md", written)
    assert problems == []
    assert plan is not None
    assert Path(plan.path).name == "mnist.md"
    assert list(module("write-report", "no_numbers").claims(written, "plans/mnist.md")) == []
