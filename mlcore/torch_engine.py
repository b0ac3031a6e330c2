"""Steps run by PyTorch (extra `peers`): network and updates are its own, everything around them stays mlcore's.

So both see the same first weights, batches, crops, colours, rates and test. Dropout draws masks of its own, from a seed
that each step has; sums are added in another order. PyTorch is imported when a session asks for it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from mlcore.data.loader import Batch
from mlcore.errors import RecipeError
from mlcore.optim import SGD
from mlcore.paces import paces_of
from mlcore.peers import grouped, peer_of, torch_module
from mlcore.session import Session
from mlcore.tensor import Array


class TorchEngine:
    """A session's network in PyTorch, channels last, which is the faster way there. An `Engine`."""

    def __init__(self, session: Session) -> None:
        self.torch, self.session = torch_module(), session
        if kept := next(iter(session.model.buffers()), None):
            raise RecipeError(f"no {kept} with PyTorch", place="engine", fix="drop engine, or batch normalisation")
        self.torch.set_num_threads(numba.get_num_threads())
        self.net = peer_of(session.model).to(memory_format=self.torch.channels_last)
        names = list(session.model.parameters())
        self.named = dict(zip(names, self.net.parameters(), strict=True))
        chosen = session.recipe.optimiser
        groups = grouped(self.named, paces_of(chosen, names))
        self.optimiser = self.torch.optim.SGD(groups, chosen.rate, chosen.options["momentum"], fused=True)
        self.take()

    def step(self, batch: Batch, number: int) -> tuple[float, Array]:
        self.net.train()
        rng = self.session.rng.child("step", number)
        self.torch.manual_seed(int(rng.generator().integers(2**31)))
        self.optimiser.zero_grad(set_to_none=True)
        logits = self.net(self._images(batch.images))
        loss = self.torch.nn.functional.cross_entropy(logits, self.torch.from_numpy(batch.labels))
        loss.backward()
        if not np.isfinite(loss.item()):
            self.give()
        return loss.item(), self._array(logits)

    def is_finite(self) -> bool:
        grads = (parameter.grad for parameter in self.named.values())
        return all(bool(self.torch.isfinite(grad).all()) for grad in grads if grad is not None)

    def move(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["pace"]
        self.optimiser.step()

    def logits(self, images: Array) -> Array:
        self.net.eval()
        most = self.session.recipe.train.batch
        with self.torch.inference_mode():
            parts = [self.net(self._images(images[at : at + most])) for at in range(0, len(images), most)]
        return self._array(self.torch.cat(parts))

    def give(self) -> None:
        parameters, velocities = self.session.model.parameters(), self._velocities()
        for name, theirs in self.named.items():
            parameters[name].data[...] = self._array(theirs)
            velocities[name][...] = self._array(self.optimiser.state[theirs]["momentum_buffer"])

    def take(self) -> None:
        parameters, velocities = self.session.model.parameters(), self._velocities()
        with self.torch.no_grad():
            for name, theirs in self.named.items():
                theirs.copy_(self.torch.from_numpy(parameters[name].data))
                moving = self.torch.empty_like(theirs).copy_(self.torch.from_numpy(velocities[name]))
                self.optimiser.state[theirs]["momentum_buffer"] = moving

    def _velocities(self) -> dict[str, Array]:
        assert isinstance(self.session.optimiser, SGD), "other optimisers are refused before"
        return dict(self.session.optimiser.velocities)

    def _images(self, images: Array) -> Any:
        tensor = self.torch.from_numpy(np.ascontiguousarray(images))
        return tensor.contiguous(memory_format=self.torch.channels_last)

    def _array(self, tensor: Any) -> Array:
        array: Array = tensor.detach().numpy()
        return array
