"""Loss kernels (until the fast ones land: the slow twins)."""

from mlcore.kernels.reference import cross_entropy_backward, cross_entropy_forward

__all__ = ["cross_entropy_backward", "cross_entropy_forward"]
