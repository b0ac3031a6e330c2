"""What `mlcore data shards`, `check` and `stats` do; every function returns the document that is printed."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlcore.data.shards.catalogue import Catalogue
from mlcore.data.shards.decode import Look
from mlcore.data.shards.files import Roots, shard_files
from mlcore.data.shards.scan import open_catalogue
from mlcore.display import telling
from mlcore.errors import RecipeError
from mlcore.result import usable_cores


@dataclass(frozen=True)
class ShardsOrder:
    """The arguments of `mlcore data shards`. first: the number that the list's first class has."""

    source: str
    out: Path
    labels: Path | None
    classes: Path | None
    first: int
    making: Any


def shards_command(order: ShardsOrder, data: Path | None, workers: int, quiet: bool) -> dict[str, Any]:
    """Make shards, or go on making them; what index.json says of them, but for the list of shards."""
    from mlcore.data.shards.faults import Faults
    from mlcore.data.shards.make import make_shards
    from mlcore.data.shards.originals import originals, read_truth

    if order.classes and not order.labels:
        raise RecipeError("--classes explains the numbers of --labels", place="mlcore data shards", fix="give both")
    roots, faults = Roots.of(data, os.environ), Faults()
    with telling(quiet) as tell:
        truth = read_truth(order.labels, order.classes, order.first, faults) if order.labels else None
        pictures = originals(order.source, truth, roots, faults, tell)
        began = time.perf_counter()
        made = make_shards(pictures, order.out, order.making, faults, order.source, _workers(workers), tell)
    seconds = time.perf_counter() - began
    kept = {key: made[key] for key in ("images", "side", "classes", "counts", "left_out", "making", "source")}
    return {
        **kept,
        "schema": "mlcore.shards-made/1",
        "path": str(order.out),
        "shards": len(made["shards"]),
        "s": seconds,
    }


def check_shards_command(name: str, data: Path | None, pictures: bool, workers: int, quiet: bool) -> dict[str, Any]:
    """Hold shards against what is known of them."""
    from mlcore.data.shards.verify import Verified, check_files, check_pictures, lacking

    roots, look = Roots.of(data, os.environ), Look(_workers(workers))
    with telling(quiet) as tell:
        files = shard_files(name, roots)
        rows = [*lacking(files), *check_files(files, tell)]
        document: dict[str, Any] = {"images": None, "counts": None}
        if all(row.passed for row in rows):
            catalogue = open_catalogue(files, roots, look, tell)
            document = {"images": len(catalogue), "counts": catalogue.counts()}
            rows += [Verified("catalogue", line, False) for line in catalogue.faults.lines()]
            rows += [check_pictures(catalogue, look, tell)] if pictures else []
    passed = all(row.passed for row in rows)
    return {"schema": "mlcore.shards-check/1", "passed": passed, **document, "rows": [asdict(row) for row in rows]}


def stats_command(name: str, side: int, data: Path | None, workers: int, quiet: bool) -> dict[str, Any]:
    """The mean colour and the colours' covariance of a split, measured unless they are known."""
    from mlcore.data.shards.stats import statistics_of

    roots, look = Roots.of(data, os.environ), Look(_workers(workers))
    with telling(quiet) as tell:
        catalogue = open_catalogue(shard_files(name, roots), roots, look, tell)
        made, path = statistics_of(catalogue, side_of(catalogue, side), roots.cache, look, tell)
    return {
        "schema": "mlcore.statistics/1",
        "path": str(path),
        "images": made.count,
        "side": made.total.shape[0],
        "mean_colour": made.mean_colour.tolist(),
        "covariance": made.covariance.tolist(),
        "axes": made.axes.tolist(),
    }


def side_of(catalogue: Catalogue, wanted: int) -> int:
    """The side of the squares: the one wanted, else all pictures' shorter side; RecipeError when these differ."""
    if side := wanted or catalogue.side:
        return side
    raise RecipeError("the pictures' shorter sides differ", place=str(catalogue.home), fix="set data.side (--side)")


def _workers(wanted: int) -> int:
    return wanted or usable_cores()
