"""A plan in lanes: trains and evaluates a small network with one parallel region for a step's forward and backward.

While a plan lives, it owns the weights: `take` loads them from the model and its optimiser, `give` writes them back.

Legend: N batch, C channel, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numba
import numpy as np

from mlcore.kernels import lane_program
from mlcore.kernels.elementwise import dropout_seed
from mlcore.kernels.lane_kinds import Batch, Table
from mlcore.kernels.lane_program import Memory
from mlcore.lanes.layout import group_images
from mlcore.lanes.program import Network, network
from mlcore.layers import Sequential
from mlcore.optim import SGD, Optimiser
from mlcore.planned.fuse import Unplannable
from mlcore.rng import Rng
from mlcore.tensor import Array

Shape = tuple[int, ...]
NOBODY = np.zeros(0, np.int64)


class LanePlan:
    """`model` in lanes for batches of up to `batch` images of `input_shape` (channels, height, width).

    Unplannable when a layer has no form in lanes or kernels are not compiled. float32 only.
    """

    def __init__(self, model: Sequential, optimiser: Optimiser, batch: int, input_shape: Shape) -> None:
        if getattr(numba.config, "DISABLE_JIT"):  # noqa: B009  numba makes its settings at import
            raise Unplannable("the kernels of a plan exist in compiled form only")
        if not isinstance(optimiser, SGD):
            raise Unplannable("only SGD has a form in lanes")
        self.model, self.optimiser, self.batch = model, optimiser, batch
        self.lanes, self.network = group_images(), network(model, input_shape)
        self.evaluation = self.network.evaluation()
        self._training: dict[int, Table] = {}  # by the number of groups
        self.memory = _memory(self.network, -(-batch // self.lanes))
        self.velocity = np.zeros_like(self.memory.weights)
        self.spans, self.rates, self.decays = _spans(self.network, optimiser)
        self.work = 3 * model.macs(input_shape)
        self.take()

    def step(self, images_NCHW: Array, labels_N: Array, rate: float, rng: Rng) -> tuple[float, Array]:
        """One step of training: (mean loss, logits [N, K]), both from before the weights moved."""
        seen = self.forward(images_NCHW, labels_N, rng)
        self.update(rate)
        return seen

    def forward(self, images_NCHW: Array, labels_N: Array, rng: Rng) -> tuple[float, Array]:
        """(mean loss, logits [N, K]); the gradients are made on the way, while all that they need is in the cache."""
        seeds = [*(dropout_seed(rng.child(name).generator()) for name in self.network.dropouts), rng.before]
        seen = self._run(self.training(len(labels_N)), images_NCHW, labels_N, np.array(seeds, np.int64))
        return float(seen.losses.mean()), seen.logits

    def backward(self) -> None:
        """`forward` has done it."""

    def gradient(self, share: float) -> Array:
        """All gradients of the last `forward` in one array, of `share` times the loss; others may add to it."""
        self.memory.slope[:] *= np.float32(share)
        return self.memory.slope

    def update(self, rate: float) -> None:
        """Move the weights by the gradients of the last `forward`, or by what became of `gradient`'s."""
        lane_program.update(
            self.memory.weights, self.velocity, self.memory.slope, self.spans, rate * self.rates,
            self.decays, self.optimiser.momentum, self.optimiser.nesterov,
        )  # fmt: skip

    def logits(self, images_NCHW: Array) -> Array:
        """The network's output [N, K], as in evaluation; N may be any number."""
        return self._run(self.evaluation, images_NCHW, NOBODY, NOBODY).logits

    def training(self, images: int) -> Table:
        """The operations of a step of training with so many images."""
        groups = -(-images // self.lanes)
        if groups not in self._training:
            self._training[groups] = self.network.training(groups)
        return self._training[groups]

    def take(self) -> None:
        """Load weights and velocities from the model and the optimiser."""
        for flat, arrays in self._owned():
            for stage in self.network.weighted:
                stage.to_lanes(arrays[stage.weight.name], stage.weight.of(flat))
                stage.bias.of(flat)[:] = arrays[stage.bias.name]

    def give(self) -> None:
        """Write weights and velocities back, in place."""
        for flat, arrays in self._owned():
            for stage in self.network.weighted:
                arrays[stage.weight.name][...] = stage.from_lanes(stage.weight.of(flat))
                arrays[stage.bias.name][...] = stage.bias.of(flat)

    def _owned(self) -> Iterator[tuple[Array, Mapping[str, Array]]]:
        """What the plan owns, beside where it comes from, by parameter."""
        yield self.memory.weights, {name: tensor.data for name, tensor in self.model.parameters().items()}
        yield self.velocity, self.optimiser.velocities

    @property
    def group_bytes(self) -> int:
        """The activations of one group of images."""
        return self.network.arena.size

    @property
    def buffer_bytes(self) -> int:
        """What activations and gradients take."""
        memory = self.memory
        own = memory.activations.nbytes + memory.winners.nbytes
        return own + memory.grads.nbytes + memory.factors.nbytes + memory.slope.nbytes

    def _run(self, table: Table, images_NCHW: Array, labels_N: Array, seeds: Array) -> Batch:
        count = len(images_NCHW)
        logits = np.empty((count, self.network.stages[-1].out.channels), np.float32)
        batch = Batch(images_NCHW, labels_N, seeds, logits, np.empty(count))
        lane_program.run(count * self.work, table, self.lanes, self.memory, batch)
        return batch


def _memory(made: Network, groups: int) -> Memory:
    threads = numba.get_num_threads()
    return Memory(
        np.zeros((threads, made.arena.size // 4), np.float32),
        np.zeros((threads, made.winners.size), np.uint8),
        np.zeros((groups, made.parameters.size), np.float32),
        np.zeros((groups, made.factors.size // 4), np.float32),
        np.zeros(made.parameters.size, np.float32),
        np.zeros(made.parameters.size, np.float32),
        np.array(made.constants),
    )


def _spans(made: Network, optimiser: SGD) -> tuple[Array, Array, Array]:
    """Pieces of the parameters that the update deals out to threads; each one's multiple of the rate, and decay."""
    pieces = list(_pieces(made))
    rates, decays = ([of[name] for name, _, _ in pieces] for of in (optimiser.rates, optimiser.decay))
    return np.array([piece[1:] for piece in pieces], np.int64), np.array(rates), np.array(decays, np.float32)


def _pieces(made: Network) -> Iterator[tuple[str, int, int]]:
    for slot in made.parameters.slots:
        for start, stop in slot.pieces():
            yield slot.name, start, stop
