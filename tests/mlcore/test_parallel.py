"""Several processes train one network: with real mpirun, the same as one process, and nobody is left waiting."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.checkpoint import Checkpoint, newest
from mlcore.errors import RecipeError
from mlcore.parallel import Ranks, Team, join
from mlcore.rank_engine import team_engine
from mlcore.session import assemble
from tests.mlcore.drawn import RECIPE, command, mlcore, surrogate, surrogate_folder, tiny
from tests.mlcore.helpers import ROOT, needs_compiler, run_python

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
REASON = "training by several processes needs the extra: pip install -e '.[mpi]'"
LONG = "train.epochs=100000"


@pytest.fixture
def mpirun() -> str:
    """Where it is; on CI it has to be there."""
    missing = MPIRUN is None or importlib.util.find_spec("mpi4py") is None
    if missing and not os.environ.get("CI"):
        pytest.skip(REASON)
    assert not missing, REASON
    return str(MPIRUN)


def ranks(mpirun: str, count: int, argv: list[str], **env: str) -> subprocess.Popen[str]:
    """Start `count` ranks of a command, with one thread each."""
    environment = {**os.environ, "MLCORE_THREADS": "1", **env}
    return subprocess.Popen(
        [mpirun, "-n", str(count), *argv], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def training(folder: Path, *overrides: str) -> list[str]:
    """argv of a training of drawn digits into `folder`/run."""
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE)
    where = ("--data", surrogate_folder(), "--out", folder / "run", "--no-pictures", "--json")
    return command("train", recipe, "data.validation=100", *overrides, *where)


def finished(process: subprocess.Popen[str], seconds: float = 300) -> dict[str, Any]:
    """The one document on stdout."""
    out, err = communicated(process, seconds)
    assert process.returncode == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def communicated(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """Its stdout and stderr; one that takes longer is ended, with all its ranks."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(20)
        raise


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, float]:
    """Exit code, what was said, and the seconds that it took from now."""
    began = time.monotonic()
    out, err = communicated(process, seconds)
    return process.returncode, out + err, time.monotonic() - began


def under_way(process: subprocess.Popen[str], run: Path, count: int) -> list[int]:
    """Wait for a checkpoint behind the first step; the process ids of the ranks, in order."""
    limit = time.monotonic() + 300
    while time.monotonic() < limit and process.poll() is None:
        if any(path.name > "step-0000000000.json" for path in run.glob("checkpoints/step-*.json")):
            return [_pid(run, rank) for rank in range(count)]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no training: {process.communicate()}")


def _pid(run: Path, rank: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in about and f"PMI_RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"rank {rank} is nowhere")


def sound(run: Path) -> Checkpoint:
    """The newest checkpoint, with nothing to warn of."""
    warnings: list[str] = []
    found = newest(run / "checkpoints", warnings.append)
    assert found is not None
    assert warnings == []
    return found


@needs_compiler
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_do_together_what_one_process_does_and_repeat_it_to_the_bit(mpirun: str, count: int) -> None:
    cases = finished(ranks(mpirun, count, [sys.executable, "-m", "tests.mlcore.rank_cases"]), 300)
    assert len(cases) == 7
    for name, seen in cases.items():
        tolerance = 1e-2 if "bf16" in name else 1e-5
        assert max(seen["loss"], seen["weights"], seen["logits"]) <= tolerance, name
        assert seen["repeats"] is True, name


def test_a_run_of_two_ranks_ends_like_that_of_one_and_says_so(mpirun: str, tmp_path: Path) -> None:
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    alone = mlcore(*training(tmp_path / "alone")[3:], MLCORE_THREADS="1")
    shared = finished(ranks(mpirun, 2, training(tmp_path / "shared")))
    document = json.loads(alone.stdout)
    for key in ("test_error_pct", "validation_error_pct", "steps", "data", "recipe"):
        assert shared[key] == document[key], key
    assert shared["train_loss"] == pytest.approx(document["train_loss"], rel=1e-5)
    assert [shared["machine"]["ranks"], document["machine"]["ranks"]] == [2, 1]
    ours, theirs = (sound(tmp_path / name / "run").arrays for name in ("alone", "shared"))
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=0, atol=1e-5 * float(np.abs(array).max()))


def test_ranks_that_are_stopped_save_and_go_on_to_the_same_bits(mpirun: str, tmp_path: Path) -> None:
    many, run = "train.epochs=30", tmp_path / "run"
    process = ranks(mpirun, 2, training(tmp_path, many))
    under_way(process, run, 2)
    process.send_signal(signal.SIGTERM)
    code, said, _ = ended(process)
    assert code == 143, said
    assert said.count("mlcore.error/1") == 1  # told by one of them
    stopped = sound(run).state
    assert 0 < stopped.step < 30 * 32
    resumed = finished(ranks(mpirun, 2, command("train", "--resume", run, "--no-pictures", "--json")))
    (tmp_path / "whole").mkdir()
    whole = finished(ranks(mpirun, 2, training(tmp_path / "whole", many)))
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["warnings"] == whole["warnings"]


def test_another_number_of_ranks_goes_on_with_a_warning(mpirun: str, tmp_path: Path) -> None:
    process = ranks(mpirun, 2, training(tmp_path, "train.epochs=60"))
    os.kill(under_way(process, tmp_path / "run", 2)[0], signal.SIGINT)  # of one rank: all of them stop
    assert ended(process)[0] == 130
    again = mlcore("train", "--resume", tmp_path / "run", "--no-pictures", "--json", MLCORE_THREADS="1")
    warning = json.loads(again.stdout)["warnings"][-1]
    assert "2 ranks until step" in warning
    assert "1 from here" in warning


def test_a_killed_rank_ends_all_and_leaves_a_whole_checkpoint(mpirun: str, tmp_path: Path) -> None:
    process = ranks(mpirun, 2, training(tmp_path, LONG))
    pids = under_way(process, tmp_path / "run", 2)
    os.kill(pids[1], signal.SIGKILL)
    code, said, seconds = ended(process)
    assert code != 0
    assert seconds < 30
    assert "Killed (signal 9)" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sound(tmp_path / "run").state.step > 0


def test_a_rank_that_hangs_ends_all_in_the_time_that_was_set(mpirun: str, tmp_path: Path) -> None:
    process = ranks(mpirun, 2, training(tmp_path, LONG), MLCORE_MPI_TIMEOUT_S="4")
    pids = under_way(process, tmp_path / "run", 2)
    os.kill(pids[1], signal.SIGSTOP)
    code, said, seconds = ended(process)
    assert code == 6, said
    assert seconds < 30
    assert "no answer from the others for 4 s" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sound(tmp_path / "run").state.step > 0


def test_an_error_on_one_rank_ends_all_with_its_message_and_code(mpirun: str, tmp_path: Path) -> None:
    argv = training(tmp_path, "threads=0")
    other = ["-env", "MLCORE_THREADS", "several", *argv]
    process = ranks(mpirun, 1, [*argv, ":", "-n", "1", *other])
    code, said, seconds = ended(process)
    assert code == 2, said
    assert seconds < 30
    assert "rank 1 ends all 2 ranks: MLCORE_THREADS: 'several' is no number of threads" in said


def test_an_error_that_all_ranks_make_is_told_once(mpirun: str) -> None:
    code, said, _ = ended(ranks(mpirun, 2, command("train", "lenet5_mnits")))
    assert code == 2
    assert said.count("no recipe 'lenet5_mnits'") == 1
    assert "Traceback" not in said


def test_batch_normalisation_is_refused_among_ranks() -> None:
    several = object.__new__(Ranks)
    session = assemble(tiny('model={name="resnet_small"}'), surrogate())
    with pytest.raises(RecipeError, match="batch normalisation among several ranks"):
        team_engine(several, session)


def test_outside_of_mpirun_mpi_is_not_even_imported() -> None:
    code = "import sys; from mlcore import launch, parallel; print(parallel.join({}).size, 'mpi4py' in sys.modules)"
    assert run_python(code).split() == ["1", "False"]


def test_mpirun_without_mpi4py_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RecipeError, match=r"pip install -e '.\[mpi\]'"):
        join({"PMI_SIZE": "2"})


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_time_to_wait_that_is_none_is_refused(text: str) -> None:
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip(REASON)
    with pytest.raises(RecipeError, match="MLCORE_MPI_TIMEOUT_S"):
        join({"PMI_SIZE": "2", "MLCORE_MPI_TIMEOUT_S": text})


def test_what_ranks_agree_on_is_not_wished_for_again() -> None:
    """A checkpoint that is due is agreed on with the next step, and then made once."""
    ranks = object.__new__(Ranks)
    ranks._wish, ranks._agreed = (0, False), (0, False)
    ranks.everyones = lambda mine: mine[None]  # type: ignore[method-assign]
    made, since = [], 0
    for step in range(1, 13):
        ranks.mean_loss(step, 0.0)
        due = ranks.agree(None, since >= 3)[1]
        made += [step] * due
        since = 0 if due else since + 1
    assert made == [5, 10]


def test_a_process_by_itself_is_a_team_that_agrees_with_itself() -> None:
    team = Team()
    assert team.leads
    assert team.agree(15, True) == (15, True)
    assert team.told(lambda: "this") == "this"
    assert team.threads(0) == 0
