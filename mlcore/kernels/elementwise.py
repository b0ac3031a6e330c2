"""Elementwise kernels (until the fast ones land: the slow twins)."""

from mlcore.kernels.reference import relu_backward, relu_forward, sgd_update, tanh_backward, tanh_forward

__all__ = ["relu_backward", "relu_forward", "sgd_update", "tanh_backward", "tanh_forward"]
