"""Settings: flag > environment > project > user, each with its origin. Also the tiers.

A project's settings stand in `pyproject.toml` under `[tool.odyssey]`; a person's in `~/.config/odyssey/config.toml`.
What could send a key elsewhere (endpoints, credentials) is never read from the project: whoever wrote the repository
is not whoever pays.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestrator.errors import InputError, Problem
from orchestrator.frontmatter import unknown_key
from orchestrator.prices import Price
from orchestrator.records import RiskLevel, Tier

STATE_FOLDER = ".odyssey"
ENV_PREFIX = "ODYSSEY_"

MODELS: dict[Tier, str] = {
    "haiku": "claude-haiku-5-5",
    "sonnet": "claude-sonnet-5-5",
    "opus": "claude-opus-5-5",
}
# Tokens of prompt after which a conversation is handed over to a fresh one. The cheapest tier costs five times as much
# above 100,000.
WINDOWS: dict[Tier, int] = {"haiku": 90_000, "sonnet": 160_000, "opus": 160_000}
NO_WINDOW = 10**9  # of a procedure
PROVIDERS = ("none", "anthropic", "mailbox", "replay:FILE")


class Settings(BaseModel):
    """Everything that can be set. `tests` names what the gate runs at each risk; higher risks include the lower."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parallel: int = Field(default=2, ge=1, le=256, description="tasks, and commands, at work side by side")
    max_turns: int = Field(default=50, ge=1, le=1000, description="turns of one attempt")
    command_minutes: float = Field(
        default=60, gt=0, allow_inf_nan=False, description="the longest that one command may run"
    )
    memory_gb: float = Field(default=8, gt=0, allow_inf_nan=False, description="memory of one command in the sandbox")
    data: Path | None = Field(default=None, description="folder with the datasets; else MLCORE_DATA, cache, download")
    provider: str = Field(
        default="none",
        pattern=r"^(none|anthropic|mailbox|replay:.+)$",
        description=f"who answers as the language model: {', '.join(PROVIDERS)}",
    )
    models: dict[Tier, str] = Field(default=MODELS, description="the model's id of each tier")
    prices: dict[str, Price] = Field(default={}, description="prices of models, beside the table of our own")
    unsafe_no_sandbox: bool = Field(default=False, description="run without a sandbox; stamped on every receipt")
    tests: dict[RiskLevel, tuple[str, ...]] = Field(
        default={"low": (), "medium": ("tests",), "high": ("tests",)}, description="what the gate runs at each risk"
    )

    @field_validator("models")
    @classmethod
    def _all_tiers(cls, models: dict[Tier, str]) -> dict[Tier, str]:
        return {**MODELS, **models}

    @property
    def threads(self) -> int:
        """What one command may use, so that all of them together use what there is."""
        return max(1, len(os.sched_getaffinity(0)) // self.parallel)


# Not for the project to say: a repository must not talk its way out of the sandbox, nor spend its reader's money.
OPERATOR_ONLY = frozenset({"unsafe_no_sandbox", "data", "provider", "models", "prices"})


class Endpoint(BaseModel):
    """Where the calls go and with whose key: from the operator's environment or config.toml, never from a project.

    It is read anew whenever it is needed and is part of no record, so that no repository and no state folder that came
    with one can send the key elsewhere.
    """

    model_config = ConfigDict(frozen=True)

    key: str = Field(repr=False)
    base_url: str | None


def window(tier: Tier) -> int:
    """Tokens of prompt after which a conversation on this tier is handed over."""
    return WINDOWS.get(tier, NO_WINDOW)


def endpoint(env: Mapping[str, str] = os.environ) -> Endpoint:
    """Raises InputError, with what to set, when there is no key."""
    own = _table(_toml(_user_file(env)), "anthropic")
    base_url = env.get("ANTHROPIC_BASE_URL") or own.get("base_url")
    key = env.get("ANTHROPIC_API_KEY") or ("local" if base_url else "")
    if not key:
        fix = "export ANTHROPIC_API_KEY=..., or ANTHROPIC_BASE_URL for a local server, or use --provider mailbox"
        raise InputError(f"the provider `anthropic` needs a key; {fix}")
    return Endpoint(key=key, base_url=base_url)


def _user_file(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "odyssey" / "config.toml"


def load(root: Path, flags: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> tuple[Settings, dict[str, str]]:
    """Settings, and where each came from. Raises InputError naming the file and key."""
    user = _user_file(env)
    layers = [
        ("user", str(user), {key: value for key, value in _toml(user).items() if key != "anthropic"}),
        ("project", "pyproject.toml", _table(_table(_toml(root / "pyproject.toml"), "tool"), "odyssey")),
        ("environment", "environment", _environment(env)),
        ("flag", "flags", {key: value for key, value in flags.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    origin = dict.fromkeys(Settings.model_fields, "default")
    for layer, place, found in layers:
        for key, value in found.items():
            if key not in Settings.model_fields:
                raise InputError(
                    [Problem(place, 0, f"unknown setting `{key}`", unknown_key(key, Settings.model_fields))]
                )
            if layer == "project" and key in OPERATOR_ONLY:
                raise InputError([Problem(place, 0, f"`{key}` is for the operator to set", "give it as a flag")])
            values[key], origin[key] = value, layer
    try:
        return Settings(**values), origin
    except ValidationError as error:
        places = {layer: place for layer, place, _ in layers}
        raise InputError([_refused(item["loc"], item["msg"], places, origin) for item in error.errors()]) from error


def _refused(loc: tuple[int | str, ...], message: str, places: Mapping[str, str], origin: Mapping[str, str]) -> Problem:
    place = places[origin[str(loc[0])]]
    return Problem(place, 0, f"`{'.'.join(map(str, loc))}`: {message}", "write another value")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise InputError([Problem(str(path), 0, f"can't be read: {error}", "mend the file")]) from error


def _table(parent: dict[str, Any], name: str) -> dict[str, Any]:
    found = parent.get(name, {})
    if not isinstance(found, dict):
        raise InputError([Problem("pyproject.toml", 0, f"`{name}` is not a table", f"write `[...{name}]`")])
    return found


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    names = {f"{ENV_PREFIX}{key.upper()}": key for key in Settings.model_fields}
    found = {key: env[name] for name, key in names.items() if env.get(name)}
    if "data" not in found and env.get("MLCORE_DATA"):
        found["data"] = env["MLCORE_DATA"]
    return found
