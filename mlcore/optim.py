"""Optimisers: stochastic gradient descent with momentum, and Adam, behind one small protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from mlcore.errors import CheckpointError
from mlcore.kernels import elementwise
from mlcore.tensor import Array, Tensor


@dataclass(frozen=True)
class Pace:
    """How one parameter moves: `rate` multiplies the step's learning rate, `decay` is its own L2 coefficient."""

    rate: float
    decay: float


Paces: TypeAlias = Mapping[str, Pace]  # by parameter


class Optimiser(Protocol):
    """Moves parameters by their gradients."""

    def step(self, rate: float) -> None:
        """Move every parameter against its gradient; `rate` is this step's learning rate."""

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""

    def state(self) -> dict[str, Array]:
        """Copies of what it remembers: with the weights, all that a resume needs."""

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Go on from `state`; CheckpointError if its names, shapes or dtypes are not this optimiser's."""


class _Remembering:
    """What the optimisers share: parameters, their rates and weight decay, and named arrays that are the memory.

    Biases are not decayed: they don't make the function steeper, and pulling them to zero only shifts it. A bias is
    a parameter whose name ends in "bias"; `decay_biases=True` decays all alike, as PyTorch does by default.
    `paces`, by parameter, say otherwise for those they name. A parameter whose `grad` is None is left alone.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], weight_decay: float, decay_biases: bool, paces: Paces | None
    ) -> None:
        self.parameters = dict(parameters)
        usual = {name: Pace(1.0, _usual_decay(name, weight_decay, decay_biases)) for name in self.parameters}
        paces = {**usual, **(paces or {})}
        assert paces.keys() == usual.keys(), "a pace of no parameter"
        self.rates = {name: pace.rate for name, pace in paces.items()}
        self.decay = {name: pace.decay for name, pace in paces.items()}

    def step(self, rate: float) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self._move(name, parameter.data, np.ascontiguousarray(parameter.grad), rate * self.rates[name])

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._memory().items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        memory = self._memory()
        if set(state) != set(memory):
            odd = sorted(set(state) ^ set(memory))
            raise CheckpointError(
                f"the optimiser's state does not fit the model: {odd}", fix="use the recipe it was saved with"
            )
        for name, array in memory.items():
            saved = state[name]
            if saved.shape != array.shape or saved.dtype != array.dtype:
                raise CheckpointError(
                    f"the optimiser's state is {saved.dtype}{list(saved.shape)}, not {array.dtype}{list(array.shape)}",
                    place=name,
                    fix="use the recipe it was saved with",
                )
            array[...] = saved

    def _zeros(self) -> dict[str, Array]:
        return {name: np.zeros(parameter.shape, parameter.data.dtype) for name, parameter in self.parameters.items()}

    def _memory(self) -> dict[str, Array]:
        """The arrays themselves, by name."""
        raise NotImplementedError

    def _move(self, name: str, weight: Array, grad: Array, rate: float) -> None:
        raise NotImplementedError


class SGD(_Remembering):
    """v = momentum * v + gradient + weight_decay * w, then w -= rate * v (PyTorch's form, Sutskever et al. 2013).

    AlexNet and cuda-convnet have the rate inside: v = momentum * v - weight_decay * rate * w - rate * gradient, then
    w += v. At a constant rate both make the same steps, for their v is -rate times ours. Where the rate drops they
    part: theirs coasts at the old rate's speed, which dies out in about 1 / (1 - momentum) steps, while here the speed
    drops at once. From rate to rate / 10, theirs goes 0.9 * rate * momentum / (1 - momentum) * v further in all.
    Biases don't decay unless asked to, and a parameter without a gradient is left alone: see `_Remembering`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        decay_biases: bool = False,
        paces: Paces | None = None,
    ) -> None:
        super().__init__(parameters, weight_decay, decay_biases, paces)
        self.momentum, self.nesterov = momentum, nesterov
        self._velocity = self._zeros()

    @property
    def velocities(self) -> Mapping[str, Array]:
        """The velocities themselves, by parameter name."""
        return self._velocity

    def _memory(self) -> dict[str, Array]:
        return self._velocity

    def _move(self, name: str, weight: Array, grad: Array, rate: float) -> None:
        velocity, decay = self._velocity[name], self.decay[name]
        elementwise.sgd_update(weight, grad, velocity, rate, self.momentum, decay, self.nesterov)


class Adam(_Remembering):
    """Steps of about `rate` in each weight: the gradient's running mean over the root of its running square.

    Both means begin at zero and are corrected for it. weight_decay is added to the gradient (L2), as in PyTorch's
    Adam, not taken from the weight directly. Biases don't decay unless asked to; a parameter without a gradient is
    left alone. Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decay_biases: bool = False,
        paces: Paces | None = None,
    ) -> None:
        super().__init__(parameters, weight_decay, decay_biases, paces)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self._mean, self._square = self._zeros(), self._zeros()
        self._steps = np.zeros(1, np.int64)

    def step(self, rate: float) -> None:
        self._steps += 1
        super().step(rate)

    def _memory(self) -> dict[str, Array]:
        means = {f"mean/{name}": array for name, array in self._mean.items()}
        return means | {f"square/{name}": array for name, array in self._square.items()} | {"steps": self._steps}

    def _move(self, name: str, weight: Array, grad: Array, rate: float) -> None:
        how = (rate, self.beta1, self.beta2, self.epsilon, self.decay[name])
        elementwise.adam_update(weight, grad, self._mean[name], self._square[name], int(self._steps[0]), *how)


def _usual_decay(name: str, weight_decay: float, decay_biases: bool) -> float:
    return weight_decay if decay_biases or not name.endswith("bias") else 0.0


# By the names that a recipe knows. Each is called with the parameters, their paces and its own options.
OPTIMISERS: dict[str, Callable[..., Optimiser]] = {"sgd": SGD, "adam": Adam}
