"""Settings: who wins, where each came from, and what a repository may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import config
from orchestrator.errors import InputError
from orchestrator.prices import PRICES, Usage, price_of
from tests.orchestrator.helpers import write


def load(root: Path, flags: dict[str, Any] | None = None, **env: str) -> tuple[config.Settings, dict[str, str]]:
    return config.load(root, flags or {}, {"XDG_CONFIG_HOME": str(root / "home"), **env})


def refused(root: Path, **env: str) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **env)
    return str(caught.value)


def project(root: Path, text: str) -> None:
    write(root, {"pyproject.toml": text})


def user(root: Path, text: str) -> Path:
    write(root, {"home/odyssey/config.toml": text})
    return root / "home/odyssey/config.toml"


def test_without_a_word_everything_has_its_default(tmp_path: Path) -> None:
    settings, origin = load(tmp_path)
    assert settings == config.Settings()
    assert set(origin.values()) == {"default"}
    assert set(origin) == set(config.Settings.model_fields)


def test_flags_win_over_environment_over_project_over_user(tmp_path: Path) -> None:
    layers = ("parallel", "max_turns", "command_minutes", "memory_gb")
    user(tmp_path, "\n".join(f"{key} = 11" for key in layers))
    project(tmp_path, "[tool.odyssey]\n" + "\n".join(f"{key} = 12" for key in layers[:3]))
    settings, origin = load(tmp_path, {"parallel": 14, "data": None}, ODYSSEY_PARALLEL="13", ODYSSEY_MAX_TURNS="13")
    assert [getattr(settings, key) for key in layers] == [14, 13, 12, 11]
    assert [origin[key] for key in layers] == ["flag", "environment", "project", "user"]
    assert origin["data"] == "default"


def test_mlcores_own_variable_names_the_data_unless_ours_does(tmp_path: Path) -> None:
    assert load(tmp_path, MLCORE_DATA="/a")[0].data == Path("/a")
    assert load(tmp_path, MLCORE_DATA="/a", ODYSSEY_DATA="/b")[0].data == Path("/b")


@pytest.mark.parametrize("key", sorted(config.OPERATOR_ONLY))
def test_a_repository_may_not_say_what_is_the_operators(tmp_path: Path, key: str) -> None:
    project(tmp_path, f"[tool.odyssey]\n{key} = true")
    assert refused(tmp_path) == f"pyproject.toml: `{key}` is for the operator to set; give it as a flag"


def test_the_operator_may(tmp_path: Path) -> None:
    user(tmp_path, "unsafe_no_sandbox = true")
    settings, origin = load(tmp_path)
    assert (settings.unsafe_no_sandbox, origin["unsafe_no_sandbox"]) == (True, "user")


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    project(tmp_path, "[tool.odyssey]\nparalel = 3")
    assert refused(tmp_path) == "pyproject.toml: unknown setting `paralel`; did you mean `parallel`?"
    project(tmp_path, "")
    path = user(tmp_path, "api_endpoint = 'https://elsewhere'")
    assert refused(tmp_path).startswith(f"{path}: unknown setting `api_endpoint`; known keys: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tool = 3", "pyproject.toml: `tool` is not a table; "),
        ("[tool]\nodyssey = 3", "pyproject.toml: `odyssey` is not a table; "),
        ("[tool.odyssey]\nparallel = 0", "pyproject.toml: `parallel`: Input should be greater than or equal to 1"),
        ("[tool.odyssey]\nparallel = 'x'", "pyproject.toml: `parallel`: Input should be a valid integer"),
        ("[tool.odyssey.tests]\nhuge = ['t']", "pyproject.toml: `tests.huge.[key]`: Input should be 'low', "),
    ],
)
def test_a_wrong_value_is_refused_with_its_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    project(tmp_path, text)
    assert refused(tmp_path).startswith(expected)


@pytest.mark.parametrize("text", ["[tool", "a = " + "[" * 9000, "a = " + "9" * 5000])
def test_a_file_that_is_no_toml_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    project(tmp_path, text)
    assert refused(tmp_path).startswith(f"{tmp_path / 'pyproject.toml'}: can't be read: ")


def test_a_wrong_value_of_the_environment_is_the_environments(tmp_path: Path) -> None:
    assert refused(tmp_path, ODYSSEY_MEMORY_GB="lots").startswith("environment: `memory_gb`: Input should be a valid")
    assert refused(tmp_path, ODYSSEY_COMMAND_MINUTES="inf").startswith(
        "environment: `command_minutes`: Input should be a"
    )


def test_every_paid_tier_has_a_model_and_a_price_and_dearer_tiers_cost_more() -> None:
    prices = [PRICES[config.MODELS[tier]] for tier in ("haiku", "sonnet", "opus")]
    assert [price.input for price in prices] == sorted(price.input for price in prices)
    assert [price.output for price in prices] == sorted(price.output for price in prices)
    assert len({price.input for price in prices}) == 3


def test_a_model_of_ones_own_needs_a_price_of_ones_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "odyssey").mkdir(parents=True)
    (home / "odyssey/config.toml").write_text('[models]\nhaiku = "small"\n[prices.small]\ninput = 0\noutput = 0\n')
    settings, _ = config.load(tmp_path, {}, {"XDG_CONFIG_HOME": str(home)})
    assert settings.models["haiku"] == "small"
    assert settings.models["opus"] == config.MODELS["opus"]
    assert price_of("small", settings.prices).usd(Usage(input_tokens=10**6)) == 0
    with pytest.raises(InputError, match=r'say what it costs in your own config.toml: \[prices."tiny"\]'):
        price_of("tiny", settings.prices)


@pytest.mark.parametrize(
    "line", ['provider = "anthropic"', 'models.haiku = "dear"', "prices.x = {input = 0, output = 0}"]
)
def test_a_project_can_not_choose_who_is_paid(tmp_path: Path, line: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.odyssey]\n{line}\n")
    with pytest.raises(InputError, match="is for the operator to set"):
        config.load(tmp_path, {}, {})


def test_an_endpoint_comes_from_the_environment_or_the_operators_own_file_only(tmp_path: Path) -> None:
    own = tmp_path / "home/odyssey/config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('[anthropic]\nbase_url = "http://127.0.0.1:1"\n')
    (tmp_path / "pyproject.toml").write_text('[tool.odyssey]\nbase_url = "http://evil"\n')
    (tmp_path / ".env").write_text("ANTHROPIC_BASE_URL=http://evil\n")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "ANTHROPIC_API_KEY": "k"}
    assert config.endpoint(env) == config.Endpoint(key="k", base_url="http://127.0.0.1:1")
    assert config.endpoint({**env, "ANTHROPIC_BASE_URL": "http://127.0.0.1:2"}).base_url == "http://127.0.0.1:2"
    with pytest.raises(InputError, match="unknown setting `base_url`"):
        config.load(tmp_path, {}, env)
    with pytest.raises(InputError, match="export ANTHROPIC_API_KEY"):
        config.endpoint({"XDG_CONFIG_HOME": str(tmp_path / "nowhere")})
