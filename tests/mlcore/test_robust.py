"""Whatever ends a run or fills its disk: no half file, and it goes on to the bits of a run that nothing disturbed."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.checkpoint import newest
from mlcore.config import Recipe
from mlcore.data.mnist import TEST_LABELS
from mlcore.errors import DataError, MlcoreError
from mlcore.events import record
from mlcore.files import append
from mlcore.launch import Order, _agree, execute, started
from mlcore.monitor import Monitor
from mlcore.runs import Run
from mlcore.stop import Stop
from mlcore.train import Trainer
from tests.mlcore.drawn import RECIPE, Heard, command, mlcore, surrogate, surrogate_folder, tiny

TIMES = ("images_per_s", "wall_s")
RULED = ("data.validation=100", "train.snapshots=true", "train.keep_best=true", "optimiser.momentum=0.8")
STALLS = "schedule={name='plateau',patience=1,factor=0.5,drops=3}"


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Inside, the system refuses to let any file grow beyond so many bytes, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Filling(Heard):
    """The disk is full from the end of an epoch on, to that of another or of the training."""

    def __init__(self, size: int, first: int, last: int) -> None:
        super().__init__()
        self.size, self.first, self.last = size, first, last
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def say(self, text: str) -> None:
        super().say(text)
        if text.startswith(f"epoch {self.first}/"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))
        elif text.startswith(f"epoch {self.last}/"):
            self.close()

    def close(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def trained(out: Path, recipe: Recipe, display: Heard | None = None) -> dict[str, Any]:
    display = display or Heard()
    run = started(recipe, surrogate(), out, True, display)
    return execute(run, recipe, surrogate(), display, Order(pictures=True), Stop())


def rows(out: Path) -> list[dict[str, Any]]:
    """Every row of the metrics, each whole, without what a clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def demand_whole_files(out: Path) -> None:
    """Every file of a run there is can be read to its end, and nothing half lies about."""
    assert rows(out)
    assert newest(out / "checkpoints", pytest.fail) is not None
    assert not list(out.rglob("*.part"))
    jsons = {path.stem for path in (out / "checkpoints").glob("*.json")}
    assert {path.stem for path in (out / "checkpoints").glob("*.safetensors")} == jsons
    for path in out.glob("*.npy"):
        np.load(path, allow_pickle=False)
    if (out / "result.json").exists():
        json.loads((out / "result.json").read_bytes())


@pytest.mark.parametrize("size", [0, 300, 1500, 30_000])
def test_a_disk_that_is_full_for_a_while_costs_warnings_and_what_was_written_then(tmp_path: Path, size: int) -> None:
    recipe = tiny("train.epochs=5", *RULED)
    whole, held = trained(tmp_path / "whole", recipe), trained(tmp_path / "full", recipe, Filling(size, 1, 3))
    assert held["weights_sha256"] == whole["weights_sha256"]
    assert any("can't be saved" in warning for warning in held["warnings"])
    assert rows(tmp_path / "full") == rows(tmp_path / "whole")
    demand_whole_files(tmp_path / "full")


@pytest.mark.parametrize("size", [0, 1500])
def test_a_disk_that_stays_full_is_an_error_at_the_end_and_with_room_the_run_goes_on(tmp_path: Path, size: int) -> None:
    recipe, out = tiny("train.epochs=3", *RULED), tmp_path / "full"
    whole = trained(tmp_path / "whole", recipe)
    display = Filling(size, 1, 99)
    with pytest.raises(DataError, match="make room, then --resume") as caught:
        trained(out, recipe, display)
    assert caught.value.exit_code == 2
    demand_whole_files(out)
    again = trained(out, recipe)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert rows(out) == rows(tmp_path / "whole")
    demand_whole_files(out)


def test_a_disk_that_is_full_from_the_start_is_an_error_that_says_so(tmp_path: Path) -> None:
    out = tmp_path / "full"
    with room_for(0), pytest.raises(MlcoreError, match=r"can't be (written|saved)") as caught:
        trained(out, tiny())
    assert caught.value.exit_code == 2
    assert not list(out.rglob("*.part"))
    assert trained(out, tiny())["status"] == "finished"


def test_appending_adds_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    append(path, b"12345")
    with room_for(8), pytest.raises(OSError, match="too large"):
        append(path, b"67890")
    assert path.read_bytes() == b"12345"


def test_metrics_that_found_no_room_are_written_when_there_is_some(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "metrics.jsonl", tmp_path / "events")
    monitor.add({"kind": "step", "step": 1, "loss": 0.5})
    with room_for(60):
        for step in (2, 3):
            with pytest.raises(OSError, match="too large"):
                monitor.add({"kind": "step", "step": step, "loss": 0.5})
    monitor.catch_up()
    monitor.add({"kind": "step", "step": 4, "loss": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_tensorboard_reads_the_copy_of_the_metrics(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    monitor = Monitor(tmp_path / "metrics.jsonl", tmp_path / "events", step=7)
    monitor.add({"kind": "step", "step": 80_000, "loss": 0.5, "rate": 0.25})
    (path,) = (tmp_path / "events").iterdir()
    events = [Event.FromString(data) for data in _records(path.read_bytes())]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (7, SessionLog.START)
    values = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in events[2:]]
    assert values == [(80_000, "step/loss", 0.5), (80_000, "step/rate", 0.25)]
    assert all(abs(event.wall_time - time.time()) < 3600 for event in events)


def _records(raw: bytes) -> Iterator[bytes]:
    """What the frames of an event file hold; both checksums of each are those of another writer."""
    from tensorboardX.record_writer import masked_crc32c

    while raw:
        size = int.from_bytes(raw[:8], "little")
        data = raw[12 : 12 + size]
        checksums = [int.from_bytes(raw[at : at + 4], "little") for at in (8, 12 + size)]
        assert checksums == [masked_crc32c(raw[:8]), masked_crc32c(data)]
        yield data
        raw = raw[16 + size :]


@given(st.binary(max_size=300))
def test_a_record_is_framed_as_another_writer_frames_it(data: bytes) -> None:
    assert list(_records(record(data))) == [data]


def test_training_with_pictures_loads_no_other_framework(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from mlcore.monitor import Monitor
Monitor(Path({str(tmp_path / "m")!r}), Path({str(tmp_path)!r})).add({{"kind": "step", "step": 1, "loss": 1.0}})
print([name for name in ("torch", "tensorboardX") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_killed_before_its_first_step_a_run_begins_again_by_recipe_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "a", tiny())
    found = newest(tmp_path / "a" / "checkpoints", pytest.fail)
    assert found is not None
    assert found.state.step == 0
    assert set(found.arrays) == {"normaliser/mean", "normaliser/deviation"}
    refused = mlcore("evaluate", tmp_path / "a")
    assert refused.returncode == 2
    assert "no weights yet" in refused.stderr
    resumed, whole = trained(tmp_path / "a", tiny()), trained(tmp_path / "b", tiny())
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_killed_in_mid_epoch_it_keeps_rate_drops_best_weights_and_snapshots_to_the_bit(tmp_path: Path) -> None:
    recipe, whole, parts = tmp_path / "r.toml", tmp_path / "whole", tmp_path / "parts"
    recipe.write_text(RECIPE.replace("batch = 16", "batch = 4\ncheckpoint_every_s = 0.02"))
    how = (
        recipe,
        "train.epochs=9",
        "data.limit=400",
        STALLS,
        *RULED,
        "--data",
        surrogate_folder(),
        "-q",
        "--no-pictures",
    )
    done = mlcore("train", *how, "--out", whole, "--json")
    assert done.returncode == 0, done.stderr
    wanted = json.loads(done.stdout)
    assert wanted["rate_drops"] >= 1
    assert _killed(command("train", *how, "--out", parts), parts, after_epoch=2) == -signal.SIGKILL
    found = newest(parts / "checkpoints", lambda text: None)
    assert found is not None
    assert found.state.step % 100
    assert found.group("best")
    resumed = json.loads(mlcore("train", "--resume", parts, "--json", "-q", "--no-pictures").stdout)
    same = ("weights_sha256", "test_loss", "rate_drops", "stopped_early", "tested_step", "best_validation_error_pct")
    assert {key: resumed[key] for key in same} == {key: wanted[key] for key in same}
    assert rows(parts) == rows(whole)
    snapshots = sorted(path.name for path in whole.glob("train_predictions_*.npy"))
    assert len(snapshots) >= 4
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in [*snapshots, "predictions.npy"])
    demand_whole_files(parts)


def _killed(argv: list[str], out: Path, after_epoch: int) -> int:
    """Start it, and kill it once it has saved inside an epoch later than that; its exit code."""
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.stem[5:]) for path in Run(out).checkpoints.glob("step-*.json")]
        if steps and max(steps) > after_epoch * 100 and max(steps) % 100:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    return process.wait(timeout=150)


def test_a_folder_that_another_process_trains_in_is_not_cleared_for_another_recipe(tmp_path: Path) -> None:
    trained(tmp_path / "a", tiny())
    run = Run(tmp_path / "a")
    kept = sorted(path.name for path in run.path.rglob("*"))
    with run.locked(), pytest.raises(MlcoreError, match="another process"):
        trained(run.path, tiny("seed=7"))
    assert sorted(path.name for path in run.path.rglob("*")) == kept
    assert run.load_recipe() == tiny()


def test_a_run_of_other_files_is_not_gone_on_with(tmp_path: Path) -> None:
    """Other names are other data; only test labels may be missing."""
    digests = surrogate().sha256
    known = {name: digest for name, digest in digests.items() if name != TEST_LABELS}
    assert _agree(known, digests)
    assert _agree(digests, known)
    for name in known:
        lacking = {other: digest for other, digest in digests.items() if other != name}
        assert not _agree(lacking, digests)
        assert not _agree(digests, lacking | {f"{name}-2": digests[name]})
        assert not _agree(digests, digests | {name: "another"})
