"""The commands as a person or a script meets them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mlcore import __version__
from mlcore.cli import app
from mlcore.config import RECIPES
from mlcore.data.cifar import CLASS_NAMES
from mlcore.data.idx import write_idx
from mlcore.errors import CheckFailed, DataError, MlcoreError, RecipeError
from mlcore.tables import check_table
from tests.mlcore.drawn import RECIPE, cifar_folder, command, mlcore, small_cifar, surrogate, surrogate_folder

LABEL = "[SURROGATE digits, not MNIST]"

COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "summary",
    "init",
    "fetch",
    "gradcheck",
    "bench",
    "profile",
    "warm",
    "check",
]


def call(*arguments: str | Path, fails: type[MlcoreError] | None = None) -> str:
    """Run a command in this process; its stdout. `fails`: the error that it must raise."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if fails:
        assert isinstance(outcome.exception, fails), outcome.exception
    else:
        assert outcome.exit_code == 0, outcome.output + repr(outcome.exception)
    return outcome.stdout


def document(*arguments: str | Path, fails: type[MlcoreError] | None = None) -> dict[str, Any]:
    got = json.loads(call(*arguments, "--json", fails=fails))
    assert isinstance(got, dict)
    return got


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with pictures."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(RECIPE)
    call("train", folder / "tiny.toml", "seed=3", "--data", surrogate_folder(), "--out", folder / "run", "-q")
    return folder / "run"


def test_help_answers_at_once_and_names_every_command() -> None:
    import resource
    import subprocess

    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command("--help"), capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert "Exit codes" in done.stdout
    assert min(times) < 1.0  # of the processor's time, whatever else it does: 0.12 s by itself


def test_help_shows_each_commands_line_whole() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    commands = shown.partition("Commands:")[2]
    assert len(commands.split("\n  ")) == 13
    assert "..." not in commands


def test_the_version_is_printed() -> None:
    assert call("--version") == f"mlcore {__version__}\n"


@pytest.mark.parametrize("name", ["train", "summary", "check"])
def test_help_names_every_shipped_recipe(name: str) -> None:
    shown = " ".join(call(name, "--help").split())
    assert f"shipped recipe: {', '.join(sorted(path.stem for path in RECIPES.glob('*.toml')))}." in shown


def test_help_loads_no_kernels() -> None:
    import subprocess
    import sys

    code = "import sys, mlcore.cli; print([m for m in ('numba', 'numpy', 'rich', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_with_an_example(name: str) -> None:
    assert f"Example: mlcore {name}" in call(name, "--help")


def test_train_leaves_the_pictures_and_the_events(run: Path) -> None:
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        assert (run / name).read_bytes()[:4] == b"\x89PNG"
    assert any((run / "events").iterdir())


def test_every_line_about_a_surrogate_says_so(run: Path, tmp_path: Path) -> None:
    done = mlcore(
        "train", run.parent / "tiny.toml", "--data", surrogate_folder(), "--out", tmp_path / "a", "--no-pictures"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(LABEL)
    assert "verdict: not measured on MNIST" in done.stdout
    lines = [line for line in done.stderr.splitlines() if "warning: " not in line]
    assert len(lines) >= 3
    assert all(line.startswith(LABEL) for line in lines)
    shown = [
        call("evaluate", run, "--data", surrogate_folder()),
        call("fetch", "surrogate", "--data", surrogate_folder()),
    ]
    assert all(line.startswith(LABEL) for text in shown for line in text.splitlines())


def test_quiet_training_says_nothing_on_stderr_but_warnings(run: Path, tmp_path: Path) -> None:
    quiet = ("-q", "--json", "--no-pictures")
    done = mlcore("train", run.parent / "tiny.toml", "--data", surrogate_folder(), "--out", tmp_path / "a", *quiet)
    assert done.stderr.startswith("warning: ")
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["schema"] == "mlcore.result/1"


def test_evaluate_repeats_what_training_measured(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    got = document("evaluate", run, "--data", surrogate_folder())
    assert got["test_error_pct"] == result["test_error_pct"]
    assert got["step"] == result["steps"]


def test_the_help_says_that_shard_names_begin_at_data() -> None:
    assert "where a recipe's shard names begin" in " ".join(call("train", "--help").split())


def test_evaluate_finds_the_data_where_training_found_it(run: Path) -> None:
    assert document("evaluate", run)["data"]["surrogate"] is True


def test_predict_prints_a_json_line_per_image(run: Path, tmp_path: Path) -> None:
    predictions = np.load(run / "predictions.npy", allow_pickle=False).tolist()
    lines = [
        json.loads(line) for line in call("predict", run, surrogate_folder() / "t10k-images-idx3-ubyte.gz").splitlines()
    ]
    assert [line["class"] for line in lines] == predictions
    assert [line["index"] for line in lines] == list(range(120))


def test_predict_reads_pictures_dark_on_light_or_light_on_dark(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = surrogate().test_images[0, 0]
    Image.fromarray(image).save(tmp_path / "light.png")
    Image.fromarray(255 - image).convert("RGB").save(tmp_path / "dark.png")
    lines = [
        json.loads(line) for line in call("predict", run, tmp_path / "light.png", tmp_path / "dark.png").splitlines()
    ]
    expected = int(np.load(run / "predictions.npy", allow_pickle=False)[0])
    assert [line["class"] for line in lines] == [expected, expected]


def test_a_run_on_colour_images_is_evaluated_predicted_and_drawn(tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "run"
    (tmp_path / "r.toml").write_text(RECIPE)
    keys = ("data.dataset=cifar10", "data.normalise=image", "data.crop=24", "data.views=ten", "optimiser.rate=1e-4")
    got = document("train", tmp_path / "r.toml", *keys, "--data", cifar_folder(), "--out", out, "-q")
    assert got["data"]["name"] == "cifar10-unverified"
    assert {path.name for path in out.glob("*.png")} == {"curves.png", "confusion.png", "mistakes.png"}
    again = document("evaluate", out, "--data", cifar_folder())
    assert again["test_error_pct"] == got["test_error_pct"]
    assert again["test_loss"] == pytest.approx(got["test_loss"], rel=1e-4)
    Image.fromarray(small_cifar().test_images[0].transpose(1, 2, 0)).save(tmp_path / "one.png")
    lines = [json.loads(line) for line in call("predict", out, cifar_folder() / "test_batch.bin").splitlines()]
    assert [line["class"] for line in lines] == np.load(out / "predictions.npy", allow_pickle=False).tolist()
    assert lines[0]["name"] == CLASS_NAMES[lines[0]["class"]]
    assert json.loads(call("predict", out, tmp_path / "one.png"))["class"] == lines[0]["class"]
    call("predict", out, surrogate_folder() / "t10k-images-idx3-ubyte.gz", fails=DataError)


def test_predict_refuses_what_is_no_picture(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    write_idx(tmp_path / "b-idx3-ubyte", np.zeros((1, 5, 5), np.uint8))
    for path in (tmp_path / "a.png", tmp_path / "b-idx3-ubyte", tmp_path / "none.png"):
        outcome = CliRunner().invoke(app, ["predict", str(run), str(path)])
        assert isinstance(outcome.exception, DataError)
        assert str(outcome.exception).count(path.name) == 1


def test_summary_counts_lenet5s_parameters() -> None:
    got = document("summary", "lenet5_mnist")
    assert got["parameters"] == 61_706
    assert [row["layer"] for row in got["rows"]][:3] == ["C1", "C1_act", "S2"]
    assert "61,706" in call("summary", "lenet5_mnist")


def test_init_writes_the_first_weights_of_a_network_without_data(tmp_path: Path) -> None:
    got = document("init", "lenet5", "--out", tmp_path / "a.safetensors", "--seed", "3")
    assert got["parameters"] == 61_706
    arrays = load_file(tmp_path / "a.safetensors")
    assert sum(array.size for array in arrays.values()) == 61_706
    document("init", "lenet5_mnist", "--out", tmp_path / "b.safetensors", "--seed", "3")
    assert load_file(tmp_path / "b.safetensors").keys() == arrays.keys()


def test_fetch_draws_a_small_surrogate_where_it_is_told(tmp_path: Path) -> None:
    got = document("fetch", "surrogate", "--count", "60", "--out", tmp_path / "mnist-surrogate")
    assert (got["name"], got["train_images"], got["test_images"]) == ("mnist-surrogate", 60, 10)
    assert got["path"] == str(tmp_path / "mnist-surrogate")


def test_fetch_says_what_it_found_and_copies_it(tmp_path: Path) -> None:
    got = document("fetch", "mnist", "--surrogate", "--data", surrogate_folder(), "--out", tmp_path / "copy")
    assert got["surrogate"] is True
    assert (tmp_path / "copy" / "train-images-idx3-ubyte.gz").is_file()


def test_fetch_refuses_a_surrogate_for_mnist_unless_it_is_allowed() -> None:
    call("fetch", "mnist", "--data", surrogate_folder(), fails=MlcoreError)
    call("fetch", "cifar", fails=RecipeError)


def test_check_prints_a_table_and_fails_with_its_own_error(run: Path) -> None:
    recipe = run.parent / "tiny.toml"
    got = document("check", recipe, "--data", surrogate_folder(), "-q", "optimiser.rate=1e-9", fails=CheckFailed)
    assert got["passed"] is False
    assert {row["name"] for row in got["checks"] if not row["passed"]} >= {"one batch overfitted"}
    done = mlcore("check", recipe, "--data", surrogate_folder(), "optimiser.rate=1e-9")
    assert done.returncode == 5
    assert done.stdout.count("one batch overfitted") == 1
    assert "FAIL" in done.stdout
    failed = sum(not row["passed"] for row in got["checks"])
    assert done.stdout.splitlines()[-1].endswith(f"failed: {failed} of 6 checks")
    assert "one batch overfitted" in done.stderr
    assert "batch round trip" not in done.stderr


def test_a_table_of_checks_that_passed_ends_with_saying_so() -> None:
    row = {"name": "shapes", "wanted": "10 classes", "saw": "10 classes", "passed": True}
    assert check_table({"checks": [row, row]}).splitlines()[-1] == "passed: 2 of 2 checks"


def test_gradcheck_passes_for_the_small_network() -> None:
    got = document("gradcheck", "mlp")
    assert got["passed"] is True
    assert got["rows"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "mlcore train lenet5_mnist"),
        (["train", "lenet5_minst"], "did you mean 'lenet5_mnist'"),
        (["train", "lenet5_mnist", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["train", "lenet5_mnist", "--continue"], "--out"),
        (["train", "lenet5_mnist", "--resume", "x"], "--resume takes all from the run"),
        (["train", "--resume", "nowhere"], "no run"),
        (["train", "lenet5_mnist", "--data", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "no run"),
        (["summary", "lenet5_mnist", "model.name=lenet6"], "did you mean 'lenet5'"),
        (["summary", "lenet5_mnist", "model.options.pol=max"], "did you mean 'pool'"),
    ],
)
def test_what_a_user_gets_wrong_is_named_with_its_fix(arguments: list[str], says: str) -> None:
    outcome = CliRunner().invoke(app, arguments)
    assert isinstance(outcome.exception, MlcoreError)
    assert outcome.exception.exit_code == 2
    assert says in str(outcome.exception)


def test_errors_go_to_stderr_with_their_exit_code_and_as_json_to_stdout() -> None:
    done = mlcore("summary", "lenet5_minst", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'lenet5_minst'")
    assert json.loads(done.stdout)["error"] == "RecipeError"
    assert "Traceback" not in done.stderr


def test_it_works_without_a_home_and_without_git(run: Path, tmp_path: Path) -> None:
    how = ("--data", surrogate_folder(), "--out", tmp_path / "a", "--json", "--continue")
    done = mlcore("train", run.parent / "tiny.toml", *how, HOME="/dev/null/home", PATH="", MPLCONFIGDIR="")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"]["commit"] is None
    assert json.loads(done.stdout)["warnings"] == [
        "drawn surrogate digits: numbers made from them are not measured on MNIST"
    ]
    assert (tmp_path / "a" / "curves.png").is_file()
