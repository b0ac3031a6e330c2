"""A Tensor: an ndarray that remembers how it was made, so that gradients can flow back.

The arithmetic is in `ops`, the way back in `autograd`; this is only the record they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlcore.autograd import Node

Array = NDArray[Any]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Tensor:
    """`data` (float32 to train, float64 to check gradients; C-contiguous) and, after `backward`, `grad`.

    `requires_grad`: gradients are wanted here. `name`: for parameters, as in "C1.weight". `node`: the operation
    that made it, or None for a leaf.
    """

    __slots__ = ("data", "grad", "name", "node", "requires_grad")

    def __init__(self, data: Array, requires_grad: bool = False, name: str = "") -> None:
        if data.dtype not in FLOATS:
            raise TypeError(f"a Tensor holds float32 or float64, not {data.dtype}: convert with astype first")
        self.data = np.ascontiguousarray(data).reshape(data.shape)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.name = name
        self.node: Node | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def item(self) -> float:
        """The only number of a one-element tensor."""
        return float(self.data.item())

    def backward(self, grad: Array | None = None) -> None:
        """Add d(self)/d(leaf) to every leaf's `grad`, then free the tape; see `autograd.backward`."""
        from mlcore.autograd import backward

        backward(self, grad)

    def __repr__(self) -> str:
        label = f"'{self.name}', " if self.name else ""
        return f"Tensor({label}shape={self.shape}, dtype={self.dtype}, requires_grad={self.requires_grad})"
