"""Convolution kernels (until the fast ones land: the slow twins)."""

from mlcore.kernels.reference import conv2d_forward, conv2d_grad_input, conv2d_grad_weight

__all__ = ["conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight"]
