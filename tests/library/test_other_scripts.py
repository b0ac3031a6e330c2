"""no_numbers.py, train.py and preflight.py: what they catch, what they let pass, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.library.helpers import RECIPE, calls, fake_mlcore, module, run

no_numbers = module("write-report", "no_numbers")
FRONT = "---\ntargets:\n  - {id: a, value: 0.95, margin: 0.05, seeds: 3}\n---\n"


def found(text: str) -> list[str]:
    return [claim["text"] for claim in no_numbers.claims(text, "report.md")]


@pytest.mark.parametrize(
    "line",
    [
        "The test error was 0.93 %.",
        "We got 0.93% on the test set.",
        "an accuracy of 99.1 on held-out digits",
        "The mean over seeds is 0.9",
        "It reaches 98.5 after ten passes",
        "Training took 12.5 s a seed",
        "about 15k images/s on two cores",
        "about 15,000 images per second",
        "0.3 points better than before",
        "| seed 1 | 0.9231 |",
        "- [ ] `a` Bring it to 0.80 percent",
        "loss: 0.02",
    ],
)
def test_a_number_that_looks_measured_is_found(line: str) -> None:
    assert len(found(f"# Title\n\n{line}\n")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "In 1998 the paper's Fig. 9 gave 0.95 % for it.",
        "the mean has to be at most 1.00 %, or 0.90 % from below",
        "a margin of 0.05 points over 3 seeds",
        "60,000 training images of 28x28 pixels in 10 classes",
        "C1 has 6 maps; see sec. 3.3 and table 2, issue 12",
        "run `mlcore train optimiser.rate=0.0231` with `--minutes 8`",
        "version 0.26.1 of the library, python 3.11",
        "The error comes from line 14.",
        "- options: minutes=8, trials=9",
    ],
)
def test_published_and_plain_numbers_pass(line: str) -> None:
    assert found(f"{FRONT}# Title\n\n{line}\n") == []


def test_published_numbers_count_only_when_the_front_matter_has_them() -> None:
    assert found("It was 0.95 % in the paper.") == ["0.95 %"]


def test_blocks_of_the_harness_and_code_may_hold_any_number() -> None:
    text = "<!-- odyssey:result -->\nmean 0.93 %\n<!-- /odyssey:result -->\n```\nerror 0.91 %\n```\nafter: 0.92 %\n"
    assert found(text) == ["0.92 %"]


def test_another_blocks_closing_marker_does_not_close_a_block() -> None:
    text = "<!-- odyssey:result -->\n<!-- /odyssey:tree -->\n0.93 %\n<!-- /odyssey:result -->\n"
    assert found(text) == []


def test_a_block_that_is_never_closed_would_hide_everything_and_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one\n<!-- odyssey:result -->\n0.93 %\n")
    done = run("write-report", "a.md", cwd=tmp_path)
    assert done.returncode == 2
    assert "a.md:2: block `result` isn't closed" in done.stderr


def test_the_command_names_file_line_and_text_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(FRONT + "# Title\n\nIt erred on 0.93 % of them.\n")
    done = run("write-report", "a.md", cwd=tmp_path)
    assert done.returncode == 1
    assert "a.md:7: `0.93 %` looks measured" in done.stderr
    assert json.loads(done.stdout)["claims"] == [{"path": "a.md", "line": 7, "text": "0.93 %"}]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_report_that_cannot_be_read_exits_2(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.md").write_bytes(content)
    assert run("write-report", "a.md", cwd=tmp_path).returncode == 2


def train(folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
    (folder / "recipe.toml").write_text(RECIPE)
    done = run("train-model", "recipe.toml", *words, cwd=folder, env=fake_mlcore(folder / "bin") | env)
    return done.returncode, done.stdout, done.stderr


def test_training_comes_after_the_checks_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    code, out, _ = train(tmp_path, "train.epochs=1", "seed=4", "--out", "runs/a")
    assert code == 0
    assert [words[1:] for words in calls(tmp_path / "bin", "check")] == [["recipe.toml"]]
    (trained,) = calls(tmp_path / "bin")
    assert trained[2:] == ["train.epochs=1", "seed=4", "--out", "runs/a", "--continue"]
    assert json.loads(out)["status"] == "finished"
    assert json.loads(out)["files"] == ["result.json"]


def test_the_report_of_a_training_holds_no_error_rate(tmp_path: Path) -> None:
    assert "error" not in train(tmp_path, "seed=4", "--out", "runs/a")[1]


def test_a_recipe_whose_checks_fail_is_not_trained(tmp_path: Path) -> None:
    code, out, said = train(tmp_path, "--out", "runs/a", FAKE_CHECK="5")
    assert (code, out) == (5, "")
    assert "not trained" in said
    assert calls(tmp_path / "bin") == []


def test_a_training_that_breaks_down_passes_its_exit_code_on(tmp_path: Path) -> None:
    code, out, _ = train(tmp_path, "optimiser.rate=9", "seed=1", "--out", "runs/a")
    assert code == 4
    assert json.loads(out)["status"] == "failed"


def preflight(folder: Path, recipe: str, seeds: str = "3", **env: str) -> tuple[int, dict[str, object]]:
    (folder / "recipe.toml").write_text(recipe)
    words = ("--recipe", "recipe.toml", "--seeds", seeds, "--dataset", "mnist", "--target", "lenet5")
    done = run("measure-reproduction", *words, cwd=folder, env=fake_mlcore(folder / "bin") | env)
    return done.returncode, json.loads(done.stdout)


def test_a_sound_recipe_is_ready_and_the_plan_says_what_the_gate_will_do(tmp_path: Path) -> None:
    code, told = preflight(tmp_path, RECIPE)
    assert (code, told["ready"], told["problems"]) == (0, True, [])
    assert "3 seeds" in str(told["steps"])
    assert len(calls(tmp_path / "bin", "check")) == 1


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("rate = ", "can't be read"),
        ('[data]\ndataset = "mnist-surrogate"\n', "use the same"),
        ("[data]\nshuffle_labels = true\n", "that is a control"),
        ("[data]\nvalidation = 5000\n", "keeps training images"),
        ("[data]\nlimit = 100\n", "keeps training images"),
    ],
)
def test_a_recipe_that_would_measure_something_else_is_not_ready(tmp_path: Path, recipe: str, problem: str) -> None:
    code, told = preflight(tmp_path, recipe)
    assert code == 1
    assert problem in str(told["problems"])
    assert calls(tmp_path / "bin", "check") == []


def test_two_seeds_are_too_few(tmp_path: Path) -> None:
    code, told = preflight(tmp_path, RECIPE, seeds="2")
    assert code == 1
    assert "needs at least 3" in str(told["problems"])


def test_failed_learning_checks_are_not_ready(tmp_path: Path) -> None:
    code, told = preflight(tmp_path, RECIPE, FAKE_CHECK="5")
    assert code == 1
    assert "failed (exit 5)" in str(told["problems"])


@pytest.mark.parametrize("skill", ["train-model", "measure-reproduction"])
def test_without_mlcore_on_the_path_the_fix_is_named(tmp_path: Path, skill: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = {
        "train-model": ("recipe.toml", "--out", "runs/a"),
        "measure-reproduction": ("--recipe", "recipe.toml", "--seeds", "3", "--dataset", "mnist", "--target", "a"),
    }[skill]
    done = run(skill, *words, cwd=tmp_path, env={"PATH": str(tmp_path)})
    assert done.returncode == 127
    assert "mlcore is not on PATH; install the project first" in done.stderr
