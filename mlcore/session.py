"""The moving parts that a recipe and a dataset make together: model, optimiser, schedule, batches."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from mlcore import kernels, models, ops
from mlcore import schedule as schedules
from mlcore.checkpoint import Arrays
from mlcore.config import SHARDS, Recipe
from mlcore.data.dataset import Dataset, Shape
from mlcore.data.feeds import Feeds, in_memory, seen_shape
from mlcore.data.kinds import kind_of
from mlcore.data.loader import Batch, Feed
from mlcore.data.shards.photos import Photos, photo_shape
from mlcore.data.views import Stream
from mlcore.errors import CheckpointError, RecipeError
from mlcore.layers import Sequential
from mlcore.optim import OPTIMISERS, Optimiser
from mlcore.paces import paces_of
from mlcore.result import usable_cores
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor

AnyDataset: TypeAlias = Dataset | Photos


@dataclass(frozen=True)
class Session:
    """One training under way; `input_shape`: (C, H, W) of what the network sees of an image."""

    recipe: Recipe
    rng: Rng
    model: Sequential
    optimiser: Optimiser
    schedule: schedules.Schedule
    feeds: Feeds
    input_shape: Shape
    total_steps: int

    @property
    def loader(self) -> Feed:
        """The training batches."""
        return self.feeds.train

    @property
    def validation(self) -> Stream:
        """What was held out of training; empty when the recipe holds nothing out."""
        return self.feeds.validation

    def rate(self, step: int, drops: int = 0) -> float:
        """The learning rate of a step, after so many plateaus of the validation error."""
        epoch = step // self.loader.steps_per_epoch
        return self.recipe.optimiser.rate * self.schedule(schedules.Place(step, self.total_steps, epoch, drops))

    def arrays(self) -> Arrays:
        """Weights, buffers, the optimiser's memory and how images are normalised, as a checkpoint keeps them.

        Those of the model are live.
        """
        weights = {f"model/{name}": tensor.data for name, tensor in self.model.state().items()}
        memory = {f"optimiser/{name}": array for name, array in self.optimiser.state().items()}
        return weights | memory | self.measured()

    def measured(self) -> Arrays:
        """How images are normalised: what follows from the data, while all else begins as recipe and seed say."""
        scale = self.feeds.normaliser
        return {"normaliser/mean": scale.mean, "normaliser/deviation": scale.deviation}


def assemble(recipe: Recipe, dataset: AnyDataset) -> Session:
    """Build everything anew from the recipe's seed; RecipeError for what can't be built."""
    rng = Rng(recipe.seed)
    if isinstance(dataset, Photos):
        feeds = replace(dataset, data=recipe.data).feeds(recipe.train.batch, rng)
    else:
        feeds = in_memory(recipe.data, recipe.train.batch, dataset, rng)
    model, optimiser = network(recipe, rng)
    steps = recipe.train.epochs * feeds.train.steps_per_epoch
    return Session(
        recipe=recipe,
        rng=rng,
        model=model,
        optimiser=optimiser,
        schedule=schedules.build(recipe.schedule.name, recipe.schedule.options),
        feeds=feeds,
        input_shape=network_input(recipe)[0],
        total_steps=steps if recipe.train.steps is None else min(steps, recipe.train.steps),
    )


def network_input(recipe: Recipe) -> tuple[Shape, int]:
    """(C, H, W) of what the recipe's network sees of an image, and how many classes it tells apart."""
    if recipe.data.dataset == SHARDS:
        return seen_shape(recipe.data, photo_shape(recipe.data)), recipe.data.classes or 0
    kind = kind_of(recipe.data.dataset)
    return seen_shape(recipe.data, kind.image_shape), len(kind.class_names)


def build_model(recipe: Recipe, rng: Rng | None = None) -> Sequential:
    """The recipe's network with its first weights."""
    stream = (rng or Rng(recipe.seed)).child("model")
    return models.build(recipe.model.name, recipe.model.options, stream, *network_input(recipe))


def load_weights(model: Sequential, weights: Arrays) -> None:
    """Replace a model's weights and buffers; CheckpointError when names, shapes or types differ."""
    parameters = model.state()
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))
        raise CheckpointError(f"the weights are another model's: {odd}", fix="use the recipe they were saved with")
    for name, tensor in parameters.items():
        saved = weights[name]
        if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
            raise CheckpointError(
                f"saved as {saved.dtype}{list(saved.shape)}, wanted {tensor.dtype}{list(tensor.shape)}",
                place=name,
                fix="use the recipe it was saved with",
            )
        tensor.data[...] = saved


def forward_backward(session: Session, batch: Batch, step: int) -> tuple[float, Array]:
    """Loss and logits [N, classes] of a batch; the gradients are left in the parameters."""
    session.optimiser.zero_grad()
    logits = session.model(Tensor(batch.images), session.rng.child("step", step))
    scores = logits.data
    loss = ops.cross_entropy(logits, batch.labels)
    loss.backward()
    return loss.item(), scores


def use_threads(wanted: int, environ: Mapping[str, str] = os.environ) -> int:
    """Give the kernels `wanted` threads; 0: as MLCORE_THREADS says, else one per usable core. Returns the number."""
    return kernels.prepare(threads_wanted(wanted, environ))


def threads_wanted(wanted: int, environ: Mapping[str, str] = os.environ) -> int:
    """The number that `use_threads` gives; RecipeError when MLCORE_THREADS is none."""
    text = environ.get("MLCORE_THREADS", "")
    if not wanted and text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise RecipeError(f"{text!r} is no number of threads", place="MLCORE_THREADS", fix="give a number above 0")
    return wanted or int(text or usable_cores())


def network(recipe: Recipe, rng: Rng | None = None) -> tuple[Sequential, Optimiser]:
    """The recipe's network with its first weights, and its optimiser."""
    model, chosen = build_model(recipe, rng), recipe.optimiser
    make = OPTIMISERS[chosen.name]
    return model, make(model.parameters(), paces=paces_of(chosen, model.parameters()), **chosen.options)
