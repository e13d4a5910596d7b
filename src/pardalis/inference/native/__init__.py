"""Decoding steps in C++ for a CPU; see :mod:`pardalis.inference.native.steps`."""
