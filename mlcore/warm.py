"""Filling the compile cache ahead of the first step, and telling a person what takes so long.

What was warmed is remembered beside the compiled code, so that the next start does not even look.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np

from mlcore import models, ops
from mlcore.autograd import no_grad
from mlcore.config import Precision, Recipe
from mlcore.data.views import BATCH
from mlcore.engines import planned
from mlcore.init import together
from mlcore.kernels import jit
from mlcore.kernels.ahead import Job, compile_all, jobs_of
from mlcore.kernels.native import this_machine
from mlcore.layers import Sequential
from mlcore.optim import SGD, Adam, Optimiser
from mlcore.rng import Rng
from mlcore.tensor import Tensor

Shape = tuple[int, ...]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """A network to be trained: model, options and input as `models.build` takes them, and how the recipe trains it."""

    model: str
    options: Mapping[str, Any]
    input_shape: Shape
    classes: int
    batch: int
    precision: Precision = "fp32"
    optimiser: str = "sgd"

    @classmethod
    def of_model(cls, name: str, batch: int) -> Wanted:
        """A model as it was made."""
        shape, classes = models.INPUTS[name]
        return cls(name, {}, shape, classes, batch)

    @classmethod
    def of_recipe(cls, recipe: Recipe, input_shape: Shape, classes: int) -> Wanted:
        """A recipe's network, for images of a dataset."""
        network = recipe.model.name, recipe.model.options, input_shape, classes
        return cls(*network, recipe.train.batch, recipe.precision, recipe.optimiser.name)

    def optimiser_of(self, model: Sequential) -> Optimiser:
        """Of the recipe's kind, with usual options: what is run and how long it takes does not depend on them."""
        return SGD(model.parameters(), 0.9) if self.optimiser == "sgd" else Adam(model.parameters())


@dataclass(frozen=True)
class Warmed:
    """How many kernels a network needs, and the seconds it took to have them."""

    model: str
    kernels: int
    seconds: float


def warm(wanted: Wanted, tell: Tell, again: bool = False) -> Warmed:
    """Have every kernel of training and evaluating the network in the cache; `tell` gets a line for each.

    Does nothing for a network that was warmed before on this machine, unless `again`.
    """
    began, mark = time.perf_counter(), _mark(wanted)
    if mark is not None and mark.exists() and not again:
        return Warmed(wanted.model, 0, 0.0)
    jobs = jobs_of(lambda: _train_and_evaluate(wanted))

    def tell_job(number: int, job: Job) -> None:
        tell(f"compiling kernel {number + 1} of {len(jobs)} for {wanted.model}: {job.name}")

    compile_all(jobs, tell_job, share=numba.get_num_threads() > 1)
    if mark is not None:
        with contextlib.suppress(OSError):
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
    return Warmed(wanted.model, len(jobs), time.perf_counter() - began)


def _mark(wanted: Wanted) -> Path | None:
    """The empty file that says so: it lies where the code lies and is named after all that the code depends on."""
    folder = jit.cache_folder()
    if folder is None:
        return None
    here = Path(__file__).parent
    files = [jit.stamp(here / part) for part in (".", "planned", "lanes", "models", "layers")]
    about = [
        asdict(wanted), asdict(this_machine()), numba.get_num_threads(), numba.__version__, llvmlite.__version__, files,
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    return folder / "warm" / name


def _train_and_evaluate(wanted: Wanted) -> None:
    """One step and one evaluation of blank images, by a network that is thrown away."""
    rng = Rng(0)
    with together(really=False):
        model = models.build(wanted.model, wanted.options, rng, wanted.input_shape, wanted.classes)
    optimiser = wanted.optimiser_of(model)
    x = np.zeros((wanted.batch, *wanted.input_shape), np.float32)
    labels = np.zeros(wanted.batch, np.int64)
    plan = planned(model, optimiser, wanted.batch, wanted.input_shape, wanted.precision)
    if plan:
        plan.step(x, labels, 0.0, rng)
        plan.logits(x)
        return
    _step_on_tape(model, optimiser, x, labels, rng)
    with no_grad():
        model(Tensor(np.zeros((BATCH, *wanted.input_shape), np.float32)), None)


def _step_on_tape(model: Sequential, optimiser: Optimiser, x: Any, labels: Any, rng: Rng) -> None:
    optimiser.zero_grad()
    ops.cross_entropy(model(Tensor(x), rng), labels).backward()
    optimiser.step(0.0)
