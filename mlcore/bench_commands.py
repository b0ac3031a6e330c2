"""What `mlcore bench`, `profile` and `warm` do; every function returns the document that the command prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlcore import config
from mlcore.commands import MODEL_BATCH, find_dataset
from mlcore.display import telling
from mlcore.errors import RecipeError


def bench_command(order: Any, out: Path | None, quiet: bool) -> dict[str, Any]:
    """A race; its document is also written to `out`."""
    from mlcore.bench import bench
    from mlcore.files import write_json

    with telling(quiet) as tell:
        document = bench(order, tell)
    if out:
        write_json(out, document)
    return document


def bench_recipe_command(
    recipe: str, against: Sequence[str], data: Path | None, threads: int, rounds: int, out: Path | None, quiet: bool
) -> dict[str, Any]:
    """A race over whole runs of a recipe; its document is also written to `out`."""
    from mlcore.files import write_json
    from mlcore.peers import torch_module
    from mlcore.runrace import race_runs

    if list(against) not in ([], ["torch"]):
        raise RecipeError(f"no whole runs against {', '.join(against)}", place="mlcore bench", fix="known: torch")
    loaded = config.load(recipe)
    _demand_a_twin(loaded, recipe)
    torch_module()
    dataset = find_dataset(loaded, data, quiet)
    with telling(quiet) as tell:
        document = race_runs(recipe, loaded.seed, dataset.path, threads, rounds, tell)
    document["data"] = {"name": dataset.name, "surrogate": dataset.surrogate, "sha256": dataset.sha256}
    if out:
        write_json(out, document)
    return document


def _demand_a_twin(recipe: config.Recipe, place: str) -> None:
    """RecipeError for the first thing that PyTorch's side of a race over whole runs does not do."""
    data, train = recipe.data, recipe.train
    missing = {
        "read photographs": data.dataset == config.SHARDS,
        "normalise but by one mean and one deviation": data.normalise != "scalar",
        "test but the centre view": data.views != "centre",
        "shuffle labels": data.shuffle_labels,
        "train but by SGD": recipe.optimiser.name != "sgd",
        "train but in fp32": recipe.precision != "fp32",
        "end early": bool(
            recipe.schedule.name == "plateau" or train.stop_after or train.keep_best or train.stop_at_pct
        ),
    }
    for what, asked in missing.items():
        if asked:
            raise RecipeError(f"whole runs against torch don't {what}", place=place, fix="race another recipe")


def bench_loader_command(
    recipe: str, data: Path | None, threads: int, rounds: int, out: Path | None, quiet: bool
) -> dict[str, Any]:
    """What the stream of a recipe costs; its document is also written to `out`."""
    from mlcore.bench_loader import bench_loader
    from mlcore.files import write_json

    with telling(quiet) as tell:
        document = bench_loader(config.load(recipe), data, threads, rounds, tell)
    if out:
        write_json(out, document)
    return document


def bench_set_command(order: Any, folder: Path, page: Path | None, quiet: bool) -> dict[str, Any]:
    """All races of the documentation; with `page`, its tables are rewritten."""
    from mlcore.benchset import page as tables
    from mlcore.benchset import run_set, write_page

    with telling(quiet) as tell:
        document = run_set(folder, order, tell)
    if page:
        write_page(page, tables(document))
    return document


def bench_ranks_command(order: Any, ranks: int, page: Path | None, out: Path | None, quiet: bool) -> dict[str, Any]:
    """What several processes gain, for a model or for those of the documentation, whose tables `page` holds."""
    from mlcore import scaling
    from mlcore.bench import demand_known
    from mlcore.benchset import write_page
    from mlcore.files import write_json
    from mlcore.models import INPUTS

    models = [order.model] if order.model else scaling.MODELS
    for model in models:
        demand_known(model, list(INPUTS))
    with telling(quiet) as tell:
        races = [scaling.scaling(model, order.batch, ranks, order.rounds, tell) for model in models]
    document = {"schema": "mlcore.scaling-set/1", "races": races}
    if page:
        write_page(page, scaling.page(races))
    if out:
        write_json(out, document)
    return document


def profile_command(name: str, batch: int | None, threads: int, steps: int, quiet: bool) -> dict[str, Any]:
    """The time of each layer and direction of a recipe's or a model's training."""
    from mlcore.profile import profile
    from mlcore.session import use_threads

    wanted, own_threads = _wanted(name)
    used = use_threads(threads or own_threads)
    with telling(quiet) as tell:
        return profile(replace(wanted, batch=batch or wanted.batch), used, steps, tell)


def warm_command(names: Sequence[str], threads: int, quiet: bool) -> dict[str, Any]:
    """Compile the kernels of recipes and models; of all shipped recipes without names."""
    from mlcore.session import use_threads
    from mlcore.warm import warm

    rows = []
    with telling(quiet) as tell:
        for name in names or sorted(path.stem for path in config.RECIPES.glob("*.toml")):
            wanted, own_threads = _wanted(name)
            use_threads(threads or own_threads)
            tell(f"looking at {name}")
            rows.append({"name": name, **asdict(warm(wanted, tell, again=True))})
    return {"schema": "mlcore.warm/1", "rows": rows}


def _wanted(name: str) -> tuple[Any, int]:
    """The network of a recipe or a model, and the recipe's number of threads (0: all)."""
    from mlcore.models import INPUTS
    from mlcore.session import network_input
    from mlcore.warm import Wanted

    if name in INPUTS:
        return Wanted.of_model(name, MODEL_BATCH), 0
    recipe = config.load(name, [])
    return Wanted.of_recipe(recipe, *network_input(recipe)), recipe.threads
