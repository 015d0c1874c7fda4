"""Which backends are compared with float64, and how."""

from __future__ import annotations

import pytest
import torch

import npr_kernels
from npr_kernels.testing import Case
from tests.conftest import GPU, GPU_REQUIRED

# cuda serves the stem only: test_cuda.py has it.
DEVICES = {"cpu": "cpu", "eager": "cpu"} | ({"triton": "cuda"} if GPU else {})
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason) and not GPU_REQUIRED, reason=str(reason)))
    for name, reason in npr_kernels.available_backends().items()
    if name in DEVICES
]
FAST = [backend for backend in BACKENDS if backend.values[0] != "eager"]  # eager is what they are compared with


def double(*tensors):
    return [None if t is None else t if t.dtype == torch.uint8 else t.double() for t in tensors]


def gradients(operator, case: Case, backend: str, *tensors):
    """Gradients to all floating point inputs, of the output weighted by fixed random numbers."""
    tensors = [None if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    out = operator(*tensors, backend=backend, **case.options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(case.parameter_dtype).to(out)
    return torch.autograd.grad(out, [t for t in tensors if t is not None and t.requires_grad], grad)
