"""What each command does once it was parsed; every function returns the document that the command prints."""

import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mlcore import config, runs
from mlcore.checkpoint import Checkpoint, newest
from mlcore.data.dataset import Dataset
from mlcore.data.fetch import Places, copy_to, find
from mlcore.data.images import Normaliser
from mlcore.data.kinds import kind_of
from mlcore.data.mnist import MNIST, SURROGATE
from mlcore.data.pictures import read_pictures
from mlcore.display import Plain, Quiet, choose, now_and_then, passing_line, telling
from mlcore.errors import CheckFailed, CheckpointError, DataError, Interrupted, RecipeError

TRAIN_COUNT = 60_000
MODEL_BATCH = 128  # what a model without a recipe is summed up for


@dataclass(frozen=True)
class TrainRequest:
    """The arguments of `mlcore train`."""

    recipe: str | None
    overrides: tuple[str, ...]
    data: Path | None
    out: Path | None
    go_on: bool
    resume: Path | None
    pictures: bool
    quiet: bool
    seeds: int | None = None


def train_command(request: TrainRequest) -> dict[str, Any]:
    """Train, resume or continue; result.json's document with the run's folder under "run".

    Of several seeds side by side it is the document of seeds.json, whether all finished or not.
    """
    from mlcore.group import is_group
    from mlcore.parallel import join
    from mlcore.stop import Halted, listening

    _demand_sense(request)
    if request.seeds or (request.resume and is_group(request.resume)):
        return _train_seeds(request)
    team = join()
    with listening() as stop, team.together():
        try:
            return _train(request, stop, team)
        except Halted as halted:
            raise Interrupted("stopped before the first step", signal_number=halted.number) from halted


def _train(request: TrainRequest, stop: Any, team: Any) -> dict[str, Any]:
    run = runs.Run(request.resume) if request.resume else None
    recipe = _told_recipe(request, run, team)
    data = request.data or _existing(team.told(lambda: str((run and _data_dir_of(run)) or "")))
    threading.Thread(target=import_module, args=("mlcore.launch",)).start()  # while data come from the disk and zlib
    dataset = team.in_turn(lambda: find_any(recipe, data, request.quiet or not team.leads))
    team.same("dataset", json.dumps(dataset.sha256, sort_keys=True))
    from mlcore.launch import Order, execute, started

    display = choose(request.quiet, dataset.surrogate) if team.leads else Quiet(io.StringIO())
    run = run or runs.Run(
        Path(team.told(lambda: str(started(recipe, dataset, request.out, request.go_on, display).path)))
    )
    display.say(f"training {recipe.name}, seed {recipe.seed}, on {dataset.name} from {dataset.path}, into {run.path}")
    order = Order(request.overrides, data, request.pictures, team)
    return {**execute(run, recipe, dataset, display, order, stop), "run": str(run.path)}


def _told_recipe(request: TrainRequest, run: runs.Run | None, team: Any) -> config.Recipe:
    """The recipe as the leader reads it: its files need not be on other machines."""

    def text() -> str:
        return config.to_toml(run.load_recipe() if run else config.load(str(request.recipe), request.overrides))

    return config.parse(team.told(text), "the recipe")


def _train_seeds(request: TrainRequest) -> dict[str, Any]:
    from mlcore import crew, group
    from mlcore.parallel import ranks_started
    from mlcore.session import network_input, use_threads
    from mlcore.warm import Wanted, warm

    if ranks_started() > 1:
        raise RecipeError("several seeds among several ranks", place="mpirun", fix="leave mpirun or --seeds away")
    tell = _say_nothing if request.quiet else _say
    if request.resume:
        chosen = group.load_group(request.resume)
        recipe = chosen.recipe()
    else:
        recipe = config.load(str(request.recipe), request.overrides)
        data = _root_of(recipe, find_any(recipe, request.data, request.quiet), request.data)
        seeds = tuple(range(recipe.seed, recipe.seed + (request.seeds or 1)))
        wanted = group.Group(Path(), seeds, request.overrides, data, request.pictures)
        chosen = group.begin(recipe, wanted, request.out, request.go_on)
    use_threads(crew.shares(recipe, len(chosen.seeds), os.environ)[1])
    warm(Wanted.of_recipe(recipe, *network_input(recipe)), now_and_then(tell))  # once, not in every process
    return group.summarise(chosen, crew.train(chosen, tell))


def _root_of(recipe: config.Recipe, dataset: Any, data: Path | None) -> str:
    """What every seed is given as --data, so that it finds what was found here."""
    if recipe.data.dataset != config.SHARDS:
        return str(dataset.path.resolve())
    from mlcore.data.shards.files import Roots

    return str(Roots.of(data, os.environ).folders[0].resolve())


def evaluate_command(folder: Path, data: Path | None) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run on the test images."""
    from mlcore.data.feeds import evaluated
    from mlcore.data.shards.faults import Faults
    from mlcore.evaluate import evaluate
    from mlcore.session import use_threads

    run = runs.Run(folder)
    recipe, found = run.load_recipe(), _checkpoint_of(run)
    dataset = find_any(recipe, data or _existing(found.state.data_dir), quiet=False)
    use_threads(recipe.threads)
    faults = Faults()
    if recipe.data.dataset == config.SHARDS:
        stream = dataset.tested(_normaliser(found), faults)
    else:
        stream = evaluated(recipe.data, dataset.test_images, dataset.test_labels, _normaliser(found))
    seen = evaluate(_model(recipe, found), stream)
    for line in faults.lines():
        _say(f"warning: {line}")
    return {
        "schema": "mlcore.evaluation/1",
        "run": str(folder),
        "step": found.state.step,
        "data": {"name": dataset.name, "surrogate": dataset.surrogate, "sha256": dataset.sha256},
        "images": len(seen.predictions),
        "test_loss": seen.loss,
        "test_error_pct": seen.error_pct,
        "verdict": "not measured on MNIST" if dataset.surrogate else None,
    }


def predict_command(folder: Path, images: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One object per image: its file, its number in the file, the class, and the class's name where it has one."""
    from mlcore.data.feeds import evaluated
    from mlcore.evaluate import evaluate

    run = runs.Run(folder)
    recipe, found = run.load_recipe(), _checkpoint_of(run)
    model, normaliser, (read, names) = _model(recipe, found), _normaliser(found), _reader(recipe.data)
    for path in images:
        stream = evaluated(recipe.data, read(path), None, normaliser)
        for index, number in enumerate(evaluate(model, stream).predictions.tolist()):
            name = names[number]
            named = {} if name == str(number) else {"name": name}
            yield {"image": str(path), "index": index, "class": number, **named}


def _reader(data: config.Data) -> tuple[Callable[[Path], Any], Sequence[str]]:
    """How a picture of the user's is read for a recipe's network, and what the classes are called."""
    if data.dataset == config.SHARDS:
        from mlcore.data.shards.photos import read_photo

        return lambda path: read_photo(path, data), [str(number) for number in range(data.classes or 0)]
    kind = kind_of(data.dataset)
    return lambda path: read_pictures(path, kind.image_shape), kind.class_names


def summary_command(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The network of a recipe, or of a model's name as it was made, layer by layer."""
    from mlcore.models import INPUTS, build
    from mlcore.rng import Rng
    from mlcore.session import build_model, network_input
    from mlcore.summary import summarise

    if recipe in INPUTS and not overrides:
        summary, batch = summarise(build(recipe, {}, Rng(0)), INPUTS[recipe][0], MODEL_BATCH), MODEL_BATCH
        return {"schema": "mlcore.summary/1", "recipe": recipe, "batch": batch, **asdict(summary)}
    loaded = config.load(recipe, overrides)
    summary = summarise(build_model(loaded), network_input(loaded)[0], loaded.train.batch)
    return {"schema": "mlcore.summary/1", "recipe": loaded.name, "batch": loaded.train.batch, **asdict(summary)}


def init_command(recipe: str, out: Path, seed: int | None) -> dict[str, Any]:
    """The first weights and buffers of a recipe's network, or of a model's as it was made, as safetensors."""
    from safetensors.numpy import save

    from mlcore.files import write_bytes
    from mlcore.models import INPUTS, build
    from mlcore.rng import Rng
    from mlcore.session import build_model

    if recipe in INPUTS:
        model = build(recipe, {}, Rng(seed or 0))
    else:
        loaded = config.load(recipe, [] if seed is None else [f"seed={seed}"])
        model = build_model(loaded)
    try:
        write_bytes(out, save({name: tensor.data for name, tensor in model.state().items()}))
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", place=str(out), fix="choose another --out") from error
    count = sum(tensor.data.size for tensor in model.parameters().values())
    return {"schema": "mlcore.init/1", "recipe": recipe, "parameters": count, "path": str(out)}


def fetch_command(name: str, data: Path | None, out: Path | None, count: int | None, surrogate: bool) -> dict[str, Any]:
    """Where a dataset is and what it is."""
    name = SURROGATE if name == "surrogate" else name
    kind = kind_of(name)
    if count and (name != SURROGATE or out is None):
        raise RecipeError(
            "--count is of a surrogate", place="mlcore fetch", fix="write: mlcore fetch surrogate --count N --out DIR"
        )
    if name == SURROGATE and out and not data:
        dataset = _draw(out, count or TRAIN_COUNT)
    else:
        dataset = find(name, Places.of(data, os.environ), surrogate, _say)
        dataset = kind.read_folder(copy_to(dataset, out)) if out else dataset
    return {
        "schema": "mlcore.dataset/1",
        "name": dataset.name,
        "surrogate": dataset.surrogate,
        "path": str(dataset.path),
        "train_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
        "test_labels": dataset.test_labels is not None,
        "sha256": dataset.sha256,
        "warnings": list(dataset.warnings),
    }


def gradcheck_command(model: str | None) -> dict[str, Any]:
    """Every gradient against central differences."""
    from mlcore.gradcheck import run_gradcheck

    rows = [{**asdict(row), "passed": row.ok} for row in run_gradcheck(model)]
    return {"schema": "mlcore.gradcheck/1", "passed": all(row["passed"] for row in rows), "rows": rows}


def check_command(recipe: str, overrides: Sequence[str], data: Path | None, quiet: bool) -> dict[str, Any]:
    """The learning smoke checks."""
    from mlcore.check import run_checks
    from mlcore.engines import demand_engine
    from mlcore.session import use_threads

    loaded = config.load(recipe, overrides)
    demand_engine(loaded)
    dataset = find_dataset(loaded, data, quiet)
    use_threads(loaded.threads)
    rows = []
    with passing_line(quiet, dataset.surrogate) as show:
        show("checking")
        for row in run_checks(loaded, dataset):
            rows.append(asdict(row))
            show(f"checking: {len(rows)} done, the last {'ok' if row.passed else 'FAIL'}: {row.name}")
    return {
        "schema": "mlcore.check/1",
        "recipe": {"name": loaded.name, "sha256": loaded.sha256},
        "data": {"name": dataset.name, "surrogate": dataset.surrogate, "sha256": dataset.sha256},
        "passed": all(row["passed"] for row in rows),
        "checks": rows,
    }


def demand_passed(document: dict[str, Any]) -> None:
    """Raise CheckFailed, naming what failed, unless the document says passed."""
    rows = document.get("checks") or document.get("rows") or []
    failed = [str(row["name"]) for row in rows if not row["passed"]]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(rows)} failed: {', '.join(failed)}", fix="see the table above")


def find_any(recipe: config.Recipe, data: Path | None, quiet: bool) -> Any:
    """The recipe's dataset, in memory or in shards, from wherever it can be had."""
    if recipe.data.dataset != config.SHARDS:
        return find_dataset(recipe, data, quiet)
    from mlcore.data.shards.photos import find_photos

    with telling(quiet) as tell:
        photos = find_photos(recipe.data, data, tell)
    for warning in photos.warnings:
        _say(f"warning: {photos.path}: {warning}")
    return photos


def find_dataset(recipe: config.Recipe, data: Path | None, quiet: bool) -> Dataset:
    """The recipe's dataset in memory, from wherever it can be had."""
    if recipe.data.dataset == config.SHARDS:
        raise RecipeError(
            "this command is for datasets in memory", place="data.dataset", fix="for shards see `mlcore data check`"
        )
    say = _say_warnings if quiet else _say
    return find(recipe.data.dataset, Places.of(data, os.environ), recipe.data.surrogate, say)


def _demand_sense(request: TrainRequest) -> None:
    place = "mlcore train"
    if request.resume and (request.recipe or request.overrides or request.out or request.go_on):
        raise RecipeError(
            "--resume takes all from the run", place=place, fix="leave recipe, overrides, --out and --continue away"
        )
    if not request.resume and not request.recipe:
        raise RecipeError("no recipe", place=place, fix="write for example: mlcore train lenet5_mnist")
    if request.resume and request.seeds:
        raise RecipeError("--resume knows its seeds", place=place, fix="leave --seeds away")
    if request.go_on and not request.out:
        raise RecipeError("--continue needs the folder", place=place, fix="add --out DIR")


def _checkpoint_of(run: runs.Run) -> Checkpoint:
    found = newest(run.checkpoints, Plain().warn)
    if found is None or not found.weights:
        raise CheckpointError(
            "no weights yet", place=str(run.path), fix=f"go on with `mlcore train --resume {run.path}`"
        )
    return found


def _data_dir_of(run: runs.Run) -> Path | None:
    found = newest(run.checkpoints, _say_nothing)
    return _existing(found.state.data_dir) if found else None


def _existing(folder: str | None) -> Path | None:
    return Path(folder) if folder and Path(folder).is_dir() else None


def _model(recipe: config.Recipe, found: Checkpoint) -> Any:
    from mlcore.session import build_model, load_weights

    model = build_model(recipe)
    load_weights(model, found.weights)
    return model


def _normaliser(found: Checkpoint) -> Normaliser:
    moments = found.group("normaliser")
    return Normaliser(moments["mean"], moments["deviation"])


def _draw(out: Path, count: int) -> Dataset:
    from mlcore.data.surrogate import write_surrogate

    _say(f"drawing SURROGATE digits into {out}: numbers made from them are not measured on MNIST")
    try:
        return kind_of(MNIST).read_folder(write_surrogate(out, count, max(count // 6, 1)))
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", place=str(out), fix="choose another --out") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_warnings(text: str) -> None:
    if text.startswith("warning: "):
        _say(text)


def _say_nothing(text: str) -> None:
    pass
