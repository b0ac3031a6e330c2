"""Every agent, skill and procedure in the repository is what its format says, and nothing in it dangles."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from jinja2.sandbox import SandboxedEnvironment

from orchestrator import library
from orchestrator.globs import matches
from tests.library.helpers import ROOT, SCRIPTS, module, script

LIBRARY, PROBLEMS = library.read(ROOT)
SKILLS = sorted(path.parent.name for path in ROOT.glob("skills/*/SKILL.md"))
AGENTS = sorted(path.stem for path in ROOT.glob("agents/*.md"))
SKILL_KEYS = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
# what the procedure provider hands to the templates
WORLD: dict[str, Any] = {
    "task": {"id": "task-1", "title": "a task", "options": {}},
    "plan": {"title": "a plan", "path": "plans/a.md"},
    "target": {
        "id": "a-target",
        "metric": "test_error_pct",
        "value": 0.95,
        "margin": 0.05,
        "direction": "at_most",
        "compare": "",
        "seeds": 3,
    },
    "targets": [],
    "recipe": "mlcore/recipes/a.toml",
    "dataset": "mnist",
    "attempt": 1,
    "feedback": "",
    "data": "/data",
    "last": "",
}
WRITES = {
    "verify-dataset": ["plans/a/dataset.json"],
    "train-model": ["runs/a/**"],
    "tune-recipe": ["mlcore/recipes/a.toml", "plans/a/search.json"],
    "measure-reproduction": ["plans/a.md"],
    "write-report": ["plans/a.md"],
}


def front_matter(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text().split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def procedure(skill: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "skills" / skill / "scripts" / "procedure.toml").read_text())


def rendered(value: Any, skill: str) -> Any:
    if isinstance(value, list):
        return [rendered(item, skill) for item in value]
    if isinstance(value, dict):
        return {key: rendered(item, skill) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.from_string(value).render(**WORLD, writes=WRITES[skill])


def allowed(argv: list[str], patterns: tuple[str, ...]) -> bool:
    split = [pattern.split() for pattern in patterns]
    return any(len(argv) >= len(p) and all(map(fnmatch.fnmatchcase, argv, p)) for p in split)


def test_the_library_loads_without_a_problem() -> None:
    assert PROBLEMS == []
    assert set(LIBRARY.agents) == set(AGENTS)
    assert set(LIBRARY.skills) == set(SKILLS)


def test_the_hierarchy_has_every_level_from_chief_to_junior() -> None:
    assert {agent.level for agent in LIBRARY.agents.values()} == set(range(6))
    assert {agent.model for agent in LIBRARY.agents.values()} == {"opus", "sonnet", "haiku"}


def test_deeper_agents_never_use_a_dearer_model_than_those_above_them() -> None:
    rank = {"haiku": 0, "sonnet": 1, "opus": 2}
    for agent in LIBRARY.agents.values():
        for below in agent.delegates_to:
            assert rank[LIBRARY.agents[below].model] <= rank[agent.model], f"{agent.name} -> {below}"


def test_the_reviewer_can_only_read() -> None:
    assert set(LIBRARY.agents["reviewer"].tools) == {"read", "list", "search"}


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_can_do_with_its_tools_what_its_skills_need(name: str) -> None:
    agent = LIBRARY.agents[name]
    for skill in agent.skills:
        needs = set(front_matter(ROOT / "skills" / skill / "SKILL.md").get("allowed-tools", "").split())
        assert needs <= set(agent.tools), f"{name} can't use {skill}"


@pytest.mark.parametrize("name", SKILLS)
def test_a_skill_has_only_the_six_keys_and_string_metadata(name: str) -> None:
    front = front_matter(ROOT / "skills" / name / "SKILL.md")
    assert front.keys() <= SKILL_KEYS
    assert front["name"] == name
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in front["metadata"].items())


@pytest.mark.parametrize("name", SKILLS)
def test_a_skill_that_runs_commands_names_them_and_one_that_reads_has_none(name: str) -> None:
    tools = front_matter(ROOT / "skills" / name / "SKILL.md")["allowed-tools"].split()
    assert ("run" in tools) == bool(LIBRARY.skills[name].commands)
    assert bool(LIBRARY.skills[name].writes) == (name != "review-change")


def test_no_skill_may_write_what_guards_the_system() -> None:
    guards = [
        "orchestrator/gate.py",
        ".ci/run",
        "Makefile",
        "pyproject.toml",
        "agents/reviewer.md",
        "skills/a/SKILL.md",
    ]
    for skill in LIBRARY.skills.values():
        for path in guards:
            assert not matches(path, skill.writes), f"{skill.name} may write {path}"


def test_what_needs_a_model_has_no_procedure_and_everything_else_has_one() -> None:
    without = {name for name, skill in LIBRARY.skills.items() if skill.procedure is None}
    assert without == {"implement-change", "write-tests", "review-change"}
    assert set(SCRIPTS) == set(SKILLS) - without


@pytest.mark.parametrize("skill", sorted(SCRIPTS))
def test_a_procedure_calls_known_tools_with_commands_that_its_skill_allows(skill: str) -> None:
    steps = procedure(skill)["step"]
    for step in steps:
        assert step.keys() <= {"say", "tool", "on_error", "input"}
        assert step["tool"] in library.TOOL_NAMES
        argv = rendered(step["input"], skill)["argv"]
        assert all(isinstance(word, str) and word for word in argv)
        assert allowed(argv, LIBRARY.skills[skill].commands), argv
    assert rendered(procedure(skill)["finish"]["say"], skill)
    assert all(rendered(step["say"], skill) for step in steps)


@pytest.mark.parametrize("skill", sorted(SCRIPTS))
def test_the_arguments_of_a_procedure_are_arguments_of_its_script(skill: str) -> None:
    parser = module(skill, script(skill).stem).arguments()
    ours = script(skill).relative_to(ROOT).as_posix()
    lines = [rendered(step["input"], skill)["argv"] for step in procedure(skill)["step"]]
    used = [argv for argv in lines if argv[1] == ours]
    assert used
    for argv in used:
        parser.parse_args(argv[2:])


def test_the_tune_procedure_names_its_log_whatever_the_order_of_writes() -> None:
    step = procedure("tune-recipe")["step"][0]
    template = step["input"]["argv"][step["input"]["argv"].index("--log") + 1]
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    for writes in (["a.toml", "plans/search.json"], ["plans/search.json", "a.toml"]):
        assert environment.from_string(template).render(writes=writes, recipe="a.toml") == "plans/search.json"


@pytest.mark.parametrize(("compare", "metric"), [("", "test_error_pct"), ("ratio", "test_error_pct ratio")])
def test_the_tune_procedure_says_what_its_target_is_about(compare: str, metric: str) -> None:
    argv = procedure("tune-recipe")["step"][0]["input"]["argv"]
    template, target = argv[argv.index("--metric") + 1], {"metric": "test_error_pct", "compare": compare}
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    assert environment.from_string(template).render(target=target) == metric


@pytest.mark.parametrize("skill", sorted(SCRIPTS))
def test_a_script_explains_itself_and_its_exit_codes(skill: str) -> None:
    done = subprocess.run([sys.executable, script(skill), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "exit codes:" in done.stdout
    assert "example" in done.stdout


@pytest.mark.parametrize("path", sorted(ROOT.glob("skills/*/scripts/*.py")), ids=lambda path: path.name)
def test_a_script_imports_neither_package(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    siblings = {each.stem for each in path.parent.glob("*.py")}
    assert imported <= set(sys.stdlib_module_names) | {"numpy"} | siblings
