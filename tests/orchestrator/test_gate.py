"""The gate's tests: ways to turn a failing suite green that were seen elsewhere, each tried against the real thing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.datasets import Dataset
from orchestrator.gate import Gate
from orchestrator.house import Run, State
from orchestrator.planner import assign
from orchestrator.records import Judgement
from orchestrator.sandbox.base import Sandbox
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from tests.orchestrator.helpers import PLAN, Journal, library, plan, repository, small_library, write
from tests.orchestrator.sandbox_helpers import real_sandbox

# the target is measured by `a`, and not by `b`, which is judged here
TEXT = PLAN.replace("  - targets: t1\n", "").replace("the first\n", "the first\n  - targets: t1\n")
SUITE = """\
from code_ import add


def test_add():
    assert add(1, 2) == 3


def test_more():
    assert add(2, 2) == 4
"""
FILES: dict[str, str | bytes] = {
    "plans/p.md": TEXT,
    "r.toml": "",
    "code_.py": "def add(a, b):\n    return a + b\n",
    "tests/test_code.py": SUITE,
}
BROKEN = "def add(a, b):\n    return 0\n"


def judge(
    folder: Path,
    files: Mapping[str, str | bytes],
    sandbox: Sandbox | None = None,
    before: Mapping[str, str | bytes] | None = None,
    text: str = TEXT,
    datasets: dict[str, Dataset] | None = None,
    links: Mapping[str, str] | None = None,
    **task: Any,
) -> Judgement:
    """What the gate says of a change of these files, for task `b` of the plan `text`. before, links: of the base."""
    root = folder / "user"
    for path, goal in (links or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(goal)
    first = repository(root, {**FILES, **(before or {})})
    state = State.of(root)
    made = small_library()
    wide = library(
        list(made.agents.values()), *(each.model_copy(update={"writes": ("**",)}) for each in made.skills.values())
    )
    loaded = plan(text)
    tasks = tuple(each.model_copy(update={"writes": ("**",), **task}) for each in loaded.tasks)
    loaded = loaded.model_copy(update={"tasks": tasks})
    run = Run(
        id="r-1",
        state=state,
        settings=Settings(tests={"low": ("tests",)}),
        sandbox=sandbox or real_sandbox(),
        plan=loaded,
        library=wide,
        assignments={each.task: each for each in assign(loaded, wide)},
        base_commit=first,
        base_branch="main",
        base_folder=base(state, root, first),
        datasets=datasets or {},
        hear=lambda *_: None,
    )
    state.ledger.open_run("r-1", budget=loaded.budget.model_dump_json())
    state.path("data")
    worktree, head = state.repository.open("odyssey/r-1/attempts/b/1", first)
    write(worktree, files)
    commit = state.repository.commit(worktree, head, "x", "x")
    change = state.repository.change("b", 1, "haiku", head, commit)
    found = asyncio.run(Gate(run, loaded.task("b"), change, Journal(), b"secret").judge())
    assert state.ledger.verify() == []
    assert sorted(each.id for each in state.ledger.receipts("r-1")) == sorted(found.receipts)
    return found


def base(state: State, root: Path, commit: str) -> Path:
    from orchestrator.house import base_files

    return base_files(state, root, commit)


@pytest.mark.parametrize("sandbox", ["bubblewrap", "none"])
def test_a_change_whose_tests_pass_is_accepted(tmp_path: Path, sandbox: str) -> None:
    found = judge(tmp_path, {"r.toml": "x = 1\n"}, UnsandboxedSandbox() if sandbox == "none" else None)
    assert (found.outcome, found.feedback) == ("accepted", "")
    assert len(found.receipts) == 2  # policy, tests


def test_a_change_that_breaks_a_test_is_refused_with_its_words(tmp_path: Path) -> None:
    found = judge(tmp_path, {"code_.py": BROKEN})
    assert found.outcome == "refused"
    assert "tests failed" in found.feedback
    assert "assert 0 == 3" in found.feedback


def test_an_edited_test_does_not_stand_in_for_the_bases(tmp_path: Path) -> None:
    found = judge(
        tmp_path, {"code_.py": BROKEN, "tests/test_code.py": SUITE.replace("== 3", "== 0").replace("== 4", "== 0")}
    )
    assert found.outcome == "refused"
    assert "tests failed" in found.feedback


HOOK = "def pytest_runtest_makereport(item, call):\n    call.excinfo = None\n"
FORGE = """\
import os, sys
nonce = sys.stdin.readline().strip()
os.write(1, ('\\n{"nonce": "%s", "collected": 2, "ended": 2, "exit": 0, "passed": 2}\\n' % nonce).encode())
os._exit(0)
"""
TRICKS: dict[str, Mapping[str, str | bytes]] = {
    "hooks and configuration of its own": {
        "conftest.py": HOOK,
        "tests/conftest.py": HOOK,
        "pytest.ini": "[pytest]\naddopts = --deselect tests/test_code.py\n",
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-k nothing'\n",
    },
    "a shadowing pytest": {"pytest.py": "import sys\nsys.exit(0)\n"},
    "a shadowing package": {"pytest/__init__.py": "", "pytest/__main__.py": "import sys\nsys.exit(0)\n"},
    "sitecustomize": {"sitecustomize.py": "import os\nif 'pytest' in open('/proc/self/cmdline').read(): os._exit(0)\n"},
    "a forged sitecustomize": {"sitecustomize.py": FORGE, "usercustomize.py": FORGE},
    "a forged pytest": {"pytest.py": FORGE},
    "a forged plugin": {"testplugin.py": FORGE},
    "a forged module of the standard library": {"argparse.py": FORGE, "json.py": FORGE, "typing.py": FORGE},
    "an installed plugin": {
        "evil.py": HOOK,
        "evil-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        "evil-1.0.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n",
    },
    "forging while imported": {"code_.py": FORGE},
    "leaving with 0": {"code_.py": "import os\nos._exit(0)\n"},
    "leaving with 0 and a word": {
        "code_.py": 'import os\nprint(\'{"collected": 2, "ended": 2, "exit": 0}\', flush=True)\nos._exit(0)\n'
    },
    "leaving from the test": {"code_.py": "def add(a, b): raise SystemExit(0)\n"},
    "ending the session": {"code_.py": "import pytest\ndef add(a, b): pytest.exit('done', 0)\n"},
    "skipping from the code": {"code_.py": "import pytest\ndef add(a, b): pytest.skip('later')\n"},
    "skipping while imported": {"code_.py": "import pytest\npytest.skip('later', allow_module_level=True)\n"},
    "expecting to fail": {"code_.py": "import pytest\ndef add(a, b): pytest.xfail('known')\n"},
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_failing_suite_is_not_turned_green(tmp_path: Path, trick: str) -> None:
    found = judge(tmp_path, {"code_.py": BROKEN, **TRICKS[trick]})
    assert found.outcome == "refused", trick
    assert found.feedback.startswith("tests: "), found.feedback


def test_tests_that_skip_themselves_or_expect_to_fail_are_no_evasion(tmp_path: Path) -> None:
    more = """

def test_skips():
    pytest.skip("not here")


def test_without_what_it_needs():
    pytest.importorskip("no_such_module")


@pytest.mark.skip(reason="never")
def test_marked(): ...


@pytest.mark.xfail
def test_expected():
    assert add(1, 1) == 3
"""
    found = judge(tmp_path, {"tests/test_code.py": f"import pytest\n{SUITE}{more}"})
    assert (found.outcome, found.feedback) == ("accepted", "")


TABLE = "TABLE = {{{rows}}}\n\n\ndef add(a, b):\n    return a + b\n"
OVER_A_TABLE = """\
import pytest

from code_ import TABLE


@pytest.mark.parametrize("name", TABLE, ids=str)
def test_row(name):
    assert TABLE[name] == name.upper()
"""


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ("'a': 'A', 'b': 'B', 'c': 'C'", None),  # a row more
        ("'a': 'A'", "[b]"),  # a row less
        ("'a': 'A', 'c': 'C'", "[b]"),  # as many, but another name
    ],
)
def test_tests_over_a_table_may_grow_with_it_and_none_may_go(tmp_path: Path, rows: str, missing: str | None) -> None:
    before = {"code_.py": TABLE.format(rows="'a': 'A', 'b': 'B'"), "tests/test_table.py": OVER_A_TABLE}
    found = judge(tmp_path, {"code_.py": TABLE.format(rows=rows)}, before=before)
    if missing is None:
        assert (found.outcome, found.feedback) == ("accepted", "")
    else:
        words = f"tests: 1 tests of the base commit are missing: tests/test_table.py::test_row{missing}"
        assert (found.outcome, found.feedback) == ("refused", words)


def test_the_many_tests_that_are_missing_are_counted_and_some_are_named(tmp_path: Path) -> None:
    rows = ", ".join(f"'{letter}': '{letter.upper()}'" for letter in "abcdefgh")
    before = {"code_.py": TABLE.format(rows=rows), "tests/test_table.py": OVER_A_TABLE}
    found = judge(tmp_path, {"code_.py": TABLE.format(rows="'h': 'H'")}, before=before)
    assert "7 tests of the base commit are missing: " in found.feedback
    assert found.feedback.endswith("test_row[e] and 2 more")


def test_long_names_of_tests_are_told_apart(tmp_path: Path) -> None:
    long = "x" * 300
    before = {
        "code_.py": TABLE.format(rows=f"'{long}a': '{long.upper()}A', '{long}b': '{long.upper()}B'"),
        "tests/test_table.py": OVER_A_TABLE,
    }
    assert judge(tmp_path / "1", {"r.toml": "x = 1\n"}, before=before).outcome == "accepted"
    other = TABLE.format(rows=f"'{long}a': '{long.upper()}A', '{long}c': '{long.upper()}C'")
    found = judge(tmp_path / "2", {"code_.py": other}, before=before)
    assert "1 tests of the base commit are missing" in found.feedback


def test_more_tests_of_its_own_are_run_too(tmp_path: Path) -> None:
    more = SUITE.replace("== 4", "== 4\n    assert add(0, 0) == 1")
    found = judge(tmp_path, {"tests/test_code.py": more})
    assert found.outcome == "refused"
    assert "assert 0 == 1" in found.feedback


def test_the_cheapest_check_comes_first_and_ends_it(tmp_path: Path) -> None:
    found = judge(tmp_path, {"code_.py": BROKEN, "k": "ghp_" + "a1" * 18})
    assert found.feedback == "policy: k: holds what looks like a secret"
    assert len(found.receipts) == 1


@pytest.mark.parametrize(("command", "outcome"), [("test -f r.toml", "accepted"), ("test -f none", "refused")])
def test_acceptance_commands_of_the_task_are_run_in_the_changes_files(
    tmp_path: Path, command: str, outcome: str
) -> None:
    found = judge(tmp_path, {"r.toml": "x = 1\n"}, accept=(command,))
    assert found.outcome == outcome
    if outcome == "refused":
        assert found.feedback == "accept: `test -f none` ended with 1: "


def test_no_command_may_fill_the_disk_with_one_file_or_fork_for_ever(tmp_path: Path) -> None:
    held = 'test "$(ulimit -f)" = $((16 << 21)) && test "$(ulimit -p)" -lt 5000'  # files in blocks of 512 bytes
    found = judge(tmp_path, {"r.toml": "x = 1\n"}, accept=(f"/bin/sh -c '{held}'",))
    assert (found.outcome, found.feedback) == ("accepted", "")


def test_acceptance_commands_get_their_share_of_the_threads_and_no_more(tmp_path: Path) -> None:
    share = Settings().threads
    command = f"python -c \"import os; assert os.environ['MLCORE_THREADS'] == '{share}'\""
    assert judge(tmp_path, {"r.toml": "x = 1\n"}, accept=(command,)).outcome == "accepted"


@pytest.mark.parametrize(("measures", "outcome"), [(False, "unmeasured"), (True, "accepted")])
def test_a_dataset_that_is_missing_spoils_no_verdict_that_did_without_it(
    tmp_path: Path, measures: bool, outcome: str
) -> None:
    """What has no verdict may rest on the stand-in: that is never accepted."""
    counted = PLAN.replace("dataset: mnist, ", "").replace("test_error_pct", "failed_tests")
    text = counted.replace("recipe: r.toml", "recipe: tests/test_code.py") if measures else TEXT
    absent = {"mnist": Dataset("mnist", tmp_path, {}, official=False, surrogate=False, absent=True)}
    found = judge(tmp_path, {"r.toml": "x = 1\n"}, text=text, datasets=absent)
    assert found.outcome == outcome
    assert [verdict.outcome for verdict in found.verdicts] == (["reproduced"] if measures else [])


def test_a_judgement_that_is_asked_for_again_runs_nothing_again(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counting(UnsandboxedSandbox):
        def run(self, command: Any, on_output: Any = None) -> Any:
            calls.append(command.argv[0])
            return super().run(command, on_output)

    judge(tmp_path, {"r.toml": "x = 1\n"}, Counting())
    assert len(calls) == 2  # collected at the base, run on the change


@pytest.mark.parametrize("goal", ["nowhere", "/etc/hostname"])
def test_a_link_among_the_bases_tests_is_not_followed(tmp_path: Path, goal: str) -> None:
    """Neither to nowhere, nor to a file of the host, which the change's code could then read."""
    still = "import pathlib\n\n\ndef test_link():\n    assert pathlib.Path(__file__).with_name('link').is_symlink()\n"
    found = judge(tmp_path, {"r.toml": "x = 1\n"}, before={"tests/test_link.py": still}, links={"tests/link": goal})
    assert (found.outcome, found.feedback) == ("accepted", "")
