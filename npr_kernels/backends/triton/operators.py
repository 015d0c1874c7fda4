"""Importing this module defines all operators of the backend. Each of the imported files defines its own."""

from npr_kernels.backends.triton import (  # noqa: F401
    convolution,
    grad_input,
    grad_weight,
    moments,
    npr_map,
    stem,
    stem_grad_weight,
)
