"""Training: it learns, says what it did, and however it is stopped it goes on to the same bits."""

import json
import os
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore import config, runs
from mlcore.checkpoint import State, newest, read
from mlcore.config import Recipe
from mlcore.data.dataset import Dataset
from mlcore.engines import PlanEngine, TapeEngine, engine_for
from mlcore.errors import Interrupted, MlcoreError, NotFinite, RecipeError
from mlcore.launch import Order, execute, started
from mlcore.monitor import Monitor
from mlcore.result import weights_sha256
from mlcore.session import assemble, load_weights, use_threads
from mlcore.stop import Halted, Stop, listening
from mlcore.tensor import Tensor
from mlcore.train import Trainer, fit
from tests.mlcore import drawn
from tests.mlcore.drawn import Heard, command, mlcore, small_cifar, surrogate, surrogate_folder, tiny
from tests.mlcore.helpers import needs_compiler

TIMES = ("images_per_s", "wall_s")
OVERRIDES = ("seed=5", "optimiser.momentum=0.8")


def run_in(out: Path, recipe: Recipe, dataset: Dataset | None = None, stop: Stop | None = None) -> dict[str, Any]:
    """Train without pictures, going on with what `out` holds."""
    dataset, display = dataset or surrogate(), Heard()
    run = started(recipe, dataset, out, True, display)
    return execute(run, recipe, dataset, display, Order(pictures=False), stop or Stop())


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_a_run_learns_and_leaves_every_file_that_it_promises(tmp_path: Path) -> None:
    result = run_in(tmp_path / "a", tiny("train.epochs=10", "data.validation=100"))
    assert result["status"] == "finished"
    assert result["test_error_pct"] < 60
    assert result["validation_error_pct"] < 60
    assert result["train_loss"] < 2
    assert result["steps"] == result["total_steps"] == 10 * 32
    assert result["parameters"] == 784 * 16 + 16 + 160 + 10
    assert result["data"]["surrogate"] is True
    assert result["verdict"] == "not measured on MNIST"
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == result
    predictions = np.load(tmp_path / "a" / "predictions.npy", allow_pickle=False)
    assert predictions.dtype == np.int64
    assert predictions.shape == (120,)
    labels = surrogate().test_labels
    assert labels is not None
    assert result["test_error_pct"] == pytest.approx(100 * np.mean(predictions != labels))
    assert [row["epoch"] for row in metrics(tmp_path / "a") if row["kind"] == "epoch"] == list(range(1, 11))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    results = [run_in(tmp_path / name, tiny(f"seed={seed}")) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    hashes = [result["weights_sha256"] for result in results]
    assert hashes[0] == hashes[1] != hashes[2]
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_resolved_recipe_trains_to_the_same_bits(tmp_path: Path) -> None:
    first = run_in(tmp_path / "a", tiny("seed=5", "schedule.warmup=0.4"))
    again = run_in(tmp_path / "b", runs.Run(tmp_path / "a").load_recipe())
    assert first["weights_sha256"] == again["weights_sha256"]
    assert first["recipe"]["sha256"] == again["recipe"]["sha256"]


def test_without_test_labels_predictions_are_written_and_the_error_is_null(tmp_path: Path) -> None:
    hidden = Dataset(**{**vars(surrogate()), "test_labels": None})
    result = run_in(tmp_path / "a", tiny(), hidden)
    assert result["test_error_pct"] is result["test_loss"] is None
    assert len(np.load(tmp_path / "a" / "predictions.npy", allow_pickle=False)) == 120
    shown = run_in(tmp_path / "b", tiny())
    assert shown["weights_sha256"] == result["weights_sha256"]


def test_zero_steps_evaluate_the_untrained_network(tmp_path: Path) -> None:
    result = run_in(tmp_path / "a", tiny("train.steps=0", "data.validation=100"))
    assert result["steps"] == 0
    assert result["train_loss"] is None
    assert result["test_error_pct"] > 70
    assert result["validation_error_pct"] > 70


def test_a_cap_on_steps_ends_in_mid_epoch(tmp_path: Path) -> None:
    result = run_in(tmp_path / "a", tiny("train.steps=40"))
    assert result["steps"] == 40
    assert metrics(tmp_path / "a")[-1]["step"] == 40


def test_more_held_out_than_there_is_names_the_keys() -> None:
    with pytest.raises(RecipeError, match=r"data\.validation"):
        assemble(tiny("data.validation=600"), surrogate())


def test_continue_returns_a_finished_run_at_once_and_replaces_another_recipes(tmp_path: Path) -> None:
    first = run_in(tmp_path / "a", tiny("seed=1"))
    stamp = (tmp_path / "a" / "result.json").stat().st_mtime_ns
    assert run_in(tmp_path / "a", tiny("seed=1")) == first
    assert (tmp_path / "a" / "result.json").stat().st_mtime_ns == stamp
    assert run_in(tmp_path / "a", tiny("seed=2"))["seed"] == 2


def test_continue_does_not_mistake_other_data_for_the_same(tmp_path: Path) -> None:
    first = run_in(tmp_path / "a", tiny())
    other = Dataset(**{**vars(surrogate()), "sha256": {**surrogate().sha256, "train-labels-idx1-ubyte": "0" * 64}})
    assert run_in(tmp_path / "a", tiny(), other)["data"] != first["data"]


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    runs.create(tiny(), tmp_path / "a", datetime.now())
    with pytest.raises(RecipeError, match="--continue"):
        runs.create(tiny(), tmp_path / "a", datetime.now())


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moment = datetime(2026, 1, 2, 3, 4, 5)
    paths = [runs.create(tiny("seed=9"), None, moment).path for _ in range(2)]
    assert [path.name for path in paths] == ["20260102-030405-tiny-s9", "20260102-030405-tiny-s9-2"]


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run = runs.create(tiny(), tmp_path / "a", datetime.now())
    with run.locked(), pytest.raises(MlcoreError, match="another process"):
        run_in(tmp_path / "a", tiny())


def test_a_signal_in_the_loop_saves_and_names_the_resume_command(tmp_path: Path) -> None:
    class StopsAtOnce(Stop):
        """The signal comes as soon as the loop listens."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "gentle" and value:
                self.ask(signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"mlcore train --resume {tmp_path / 'a'}") as caught:
        run_in(tmp_path / "a", tiny(), stop=StopsAtOnce())
    assert caught.value.exit_code == 143
    found = newest(tmp_path / "a" / "checkpoints", pytest.fail)
    assert found is not None
    assert found.state.step == 1
    assert json.loads((tmp_path / "a" / "result.json").read_text())["status"] == "interrupted"


def test_before_the_loop_and_on_the_second_time_a_signal_ends_at_once() -> None:
    with listening() as stop:
        with pytest.raises(Halted):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.gentle = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(Halted):
            os.kill(os.getpid(), signal.SIGINT)


def reference(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and metrics of the run that nothing stops."""
    quiet = ("--json", "-q", "--no-pictures")
    done = mlcore(
        "train", long_recipe(tmp_path), *OVERRIDES, "--data", surrogate_folder(), "--out", tmp_path / "whole", *quiet
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), metrics(tmp_path / "whole")


def long_recipe(tmp_path: Path) -> Path:
    """One epoch of 600 steps, with dropout: whatever stops it stops it in mid-epoch."""
    from tests.mlcore.drawn import RECIPE

    text = RECIPE.replace("epochs = 2", "epochs = 1").replace("batch = 16", "batch = 1\ncheckpoint_every_s = 0.05")
    path = tmp_path / "long.toml"
    path.write_text(text.replace("options.hidden = [16]", "options.hidden = [16]\noptions.dropout = 0.2"))
    return path


def stopped(tmp_path: Path, number: int) -> int:
    """Start the long run in a process, send it the signal once it has saved in mid-epoch; its exit code."""
    out = tmp_path / "stopped"
    argv = command(
        "train", tmp_path / "long.toml", *OVERRIDES, "--data", surrogate_folder(), "--out", out, "-q", "--no-pictures"
    )
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.stem[5:]) > 0 for path in (out / "checkpoints").glob("step-*.json")):
            process.send_signal(number)
            break
        time.sleep(0.001)
    _, talk = process.communicate(timeout=150)
    assert (number == signal.SIGKILL) or "mlcore train --resume" in talk
    return process.returncode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_in_mid_epoch_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, number: int, code: int) -> None:
    whole, whole_metrics = reference(tmp_path)
    assert stopped(tmp_path, number) == code
    found = newest(tmp_path / "stopped" / "checkpoints", lambda text: None)
    assert found is not None
    assert 0 < found.state.step < 600
    done = mlcore("train", "--resume", tmp_path / "stopped", "--json", "-q", "--no-pictures")
    assert done.returncode == 0, done.stderr
    resumed = json.loads(done.stdout)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["test_loss"] == whole["test_loss"]
    assert resumed["recipe"] == whole["recipe"]
    assert resumed["recipe"]["overrides"] == list(OVERRIDES)
    assert metrics(tmp_path / "stopped") == whole_metrics
    predictions = [(tmp_path / name / "predictions.npy").read_bytes() for name in ("whole", "stopped")]
    assert predictions[0] == predictions[1]


def test_a_torn_newest_checkpoint_is_skipped_and_the_run_still_ends_the_same(tmp_path: Path) -> None:
    whole = run_in(tmp_path / "whole", tiny("train.epochs=3"))
    out = tmp_path / "torn"
    run_in(out, tiny("train.epochs=3"))
    (out / "result.json").unlink()
    last = max((out / "checkpoints").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    display = Heard()
    run = started(tiny("train.epochs=3"), surrogate(), out, True, display)
    again = execute(run, tiny("train.epochs=3"), surrogate(), display, Order(pictures=False), Stop())
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert any("checkpoint skipped" in line for line in display.said)
    assert metrics(out) == metrics(tmp_path / "whole")


@needs_compiler
def test_adam_and_running_statistics_go_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    recipe = tiny(
        "model={name='resnet_small'}", "optimiser={name='adam',rate=0.002}", "data.limit=64", "data.validation=40"
    )
    whole = run_in(tmp_path / "a", recipe)
    newer = max((tmp_path / "a" / "checkpoints").glob("*.json"))
    found = read(newer)
    assert {"model/conv1_norm.running_mean", "optimiser/mean/conv1.weight", "optimiser/steps"} <= set(found.arrays)
    newer.unlink()
    (tmp_path / "a" / "result.json").unlink()
    assert run_in(tmp_path / "a", recipe)["weights_sha256"] == whole["weights_sha256"]
    trained = assemble(recipe, surrogate()).model
    load_weights(trained, found.group("model"))
    assert trained.buffers()["conv1_norm.running_mean"].data.any()


def test_exploding_training_stops_with_step_and_layer_and_keeps_a_sound_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFinite) as caught:
        run_in(tmp_path / "a", tiny("optimiser.rate=1000", "schedule.name=constant", "train.epochs=50"))
    assert caught.value.layer
    assert caught.value.step > 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["failure"]["exit_code"] == 4
    assert (result["failure"]["step"], result["failure"]["layer"]) == (caught.value.step, caught.value.layer)
    found = newest(tmp_path / "a" / "checkpoints", pytest.fail)
    assert found is not None
    assert all(np.isfinite(array).all() for array in found.arrays.values())


def test_a_weight_that_turns_nan_at_step_three_is_found_in_its_layer() -> None:
    use_threads(1)
    session = assemble(tiny("train.batch=8"), surrogate())  # fewer than any machine's lanes: on the tape
    steps = fit(session, 0)
    assert [next(steps).number for _ in range(3)] == [0, 1, 2]
    session.model.parameters()["output.weight"].data[0, 0] = np.nan
    with pytest.raises(NotFinite) as caught:
        next(steps)
    assert (caught.value.step, caught.value.layer) == (3, "output")
    assert "step 3" in str(caught.value)
    assert "output" in str(caught.value)


def test_an_epochs_row_is_the_mean_over_its_images_even_when_the_last_batch_is_smaller(tmp_path: Path) -> None:
    recipe = tiny("train.batch=250", "train.epochs=1")
    run_in(tmp_path / "a", recipe)
    steps = list(fit(assemble(recipe, surrogate()), 0))
    assert [step.images for step in steps] == [250, 250, 100]
    row = metrics(tmp_path / "a")[-1]
    assert row["train_loss"] == pytest.approx(sum(step.loss * step.images for step in steps) / 600)
    assert row["train_error_pct"] == pytest.approx(100 * sum(step.wrong for step in steps) / 600)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    session = assemble(tiny(), surrogate())
    run = runs.create(tiny(), tmp_path / "a", datetime.now())
    state = State(recipe_sha256="", data_sha256={}, data_dir=None, step=8)
    trainer = Trainer(session, run, state, Monitor(run.metrics, None), Heard(), Stop(), (0.0, 0.0))
    trainer.checkpoint()
    session.model.parameters()["fc1.bias"].data[3] = np.inf
    trainer.state = state.model_copy(update={"step": 9})
    with pytest.raises(NotFinite, match="fc1"):
        trainer.checkpoint()
    assert [path.stem for path in run.checkpoints.glob("*.json")] == ["step-0000000008"]


def test_a_disk_that_fills_while_training_costs_a_warning_not_the_run(tmp_path: Path) -> None:
    class Filling(Heard):
        """The folder of checkpoints turns into a file after the first epoch."""

        def say(self, text: str) -> None:
            super().say(text)
            folder = tmp_path / "a" / "checkpoints"
            if text.startswith("epoch 1/") and folder.is_dir():
                folder.rename(tmp_path / "before")
                folder.write_text("in the way")

    recipe, display = tiny(), Filling()
    run = started(recipe, surrogate(), tmp_path / "a", False, display)
    result = execute(run, recipe, surrogate(), display, Order(pictures=False), Stop())
    assert result["status"] == "finished"
    assert any("can't be saved" in warning for warning in result["warnings"])
    assert newest(tmp_path / "before", pytest.fail) is not None


STALLING = ("data.validation=100", "schedule={name='plateau',patience=1,factor=0.5,drops=2}", "train.epochs=60")


def test_a_plateau_drops_the_rate_and_then_ends_training(tmp_path: Path) -> None:
    result = run_in(tmp_path / "a", tiny(*STALLING))
    assert (result["stopped_early"], result["rate_drops"]) == ("plateau", 2)
    assert result["status"] == "finished"
    assert result["steps"] < result["total_steps"]
    rows = metrics(tmp_path / "a")
    errors = [row["validation_error_pct"] for row in rows if row["kind"] == "epoch"]
    assert sum(b >= min(errors[: i + 1]) for i, b in enumerate(errors[1:])) == 3
    assert [row["rate"] for row in rows if row["kind"] == "step"][-1] in (0.05, 0.025, 0.0125)


def test_early_stopping_tests_the_best_weights_where_they_are_kept(tmp_path: Path) -> None:
    early = ("data.validation=100", "train.epochs=60", "train.stop_after=3", "optimiser.rate=0.1")
    kept, last = (run_in(tmp_path / name, tiny(*early, f"train.keep_best={name}")) for name in ("true", "false"))
    assert kept["stopped_early"] == last["stopped_early"] == "stop_after"
    assert kept["steps"] == last["steps"]
    assert kept["tested_step"] == kept["best_step"] < last["tested_step"] == last["steps"]
    assert kept["validation_error_pct"] == kept["best_validation_error_pct"] < last["validation_error_pct"]
    found = newest(tmp_path / "true" / "checkpoints", pytest.fail)
    assert found is not None
    assert weights_sha256(found.weights) == kept["weights_sha256"] != weights_sha256(found.group("model"))


def test_training_ends_with_the_first_epoch_whose_error_is_low_enough(tmp_path: Path) -> None:
    whole = run_in(tmp_path / "whole", tiny("train.epochs=8"))
    errors = [row["train_error_pct"] for row in metrics(tmp_path / "whole") if row["kind"] == "epoch"]
    enough = errors[3]
    reached = next(epoch for epoch, error in enumerate(errors, 1) if error <= enough)
    ends = ("train.epochs=8", f"train.stop_at_pct={enough!r}")
    early = run_in(tmp_path / "early", tiny(*ends))
    assert (whole["stopped_early"], early["stopped_early"]) == (None, "stop_at_pct")
    assert early["steps"] == reached * whole["steps"] // 8 < whole["steps"]
    assert early["status"] == "finished"
    assert metrics(tmp_path / "early")[-1]["train_error_pct"] == errors[reached - 1]
    held_out = ("train.epochs=40", "data.validation=100", "train.eval_every=50")
    rarely = run_in(tmp_path / "rarely", tiny(*ends, *held_out))
    assert rarely["stopped_early"] == "stop_at_pct"
    assert rarely["validation_error_pct"] == rarely["best_validation_error_pct"] is not None


@pytest.mark.parametrize("override", ["train.stop_after=2", "train.keep_best=true", "schedule={name='plateau'}"])
def test_what_goes_by_validation_wants_images_held_out(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError, match=r"needs images held out; set data\.validation"):
        run_in(tmp_path / "a", tiny(override))


def test_snapshots_hold_what_the_network_says_of_every_training_image_in_the_files_order(tmp_path: Path) -> None:
    recipe = tiny("train.snapshots=true", "data.validation=100")
    result = run_in(tmp_path / "a", recipe)
    paths = sorted((tmp_path / "a").glob("train_predictions_*.npy"))
    assert [path.name for path in paths] == ["train_predictions_001.npy", "train_predictions_002.npy"]
    last = np.load(paths[-1], allow_pickle=False)
    assert (last.dtype, last.shape) == (np.uint8, (600,))
    session = assemble(recipe, surrogate())
    found = newest(tmp_path / "a" / "checkpoints", pytest.fail)
    assert found is not None
    load_weights(session.model, found.group("model"))
    images = session.feeds.normaliser.apply(surrogate().train_images)
    assert (last == session.model(Tensor(images)).data.argmax(axis=1)).all()
    held = session.feeds.validation.labels
    order = np.setdiff1d(np.arange(600), session.feeds.train.part.index)  # type: ignore[attr-defined]
    assert held is not None
    assert 100 * np.mean(last[order] != held) == pytest.approx(result["validation_error_pct"])
    runs.Run(tmp_path / "a").clear()
    assert not list((tmp_path / "a").glob("train_predictions_*.npy"))


def test_a_snapshot_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a" / "train_predictions_001.npy").mkdir(parents=True)
    result = run_in(tmp_path / "a", tiny("train.snapshots=true"))
    assert any("after epoch 1 can't be written" in warning for warning in result["warnings"])
    assert (tmp_path / "a" / "train_predictions_002.npy").is_file()


def test_threads_follow_recipe_then_environment() -> None:
    assert use_threads(1, {"MLCORE_THREADS": "2"}) == 1
    assert use_threads(0, {"MLCORE_THREADS": "1"}) == 1
    with pytest.raises(RecipeError, match="MLCORE_THREADS"):
        use_threads(0, {"MLCORE_THREADS": "many"})


def planned_recipe(*overrides: str) -> Recipe:
    """A recipe whose network trains on a plan, with batches of 16, 16 and 8."""
    text = drawn.RECIPE.replace('name = "mlp"', 'name = "mnist_cnn"').replace("options.hidden = [16]\n", "")
    return config.parse(text, "planned.toml", ("data.limit=40", "optimiser.rate=0.01", *overrides))


@needs_compiler
def test_a_wide_network_trains_on_a_plan_and_a_narrow_one_on_the_tape() -> None:
    assert isinstance(engine_for(assemble(planned_recipe(), surrogate())), PlanEngine)
    assert isinstance(engine_for(assemble(tiny("train.batch=8"), surrogate())), TapeEngine)


@needs_compiler
def test_a_planned_run_that_is_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run_in(tmp_path / "whole", planned_recipe())
    first = Stop()
    run = started(planned_recipe(), surrogate(), tmp_path / "parts", True, Heard())
    with pytest.raises(Interrupted):
        execute(run, planned_recipe(), surrogate(), _StopAfter(first, 2), Order(pictures=False), first)
    parts = run_in(tmp_path / "parts", planned_recipe())
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert parts["steps"] == whole["steps"] == 6
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@needs_compiler
def test_a_planned_step_that_is_not_finite_names_the_layer_and_moves_nothing() -> None:
    session = assemble(planned_recipe(), surrogate())
    session.model.parameters()["conv2.bias"].data[3] = np.inf
    before = session.model.parameters()["conv1.weight"].data.copy()
    with pytest.raises(NotFinite, match=r"conv2"):
        next(fit(session, 0))
    assert (session.model.parameters()["conv1.weight"].data == before).all()


class _StopAfter(Heard):
    """Asks to stop once so many steps were shown."""

    def __init__(self, stop: Stop, steps: int) -> None:
        super().__init__()
        self.stop, self.steps = stop, steps

    def show(self, view: Any) -> None:
        if view.step == self.steps:
            self.stop.signal = signal.SIGTERM


@needs_compiler
def test_augmented_colour_images_train_and_go_on_in_mid_epoch_to_the_bit(tmp_path: Path) -> None:
    augmented = "data={dataset='cifar10',normalise='image',crop=24,flip=true,views='ten',validation=20,limit=100}"
    recipe = tiny("model={name='cuda_convnet'}", "optimiser.rate=1e-4", augmented)
    whole = run_in(tmp_path / "a", recipe, small_cifar())
    assert whole["data"]["name"] == "cifar10-unverified"
    assert whole["test_error_pct"] is not None

    stop = Stop()

    class StopsAtTen(Heard):
        def show(self, view: Any) -> None:
            if view.step == 10:
                stop.ask(signal.SIGTERM)

    run = started(recipe, small_cifar(), tmp_path / "b", False, Heard())
    with pytest.raises(Interrupted):
        execute(run, recipe, small_cifar(), StopsAtTen(), Order(pictures=False), stop)
    found = newest(tmp_path / "b" / "checkpoints", pytest.fail)
    assert found is not None
    assert found.state.step == 10, "of 7 an epoch"
    resumed = run_in(tmp_path / "b", recipe, small_cifar())
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["test_loss"] == whole["test_loss"]
