"""Checkpoints: whole or not used, whatever happens to their bytes."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.checkpoint import Checkpoint, State, _sealed, newest, read, save
from mlcore.errors import CheckpointError

FUZZ = settings(max_examples=2000, deadline=None, database=None)
ROWS = ({"kind": "epoch", "loss": 0.1 + 0.2, "epoch": 1, "validation_loss": None},)


def checkpoint(step: int) -> Checkpoint:
    state = State(
        recipe_sha256="r",
        data_sha256={"train": "d"},
        data_dir=None,
        step=step,
        epoch_loss_sum=0.1 * step,
        rows=ROWS,
    )
    weights = np.random.default_rng(step).standard_normal((4, 3)).astype(np.float32)
    return Checkpoint(state, {"model/a.weight": weights, "optimiser/a.weight": weights * 2})


def same(left: Checkpoint, right: Checkpoint) -> bool:
    return left.state == right.state and all(np.array_equal(left.arrays[k], right.arrays[k]) for k in right.arrays)


def deaf(text: str) -> None:
    pass


def test_what_is_saved_reads_back_to_the_bit(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(7))
    found = newest(tmp_path, pytest.fail)
    assert found is not None
    assert same(found, checkpoint(7))
    assert set(found.group("optimiser")) == {"a.weight"}


def test_the_newest_two_are_kept_and_nothing_else_lies_about(tmp_path: Path) -> None:
    (tmp_path / ".step-0000000001.json.x.part").write_bytes(b"left by a killed process")
    for step in (1, 2, 3):
        save(tmp_path, checkpoint(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step-000000000{s}.{kind}" for s in (2, 3) for kind in ("json", "safetensors")]


def test_an_empty_folder_has_none_and_one_with_only_broken_ones_is_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path, pytest.fail) is None
    save(tmp_path, checkpoint(1)).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no checkpoint here is sound"):
        newest(tmp_path, deaf)


def test_arrays_without_their_json_do_not_count(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2)).unlink()
    found = newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.state.step == 1


def test_arrays_of_another_step_are_noticed(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(1))
    path = save(tmp_path, checkpoint(2))
    shutil.copy(tmp_path / "step-0000000001.safetensors", path.with_suffix(".safetensors"))
    with pytest.raises(CheckpointError, match="not the bytes"):
        read(path)


def test_a_renamed_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, checkpoint(2))
    for kind in (".json", ".safetensors"):
        shutil.copy(path.with_suffix(kind), tmp_path / f"step-0000000009{kind}")
    with pytest.raises(CheckpointError, match="renamed"):
        read(tmp_path / "step-0000000009.json")


def damaged(folder: Path, kind: str, content: bytes) -> list[str]:
    """Put `content` in the place of the newest checkpoint's file; what was said while the older one was found."""
    said: list[str] = []
    (folder / f"step-0000000002.{kind}").write_bytes(content)
    found = newest(folder, said.append)
    assert found is not None
    assert same(found, checkpoint(1))
    return said


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_cut_at_every_64_bytes_it_is_skipped_with_a_warning(kind: str, tmp_path: Path) -> None:
    save(tmp_path, checkpoint(1))
    sound = save(tmp_path, checkpoint(2)).with_suffix(f".{kind}").read_bytes()
    for length in [*range(0, len(sound), 64), len(sound) - 1]:
        said = damaged(tmp_path, kind, sound[:length])
        assert len(said) == 1
        assert "checkpoint skipped" in said[0]


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_with_any_of_two_hundred_bits_flipped_it_is_skipped_with_a_warning(kind: str, tmp_path: Path) -> None:
    save(tmp_path, checkpoint(1))
    sound = save(tmp_path, checkpoint(2)).with_suffix(f".{kind}").read_bytes()
    for bit in np.random.default_rng(0).choice(len(sound) * 8, 200, replace=False):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << (bit % 8)
        assert len(damaged(tmp_path, kind, bytes(content))) == 1


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from mlcore.checkpoint import Checkpoint, newest, save
from mlcore.errors import CheckpointError
from tests.mlcore.test_checkpoint import checkpoint, same
folder = Path(sys.argv[1])
save(folder, checkpoint(1))
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
big = Checkpoint(checkpoint(2).state, {"model/a": np.ones(1 << 20, np.float32)})
try:
    save(folder, big)
except CheckpointError as error:
    assert "is intact" in str(error), error
    assert len(list(folder.iterdir())) == 2, list(folder.iterdir())
    assert same(newest(folder, sys.exit), checkpoint(1))
    print("reported and intact")
"""


def test_a_file_size_limit_leaves_the_last_checkpoint_intact_and_is_reported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, "limit"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "reported and intact\n", done.stderr


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap makes the small disk")
def test_a_full_disk_of_256_kib_leaves_the_last_checkpoint_intact_and_is_reported() -> None:
    argv = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--size", "262144", "--tmpfs", "/mnt"]
    probe = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"bubblewrap can't run here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*argv, sys.executable, "-c", FULL_DISK, "/mnt", "disk"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "reported and intact\n", done.stderr


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["state", "arrays_bytes", "arrays_sha256", "sha256", "step", "rows", "wall_s"])


def outcome(path: Path) -> Checkpoint | CheckpointError:
    """What reading gives; any other error passes through and fails the test."""
    try:
        return read(path)
    except CheckpointError as error:
        return error


@FUZZ
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40))
def test_no_bytes_give_anything_but_a_documented_error(content: bytes, arrays: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-0000000001.json"
        path.write_bytes(content)
        path.with_suffix(".safetensors").write_bytes(arrays)
        assert isinstance(outcome(path), CheckpointError)
        assert len(list(Path(folder).iterdir())) == 2


@FUZZ
@given(FIELDS, JSON, st.binary(max_size=40))
def test_well_sealed_nonsense_gives_nothing_but_a_documented_error(key: str, value: object, arrays: bytes) -> None:
    """As an attacker would write it: every checksum right, one field or the arrays not."""
    import hashlib

    document = {
        "state": checkpoint(1).state.model_dump(mode="json"),
        "arrays_bytes": len(arrays),
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }
    (document["state"] if key in ("step", "rows", "wall_s") else document)[key] = value  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-0000000001.json"
        path.write_bytes(_sealed({k: v for k, v in document.items() if k != "sha256"}))
        path.with_suffix(".safetensors").write_bytes(arrays)
        assert isinstance(outcome(path), CheckpointError)
