"""Recipes: every mistake at once, each with its place and its fix, and nothing else can go wrong."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore import config
from mlcore.config import LayerPace, load, parse, to_toml
from mlcore.errors import RecipeError
from tests.mlcore.drawn import RECIPE, tiny

FUZZ = settings(max_examples=2000, deadline=None, database=None)


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.toml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_every_mistake_is_reported_in_one_go_with_its_line() -> None:
    text = RECIPE.replace("rate = 0.05", 'rate = "fast"\nmomntum = 0.9').replace("batch = 16", "batch = 0")
    found = mistakes(text + "bogus = 1\n", "train.epoch=3")
    lines = text.splitlines()
    where = {
        key: 1 + next(i for i, line in enumerate(lines) if line.startswith(key)) for key in ("rate", "momn", "bat")
    }
    assert any(line.startswith(f"r.toml:{where['rate']}: 'optimiser.rate'") for line in found)
    assert any(
        line.startswith(f"r.toml:{where['momn']}: ") and "did you mean 'optimiser.momentum'" in line for line in found
    )
    assert any(line.startswith(f"r.toml:{where['bat']}: 'train.batch' is 0") for line in found)
    assert any(line.startswith("override 'train.epoch=3'") and "did you mean 'train.epochs'" in line for line in found)
    assert any("'train.bogus'" in line for line in found)


def test_broken_toml_names_the_line() -> None:
    assert mistakes('name = "a"\nseed = = 1\n')[0].startswith("r.toml:2: not TOML")


def test_a_missing_section_names_what_to_add() -> None:
    assert any("'optimiser' is missing; add it" in line for line in mistakes('name = "a"\n'))


def test_schedule_options_are_checked_where_they_stand() -> None:
    text = RECIPE.replace('name = "one_cycle"', 'name = "one_cycle"\nwarmpu = 0.1')
    line = 1 + text.splitlines().index("warmpu = 0.1")
    assert mistakes(text)[0].startswith(f"r.toml:{line - 2}: schedule: unknown option 'warmpu'")
    assert "known: constant" in mistakes(RECIPE, "schedule.name=fast")[0]


def test_overrides_are_typed_and_later_ones_win() -> None:
    recipe = tiny(
        "seed=7", "train.epochs=3", "train.epochs=5", "optimiser.rate=1", "name=mine", "model.options.hidden=[4]"
    )
    assert (recipe.seed, recipe.train.epochs, recipe.optimiser.rate, recipe.name) == (7, 5, 1.0, "mine")
    assert recipe.model.options["hidden"] == [4]
    assert tiny("data.shuffle_labels=true").data.shuffle_labels is True


@pytest.mark.parametrize(
    "override",
    ["seed", "=3", "train..epochs=3", "seed.x=3", "seed=x", "seed=1.5", "seed=true", "optimiser.rate=nan",
     "optimiser.rate=inf", "train=3", "data.shuffle_labels=1", "name=", "name=../up", "seed=1\nname='b'", "seed=-1"],
)  # fmt: skip
def test_an_impossible_override_is_named(override: str) -> None:
    assert mistakes(RECIPE, override)[0].startswith("override '")


def test_zero_steps_are_allowed_and_no_epochs_are_not() -> None:
    assert tiny("train.steps=0").train.steps == 0
    assert "'train.epochs'" in mistakes(RECIPE, "train.epochs=0")[0]


def test_a_resolved_recipe_reads_back_as_itself_with_the_same_hash() -> None:
    recipe = tiny("optimiser.rate=0.1", "schedule.warmup=0.3", 'model.options.note="a \\"b\\" é \\u007f"')
    again = parse(to_toml(recipe), "resolved")
    assert again == recipe
    assert again.sha256 == recipe.sha256


def test_an_optimiser_has_its_own_options_and_their_defaults() -> None:
    assert tiny().optimiser.options == {"momentum": 0.9}
    adam = tiny("optimiser.name=adam", "optimiser.beta2=0.99").optimiser
    assert adam.options == {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}
    recipe = tiny("optimiser.name=adam")
    assert parse(to_toml(recipe), "resolved") == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimiser.name=adam", "optimiser.momentum=0.9"), "'momentum' is an option of sgd, not of adam"),
        (("optimiser.beta1=0.9",), "'beta1' is an option of adam, not of sgd; drop it; sgd has momentum"),
        (("optimiser.name=adam", "optimiser.beta2=1.0"), "'optimiser.beta2' is 1.0"),
        (("optimiser.name=adam", "optimiser.epsilon=0"), "'optimiser.epsilon' is 0"),
        (("optimiser.name=lion",), "'optimiser.name' is 'lion'"),
    ],
)
def test_an_optimisers_impossible_options_are_named(overrides: tuple[str, ...], message: str) -> None:
    (mistake,) = mistakes(RECIPE, *overrides)
    assert mistake.startswith("override 'optimiser.")
    assert message in mistake


def test_layers_have_rates_and_decays_of_their_own() -> None:
    text = RECIPE.replace("[schedule]", "[optimiser.layers.fc1]\nweight_decay = 0.03\n[schedule]")
    recipe = parse(text, "r.toml", ("optimiser.layers.fc2.rate=2", "optimiser.bias_rate=2"))
    assert recipe.optimiser.layers == {"fc1": LayerPace(weight_decay=0.03), "fc2": LayerPace(rate=2)}
    assert parse(to_toml(recipe), "resolved") == recipe


def test_a_layers_unknown_option_is_named_with_its_line() -> None:
    text = RECIPE.replace("[schedule]", "[optimiser.layers.fc1]\nweigth_decay = 0.03\n[schedule]")
    line = 1 + text.splitlines().index("weigth_decay = 0.03")
    (mistake,) = mistakes(text)
    assert mistake.startswith(f"r.toml:{line}: unknown key 'optimiser.layers.fc1.weigth_decay'; did you mean")
    assert "'optimiser.layers.fc1.weight_decay'? known: rate, bias_rate, weight_decay, bias_decay" in mistake
    assert "'optimiser.layers.fc1.rate' is -1" in mistakes(RECIPE, "optimiser.layers.fc1.rate=-1")[0]


def test_the_hash_tells_every_value_apart() -> None:
    hashes = {tiny(o).sha256 for o in ("seed=1", "seed=2", "train.epochs=9", "schedule.warmup=0.3", "data.limit=5")}
    assert len(hashes) == 5


def test_shipped_recipes_load_by_name_and_by_path() -> None:
    for path in sorted(config.RECIPES.glob("*.toml")):
        assert load(path.stem) == load(str(path))
        assert load(path.stem).name == path.stem


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.epoch=1", "train.epochs"),
        ("epochs=1", "train.epochs"),
        ("epoch=1", "train.epochs"),
        ("train.rate=0.1", "optimiser.rate"),
        ("sed=1", "seed"),
        ("train.seed=1", "seed"),
        ("optimiser.wieght_decay=0", "optimiser.weight_decay"),
    ],
)
def test_an_unknown_key_suggests_the_whole_of_the_one_that_was_meant(override: str, meant: str) -> None:
    assert f"did you mean '{meant}'? known: " in mistakes(RECIPE, override)[0]


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("lenet5_minst", "lenet5_mnist"),
        ("lenet5", "lenet5_mnist"),
        ("mlp", "mlp_mnist"),
        ("lenet5_mnst.toml", "lenet5_mnist"),
    ],
)
def test_an_unknown_recipe_is_named_once_with_the_one_that_was_meant(source: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean '{meant}'") as caught:
        load(source)
    assert str(caught.value).partition(";")[0].count(source) == 1


def test_a_recipe_like_no_other_gets_the_list_of_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"^no recipe 'zzz'; give a \.toml file or one of alexnet_227, .*mlp_mnist$"):
        load("zzz")


def test_files_that_are_no_recipes_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.toml").write_bytes(b"#" * (config.LIMIT_BYTES + 1))
    (tmp_path / "folder.toml").mkdir()
    for name in ("none", "binary", "long", "folder"):
        with pytest.raises(RecipeError, match=re.escape(f"{name}.toml")):
            load(str(tmp_path / f"{name}.toml"))


KEYS = st.sampled_from(
    ["name", "seed", "threads", "model", "model.name", "model.options.x", "data.limit", "optimiser.rate", "train.steps",
     "schedule.warmup", "schedule.name", "train", "train.epochs", "", "a.b.c", "x y", "é", "train.epochs.x"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["1", "0", "-1", "1e400", "nan", "true", "[1, 2]", "{a = 1}", '"x"', "1979-05-27",
                     "0x" + "f" * 5000, "9" * 5000, "[" * 2000, "", "'''", "1\n[train]", "\x00", "one_cycle"]),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


def outcome(text: str, *overrides: str) -> config.Recipe | RecipeError:
    """What parsing gives; any other error passes through and fails the test."""
    try:
        return parse(text, "r.toml", overrides)
    except RecipeError as error:
        return error


@FUZZ
@given(st.lists(st.one_of(st.builds("{}={}".format, KEYS, VALUES), st.text(max_size=8)), max_size=2))
def test_no_override_gives_anything_but_a_recipe_or_a_recipe_error(overrides: list[str]) -> None:
    got = outcome(RECIPE, *overrides)
    if isinstance(got, RecipeError):
        assert got.exit_code == 2
        assert len(str(got)) < 5000
    else:
        assert parse(to_toml(got), "again") == got


LINES = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES),
    st.sampled_from(
        ["[model]", "[train]", "[[train]]", "[model.options]", "[schedule", "# note", "[x.y]", *RECIPE.splitlines()]
    ),
    st.text(max_size=10),
)


@FUZZ
@given(st.lists(LINES, max_size=5), st.booleans())
def test_no_text_gives_anything_but_a_recipe_or_a_recipe_error(lines: list[str], begun: bool) -> None:
    got = outcome((RECIPE if begun else "") + "\n".join(lines))
    if isinstance(got, RecipeError):
        assert all(re.match(r"r\.toml:\d+: ", line) for line in str(got).splitlines() if line.startswith("r.toml"))
    else:
        assert tomllib.loads(to_toml(got))["name"] == got.name


ABLATIONS = {
    "_no_norm": ("model", "options", {"norm": False}),
    "_apart": ("model", "options", {"pool": "apart"}),
    "_no_colour": ("data", "colour_noise", 0.0),
    "_torch": ("", "engine", "torch"),
}


@pytest.mark.parametrize("ending", ABLATIONS)
@pytest.mark.parametrize("whole", ["alexnet_photos", "alexnet_imagenette"])
def test_an_ablation_of_alexnet_on_photographs_differs_in_one_thing(whole: str, ending: str) -> None:
    section, key, value = ABLATIONS[ending]
    changed, ablation = (config.load(name).model_dump(exclude={"name"}) for name in (whole, whole + ending))
    place = changed[section] if section else changed
    place[key] = {**place[key], **value} if isinstance(value, dict) else value
    assert ablation == changed


@pytest.mark.parametrize("long", ["cifar10", "short"])
def test_the_11_percent_networks_twin_lacks_normalisation_alone(long: str) -> None:
    whole, without = (
        config.load(f"cuda_11pct_{name}").model_dump(exclude={"name"}) for name in (long, f"no_norm_{long}")
    )
    whole["model"]["options"]["norm"] = False
    assert without == whole
