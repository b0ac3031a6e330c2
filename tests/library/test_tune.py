"""tune.py with a stand-in for mlcore: it searches, stays honest about data, and survives kill -9."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.library.helpers import RECIPE, calls, clean_env, fake_mlcore, module, run, script, small_dataset

halving = module("tune-recipe", "halving")
trials = module("tune-recipe", "trials")
WORDS = ("recipe.toml", "--value", "0.8", "--margin", "0.1", "--log", "plans/search.json")


def tune(folder: Path, *words: str, recipe: str = RECIPE, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the search on `recipe` in a folder of its own; the recipe's file is left alone if it is there."""
    folder.mkdir(exist_ok=True)
    if not (folder / "recipe.toml").exists():
        (folder / "recipe.toml").write_text(recipe)
    return run("tune-recipe", *WORDS, *words, cwd=folder, env=fake_mlcore(folder / "bin") | env)


def log(folder: Path) -> dict[str, Any]:
    loaded = json.loads((folder / "plans" / "search.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_a_recipe_within_reach_is_trained_once_and_left_alone(tmp_path: Path) -> None:
    good = RECIPE.replace("rate = 0.5 ", "rate = 0.05 ")
    done = tune(tmp_path, recipe=good)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "recipe.toml").read_text() == good
    assert len(calls(tmp_path / "bin")) == 1
    assert "nothing to change" in log(tmp_path)["outcome"]
    assert len(log(tmp_path)["tried"]) == 1


def test_a_missed_target_is_searched_and_the_winner_edited_in_with_comments_kept(tmp_path: Path) -> None:
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    edited = (tmp_path / "recipe.toml").read_text()
    assert log(tmp_path)["outcome"] == "searched; a better setting was adopted"
    assert edited != RECIPE
    for comment in ("# Chosen on", "# far too high, on purpose", "# the paper of 2012"):
        assert comment in edited
    changed = [line for line in edited.split("\n") if line not in RECIPE.split("\n")]
    assert len(changed) == len(log(tmp_path)["adopted"])


def test_the_log_says_what_its_numbers_are_and_lists_every_trial(tmp_path: Path) -> None:
    tune(tmp_path)
    found = log(tmp_path)
    assert "not measured by the gate" in found["note"]
    tried = {(str(trial["knobs"]), trial["epochs"], trial["seed"]) for trial in found["tried"]}
    assert len(found["tried"]) == len(tried) == len(calls(tmp_path / "bin"))
    assert all(trial["validation_error_pct"] > 0 for trial in found["tried"] if trial["status"] == "finished")


def test_every_trial_sets_images_of_the_training_set_aside(tmp_path: Path) -> None:
    tune(tmp_path)
    assert all("data.validation=5000" in words for words in calls(tmp_path / "bin"))


def test_candidates_are_halved_and_only_the_best_see_full_length(tmp_path: Path) -> None:
    tune(tmp_path)
    epochs = [trial["epochs"] for trial in log(tmp_path)["tried"][1:]]
    assert epochs[:9] == [1] * 9
    assert epochs[9:12] == [2] * 3
    assert set(epochs[12:]) == {4}
    assert len(epochs) <= 15


def test_where_early_ranks_mislead_all_candidates_see_full_length(tmp_path: Path) -> None:
    done = tune(tmp_path, "--least-epochs", "4")
    assert done.returncode == 0, done.stderr
    tried = log(tmp_path)["tried"]
    assert {trial["epochs"] for trial in tried} == {4}
    first = [trial for trial in tried[1:10] if trial["status"] == "finished"]
    assert tried[10]["knobs"] == min(first, key=lambda trial: trial["validation_error_pct"])["knobs"]


def test_a_target_may_be_missed_from_below(tmp_path: Path) -> None:
    good = RECIPE.replace("rate = 0.5 ", "rate = 0.05 ")
    done = tune(tmp_path, "--value", "3", "--direction", "at_least", "--trials", "3", recipe=good)
    assert done.returncode == 0, done.stderr
    assert "searched" in log(tmp_path)["outcome"]


@pytest.mark.parametrize("metric", ["test_top5_error_pct", "images_per_s", "test_error_pct difference"])
def test_a_target_that_is_no_top1_error_is_refused_and_nothing_is_trained(tmp_path: Path, metric: str) -> None:
    done = tune(tmp_path, "--metric", metric)
    assert done.returncode == 2
    assert f"tune: `{metric}` can't be held against a validation error of the first guess; " in done.stderr
    assert calls(tmp_path / "bin") == []
    by_loss = tune(tmp_path, "--metric", metric, "--by", "loss", "--trials", "2")
    assert by_loss.returncode == 0, by_loss.stderr


def test_a_recipe_that_breaks_down_is_searched_too(tmp_path: Path) -> None:
    done = tune(tmp_path, recipe=RECIPE.replace("rate = 0.5 ", "rate = 4.0 "))
    assert done.returncode == 0, done.stderr
    assert log(tmp_path)["tried"][0]["status"] == "not finite"
    assert log(tmp_path)["adopted"]["optimiser.rate"] <= 2


@pytest.mark.parametrize("data", ["mnist-surrogate", "mnist-unverified"])
def test_nothing_is_searched_or_edited_on_other_data_than_the_recipes(tmp_path: Path, data: str) -> None:
    done = tune(tmp_path, FAKE_DATA=data)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "recipe.toml").read_text() == RECIPE
    assert log(tmp_path)["outcome"] == f"not searched: the data are {data}, not mnist"
    assert len(calls(tmp_path / "bin")) == 1


def test_trainings_never_see_the_test_labels_even_where_they_lie_about(tmp_path: Path) -> None:
    data = small_dataset(tmp_path / "data" / "mnist").parent
    tune(tmp_path, "--trials", "2", MLCORE_DATA=str(data))
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/tune-*/*/result.json")]
    assert results
    for result in results:
        assert "train-labels-idx1-ubyte.gz" in result["seen"]
        assert not [name for name in result["seen"] if name.startswith("t10k-labels")]


def test_cifars_test_labels_are_hidden_too_and_its_other_batches_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "data/cifar10"
    folder.mkdir(parents=True)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes((bytes([7]) + bytes(3072)) * 3)
    view = trials.hide_test_labels(folder.parent, tmp_path / "scratch")
    assert (view / "cifar10/test_batch.bin").read_bytes() == (bytes([255]) + bytes(3072)) * 3
    assert (view / "cifar10/data_batch_1.bin").read_bytes() == (folder / "data_batch_1.bin").read_bytes()
    assert trials.hide_test_labels(view, tmp_path / "again") == view


def test_a_search_by_the_training_loss_turns_only_the_knobs_it_is_given_and_trains_briefly(tmp_path: Path) -> None:
    done = tune(tmp_path, "--by", "loss", "--knobs", "optimiser.rate", "--epochs", "2", "--value", "99")
    assert done.returncode == 0, done.stderr
    assert log(tmp_path)["adopted"].keys() == {"optimiser.rate"}
    assert all(trial["knobs"].keys() <= {"optimiser.rate"} for trial in log(tmp_path)["tried"])
    assert {trial["epochs"] for trial in log(tmp_path)["tried"]} <= {1, 2}
    assert all(trial["train_loss"] > 0 for trial in log(tmp_path)["tried"])


def test_a_budget_of_processors_time_is_paid_by_what_the_trainings_used(tmp_path: Path) -> None:
    journal = trials.Journal(tmp_path / "journal.jsonl")
    journal.add("first", trials.Trial({}, 4, 1, "finished", 1.0, "mnist", 800.0, epoch_s=200.0, cpu_s=8.0))
    trainer = trials.Trainer(tmp_path / "recipe.toml", tmp_path, None, 5000, 20.0, journal, "cpu")
    trainer._run = lambda command, limit_s: 4 if limit_s is None else 1
    assert trainer.train({"a.b": 1}, 6, 1).status == "not finite"
    with pytest.raises(halving.OutOfTime):
        trainer.train({"a.b": 2}, 7, 1)


def test_a_folder_without_test_labels_is_used_as_it_is(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "data" / "mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert trials.hide_test_labels(folder.parent, tmp_path / "scratch") == folder.parent
    assert not (tmp_path / "scratch").exists()


def test_a_planted_test_error_changes_nothing(tmp_path: Path) -> None:
    """The stand-in writes test_error_pct 0.0 into every result; the trial that is judged by it would be `within`."""
    tune(tmp_path)
    assert "searched" in log(tmp_path)["outcome"]
    assert "test_error" not in (tmp_path / "plans" / "search.json").read_text()


def test_a_search_killed_again_and_again_goes_on_and_repeats_no_finished_trial(tmp_path: Path) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    tune(undisturbed)
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    finished: set[str] = set()
    kills = (0, 1, 5, 11, 13)
    for count in kills:
        kill_after(folder, count)
        finished |= finished_outs(folder)
        assert len(finished) < len(log(undisturbed)["tried"]), "killed too late to show anything"
    done = tune(folder)
    assert done.returncode == 0, done.stderr
    assert log(folder) == log(undisturbed)
    assert (folder / "recipe.toml").read_text() == (undisturbed / "recipe.toml").read_text()
    outs = [words[words.index("--out") + 1] for words in calls(folder / "bin")]
    assert len(finished) >= kills[-1]
    assert len(outs) <= len(set(outs)) + len(kills)  # a kill repeats at most the one trial that it cut short


def kill_after(folder: Path, finished: int) -> None:
    """Starts the search and kills it with -9 as soon as its journal holds so many trials and the next has begun."""
    env = clean_env(fake_mlcore(folder / "bin") | {"FAKE_SECONDS": "0.03"})
    command = [sys.executable, script("tune-recipe"), *WORDS]
    begun = len(calls(folder / "bin"))
    child = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and (len(finished_outs(folder)) < finished or len(calls(folder / "bin")) == begun):
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def finished_outs(folder: Path) -> set[str]:
    """The folders of the trials that the journal holds."""
    lines = [(path.parent, line) for path in folder.glob("runs/tune-*/journal.jsonl") for line in path.open("rb")]
    return {f"{at.relative_to(folder)}/{json.loads(line)['key']}" for at, line in lines if line.endswith(b"\n")}


def test_a_search_killed_after_its_last_trial_edits_the_recipe_without_training_again(tmp_path: Path) -> None:
    tune(tmp_path)
    edited, count = (tmp_path / "recipe.toml").read_text(), len(calls(tmp_path / "bin"))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "plans" / "search.json").unlink()
    tune(tmp_path)
    assert (tmp_path / "recipe.toml").read_text() == edited
    assert len(calls(tmp_path / "bin")) == count


def test_a_search_killed_after_its_edit_does_not_search_the_edited_recipe(tmp_path: Path) -> None:
    tune(tmp_path)
    first, edited, count = log(tmp_path), (tmp_path / "recipe.toml").read_text(), len(calls(tmp_path / "bin"))
    (tmp_path / "plans" / "search.json").unlink()
    tune(tmp_path)
    assert log(tmp_path) == first
    assert (tmp_path / "recipe.toml").read_text() == edited
    assert len(calls(tmp_path / "bin")) == count


def test_another_seed_is_another_search(tmp_path: Path) -> None:
    tune(tmp_path)
    count = len(calls(tmp_path / "bin"))
    tune(tmp_path, "--seed", "2")
    assert len(calls(tmp_path / "bin")) > count


def test_the_budget_ends_the_search_and_is_kept_across_restarts(tmp_path: Path) -> None:
    for _ in range(2):
        done = tune(tmp_path, "--minutes", "0.0001")
        assert done.returncode == 0, done.stderr
        assert "time ran out" in log(tmp_path)["outcome"]
        assert (tmp_path / "recipe.toml").read_text() == RECIPE
        assert len(calls(tmp_path / "bin")) == 1


@pytest.mark.parametrize(("epochs", "reserve", "fits"), [(4, 0, True), (6, 0, True), (7, 0, False), (4, 4, False)])
def test_a_trial_begins_only_if_it_and_the_reserve_fit_into_what_is_left(
    tmp_path: Path, epochs: int, reserve: int, fits: bool
) -> None:
    journal = trials.Journal(tmp_path / "journal.jsonl")
    journal.add("first", trials.Trial({}, 4, 1, "finished", 1.0, "mnist", 8.0, epoch_s=2.0))
    trainer = trials.Trainer(tmp_path / "recipe.toml", tmp_path, None, 5000, 20.0, journal)
    trainer._run = lambda command, limit_s: 4 if limit_s == 12.0 else 1
    if fits:
        assert trainer.train({"a.b": 1}, epochs, 1, reserve).status == "not finite"
    else:
        with pytest.raises(halving.OutOfTime):
            trainer.train({"a.b": 1}, epochs, 1, reserve)


def test_a_trial_that_outlasts_the_budget_is_stopped_and_journaled(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    program = tmp_path / "bin" / "mlcore"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 300\n")
    program.chmod(0o755)
    journal = trials.Journal(tmp_path / "journal.jsonl")
    journal.add("first", trials.Trial({}, 4, 1, "finished", 1.0, "mnist", 0.1, 0.02))
    trainer = trials.Trainer(tmp_path / "recipe.toml", tmp_path, None, 5000, 0.4, journal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        trial = trainer.train({"a.b": 1}, 4, 1)
    assert (trial.status, trial.error) == ("out of time", math.inf)
    assert 0.2 < trial.wall_s < 100


def test_sigterm_ends_the_search_and_its_training(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    env = clean_env(fake_mlcore(tmp_path / "bin") | {"FAKE_SECONDS": "300"})
    child = subprocess.Popen([sys.executable, script("tune-recipe"), *WORDS], cwd=tmp_path, env=env, stderr=-3)
    while child.poll() is None and not calls(tmp_path / "bin"):
        time.sleep(0.01)
    began = time.monotonic()
    child.terminate()
    assert child.wait(100) == 143
    with trials.locked(next(tmp_path.glob("runs/tune-*/lock"))):
        assert time.monotonic() - began < 200


@pytest.mark.parametrize(
    ("recipe", "words", "complaint"),
    [
        ("rate = ", (), "can't be read as a recipe"),
        (RECIPE.replace("epochs = 4", ""), (), "needs `epochs`"),
        (RECIPE, ("--space", "{}"), "write an object"),
        ("train.epochs = 4\noptimiser = {rate = 0.5}\n", (), "line by line"),
    ],
)
def test_what_cannot_be_used_exits_2_before_anything_is_trained(
    tmp_path: Path, recipe: str, words: tuple[str, ...], complaint: str
) -> None:
    done = tune(tmp_path, *words, recipe=recipe)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert calls(tmp_path / "bin") == []


def test_mlcores_own_failure_is_passed_on_and_the_recipe_stays(tmp_path: Path) -> None:
    done = tune(tmp_path, FAKE_EXIT="2")
    assert done.returncode == 2
    assert "stopped with exit 2" in done.stderr
    assert (tmp_path / "recipe.toml").read_text() == RECIPE
    assert not (tmp_path / "plans").exists()


def test_without_mlcore_on_the_path_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = run("tune-recipe", *WORDS, cwd=tmp_path, env={"PATH": str(tmp_path)})
    assert done.returncode == 127
    assert "mlcore is not on PATH" in done.stderr


@pytest.mark.parametrize("torn", [b'{"key": "a"', b'{"key": "b"}\n', b"\xff\n", b"[]\n", b"3"])
def test_a_torn_line_is_cut_off_and_the_lines_before_it_count(tmp_path: Path, torn: bytes) -> None:
    journal = trials.Journal(tmp_path / "journal.jsonl")
    whole = trials.Trial({"a": 1}, 2, 3, "finished", 1.25, "mnist", 4.0, 1.5)
    journal.add("one", whole)
    size = journal.path.stat().st_size
    with journal.path.open("ab") as stream:
        stream.write(torn)
    again = trials.Journal(journal.path)
    assert again.trials == {"one": whole}
    assert journal.path.stat().st_size == size
    again.add("two", whole)
    assert list(trials.Journal(journal.path).trials) == ["one", "two"]


def test_rungs_grow_threefold_and_end_at_full_length() -> None:
    assert halving.rungs(12, 9) == [2, 4, 12]
    assert halving.rungs(27, 9) == [3, 9, 27]
    assert halving.rungs(1, 9) == [1]
    assert halving.rungs(10, 1) == [4, 10]


def test_the_champion_is_the_best_however_late_it_shows() -> None:
    quality = {"a": 3.0, "b": 1.0, "c": 2.0, "d": math.inf}
    contenders = [{"name": name} for name in quality]
    assert halving.champion(lambda knobs, *_: quality[knobs["name"]], contenders, 9, 1) == {"name": "b"}


def test_no_champion_when_every_candidate_breaks_down() -> None:
    assert halving.champion(lambda *_: math.inf, [{"a": 1}, {"a": 2}], 9, 1) is None


def test_a_first_rung_cut_short_gives_its_best_so_far_not_an_untried_one() -> None:
    left = iter([2.0, 1.0])

    def score(*_: object) -> float:
        try:
            return next(left)
        except StopIteration:
            raise halving.OutOfTime from None

    assert halving.champion(score, [{"a": 1}, {"a": 2}, {"a": 3}], 9, 1) == {"a": 2}


def test_a_challenger_wins_by_its_mean_not_by_one_lucky_seed() -> None:
    errors = {("new", 1): 0.5, ("new", 2): 1.9, ("old", 1): 1.0, ("old", 2): 1.0}

    def score(knobs: dict[str, int], _: int, seed: int) -> float:
        return errors["new" if knobs else "old", seed]

    assert halving.beats(score, {"a": 1}, 9, [1])
    assert not halving.beats(score, {"a": 1}, 9, [1, 2])
