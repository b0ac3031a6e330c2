"""Matrix kernels (until the fast ones land: the slow twins)."""

from mlcore.kernels.reference import linear_forward, linear_grad_input, linear_grad_weight

__all__ = ["linear_forward", "linear_grad_input", "linear_grad_weight"]
