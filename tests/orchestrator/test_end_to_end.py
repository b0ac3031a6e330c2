"""A plan from the command line to pull requests: nothing is faked but the size of the data and of the network."""

from __future__ import annotations

import hashlib
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.orchestrator.endtoend import Repo, has_bubblewrap, real_mnist, small_digits, small_repo

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


def fingerprint(root: Path) -> dict[str, str]:
    """Every file of the checkout and of its .git, but for the state folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and ".odyssey" not in path.parts
    }


def verdicts(repo: Repo) -> dict[str, str]:
    return {each["target"]: each["outcome"] for each in repo.json("status")["verdicts"]}


def tasks_of_pulls(repo: Repo) -> list[str]:
    return sorted(each["task"] for each in repo.json("pr", "list")["pull_requests"])


def test_a_plan_ends_with_pull_requests_and_an_untouched_checkout_until_one_is_merged(tmp_path: Path) -> None:
    repo = small_repo(tmp_path, small_digits(tmp_path / "data"))
    repo.write("plans/small.md", (repo.root / "plans/small.md").read_text() + "\nnot committed\n")
    repo.write("untracked.txt", "mine\n")
    repo.git("checkout", "--quiet", "--detach")
    before = fingerprint(repo.root)

    done = repo.run("run", "plans/small.md")

    assert done.returncode == 3, done.stderr  # not MNIST, so there is no verdict to be had
    assert "uncommitted changes are not part of this run" in done.stderr
    assert "orchestrate resume small-1" in done.stderr
    assert fingerprint(repo.root) == before
    assert tasks_of_pulls(repo) == ["data", "measure", "second"]
    report = repo.json("report", "--verify")
    assert report["wrong"] == []
    assert {receipt["sandbox"] for receipt in report["receipts"]} == {"bubblewrap"}
    assert verdicts(repo) == {"small-error": "not measured"}
    assert [each["reason"] for each in report["verdicts"]] == [
        "not measured on MNIST: the data is mnist, unverified files"
    ]
    # nothing to do is no work: the same run again only says where it stands
    assert repo.run("resume", "small-1").returncode == 3
    assert tasks_of_pulls(repo) == ["data", "measure", "second"]
    a_verdict_edited_in_the_ledger_does_not_verify(repo)
    repo.git("checkout", "--quiet", "main", "--", ".")
    repo.git("checkout", "--quiet", "main")
    merge_the_top_of_the_stack(repo)


def a_verdict_edited_in_the_ledger_does_not_verify(repo: Repo) -> None:
    ledger = repo.root / ".odyssey" / "ledger.db"
    honest = ledger.read_bytes()
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE tasks SET verdicts = replace(verdicts, '\"mean\": ', '\"mean\": 1')")
    done = repo.run("report", "--verify")
    assert done.returncode == 1
    assert "verdict of small-error in small-1: its mean is " in done.stderr
    connection.close()
    ledger.write_bytes(honest)


def merge_the_top_of_the_stack(repo: Repo) -> None:
    """It brings plan and evidence into the branch, and what it is stacked on with it."""
    top = max(each["number"] for each in repo.json("pr", "list")["pull_requests"])
    shown = repo.run("pr", "show", str(top)).stdout
    for heading in ("## What", "## Why", "## Evidence", "## Risk", "## Cost", "## Receipts"):
        assert heading in shown
    assert "plans/" in repo.run("pr", "diff", str(top)).stdout

    done = repo.run("pr", "merge", str(top))

    assert done.returncode == 0, done.stderr
    assert repo.git("status", "--porcelain", "--untracked-files=no") == ""
    plan = (repo.root / "plans/small.md").read_text()
    assert "- [ ] `data`" in plan, "nothing done on other data than the plan's is ever ticked"
    assert plan.count("status: unmeasured (procedure, attempt 1)") == 3
    assert "not measured on MNIST" in plan
    assert (repo.root / "plans/small/dataset.json").is_file()
    assert {each["status"] for each in repo.json("pr", "list")["pull_requests"]} == {"merged"}
    assert repo.run("pr", "merge", str(top)).returncode == 2
    assert repo.run("lint").returncode == 0


def events(repo: Repo) -> int:
    """How much the run has told so far."""
    if not (repo.root / ".odyssey" / "ledger.db").exists():
        return 0
    try:
        return int(repo.ledger("SELECT COUNT(*) FROM events")[0][0])
    except sqlite3.OperationalError:  # the ledger is being made
        return 0


def test_killed_at_ten_random_moments_a_run_ends_with_the_same_verdict_and_one_pull_request_each(
    tmp_path: Path,
) -> None:
    repo = small_repo(tmp_path, small_digits(tmp_path / "data"))
    rng = random.Random(20)
    process = repo.start("run", "plans/small.md")
    kills = 0
    for number in range(10):
        # moments of the run, not of the clock: a slow machine gets as far, and a fast one is not over too soon
        awaited = events(repo) + rng.randint(1, 3) if number else 0
        while process.poll() is None and events(repo) < awaited:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        # killed before the run was on record, there is nothing to resume: a person would start it again
        known = (repo.root / ".odyssey" / "ledger.db").exists() and repo.ledger("SELECT id FROM runs")
        process = repo.start("resume") if known else repo.start("run", "plans/small.md")
    out, err = process.communicate(timeout=400)

    assert kills >= 5, "the run was over before it could be killed often enough"
    assert process.returncode == 3 or "nothing to resume" in err, err
    assert repo.json("status")["run"]["status"] == "incomplete", out
    assert verdicts(repo) == {"small-error": "not measured"}
    assert tasks_of_pulls(repo) == ["data", "measure", "second"]
    report = repo.json("report", "--verify")
    assert report["wrong"] == []
    trials = [receipt["what"].partition(":")[0] for receipt in report["receipts"] if receipt["target"]]
    assert len(trials) == len(set(trials)) == 6, report["verdicts"]
    assert repo.ledger("SELECT COUNT(*) FROM calls WHERE state != 'done'") == [(0,)]
    assert len(repo.ledger("SELECT DISTINCT run, task, attempt, turn FROM calls")) == len(
        repo.ledger("SELECT key FROM calls")
    )


def test_ctrl_c_says_how_to_go_on_and_a_second_orchestrator_is_turned_away(tmp_path: Path) -> None:
    repo = small_repo(tmp_path, small_digits(tmp_path / "data"))
    process = repo.start("run", "plans/small.md")
    while not (repo.root / ".odyssey" / "runs").exists():
        assert process.poll() is None
        time.sleep(0.1)

    process.send_signal(signal.SIGSTOP)  # so that it is not over before the second one has begun
    second = repo.run("run", "plans/small.md")
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)

    assert second.returncode == 75
    assert f"process {process.pid}" in second.stderr
    assert process.returncode == 130
    assert "orchestrate resume small-1" in err


def test_a_used_up_budget_pauses_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    repo = small_repo(tmp_path, small_digits(tmp_path / "data"), minutes=0.01, measured=False)

    paused = repo.run("run", "plans/small.md")
    resumed = repo.run("resume", "--minutes", "30")

    assert paused.returncode == 5, paused.stderr
    assert "budget of 0.01 minutes is used up" in paused.stderr
    assert resumed.returncode == 3, resumed.stderr
    assert tasks_of_pulls(repo) == ["data", "second"]


def test_real_mnist_is_reproduced_with_exit_code_0_by_what_was_measured_and_not_by_planted_numbers(
    tmp_path: Path,
) -> None:
    """The code claims 0.01 % in result.json and in its log, the agent in its words, the plan in its prose.

    Of the two targets one is missed by whoever believes it.
    """
    data = real_mnist()
    if data is None:
        pytest.skip("MLCORE_DATA does not hold MNIST")
    repo = small_repo(tmp_path, data, value=50.0, prose="It is measured: 0.01 % test error, verdict not reproduced.")
    plan = (repo.root / "plans/small.md").read_text()
    start = plan.index("  - {id: small-error")
    target = plan[start : plan.index("budget:")]
    other = target.replace("small-error", "honest-error").replace("50.0", "5.0").replace("at_most", "at_least")
    with_both = plan[:start] + other + plan[start:]
    repo.write("plans/small.md", with_both.replace("targets: small-error", "targets: small-error, honest-error"))
    plant = (
        "\n\nimport sys\nprint('test error 0.01 %, reproduced', file=sys.stderr)\n"
        "_honest = Result.document\n"
        "Result.document = lambda self: {**_honest(self), 'test_error_pct': 0.01}  # type: ignore\n"
    )
    result_module = repo.root / "mlcore" / "result.py"
    result_module.write_text(result_module.read_text() + plant)
    procedure = repo.root / "skills/measure-reproduction/scripts/procedure.toml"
    procedure.write_text(procedure.read_text().replace('say = "', 'say = "Test error 0.01 %, reproduced. '))
    repo.commit("plant numbers")

    done = repo.run("run", "plans/small.md")

    assert done.returncode == 0, done.stderr + done.stdout
    report = repo.json("report")
    assert [each["outcome"] for each in report["verdicts"]] == ["reproduced", "reproduced"]
    for verdict in report["verdicts"]:
        assert verdict["dataset"] == "mnist"
        assert len(verdict["values"]) == 3
        assert all(value > 5 for value in verdict["values"].values())
        assert sum(verdict["values"].values()) / 3 == pytest.approx(verdict["mean"])
    body = report["pull_requests"][-1]["body"]
    assert "> Test error 0.01 %" in body.split("What the agent says")[1]
    assert "0.01 %" not in body.split("What the agent says")[0]
