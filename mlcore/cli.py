"""The `mlcore` command: parse, call, print. What is slow to import is imported when a command needs it.

Exit codes: 0 done · 1 unexpected · 2 recipe, data, checkpoint or usage at fault · 4 a NaN or an infinity stopped
training · 5 a check failed · 130 Ctrl-C · 143 SIGTERM (after both: resumable).
stdout is data (with --json one document), stderr is talk.
"""

import atexit
import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mlcore import __version__
from mlcore.cli_data import data_app
from mlcore.errors import Interrupted, MlcoreError, RecipeError

app = typer.Typer(
    help="Train small networks on a CPU, fast and reproducibly.\n\nFirst steps: `mlcore check lenet5_mnist`, then "
    "`mlcore train lenet5_mnist`.\n\nExit codes: 0 done, 2 recipe/data/usage, 4 NaN or infinity, 5 check failed, "
    "6 another rank failed or hung, "
    "130 Ctrl-C, 143 SIGTERM.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(data_app, name="data")

SHIPPED = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.toml"))
RECIPE_HELP = f"A .toml file, or a shipped recipe: {', '.join(SHIPPED)}."
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)]
RecipeOrModel = Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help=f"{RECIPE_HELP} Or a model: alexnet.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example train.epochs=3.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/20260101-120000-...")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="A folder that holds mnist/, cifar10/ or is it; where a recipe's shard names begin. Else MLCORE_DATA.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlcore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What every command shares: nothing but the version."""


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)] = None,
    overrides: Overrides = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder. Default: runs/<id>.")] = None,
    go_on: Annotated[bool, typer.Option("--continue", help="With --out: go on with the run that DIR holds.")] = False,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a stopped run or group.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="N", help="N runs side by side, of the recipe's seed and on.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Draw curves and mistakes, write TensorBoard events.")] = True,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe; prints the run's folder and its test error.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint and prints the command that goes on. A resumed run
    ends with the same bits as one that was never stopped.

    Example: mlcore train lenet5_mnist seed=7 train.epochs=3

    Example: mlcore train --resume runs/20260101-120000-lenet5_mnist-s7

    Example: mlcore train lenet5_mnist --seeds 3
    """
    with _uncollected():
        from mlcore import launch  # noqa: F401  all that training needs
        from mlcore.commands import TrainRequest, train_command
        from mlcore.group import demand_finished
        from mlcore.tables import seeds_table

    request = TrainRequest(recipe, tuple(overrides or ()), data, out, go_on, resume, pictures, quiet, seeds)
    document = train_command(request)
    if "over_seeds" in document:
        _print(document, as_json, seeds_table)
        return demand_finished(document)
    _print(document, as_json, lambda d: f"run={d['run']} test_error_pct={d['test_error_pct']}")


@app.command()
def evaluate(run: RunFolder, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Evaluate a run's newest sound checkpoint on the test images.

    Example: mlcore evaluate runs/20260101-120000-lenet5_mnist-s1
    """
    from mlcore.commands import evaluate_command

    _print(evaluate_command(run, data), as_json, lambda d: f"step={d['step']} test_error_pct={d['test_error_pct']}")


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="IDX files, CIFAR batches or pictures.")],
) -> None:
    """Print the class of each image, as one JSON object per line.

    There is no --json since the output is JSON already: {"image": "digit.png", "index": 0, "class": 7}

    Pictures are made as large as the dataset's; for MNIST grey, and dark ink on light paper is inverted.

    Example: mlcore predict runs/20260101-120000-lenet5_mnist-s1 digit.png
    """
    from mlcore.commands import predict_command

    for line in predict_command(run, images):
        typer.echo(json.dumps(line))


@app.command()
def summary(recipe: RecipeOrModel, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Show a network's shapes, parameters and memory.

    Per layer: the output's shape, parameters, multiply-accumulates of an image, KiB of activations of a batch.

    Example: mlcore summary lenet5_mnist

    Example: mlcore summary alexnet
    """
    from mlcore.commands import summary_command
    from mlcore.tables import summary_table

    _print(summary_command(recipe, overrides or []), as_json, summary_table)


@app.command()
def init(
    recipe: RecipeOrModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the safetensors file goes.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Of the weights; else the recipe's own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the weights that a network begins with, without any data.

    Example: mlcore init alexnet --out alexnet.safetensors
    """
    from mlcore.commands import init_command

    _print(init_command(recipe, out, seed), as_json, lambda d: f"{d['parameters']:,} parameters in {d['path']}")


@app.command()
def fetch(
    dataset: Annotated[str, typer.Argument(metavar="[mnist|cifar10|surrogate]")] = "mnist",
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the files into DIR.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Of a surrogate: how many training images.")] = None,
    surrogate: Annotated[bool, typer.Option(help="Let drawn digits stand in when MNIST can't be had.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find, download or draw a dataset; print where it is.

    Example: mlcore fetch mnist

    Example: mlcore fetch cifar10 --out data/cifar10

    Example: mlcore fetch surrogate --out data/mnist-surrogate --count 6000
    """
    from mlcore.commands import fetch_command

    document = fetch_command(dataset, data, out, count, surrogate)
    _print(document, as_json, lambda d: f"{d['name']} {d['path']}")


@app.command()
def gradcheck(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="For example lenet5; all ops without.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every gradient with central differences.

    All in float64; exit 5 when one is off.

    Example: mlcore gradcheck lenet5
    """
    from mlcore.commands import demand_passed, gradcheck_command
    from mlcore.tables import gradcheck_table

    document = gradcheck_command(model)
    _print(document, as_json, gradcheck_table)
    demand_passed(document)


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="For example alexnet.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="torch or torch-bf16 (all its modes), or a contender by its full name."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Whole runs of a recipe, process start to test error.")
    ] = None,
    loader: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="What the stream of a recipe of photographs costs.")
    ] = None,
    data: DataOption = None,
    forward: Annotated[bool, typer.Option("--forward", help="Evaluation instead of training steps.")] = False,
    batch: Annotated[int, typer.Option(min=1)] = 128,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Undisturbed turns wanted of each contender.")] = 9,
    the_set: Annotated[
        Path | None, typer.Option("--set", metavar="DIR", help="All races of the documentation, kept in DIR.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=0, help="Several processes instead: what they gain, here and on more.")] = 0,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --set or --ranks: a page whose tables to renew.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the JSON document there.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Race training steps against PyTorch, in turns.

    Medians, ratios, CPU time, memory, share of the machine's measured peak.

    Example: mlcore bench alexnet --against torch --against torch-bf16

    Example: mlcore bench --recipe lenet5_mnist_fast --rounds 3

    Example: mlcore bench --loader alexnet_227 --data photographs

    Example: mlcore bench --set build/bench --page docs/performance.md

    Example: mlcore bench --ranks 2 --page docs/parallel.md
    """
    from mlcore.bench import Order
    from mlcore.bench_commands import (
        bench_command,
        bench_loader_command,
        bench_ranks_command,
        bench_recipe_command,
        bench_set_command,
    )
    from mlcore.benchset import page as markdown
    from mlcore.tables import bench_table, loader_table, run_race_table

    if ranks > 1:
        from mlcore.scaling import page as scaling_page

        document = bench_ranks_command(Order(model or "", (), batch, rounds=rounds), ranks, page, out, quiet)
        return _print(document, as_json, lambda d: scaling_page(d["races"]))
    if sum(given is not None for given in (model, the_set, recipe, loader)) != 1:
        said = "one of MODEL, --recipe, --loader, --set and --ranks is wanted"
        raise RecipeError(said, place="mlcore bench", fix="write: mlcore bench alexnet")
    if loader:
        return _print(bench_loader_command(loader, data, threads, rounds, out, quiet), as_json, loader_table)
    if recipe:
        document = bench_recipe_command(recipe, against or (), data, threads, rounds, out, quiet)
        return _print(document, as_json, run_race_table)
    order = Order(model or "", against or (), batch, threads, rounds, forward)
    if the_set:
        _print(bench_set_command(order, the_set, page, quiet), as_json, markdown)
    else:
        _print(bench_command(order, out, quiet), as_json, bench_table)


@app.command()
def profile(
    name: RecipeOrModel,
    batch: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's, or 128.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Default: the recipe's.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps that medians are taken of.")] = 7,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show where a training step's time goes.

    Per layer and direction: ms, GFLOP/s, GB/s, share of the measured peak.

    Example: mlcore profile alexnet --threads 2
    """
    from mlcore.bench_commands import profile_command
    from mlcore.tables import profile_table

    _print(profile_command(name, batch, threads, steps, quiet), as_json, profile_table)


@app.command()
def warm(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE|MODEL]...", help="All shipped recipes without."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="As in training. Default: the recipe's.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a network's kernels ahead of its training.

    Two processes share the work; training then starts from the cache.

    Example: mlcore warm lenet5_mnist alexnet
    """
    from mlcore.bench_commands import warm_command
    from mlcore.tables import warm_table

    _print(warm_command(names or [], threads, quiet), as_json, warm_table)


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: DataOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check that data arrive intact and the network can learn.

    Six checks; exit 5 when one fails.

    Example: mlcore check lenet5_mnist
    """
    from mlcore.commands import check_command, demand_passed
    from mlcore.tables import check_table

    document = check_command(recipe, overrides or [], data, quiet)
    _print(document, as_json, check_table)
    demand_passed(document)


def main() -> None:
    """The console script: every documented error becomes its message on stderr and its exit code."""
    _place_for_kernels()
    gc.set_threshold(100_000, 50, 1000)  # importing makes many objects, and all of them stay
    atexit.register(gc.freeze)  # else the interpreter's end looks through all that numba made: 0.2 s
    try:
        app()
    except MlcoreError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as halted:
        sys.exit(128 + getattr(halted, "number", 2))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: what importing makes stays, and looking through it again and again takes 0.1 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _place_for_kernels() -> None:
    """Where neither the package's folder nor a home can be written, let numba keep kernels in a temporary one."""
    cached = Path(__file__).parent / "kernels" / "__pycache__"
    writable = os.access(cached if cached.exists() else cached.parent, os.W_OK) or os.access(Path.home(), os.W_OK)
    if not os.environ.get("NUMBA_CACHE_DIR") and not writable:
        import tempfile

        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="mlcore-kernels-")


def _print(document: dict[str, Any], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    """The document, or its one line for people; a surrogate's says what it is."""
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    from mlcore.display import SURROGATE_LABEL

    label = SURROGATE_LABEL if _is_surrogate(document) else ""
    verdict = f" verdict: {document['verdict']}" if document.get("verdict") else ""
    typer.echo("\n".join(f"{label}{text}{verdict}" for text in line(document).splitlines()))


def _is_surrogate(document: dict[str, Any]) -> bool:
    data = document.get("data", document)
    return bool(isinstance(data, dict) and data.get("surrogate"))


def _print_error(error: MlcoreError) -> None:
    prefix = "" if isinstance(error, Interrupted) else "error: "
    for text in str(error).splitlines():
        typer.echo(f"{prefix}{text}", err=True)
    if "--json" in sys.argv[1:]:
        typer.echo(json.dumps({"schema": "mlcore.error/1", **error.as_json()}, indent=2))
