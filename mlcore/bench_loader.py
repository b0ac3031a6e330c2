"""What loading costs: photographs a second by number of threads, and how much a training step is slowed.

The step is measured in turns in one process: some steps on a batch that is there already, some on the stream's. A
stream's first steps of a turn are not counted: what they use was made while nobody waited.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlcore.config import SHARDS, Recipe
from mlcore.data.loader import Batch, Feed
from mlcore.data.shards.feed import AHEAD
from mlcore.data.shards.photos import Photos, find_photos
from mlcore.engines import Engine, engine_for
from mlcore.errors import RecipeError
from mlcore.session import assemble, use_threads

Tell = Callable[[str], None]
BATCHES = 12  # that a number of threads is measured by
STEPS = 4  # of a turn
UNCOUNTED = AHEAD + 1


@dataclass(frozen=True)
class Turn:
    """Seconds of a step on ready batches and of one on the stream's, each the mean of a turn."""

    ready_s: float
    stream_s: float


def bench_loader(recipe: Recipe, data: Path | None, threads: int, rounds: int, tell: Tell) -> dict[str, Any]:
    """Measure the stream of a recipe of photographs; RecipeError for another."""
    if recipe.data.dataset != SHARDS:
        raise RecipeError("no recipe of photographs in shards", place=recipe.name, fix="give alexnet_227")
    used = use_threads(threads)
    photos = find_photos(recipe.data, data, tell)
    decoding = [_decoding(photos, recipe, workers, tell) for workers in range(1, used + 1)]
    turns = _turns(recipe, photos, rounds, tell)
    ready, stream = (statistics.median(getattr(turn, name) for turn in turns) for name in ("ready_s", "stream_s"))
    ratio = statistics.median(turn.stream_s / turn.ready_s for turn in turns)
    return {
        "schema": "mlcore.loader-bench/1",
        "recipe": recipe.name,
        "precision": recipe.precision,
        "batch": recipe.train.batch,
        "threads": used,
        "decoding": decoding,
        "turns": len(turns),
        "ready_ms": 1e3 * ready,
        "stream_ms": 1e3 * stream,
        "slower_pct": 100 * (ratio - 1),
    }


def _decoding(photos: Photos, recipe: Recipe, workers: int, tell: Tell) -> dict[str, Any]:
    """Photographs a second of reading, decoding and cutting alone."""
    tell(f"decoding with {workers} threads")
    data = photos.data.model_copy(update={"workers": workers})
    feed = assemble_feed(replace(photos, data=data), recipe)
    batches = feed.batches(0, BATCHES + 1)
    next(batches)  # compiles, and fills what is made ahead
    wall, cpu, images = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        images += len(batch.labels)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"workers": workers, "images_per_s": images / wall, "cpu_ms_per_image": 1e3 * cpu / images}


def assemble_feed(photos: Photos, recipe: Recipe) -> Feed:
    """The training batches alone."""
    from mlcore.rng import Rng

    return photos.feeds(recipe.train.batch, Rng(recipe.seed)).train


def _turns(recipe: Recipe, photos: Photos, rounds: int, tell: Tell) -> list[Turn]:
    """Ready and streamed steps by turns; the first round, in which kernels compile, is not among them."""
    session = assemble(recipe, photos)
    engine, turns, at = engine_for(session), list[Turn](), 0
    ready = next(session.loader.batches(0, 1))
    for number in range(rounds + 1):
        tell(f"turn {number} of {rounds}")
        first = _steps(engine, iter([ready] * STEPS), STEPS)
        stream = session.loader.batches(at, at + UNCOUNTED + STEPS + AHEAD)
        _steps(engine, stream, UNCOUNTED)
        turns.append(Turn(first, _steps(engine, stream, STEPS)))
        at += UNCOUNTED + STEPS
    return turns[1:]


def _steps(engine: Engine, batches: Iterator[Batch], count: int) -> float:
    """Seconds of a step, waiting for its batch included; the weights are not moved, so that nothing overflows."""
    began = time.perf_counter()
    for number in range(count):
        engine.step(next(batches), number)
    return (time.perf_counter() - began) / count
