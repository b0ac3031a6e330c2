"""Verdicts: what follows from which receipts, and seeds that nobody can choose."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import measure
from orchestrator.datasets import Dataset
from orchestrator.measure import Site, Trial
from orchestrator.records import Direction, Receipt
from orchestrator.sandbox.base import Command, Completed, Limits
from tests.orchestrator.helpers import change, receipt, target
from tests.orchestrator.test_datasets import TEST, drawn

OFFICIAL = Dataset("mnist", Path(), {}, official=True, surrogate=False)
SURROGATE = dataclasses.replace(OFFICIAL, official=False, surrogate=True)
UNVERIFIED = dataclasses.replace(OFFICIAL, official=False)


def control(passed: bool = True) -> Receipt:
    return receipt("zero-steps: error 90 %", kind="control", passed=passed, seed=1, target="t1", id="c")


def trained(seed: int, error: float | None, passed: bool = True) -> Receipt:
    values = {} if error is None else {"test_error_pct": error, "gate_split_error_pct": error}
    return receipt(f"seed-{seed}: it ran", kind="train", passed=passed, seed=seed, values=values, id=f"s{seed}")


def seeds(*errors: float | None) -> list[Receipt]:
    return [
        control(),
        control(),
        control(),
        *(trained(seed, error, error is not None) for seed, error in enumerate(errors)),
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
        (OFFICIAL, seeds(1.0, 1.0), "did not finish", "2 of 3 seeds finished"),
        (OFFICIAL, seeds(), "did not finish", "0 of 3 seeds finished"),
        (OFFICIAL, [], "not measured", "0 of 3 controls were run"),
        (OFFICIAL, seeds(1.0, 1.0, 1.0)[1:], "not measured", "2 of 3 controls were run"),
        (OFFICIAL, [*seeds(1.0, 1.0), trained(0, 1.0)], "did not finish", "2 of 3 seeds finished"),
    ],
)
def test_a_verdict_follows_from_its_receipts(
    dataset: Dataset, receipts: list[Receipt], outcome: str, reason: str
) -> None:
    found = measure.verdict(target(), dataset, change(), receipts)
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
    found = measure.verdict(target(direction=Direction(direction)), OFFICIAL, change(), seeds(error, error, error))
    assert (found.outcome == "reproduced") == met


def test_a_verdict_names_every_seed_in_its_order_with_mean_and_spread() -> None:
    found = measure.verdict(target(), OFFICIAL, change(), seeds(1.2, 0.9, 0.9))
    assert found.values == {"0": 1.2, "1": 0.9, "2": 0.9}
    assert list(found.values) == ["0", "1", "2"]
    assert (found.mean, found.spread) == (pytest.approx(1.0), pytest.approx(0.1732, abs=1e-4))
    assert found.receipts == ("c", "c", "c", "s0", "s1", "s2")
    assert (found.commit, found.dataset) == (change().commit, "mnist")
    assert measure.verdict(target(), OFFICIAL, change(), seeds(1.0)).spread is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 100) | st.none(), max_size=5), st.booleans(), st.booleans())
def test_reproduced_takes_official_data_controls_and_every_seed(
    errors: list[float | None], official: bool, controlled: bool
) -> None:
    receipts = seeds(*errors) if controlled else seeds(*errors)[2:]
    dataset = OFFICIAL if official else SURROGATE
    found = measure.verdict(target(), dataset, change(), receipts)
    values = [error for error in errors if error is not None]
    met = len(values) >= 3 and None not in errors and sum(values) / len(values) <= 1.1 + 1e-9
    assert (found.outcome == "reproduced") == (official and controlled and met)


# Trials


def test_controls_come_first_and_then_a_trial_a_seed() -> None:
    found = measure.trials(target(seeds=4), "1" * 40, b"secret")
    assert [trial.expect_chance for trial in found] == [True] * 3 + [False] * 4
    assert [trial.name for trial in found[:3]] == ["zero-steps", "shuffled-labels", "noise-images"]
    assert len({trial.seed for trial in found[3:]}) == 4
    assert all(0 <= trial.seed < 2**31 for trial in found)
    assert [trial.overrides for trial in found[3:]] == [()] * 4


def test_seeds_follow_from_the_commit_the_target_and_the_secret() -> None:
    def drawn_seeds(commit: str = "1" * 40, secret: bytes = b"secret", **changed: Any) -> list[int]:
        return [trial.seed for trial in measure.trials(target(**changed), commit, secret)]

    assert drawn_seeds() == drawn_seeds()
    for other in (drawn_seeds(commit="2" * 40), drawn_seeds(secret=b"other"), drawn_seeds(id="t2")):
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


def run(folder: Path, sandbox: Any, trial: Trial | None = None) -> Receipt:
    for name in ("tree", "site"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    site = Site(
        folder=folder / "site", tree=folder / "tree", sandbox=sandbox, limits=Limits(), threads=1,
        machine="a machine", environment="an environment",
    )  # fmt: skip
    dataset = drawn(folder / "mnist")
    return measure.run_trial(trial or Trial("seed-7", 7), target(), change(), dataset, site, b"secret")


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
        (Played(always(0), exit_code=3), "training ended with exit code 3: the reason"),
        (Played(always(0), exit_code=-9, timed_out=True), "did not finish within 2 s"),
    ],
)
def test_a_trial_that_cannot_be_scored_fails_and_says_why(tmp_path: Path, sandbox: Played, words: str) -> None:
    found = run(tmp_path, sandbox)
    assert not found.passed
    assert words in found.what
    assert "test_error_pct" not in found.values


def memorised(data: Path, path: Path) -> None:
    """A table of the published images' labels, and a guess for everything else."""
    from orchestrator.datasets import TEST_IMAGES, read_idx
    from tests.orchestrator.test_datasets import images

    table = {image.tobytes(): index % 10 for index, image in enumerate(images(TEST, 1))}
    np.save(path, [table.get(image.tobytes(), 0) for image in read_idx(data / TEST_IMAGES, 3)])


def test_memorised_labels_fail_on_the_images_that_the_gate_made(tmp_path: Path) -> None:
    found = run(tmp_path, Played(memorised))
    assert found.values["test_error_pct"] == 0.0
    assert not found.passed
    assert found.what.endswith("% on the gate's: memorised?")


def test_a_control_passes_at_chance_and_fails_above_it(tmp_path: Path) -> None:
    trial = Trial("noise-images", 7, control="noise images", expect_chance=True)
    at_chance = run(tmp_path / "1", Played(always(0)), trial)
    assert (at_chance.kind, at_chance.passed) == ("control", True)
    cheating = run(tmp_path / "2", Played(memorised), trial)
    assert (cheating.kind, cheating.passed) == ("control", False)
    assert "chance expected" in cheating.what
