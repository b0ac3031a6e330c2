"""Verdicts: what follows from which receipts, and seeds that nobody can choose."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import measure, trials, verdicts
from orchestrator.datasets import Dataset
from orchestrator.measure import Site
from orchestrator.records import Direction, Receipt
from orchestrator.sandbox.base import Command, Completed, Limits
from orchestrator.trials import Trial
from tests.orchestrator.helpers import change, receipt, target
from tests.orchestrator.test_datasets import TEST, drawn

OFFICIAL = Dataset("mnist", Path(), {}, official=True, surrogate=False)
SURROGATE = dataclasses.replace(OFFICIAL, official=False, surrogate=True)
UNVERIFIED = dataclasses.replace(OFFICIAL, official=False)


def argv(recipe: str) -> tuple[str, ...]:
    return ("mlcore", "train", f"/repo/{recipe}")


def control(passed: bool = True, name: str = "zero-steps", recipe: str = "r.toml") -> Receipt:
    return receipt(f"{name}: error 90 %", kind="control", passed=passed, seed=1, id=name[0], argv=argv(recipe))


def trained(seed: int, error: float | None, passed: bool = True, recipe: str = "r.toml", **values: float) -> Receipt:
    values |= {} if error is None else {"test_error_pct": error, "gate_split_error_pct": error}
    what, id_ = f"seed-{seed}: it ran", f"s{seed}"
    return receipt(what, kind="train", passed=passed, seed=seed, values=values, id=id_, argv=argv(recipe))


def void(seed: int) -> Receipt:
    """A training that ended well, with numbers that are not believed."""
    return trained(seed, 0.0, passed=False).model_copy(update={"exit_code": 0})


def seeds(*errors: float | None, recipe: str = "r.toml") -> list[Receipt]:
    return [
        *(control(name=name, recipe=recipe) for name in ("zero-steps", "shuffled-labels", "noise-images")),
        *(trained(seed, error, error is not None, recipe) for seed, error in enumerate(errors)),
    ]


@pytest.mark.parametrize(
    ("dataset", "receipts", "outcome", "reason"),
    [
        (OFFICIAL, seeds(1.0, 1.1, 1.2), "reproduced", "mean 1.10 % of 3 seeds, at most 1.10 % asked"),
        (OFFICIAL, seeds(1.0, 1.1, 1.21), "not reproduced", "mean 1.10 % of 3 seeds, at most 1.10 % asked"),
        (OFFICIAL, seeds(0.1, 0.1, 9.0), "not reproduced", "mean 3.07 % of 3 seeds, at most 1.10 % asked"),
        (SURROGATE, seeds(0.0, 0.0, 0.0), "not measured", "not measured on MNIST"),
        (UNVERIFIED, seeds(0.0, 0.0, 0.0), "not measured", "not measured on MNIST"),
        (SURROGATE, seeds(0.0, None), "not measured", "not measured on MNIST"),
        (OFFICIAL, [control(), control(False)], "not measured", "control failed: zero-steps: error 90 %"),
        (OFFICIAL, [control(False), *seeds(1.0, 1.0, 1.0)], "not measured", "control failed"),
        (OFFICIAL, seeds(1.0, None), "did not finish", "seed-1: it ran"),
        (OFFICIAL, [*seeds(1.0, 1.0), trained(7, 1.0, passed=False)], "did not finish", "seed-7: it ran"),
        (OFFICIAL, [*seeds(1.0, 1.0), void(7)], "not measured", "seed-7: it ran"),
        (OFFICIAL, seeds(1.0, 1.0), "did not finish", "2 of 3 seeds finished"),
        (OFFICIAL, seeds(), "did not finish", "0 of 3 seeds finished"),
        (OFFICIAL, [], "not measured", "these controls were not run: zero-steps of r.toml, shuffled-labels of"),
        (OFFICIAL, seeds(1.0, 1.0, 1.0)[1:], "not measured", "these controls were not run: zero-steps of r.toml"),
        (OFFICIAL, [*seeds(1.0, 1.0), trained(2, 1.0, recipe="s.toml")], "did not finish", "2 of 3 seeds finished"),
        (OFFICIAL, [*seeds(1.0, 1.0), trained(0, 1.0)], "did not finish", "2 of 3 seeds finished"),
    ],
)
def test_a_verdict_follows_from_its_receipts(
    dataset: Dataset, receipts: list[Receipt], outcome: str, reason: str
) -> None:
    found = verdicts.verdict(target(), dataset, change().commit, receipts)
    assert (found.outcome, found.reason[: len(reason)]) == (outcome, reason)


@pytest.mark.parametrize(
    ("direction", "error", "met"),
    [
        ("at_most", 1.1, True), ("at_most", 1.11, False), ("at_most", 0.0, True),
        ("at_least", 0.9, True), ("at_least", 0.89, False), ("at_least", 99.0, True),
        ("equal", 1.1, True), ("equal", 0.9, True), ("equal", 1.11, False), ("equal", 0.89, False),
    ],
)  # fmt: skip
def test_each_direction_holds_the_mean_against_value_and_margin(direction: Direction, error: float, met: bool) -> None:
    found = verdicts.verdict(
        target(direction=Direction(direction)), OFFICIAL, change().commit, seeds(error, error, error)
    )
    assert (found.outcome == "reproduced") == met


def test_a_verdict_names_every_seed_in_its_order_with_mean_and_spread() -> None:
    found = verdicts.verdict(target(), OFFICIAL, change().commit, seeds(1.2, 0.9, 0.9))
    assert found.values == {"0": 1.2, "1": 0.9, "2": 0.9}
    assert list(found.values) == ["0", "1", "2"]
    assert (found.mean, found.spread) == (pytest.approx(1.0), pytest.approx(0.1732, abs=1e-4))
    assert found.receipts == ("z", "s", "n", "s0", "s1", "s2")
    assert (found.commit, found.dataset) == (change().commit, "mnist")
    assert verdicts.verdict(target(), OFFICIAL, change().commit, seeds(1.0)).spread is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 100) | st.none(), max_size=5), st.booleans(), st.booleans())
def test_reproduced_takes_official_data_controls_and_every_seed(
    errors: list[float | None], official: bool, controlled: bool
) -> None:
    receipts = seeds(*errors) if controlled else seeds(*errors)[2:]
    dataset = OFFICIAL if official else SURROGATE
    found = verdicts.verdict(target(), dataset, change().commit, receipts)
    values = [error for error in errors if error is not None]
    met = len(values) >= 3 and None not in errors and sum(values) / len(values) <= 1.1 + 1e-9
    assert (found.outcome == "reproduced") == (official and controlled and met)


# Other quantities than a test error


def verdict_of(receipts: list[Receipt], **changed: Any) -> Any:
    return verdicts.verdict(target(**changed), OFFICIAL, change().commit, receipts)


def test_a_comparison_pairs_its_recipes_by_seed_and_gives_its_interval() -> None:
    receipts = [*seeds(13.0, 13.5, 14.0), *seeds(11.0, 11.0, 11.5, recipe="s.toml")]
    asked = {"against": "s.toml", "compare": "difference", "value": 2.0, "margin": 0.5, "direction": "at_least"}
    found = verdict_of(receipts, **asked)
    assert found.outcome == "reproduced"
    assert found.values == {"0": 2.0, "1": 2.5, "2": 2.5}
    half = 4.303 * 0.288675 / 3**0.5  # Student's t for three values
    assert [found.low, found.high] == pytest.approx([7 / 3 - half, 7 / 3 + half])
    assert found.reason.startswith(
        "mean 2.33 points of 3 seeds, at least 1.50 points asked; 95 % interval over seeds 1.62 points to 3.05 points"
    )
    assert verdict_of(receipts, **asked | {"value": 3.0}).outcome == "not reproduced"
    without = [each for each in receipts if each.argv != argv("s.toml") or each.kind != "control"]
    assert verdict_of(without, **asked).reason.startswith("these controls were not run: zero-steps of s.toml")


CURVES = {"r.toml": [60.0, 45.0, 35.0, 30.0, 26.0, 24.0], "s.toml": [27.0, 23.0]}


def curve(recipe: str, seed: int) -> Receipt:
    values = {f"train_error_pct_{epoch:03}": error for epoch, error in enumerate(CURVES[recipe], 1)}
    return trained(seed, 40.0, recipe=recipe, **values)


def with_controls(*recipes: str) -> list[Receipt]:
    names = ("zero-steps", "changed-labels")
    controls = [control(name=name, recipe=recipe) for recipe in recipes for name in names]
    return [*controls, *(curve(recipe, seed) for recipe in recipes for seed in range(3))]


def test_epochs_to_a_training_error_are_compared_as_a_ratio() -> None:
    asked = {"metric": "epochs_to", "level": 25.0, "value": 3.0, "margin": 0.5, "direction": "equal"}
    found = verdict_of(with_controls("r.toml", "s.toml"), against="s.toml", compare="ratio", **asked)
    assert found.mean == pytest.approx(5.5 / 1.5)  # each between the snapshots around 25 %
    assert (found.outcome, found.reason.partition(" of")[0]) == ("not reproduced", "mean 3.67 times")
    alone = verdict_of(with_controls("r.toml"), **asked)
    assert alone.mean == 5.5
    assert alone.reason.startswith("mean 5.50 epochs of 3 seeds, within 0.50 of 3.00 epochs asked")


def test_a_training_error_that_was_never_reached_is_named_and_no_number_is_made_up() -> None:
    asked = {"metric": "epochs_to", "level": 20.0, "value": 3.0, "margin": 0.5, "direction": "equal"}
    found = verdict_of(with_controls("r.toml"), **asked)
    assert (found.outcome, found.mean) == ("did not finish", None)
    assert "a training error of 20 % was never reached by seed-0 of r.toml, seed-1 of r.toml" in found.reason


def test_a_reported_quantity_has_a_mean_and_no_verdict() -> None:
    receipts = [trained(seed, 26.0, train_wall_s=100.0 + seed) for seed in range(3)]
    found = verdict_of(receipts, metric="train_wall_s", value=80.0, direction="reported")
    assert (found.outcome, found.mean, found.reason[:35]) == ("reported", 101.0, "mean 101 s of 3 seeds, reported onl")


def test_a_pace_on_photographs_is_reported_with_the_days_that_the_papers_training_would_take() -> None:
    asked = target(metric="images_per_s", dataset="imagenette", value=0.0, direction="reported")
    there = Dataset("imagenette", Path(), {}, official=False, surrogate=False)
    timed = [trained(seed, None, images_per_s=100.0) for seed in range(3)]
    found = verdicts.verdict(asked, there, change().commit, timed)
    assert found.outcome == "reported"
    assert "90 epochs of 1,281,167 images would take 13.3 days at this pace" in found.reason
    absent = dataclasses.replace(there, absent=True)
    assert verdicts.verdict(asked, absent, change().commit, []).outcome == "not measured"
    (timing,) = trials.trials([asked.model_copy(update={"seeds": 1})], "1" * 40, b"secret")
    assert [trials.can_run(timing, data) for data in (there, absent, None)] == [True, False, True]


def test_tests_that_could_not_run_are_not_measured_and_failed_ones_not_reproduced() -> None:
    asked = {"metric": "failed_tests", "recipe": "tests/t.py", "dataset": "", "value": 0.0, "margin": 0.0, "seeds": 1}

    def outcome(ok: bool, **values: float) -> str:
        what, argv = "tests-1: 3 passed", ("pytest", "tests/t.py")
        ran = receipt(what, kind="tests", passed=ok, seed=1, values=values, argv=argv)
        return str(verdicts.verdict(target(**asked), None, change().commit, [ran]).outcome)

    assert outcome(True, passed=3.0, collected=3.0) == "reproduced"
    assert outcome(False, passed=2.0, failed=1.0) == "not reproduced"
    assert outcome(False, collected=0.0) == "not measured"
    assert outcome(True, skipped=3.0) == "not measured"
    assert outcome(False, collected=10.0, passed=1.0, evaded=9.0) == "not measured"


# Trials


def test_targets_of_one_recipe_share_its_trainings_and_controls_fit_what_is_asked() -> None:
    asked = [
        target(id="error"),
        target(id="time", metric="train_wall_s", direction="reported", seeds=4),
        target(id="epochs", metric="epochs_to", level=25.0, recipe="a.toml", against="r.toml", compare="ratio"),
        target(id="size", metric="parameters", recipe="lenet5", dataset="", seeds=1),
    ]
    found = trials.trials(asked, "1" * 40, b"secret")
    names = {
        recipe: [each.name for each in found if each.recipe == recipe] for recipe in ("r.toml", "a.toml", "lenet5")
    }
    assert names["r.toml"][:4] == ["zero-steps", "shuffled-labels", "noise-images", "changed-labels"]
    assert names["a.toml"][:2] == ["zero-steps", "changed-labels"]
    assert len(names["r.toml"]) == 4 + 4
    assert names["a.toml"][2:] == names["r.toml"][4:7]  # the same seeds, to be paired
    assert [name.partition("-")[0] for name in names["lenet5"]] == ["untrained"]
    assert len({each.key for each in found}) == len(found)
    assert {each.dataset for each in found if each.recipe == "r.toml"} == {"mnist"}


def test_a_count_of_weights_takes_no_dataset_from_the_trainings_of_its_recipe() -> None:
    asked = [target(id="size", metric="parameters", dataset="", seeds=1), target(id="error")]
    assert {each.dataset for each in trials.trials(asked, "1" * 40, b"secret")} == {"mnist"}


def test_two_tests_of_one_file_are_two_trials() -> None:
    both = [
        target(id=name, metric="failed_tests", dataset="", seeds=1, recipe=f"tests/t.py::test_{name}") for name in "ab"
    ]
    assert [each.recipe for each in trials.trials(both, "1" * 40, b"secret")] == [each.recipe for each in both]


def test_controls_come_first_and_then_a_trial_a_seed() -> None:
    found = trials.trials([target(seeds=4)], "1" * 40, b"secret")
    assert [trial.expect for trial in found] == ["chance"] * 3 + [""] * 4
    assert [trial.name for trial in found[:3]] == ["zero-steps", "shuffled-labels", "noise-images"]
    assert len({trial.seed for trial in found[3:]}) == 4
    assert all(0 <= trial.seed < 2**31 for trial in found)
    assert [trial.overrides for trial in found[3:]] == [()] * 4


def test_seeds_follow_from_the_commit_the_dataset_and_the_secret() -> None:
    def drawn_seeds(commit: str = "1" * 40, secret: bytes = b"secret", **changed: Any) -> list[int]:
        return [trial.seed for trial in trials.trials([target(**changed)], commit, secret)]

    assert drawn_seeds() == drawn_seeds()
    for other in (drawn_seeds(commit="2" * 40), drawn_seeds(secret=b"other"), drawn_seeds(dataset="cifar10")):
        assert not set(other) & set(drawn_seeds())


# A trial, from command to receipt, with a sandbox that plays the trained network


class Played:
    """A sandbox in which training writes what `predict` says and the scorer really runs."""

    tier = "played"

    def __init__(self, predict: Any, exit_code: int = 0, timed_out: bool = False, stdout: str = "") -> None:
        self.predict, self.exit_code, self.timed_out, self.stdout = predict, exit_code, timed_out, stdout
        self.commands: list[Command] = []

    def run(self, command: Command, on_output: Any = None) -> Completed:
        from orchestrator.sandbox.unsafe import UnsandboxedSandbox

        self.commands.append(command)
        if command.argv[0] != "mlcore":
            return UnsandboxedSandbox().run(command)
        out = next(mount.source for mount in command.mounts if mount.target == measure.OUT)
        data = next(mount.source for mount in command.mounts if mount.target == measure.DATA)
        (out / "result.json").write_text('{"test_error_pct": 0.0, "status": "finished"}')
        if self.predict is not None:
            self.predict(data / "mnist", out / "predictions.npy")
        return Completed(self.exit_code, self.stdout, "the reason", False, self.timed_out, 1.5, 1.0, None)


def always(label: int) -> Any:
    return lambda data, path: np.save(path, np.full(2 * TEST, label))


SEED_7 = Trial("seed-7", 7, "r.toml", "mnist")


def run(folder: Path, sandbox: Any, trial: Trial | None = None) -> Receipt:
    for name in ("tree", "site"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    site = Site(
        folder=folder / "site", tree=folder / "tree", sandbox=sandbox, limits=Limits(), threads=1,
        machine="a machine", environment="an environment",
    )  # fmt: skip
    dataset = drawn(folder / "mnist")
    return measure.run_trial(trial or SEED_7, change(), dataset, site, b"secret")


def test_trials_that_begin_at_once_prepare_their_common_dataset_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do when a recipe's first trial is of its parameters, and needs no data."""
    dataset, made, together = drawn(tmp_path / "mnist"), [], threading.Barrier(2)

    def gate_split(_: Dataset, share: Path, *__: object) -> None:
        made.append(1)
        with suppress(threading.BrokenBarrierError):
            together.wait(0.5)  # for one that prepares at the same time
        (share / "complete").touch()

    monkeypatch.setattr(measure.datasets, "gate_split", gate_split)
    site = Site(tmp_path, tmp_path, Played(None), Limits(), threads=1, machine="", environment="")
    with ThreadPoolExecutor() as pool:
        sites = [dataclasses.replace(site, limits=Limits(wall_s=wall_s)) for wall_s in (1, 2, 3)]
        folders = list(pool.map(lambda each: measure._prepare(SEED_7, change(), dataset, each, b"secret"), sites))
    assert (len(made), len(set(folders))) == (1, 1)


def test_a_trial_is_scored_by_its_predictions_and_not_by_what_it_says(tmp_path: Path) -> None:
    found = run(tmp_path, Played(always(0), stdout='{"nonce": "guessed", "test_error_pct": 0.0}'))
    right = 100 * 3 / TEST  # of 24 labels 0 to 9, three are 0
    assert found.values["test_error_pct"] == pytest.approx(100 - right)
    assert (found.kind, found.passed, found.seed, found.sandbox) == ("train", True, 7, "played")
    assert found.artefacts.keys() == {"predictions.npy"}
    assert found.argv[:4] == ("mlcore", "train", "/repo/r.toml", "seed=7")


def test_the_trained_code_is_given_no_test_label_and_nothing_to_write_but_its_output_and_cache(tmp_path: Path) -> None:
    sandbox = Played(always(0))
    run(tmp_path, sandbox)
    training = sandbox.commands[0]
    assert {str(mount.target) for mount in training.mounts if mount.writable} == {"/out", "/cache"}
    for mount in training.mounts:
        assert not [path for path in mount.source.rglob("*") if path.name.startswith(("t10k-labels", "answers"))]


@pytest.mark.parametrize(
    ("sandbox", "words"),
    [
        (Played(None), "predictions.npy was not written"),
        (Played(lambda data, path: path.write_bytes(b"x")), "predictions.npy is not a plain .npy file"),
        (Played(lambda data, path: path.symlink_to("/etc/passwd")), "predictions.npy was not written"),
        (Played(always(11)), "predictions.npy holds classes outside 0..9"),
        (Played(always(0), exit_code=3), "ended with exit code 3: the reason"),
        (Played(always(0), exit_code=-9, timed_out=True), "did not finish within 2 s"),
    ],
)
def test_a_trial_that_cannot_be_scored_fails_and_says_why(tmp_path: Path, sandbox: Played, words: str) -> None:
    found = run(tmp_path, sandbox)
    assert not found.passed
    assert words in found.what
    assert "test_error_pct" not in found.values


def with_snapshots(labels: Any) -> Any:
    """Predictions of one class, and a snapshot of the training images that `labels` gives from the folder's own."""
    from orchestrator.formats import TRAIN_LABELS, read_idx

    def predict(data: Path, path: Path) -> None:
        always(0)(data, path)
        np.save(path.with_name("train_predictions_001.npy"), labels(read_idx(data / TRAIN_LABELS, 1)))

    return predict


def test_snapshots_are_scored_by_the_gates_labels(tmp_path: Path) -> None:
    found = run(tmp_path, Played(with_snapshots(lambda labels: np.where(np.arange(40) < 10, 9 - labels, labels))))
    assert found.values["train_error_pct_001"] == 25.0
    assert "train_wall_s" in found.values


def test_copied_training_labels_fail_the_control_that_plants_wrong_ones(tmp_path: Path) -> None:
    trial = dataclasses.replace(SEED_7, name="changed-labels", control="changed labels", expect="own labels")
    copied = run(tmp_path / "1", Played(with_snapshots(lambda labels: labels)), trial)
    assert (copied.kind, copied.passed) == ("control", False)
    assert copied.what == "changed-labels: 100.00 % of planted wrong labels repeated (at most 40 %)"
    learnt = run(tmp_path / "2", Played(with_snapshots(lambda labels: np.zeros(40, int))), trial)
    assert learnt.passed
    assert not run(tmp_path / "3", Played(always(0)), trial).passed  # no snapshot, nothing shown


def test_a_training_that_goes_on_after_a_crash_has_no_wall_clock_to_report(tmp_path: Path) -> None:
    (tmp_path / "site/out/r/seed-7/checkpoints").mkdir(parents=True)
    assert "train_wall_s" not in run(tmp_path, Played(always(0))).values


def test_no_link_that_the_trained_code_leaves_leads_the_scorer_to_the_answers(tmp_path: Path) -> None:
    def linked(data: Path, path: Path) -> None:
        always(0)(data, path)
        path.with_name("train_predictions_001.npy").symlink_to("/answers/train_answers.npy")
        path.with_name("checkpoints").symlink_to("/answers")

    assert not [name for name in run(tmp_path, Played(linked)).values if name.startswith("train_error")]


def memorised(data: Path, path: Path) -> None:
    """A table of the published images' labels, and a guess for everything else."""
    from orchestrator.formats import TEST_IMAGES, read_idx
    from tests.orchestrator.test_datasets import images

    table = {image.tobytes(): index % 10 for index, image in enumerate(images(TEST, 1))}
    np.save(path, [table.get(image.tobytes(), 0) for image in read_idx(data / TEST_IMAGES, 3)])


def test_memorised_labels_fail_on_the_images_that_the_gate_made(tmp_path: Path) -> None:
    found = run(tmp_path, Played(memorised))
    assert found.values["test_error_pct"] == 0.0
    assert not found.passed
    assert found.what.endswith("% on the gate's: memorised?")


def test_a_control_passes_at_chance_and_fails_above_it(tmp_path: Path) -> None:
    trial = dataclasses.replace(SEED_7, name="noise-images", control="noise images", expect="chance")
    at_chance = run(tmp_path / "1", Played(always(0)), trial)
    assert (at_chance.kind, at_chance.passed) == ("control", True)
    cheating = run(tmp_path / "2", Played(memorised), trial)
    assert (cheating.kind, cheating.passed) == ("control", False)
    assert "chance expected" in cheating.what


# What a network may have been told instead of learnt

LEARNT = {"test_error_pct": 40.0, "gate_split_error_pct": 41.0, "classes": 1000}
TOP5 = {"test_top5_error_pct": 18.0, "gate_split_top5_error_pct": 19.0}
CENTRE = {"test_centre_error_pct": 42.0, "gate_split_centre_error_pct": 43.0}


@pytest.mark.parametrize(("numbers", "name"), [(TOP5, "test top5 error"), (CENTRE, "test centre error")])
def test_no_guess_counts_that_only_published_images_get_right(numbers: dict[str, float], name: str) -> None:
    done = Completed(0, "", "", False, False, 1.0, 1.0, None)
    assert measure._judge(SEED_7, done, {**LEARNT, **numbers})[0]
    told = {key: 0.0 if key.startswith("test") else value for key, value in numbers.items()}
    passed, what = measure._judge(SEED_7, done, {**LEARNT, **told})
    assert (passed, what.partition(" 0.00 %")[0]) == (False, name)


@pytest.mark.parametrize("name", [*TOP5, *CENTRE])
def test_a_control_fails_by_any_of_its_guesses(name: str) -> None:
    done = Completed(0, "", "", False, False, 1.0, 1.0, None)
    control = dataclasses.replace(SEED_7, expect="chance")
    chance = dict.fromkeys((*LEARNT, *TOP5, *CENTRE), 99.0) | {"classes": 1000}
    assert measure._judge(control, done, chance)[0]
    assert not measure._judge(control, done, chance | {name: 80.0})[0]


@pytest.mark.parametrize(
    ("walls", "recipe", "value", "words"),
    [
        ([9.0, 2.0, 4.0], "[train]\nbatch = 30\n", 300.0, "300.0 images/s"),
        ([9.0, 2.31, 2.30], "[train]\nbatch = 30\n", None, "too little to be timed"),
        ([9.0, 2.0, 2.3], "[train]\nbatch = 30\n", None, "too little to be timed"),
        ([9.0, 2.0, 4.0], "", None, "no train.batch"),
    ],
)
def test_a_pace_is_that_of_the_steps_or_none(
    tmp_path: Path, walls: list[float], recipe: str, value: float | None, words: str
) -> None:
    class Timed(Played):
        def run(self, command: Command, on_output: Any = None) -> Completed:
            return dataclasses.replace(super().run(command), wall_s=walls[len(self.commands) - 1])

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "r.toml").write_text(recipe)
    found = run(tmp_path, Timed(None), dataclasses.replace(SEED_7, kind="timing"))
    assert (found.passed, found.values.get("images_per_s")) == (value is not None, value)
    assert words in found.what
