"""`mlcore data ...`: shards of photographs made, checked and measured. As in `cli`: parse, call, print."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

data_app = typer.Typer(
    help="Make, check and measure shards of photographs.", no_args_is_help=True, rich_markup_mode=None
)

Shards = Annotated[str, typer.Argument(metavar="SHARDS", help="A folder, a pattern, a list file (.txt) or an archive.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Where relative names begin; else MLCORE_DATA.")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, max=1024, help="Threads; 0: one per core.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
MOST = 1 << 26


@data_app.command()
def shards(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Class folders, archives, or ILSVRC's official ones.")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="The folder to fill; empty, or half done.")],
    side: Annotated[int, typer.Option(min=8, max=4096, help="The shorter side in pixels.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs.")] = 90,
    enlarge: Annotated[bool, typer.Option("--enlarge", help="Also make smaller pictures that large.")] = False,
    per_shard: Annotated[int, typer.Option(min=1, max=1_000_000, help="Pictures in a shard.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the mixing across classes.")] = 1,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Classes of an archive without: `class` or `name class` a line.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the numbers of --labels mean: a class a line.")
    ] = None,
    first: Annotated[int, typer.Option(min=0, max=1, help="The number of the first class.")] = 1,
    broken: Annotated[str, typer.Option(metavar="[refuse|skip]", help="What to do with broken pictures.")] = "refuse",
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger pictures are broken ones.")] = MOST,
    data: DataOption = None,
    workers: WorkersOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make tar shards of photographs.

    The shorter side is made 256 pixels, never enlarged unless asked. Killed at any moment, the same command goes on.

    Example: mlcore data shards ILSVRC2012_img_train.tar ilsvrc2012/train --broken skip

    Example: mlcore data shards ILSVRC2012_img_val.tar ilsvrc2012/val --labels truth.txt --classes synsets.txt
    """
    from mlcore.data.shards.make import Making
    from mlcore.errors import RecipeError
    from mlcore.shard_commands import ShardsOrder, shards_command

    if broken not in ("refuse", "skip"):
        raise RecipeError(f"'{broken}' is neither refuse nor skip", place="--broken", fix="write one of them")
    making = Making(side, quality, enlarge, per_shard, seed, max_pixels, broken == "refuse")
    order = ShardsOrder(source, out, labels, classes, first, making)
    _print(shards_command(order, data, workers, quiet), as_json, _made)


@data_app.command()
def check(
    shards: Shards,
    pictures: Annotated[bool, typer.Option("--pictures", help="Also decode every picture.")] = False,
    data: DataOption = None,
    workers: WorkersOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hold shards against their checksums.

    Exit 5 when one is missing, changed or broken.

    Example: mlcore data check ilsvrc2012/train
    """
    from mlcore.commands import demand_passed
    from mlcore.shard_commands import check_shards_command

    document = check_shards_command(shards, data, pictures, workers, quiet)
    _print(document, as_json, _checked)
    demand_passed(document)


@data_app.command()
def stats(
    shards: Shards,
    side: Annotated[int, typer.Option(min=0, max=4096, help="Of the central squares; 0: as the shards are.")] = 0,
    data: DataOption = None,
    workers: WorkersOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the mean image and the colours' covariance.

    Once: the result is kept beside the shards, or in the cache where that can't be written.

    Example: mlcore data stats ilsvrc2012/train
    """
    from mlcore.shard_commands import stats_command

    _print(stats_command(shards, side, data, workers, quiet), as_json, _measured)


def _made(document: dict[str, Any]) -> str:
    what = f"{document['images']:,} pictures of {len(document['classes'])} classes in {document['shards']} shards"
    left_out = [f"left out: {n} x {kind} (first: {place})" for kind, (n, place) in document["left_out"].items()]
    return "\n".join([f"{document['path']}: {what}", *left_out])


def _checked(document: dict[str, Any]) -> str:
    from mlcore.tables import columns

    rows = [(row["name"], "ok" if row["passed"] else "FAIL", row["saw"]) for row in document["rows"]]
    return columns([("what", "", "saw"), *rows])


def _measured(document: dict[str, Any]) -> str:
    mean = " ".join(f"{value:.4f}" for value in document["mean_colour"])
    sizes = " ".join(f"{sum(x * x for x in axis) ** 0.5:.4f}" for axis in document["axes"])
    head = f"{document['images']:,} squares of {document['side']} pixels"
    return f"{head}: mean colour {mean}, deviations along axes {sizes}\n{document['path']}"


def _print(document: dict[str, Any], as_json: bool, lines: Callable[[dict[str, Any]], str]) -> None:
    typer.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else lines(document))
