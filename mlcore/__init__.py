"""Odyssey, mlcore: a Numba training stack for the CPU."""

__version__ = "0.1.0"
