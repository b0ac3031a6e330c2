"""Risk: what guards the system is guarded, what no rule knows is high and a person's, floors are never lowered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import risk
from orchestrator.records import RISK_LEVELS, RiskLevel
from tests.orchestrator.helpers import change, edited

GUARDED = [
    ".ci/run",
    ".github/workflows/x.yml",
    "Makefile",
    "pyproject.toml",
    "orchestrator/gate.py",
    "orchestrator/scoring.py",
    "orchestrator/sandbox/base.py",
    "agents/reviewer.md",
    "skills/x/SKILL.md",
    "skills/x/scripts/procedure.toml",
    "tests/test_x.py",
    "tests/deep/er/test_x.py",
    "conftest.py",
    "mlcore/conftest.py",
    ".gitattributes",
    "mlcore/.gitattributes",
    ".gitmodules",
]
UNKNOWN = [
    "GNUmakefile",
    "makefile",
    "sitecustomize.py",
    "setup.cfg",
    "pytest.ini",
    "x/y",
    "numpy/__init__.py",
    "tests",
]


@pytest.mark.parametrize("path", GUARDED)
def test_what_guards_the_system_is_high_and_guarded(path: str) -> None:
    found = risk.assess(change(edited("plans/a.md"), edited(path)), "low")
    assert (found.level, found.guarded) == ("high", True)
    assert f"high: {path} (guards the system)" in found.reasons


@pytest.mark.parametrize("path", UNKNOWN)
def test_what_no_rule_knows_is_high_and_goes_to_a_person(path: str) -> None:
    found = risk.assess(change(edited(path)), "low")
    assert (found.level, found.guarded) == ("high", True)
    assert f"high: {path} (no rule knows this path)" in found.reasons


@pytest.mark.parametrize(
    ("path", "level"),
    [
        ("mlcore/recipes/a.toml", "low"),
        ("mlcore/recipes/a.py", "medium"),
        ("mlcore/check.py", "medium"),
        ("mlcore/kernels/gemm.py", "high"),
        ("mlcore/data/idx.py", "high"),
        ("mlcore/train.py", "high"),
        ("plans/mnist.md", "low"),
        ("plans/mnist/search.json", "low"),
        ("README.md", "low"),
    ],
)
def test_known_paths_have_the_level_of_the_table_and_are_not_guarded(path: str, level: RiskLevel) -> None:
    found = risk.assess(change(edited(path)), "low")
    assert (found.level, found.guarded) == (level, False)


@pytest.mark.parametrize("path", ["plans/run.py", "plans/a.sh", "docs/x.py"])
def test_code_among_prose_is_not_prose(path: str) -> None:
    assert risk.assess(change(edited(path)), "low").level == "high"


def test_the_highest_file_decides_and_stands_first() -> None:
    found = risk.assess(change(edited("README.md"), edited("mlcore/ops.py"), edited("mlcore/cli.py")), "low")
    assert found.level == "high"
    assert found.reasons[0] == "high: mlcore/ops.py (core algorithm)"
    assert [reason.split(":")[0] for reason in found.reasons] == ["high", "medium", "low", "low"]


def test_a_large_change_is_medium_at_least() -> None:
    large = edited("README.md", added=300, removed=101)
    assert risk.assess(change(large), "low").level == "medium"
    assert risk.assess(change(edited("README.md", added=400, removed=0)), "low").level == "low"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(RISK_LEVELS), st.lists(st.sampled_from([*GUARDED, *UNKNOWN, "README.md", "mlcore/a.py"])))
def test_a_skills_floor_and_further_files_never_lower_a_risk(floor: RiskLevel, paths: list[str]) -> None:
    files = [edited(path) for path in paths]
    found = risk.assess(change(*files), floor)
    rank = RISK_LEVELS.index(found.level)
    assert rank >= RISK_LEVELS.index(floor)
    for count in range(len(files)):
        fewer = risk.assess(change(*files[:count]), floor)
        assert RISK_LEVELS.index(fewer.level) <= rank
        assert fewer.guarded <= found.guarded
