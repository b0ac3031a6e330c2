"""Stochastic gradient descent with momentum and weight decay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlcore.errors import CheckpointError
from mlcore.kernels import elementwise
from mlcore.tensor import Array, Tensor


class SGD:
    """v = momentum * v + gradient + weight_decay * w, then w -= rate * v (PyTorch's form, Sutskever et al. 2013).

    Biases are not decayed: they don't make the function steeper, and pulling them to zero only shifts it. A bias is
    a parameter whose name ends in "bias"; `decay_biases=True` decays all alike, as PyTorch does by default.
    A parameter whose `grad` is None is left alone.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        decay_biases: bool = False,
    ) -> None:
        self.parameters = dict(parameters)
        self.momentum, self.nesterov = momentum, nesterov
        self._velocity = {name: np.zeros_like(p.data) for name, p in self.parameters.items()}
        self.decay = {
            name: weight_decay if decay_biases or not name.endswith("bias") else 0.0 for name in self.parameters
        }

    def step(self, rate: float) -> None:
        """Move every parameter against its gradient; `rate` is this step's learning rate."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                elementwise.sgd_update(
                    parameter.data,
                    np.ascontiguousarray(parameter.grad),
                    self._velocity[name],
                    rate,
                    self.momentum,
                    self.decay[name],
                    self.nesterov,
                )

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @property
    def velocities(self) -> Mapping[str, Array]:
        """The velocities themselves, by parameter name."""
        return self._velocity

    def state(self) -> dict[str, Array]:
        """Copies of the velocities by parameter name: with the weights, all that a resume needs."""
        return {name: velocity.copy() for name, velocity in self._velocity.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Go on from `state`; CheckpointError if its names, shapes or dtypes are not this optimiser's."""
        if set(state) != set(self._velocity):
            odd = sorted(set(state) ^ set(self._velocity))
            raise CheckpointError(
                f"the optimiser's state does not fit the model: {odd}", fix="use the recipe it was saved with"
            )
        for name, velocity in self._velocity.items():
            saved = state[name]
            if saved.shape != velocity.shape or saved.dtype != velocity.dtype:
                raise CheckpointError(
                    f"the saved velocity is {saved.dtype}{list(saved.shape)}, not "
                    f"{velocity.dtype}{list(velocity.shape)}",
                    place=name,
                    fix="use the recipe it was saved with",
                )
            velocity[...] = saved
