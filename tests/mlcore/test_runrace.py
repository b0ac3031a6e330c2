"""The race over whole runs, and its PyTorch side."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlcore import config
from mlcore.data.surrogate import write_surrogate
from mlcore.errors import MlcoreError, RecipeError
from mlcore.peer_run import run
from mlcore.runrace import Ended, race_runs
from mlcore.tables import run_race_table
from tests.mlcore.helpers import needs_compiler

# No step so long that rounding grows into other errors.
SHORT = ("train.epochs=2", "train.batch=32", "optimiser.rate=0.005", "schedule.name=constant")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_surrogate(tmp_path_factory.mktemp("digits"), 1000, 300)


@needs_compiler
@pytest.mark.parametrize("more", [(), ("train.steps=40",), ("data.crop=24", "data.flip=true", "train.epochs=4")])
def test_pytorch_given_the_same_recipe_ends_with_the_same_error(
    more: tuple[str, ...], drawn: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from mlcore.commands import TrainRequest, train_command

    ours = train_command(TrainRequest("lenet5_mnist", SHORT + more, drawn, tmp_path / "run", False, None, False, True))
    theirs = run("lenet5_mnist", drawn, 1, True, SHORT + more)
    assert 0 < ours["test_error_pct"] < 60
    assert theirs["test_error_pct"] == pytest.approx(ours["test_error_pct"], abs=0.7)


def test_rounds_take_seeds_in_turn_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ended(name: str, argv: list[str]) -> Ended:
        seed = next(word for word in argv if word.startswith("seed="))
        asked.append(f"{name} {seed}")
        peer = name != "mlcore"
        text = '{"test_error_pct": 1.5, "setup_s": 2.0, "setup_cpu_s": 1.0}' if peer else '{"test_error_pct": 1.0}'
        wall = 99.0 if len(asked) <= 3 else {"mlcore": 4.0, "torch": 12.0}.get(name, 10.0)
        return Ended(text, wall, 3.0, 100.0, 0.0)

    monkeypatch.setattr("mlcore.runrace._ended", ended)
    document = race_runs("any", 5, Path("data"), 2, 2, lambda text: None)
    assert asked[:3] == ["mlcore seed=5", "torch seed=5", "torch channels_last seed=5"]
    assert asked[3::3] == ["mlcore seed=5", "mlcore seed=6"]
    assert [row["wall_s"] for row in document["rows"]] == [4.0, 10.0, 8.0]
    assert [row["cpu_s"] for row in document["rows"]] == [3.0, 2.0, 2.0]
    assert [row["best"] for row in document["rows"]] == [False, False, True]
    assert document["share_of_best"] == 0.5
    assert run_race_table(document).endswith("mlcore takes 0.50 of the time of PyTorch's best")


def test_a_run_that_fails_ends_the_race_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.runrace.MLCORE", "import sys; sys.exit('out of luck')")
    with pytest.raises(MlcoreError, match="mlcore: ended with exit code 1: out of luck"):
        race_runs("any", 1, Path("data"), 1, 1, lambda text: None)


def test_only_torch_is_raced_against_over_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlcore.bench_commands import bench_recipe_command

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RecipeError, match="no whole runs against tensorflow"):
        bench_recipe_command("lenet5_mnist", ["tensorflow"], None, 1, 1, None, True)
    with pytest.raises(RecipeError, match="PyTorch is not installed"):
        bench_recipe_command("lenet5_mnist", ["torch"], None, 1, 1, None, True)


def test_crops_and_mirrored_images_are_raced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlcore.bench_commands import bench_recipe_command

    monkeypatch.setitem(sys.modules, "torch", None)
    cropped = tmp_path / "cropped.toml"
    cropped.write_text(config.to_toml(config.load("lenet5_mnist_fast", ["data.crop=24", "data.flip=true"])))
    for recipe in ("lenet5_mnist_fast", str(cropped)):
        with pytest.raises(RecipeError, match="PyTorch is not installed"):  # which is looked for next
            bench_recipe_command(recipe, ["torch"], None, 1, 1, None, True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("data.views=ten", "test but the centre view"),
        ("data.normalise=channel", "normalise but by one mean and one deviation"),
        ("data.shuffle_labels=true", "shuffle labels"),
        ("optimiser.name=adam", "train but by SGD"),
        ("precision=bf16", "train but in fp32"),
        ("train.stop_at_pct=25", "end early"),
    ],
)
def test_what_pytorchs_side_does_not_do_is_not_raced(change: str, what: str, tmp_path: Path) -> None:
    from mlcore.bench_commands import bench_recipe_command

    recipe = config.parse(
        config.to_toml(config.load("lenet5_mnist")).replace("momentum = 0.9\n", ""), "here", ["data.crop=24", change]
    )
    (path := tmp_path / "other.toml").write_text(config.to_toml(recipe))
    with pytest.raises(RecipeError, match=f"don't {what}"):
        bench_recipe_command(str(path), ["torch"], None, 1, 1, None, True)
