"""A plan: a network's stages, wired for one batch size, that train and evaluate it without a tape.

While a plan lives, it owns the weights: `take` loads them from the model and its optimiser, `give` writes them back.

Legend: N batch, C channel, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numba

from mlcore.kernels import loss, planes
from mlcore.kernels.panels import Move
from mlcore.kernels.precision import PRECISIONS
from mlcore.layers import Sequential
from mlcore.optim import SGD, Optimiser
from mlcore.planned.fuse import Unplannable
from mlcore.planned.stages import Weights
from mlcore.planned.wiring import wired
from mlcore.rng import Rng
from mlcore.tensor import Array

Shape = tuple[int, ...]


class Plan:
    """The stages of `model` for batches of up to `batch` images of `input_shape` (channels, height, width).

    precision: "fp32", or "bf16" for activations, gradients and the weights that are multiplied; sums, the weights that
    are moved, loss and logits stay float32. winograd: convolutions with fewer multiplications where that pays, in fp32;
    they lose about two bits. Unplannable when a layer has no planned form or kernels are not compiled.
    """

    def __init__(
        self,
        model: Sequential,
        optimiser: Optimiser,
        batch: int,
        input_shape: Shape,
        precision: str = "fp32",
        winograd: bool = True,
    ) -> None:
        if getattr(numba.config, "DISABLE_JIT"):  # noqa: B009  numba makes its settings at import
            raise Unplannable("the kernels of a plan exist in compiled form only")
        if not isinstance(optimiser, SGD) or optimiser.nesterov:
            raise Unplannable("only SGD with plain momentum has a planned form")
        self.model, self.optimiser, self.batch = model, optimiser, batch
        self.input, self.stages = wired(model, batch, input_shape, PRECISIONS[precision], winograd)
        self._count = 0
        self.take()

    def step(self, images_NCHW: Array, labels_N: Array, rate: float, rng: Rng) -> tuple[float, Array]:
        """One step of training: (mean loss, logits [N, K]), both from before the weights moved."""
        seen = self.forward(images_NCHW, labels_N, rng)
        self.backward()
        self.update(rate)
        return seen

    def forward(self, images_NCHW: Array, labels_N: Array, rng: Rng, share: float = 1.0) -> tuple[float, Array]:
        """(mean loss, logits [N, K]); the gradient of `share` times the loss is left for `backward`."""
        self._count = len(labels_N)
        logits = self._forward(images_NCHW, rng)
        mean, softmax = loss.cross_entropy_forward(logits, labels_N)
        self.stages[-1].out_grad.rows(self._count)[:] = loss.cross_entropy_backward(share, softmax, labels_N)
        return float(mean), logits

    def backward(self) -> None:
        """Gradients of everything, from the last `forward`; linear layers leave theirs to `update`."""
        for stage in reversed(self.stages):
            stage.backward(self._count)

    def backward_by_layer(self) -> Iterator[list[Array]]:
        """The same, and after each layer its weights' gradients themselves, for those who add to them: then `move`."""
        for stage in reversed(self.stages):
            stage.backward(self._count)
            yield stage.gradients(self._count)

    def move(self, rate: float, ready: Iterable[object]) -> None:
        """Move the weights by what `backward_by_layer` gave, a layer for each turn of `ready`, in the same order."""
        for stage, _ in zip(reversed(self.stages), ready, strict=True):
            stage.move(self._moves(stage.name, rate))

    def update(self, rate: float) -> None:
        """Move the weights by the last `backward`."""
        for stage in self.stages:
            stage.update(self._count, self._moves(stage.name, rate))

    def logits(self, images_NCHW: Array) -> Array:
        """The network's output [N, K], as in evaluation."""
        return self._forward(images_NCHW, None)

    def take(self) -> None:
        """Load weights and velocities from the model and the optimiser."""
        weights = {name: tensor.data for name, tensor in self.model.parameters().items()}
        for stage in self.stages:
            stage.take(_of(stage.name, weights), _of(stage.name, self.optimiser.velocities))

    def give(self) -> None:
        """Write weights and velocities back, in place."""
        parameters, velocities = self.model.parameters(), self.optimiser.velocities
        for stage in self.stages:
            weights, moving = stage.give()
            for part, values in weights.items():
                parameters[f"{stage.name}.{part}"].data[...] = values
                velocities[f"{stage.name}.{part}"][...] = moving[part]

    @property
    def buffer_bytes(self) -> int:
        """What the planes between the stages take."""
        there = [p.array for stage in self.stages for p in (stage.out, stage.out_grad)]
        memory = {
            id(a if a.base is None else a.base): a if a.base is None else a.base for a in (self.input.array, *there)
        }
        return sum(each.nbytes for each in memory.values())

    def _forward(self, images_NCHW: Array, rng: Rng | None) -> Array:
        count = len(images_NCHW)
        planes.load_images(images_NCHW, self.input.array, self.input.grid)
        for stage in self.stages:
            stage.forward(count, rng)
        return self.stages[-1].out.rows(count).copy()

    def _moves(self, layer: str, rate: float) -> dict[str, Move]:
        known, decay, rates = self.optimiser.momentum, self.optimiser.decay, self.optimiser.rates
        names = {part: f"{layer}.{part}" for part in ("weight", "bias")}
        return {part: Move(rate * rates[name], known, decay[name]) for part, name in names.items() if name in rates}


def _of(layer: str, arrays: Mapping[str, Array]) -> Weights:
    """One layer's arrays, by parameter."""
    return {name.removeprefix(f"{layer}."): array for name, array in arrays.items() if name.startswith(f"{layer}.")}
