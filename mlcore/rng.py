"""Seeds that are named and split, so that every random thing has its own stream.

`Rng(7).child("epoch", 3)` depends on 7 and the path ("epoch", 3) only: not on what was drawn before, nor on the
order in which children are made. So a run can go on in its middle by naming the same children again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

Name = str | int


@dataclass(frozen=True)
class Rng:
    """A seed and a path of names. It holds no state: equal Rngs give equal numbers, on every machine.

    `before`: how many images of the batch come before those at hand, where several processes share it; what is drawn
    for an image goes by its place in the whole batch. Streams don't depend on it.
    """

    seed: int
    path: tuple[Name, ...] = ()
    before: int = 0

    def child(self, *names: Name) -> Rng:
        """The stream of these names under this one; `child("a", 1)` equals `child("a").child(1)`."""
        return Rng(self.seed, self.path + names, self.before)

    def behind(self, images: int) -> Rng:
        """The same streams, for what comes behind so many images of the batch."""
        return Rng(self.seed, self.path, images)

    def generator(self) -> np.random.Generator:
        """A fresh generator (Philox) at the beginning of this stream."""
        return np.random.Generator(np.random.Philox(key=self._key()))

    def _key(self) -> int:
        """128 bits of SHA-256 over seed and path; repr keeps 1 and "1", and ("a", "b") and ("ab",), apart."""
        text = repr((int(self.seed), *(n if isinstance(n, str) else int(n) for n in self.path)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
