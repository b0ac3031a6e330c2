"""The moving parts that a recipe and a dataset make together: model, optimiser, schedule, batches."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mlcore import kernels, models, ops
from mlcore import schedule as schedules
from mlcore.checkpoint import Arrays
from mlcore.config import Recipe
from mlcore.data.dataset import CLASSES, SIDE, Dataset
from mlcore.data.images import Normaliser
from mlcore.data.loader import Batch, Loader, Part, shuffled, split
from mlcore.errors import CheckpointError, RecipeError
from mlcore.layers import Sequential
from mlcore.optim import OPTIMISERS, Optimiser
from mlcore.result import usable_cores
from mlcore.rng import Rng
from mlcore.tensor import Array, Tensor

INPUT_SHAPE = (1, SIDE, SIDE)


@dataclass(frozen=True)
class Session:
    """One training under way. `validation` is empty when the recipe holds nothing out."""

    recipe: Recipe
    rng: Rng
    model: Sequential
    optimiser: Optimiser
    schedule: schedules.Schedule
    loader: Loader
    validation: Part
    total_steps: int

    @property
    def normaliser(self) -> Normaliser:
        return self.loader.normaliser

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.recipe.optimiser.rate * self.schedule(step, self.total_steps)

    def arrays(self) -> Arrays:
        """Weights, buffers and the optimiser's memory, as a checkpoint keeps them; those of the model are live."""
        weights = {f"model/{name}": tensor.data for name, tensor in self.model.state().items()}
        return weights | {f"optimiser/{name}": array for name, array in self.optimiser.state().items()}


def assemble(recipe: Recipe, dataset: Dataset) -> Session:
    """Build everything anew from the recipe's seed; RecipeError for what can't be built."""
    rng, data = Rng(recipe.seed), recipe.data
    if data.validation + max(data.limit, 1) > len(dataset.train_labels):
        raise RecipeError(
            f"{data.validation} held out and {max(data.limit, 1)} to train on exceed the "
            f"{len(dataset.train_labels)} training images",
            place="data.validation, data.limit",
            fix="lower one of them",
        )
    part, validation = split(dataset.train_images, dataset.train_labels, data.validation, data.limit, rng)
    part = shuffled(part, rng) if data.shuffle_labels else part
    model, optimiser = network(recipe, rng)
    loader = Loader(part, recipe.train.batch, Normaliser.of(dataset.train_images), rng.child("loader"))
    steps = recipe.train.epochs * loader.steps_per_epoch
    return Session(
        recipe=recipe,
        rng=rng,
        model=model,
        optimiser=optimiser,
        schedule=schedules.build(recipe.schedule.name, recipe.schedule.options),
        loader=loader,
        validation=validation,
        total_steps=steps if recipe.train.steps is None else min(steps, recipe.train.steps),
    )


def build_model(recipe: Recipe, rng: Rng | None = None) -> Sequential:
    """The recipe's network with its first weights."""
    stream = (rng or Rng(recipe.seed)).child("model")
    return models.build(recipe.model.name, recipe.model.options, stream, INPUT_SHAPE, CLASSES)


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
    text = environ.get("MLCORE_THREADS", "")
    if not wanted and text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise RecipeError(f"{text!r} is no number of threads", place="MLCORE_THREADS", fix="give a number above 0")
    return kernels.prepare(wanted or int(text or usable_cores()))


def network(recipe: Recipe, rng: Rng | None = None) -> tuple[Sequential, Optimiser]:
    """The recipe's network with its first weights, and its optimiser."""
    model, chosen = build_model(recipe, rng), recipe.optimiser
    make = OPTIMISERS[chosen.name]
    return model, make(model.parameters(), weight_decay=chosen.weight_decay, **chosen.options)
