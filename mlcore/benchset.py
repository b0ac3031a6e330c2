"""The races whose tables stand in docs/performance.md: run in turn, each kept as JSON, then written as a page.

A race that is already in the folder is not run again, so a stopped set goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlcore.bench import Order, bench
from mlcore.errors import DataError
from mlcore.files import write_json
from mlcore.tables import bench_cells, bench_ratios, bench_title

RACES: dict[str, Order] = {
    "alexnet": Order("alexnet", ("torch",)),
    "alexnet-bf16": Order("alexnet", ("torch-bf16",)),
    "alexnet-forward": Order("alexnet", ("torch",), forward=True),
    "lenet5": Order("lenet5", ("torch",)),
    "mnist_cnn": Order("mnist_cnn", ("torch",)),
    "cuda_convnet": Order("cuda_convnet", ("torch",)),
    "resnet_small": Order("resnet_small", ("torch",)),
}
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def run_set(folder: Path, given: Order, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run what is not in `folder` yet, with the batch, threads and rounds of `given`; all documents by name."""
    from mlcore.models import INPUTS

    documents = {}
    for name, order in RACES.items():
        if order.model not in INPUTS:
            continue
        path = folder / f"{name}.json"
        if not path.exists():
            how = replace(order, batch=given.batch, threads=given.threads, rounds=given.rounds)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, bench(how, lambda text, name=name: tell(f"{name}: {text}")))  # type: ignore[misc]
        documents[name] = json.loads(path.read_text())
    return {"schema": "mlcore.bench-set/1", "races": documents}


def page(document: dict[str, Any]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(_section(race) for race in document["races"].values())


def _section(race: dict[str, Any]) -> str:
    head, rows = bench_cells(race)
    table = [head, ["---"] * len(head), *rows]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    notes = [f"- {text}" for text in bench_ratios(race)]
    notes += [f"- left out: {name}: {why}" for name, why in race["left_out"].items()]
    return "\n".join([f"### {bench_title(race)}", "", *lines, "", *notes])


def write_page(path: Path, tables: str) -> None:
    """Replace what stands between the two marks of a page; DataError when it has none."""
    try:
        before, rest = path.read_text().split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError) as error:
        raise DataError("no page with one place for the tables", place=str(path), fix=f"add {BEGIN} {END}") from error
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
