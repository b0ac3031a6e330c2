"""Several seeds of a recipe side by side: a process and a run's folder for each, under the folder of the group.

GROUP/recipe.toml   the resolved recipe      GROUP/s1, s2, ...   the runs, as RESULT.md says
GROUP/group.json    what was asked for       GROUP/seeds.json    the summary, written last
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mlcore import config
from mlcore.config import Recipe
from mlcore.errors import DataError, GroupFailed, RecipeError
from mlcore.files import write_bytes, write_json
from mlcore.runs import fresh_folder

ORDER, SUMMARY, SCHEMA = "group.json", "seeds.json", "mlcore.seeds/1"
SUMMED = ("test_error_pct", "validation_error_pct", "test_top5_error_pct", "wall_s")


@dataclass(frozen=True)
class Group:
    """What was asked for; `data`: the dataset's folder, `overrides`: as typed."""

    path: Path
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    data: str
    pictures: bool

    def save(self, recipe: Recipe) -> None:
        """Write recipe and order; DataError when that can't be done."""
        try:
            write_bytes(self.path / "recipe.toml", config.to_toml(recipe).encode())
            write_json(self.path / ORDER, {**asdict(self), "path": None})
        except OSError as error:
            raise DataError(f"can't be written ({error.strerror})", place=str(self.path), fix="make room") from error

    def recipe(self) -> Recipe:
        """The recipe of all seeds."""
        return config.load(str(self.path / "recipe.toml"))

    def arguments(self, seed: int) -> list[str]:
        """`mlcore` with these trains a seed or goes on with it."""
        out = self.path / f"s{seed}"
        kept = [*self.overrides, f"seed={seed}", "--data", self.data, "--out", str(out), "--continue", "--json"]
        plain = [] if self.pictures else ["--no-pictures"]
        return ["train", str(self.path / "recipe.toml"), *kept, *plain]


def is_group(folder: Path) -> bool:
    """Whether a folder is a group's."""
    return (folder / ORDER).is_file()


def load_group(folder: Path) -> Group:
    """The group in a folder; RecipeError when its order can't be read."""
    try:
        said = json.loads((folder / ORDER).read_bytes())
        return Group(folder, tuple(said["seeds"]), tuple(said["overrides"]), said["data"], said["pictures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError("can't be read", place=str(folder / ORDER), fix="start the seeds anew") from error


def begin(recipe: Recipe, wanted: Group, out: Path | None, go_on: bool) -> Group:
    """The group in its folder: `out`, or runs/<time>-<recipe>-xN. With `go_on`, `out` may hold the same group."""
    if out is None:
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.name}-x{len(wanted.seeds)}"
        group = replace(wanted, path=fresh_folder(Path("runs") / name))
    else:
        group = replace(wanted, path=out)
        _demand_place(group, recipe, go_on)
    group.path.mkdir(parents=True, exist_ok=True)
    group.save(recipe)
    return group


def _demand_place(group: Group, recipe: Recipe, go_on: bool) -> None:
    """RecipeError when the folder holds anything but, with `go_on`, this very group."""
    place, out = str(group.path), group.path
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (go_on and is_group(out)):
        raise RecipeError("is not empty", place=place, fix="add --continue if it holds these seeds, or choose another")
    if load_group(out).seeds != group.seeds or load_group(out).recipe() != recipe:
        raise RecipeError("holds other seeds, or another recipe's", place=place, fix="choose another --out")


def demand_finished(summary: dict[str, Any]) -> None:
    """GroupFailed, with the exit code of the first run that failed, unless all finished."""
    failed = [row for row in summary["runs"] if row["status"] != "finished"]
    if failed:
        said = "; ".join(f"seed {row['seed']}: {row['error']}" for row in failed)
        raise GroupFailed(f"{len(failed)} of {len(summary['runs'])} seeds failed: {said}", code=failed[0]["exit_code"])


def summarise(group: Group, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary of what the seeds' processes said, written into the group's folder; DataError when it can't be."""
    summary = _summary(group, documents)
    try:
        write_json(group.path / SUMMARY, summary)
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", place=str(group.path), fix="make room") from error
    return summary


def _summary(group: Group, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    recipe = group.recipe()
    rows = [_row(group, seed, document) for seed, document in zip(group.seeds, documents, strict=True)]
    done = [document for document in documents if document.get("status") == "finished"]
    return {
        "schema": SCHEMA,
        "group": str(group.path),
        "recipe": {"name": recipe.name, "overrides": list(group.overrides)},
        "data": done[0]["data"] if done else None,
        "verdict": done[0]["verdict"] if done else None,
        "runs": rows,
        "over_seeds": {key: _spread([row[key] for row in rows]) for key in SUMMED},
    }


def _row(group: Group, seed: int, document: dict[str, Any]) -> dict[str, Any]:
    of_run = {key: document.get(key) for key in ("status", *SUMMED, "steps", "weights_sha256")}
    failed = document.get("status") != "finished"
    error = {"error": document.get("message") if failed else None, "exit_code": document.get("exit_code", 0)}
    return {"seed": seed, "run": str(group.path / f"s{seed}"), **of_run, **error}


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Of the seeds that have the number: mean, sample standard deviation (from two on), lowest and highest."""
    found = [value for value in values if value is not None]
    if not found:
        return {"mean": None, "deviation": None, "lowest": None, "highest": None}
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.fmean(found), "deviation": deviation, "lowest": min(found), "highest": max(found)}
