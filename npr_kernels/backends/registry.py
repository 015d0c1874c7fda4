"""Chooses the backend for a call: by an argument, else the context manager, else the environment, else automatically.

An explicit choice never falls back. If it cannot serve the call, a :class:`BackendError` gives the reason. The
automatic choice is the first of BACKENDS that can serve the call and passes its self-test
(:mod:`npr_kernels.backends.proof`). If this is plain PyTorch, the reasons against the others are logged once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from npr_kernels import extension
from npr_kernels.backends import cpu, cuda, eager, proof, triton
from npr_kernels.backends.base import Backend, Call

# Every backend by its name, in the order of automatic choice. `cuda` has the stem's operators only, and its
# unsupported_reason() says so: no other call is given to it.
BACKENDS: dict[str, Backend] = {backend.NAME: backend for backend in (cast(Backend, cuda), triton, cpu, eager)}

ENVIRONMENT_VARIABLE = "NPR_KERNELS_BACKEND"

_logger = logging.getLogger("npr_kernels")
_logged: set[str] = set()
_context = threading.local()  # the choice of use_backend, for each thread


class BackendError(RuntimeError):
    """The requested backend does not exist or cannot serve the call."""


@dataclass(frozen=True)
class BackendChoice:
    """Which backend serves a call, and why the others do not.

    Attributes:
        chosen: Name of the backend; None if an explicit choice cannot serve the call, which then raises BackendError.
        source: What made the choice, in words.
        reasons: For every backend the reason why it cannot serve the call, or None if it can.
    """

    chosen: str | None
    source: str
    reasons: dict[str, str | None]

    def __str__(self) -> str:
        lines = [f"{self.chosen or 'no backend'} serves the call (chosen by {self.source})"]
        lines += [f"  {name:8} {reason or 'can serve it'}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def available_backends() -> dict[str, str | None]:
    """Return for every backend why it is not available here, or None if it is, in the order of automatic choice.

    The answer is for a float32 image on the kind of device that the backend is for, and for an operator that it has.
    :func:`npr_kernels.which_backend` answers for a given call.
    """
    return {name: backend.unsupported_reason(backend.EXAMPLE) for name, backend in BACKENDS.items()}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make every call in the block without a ``backend`` argument use this backend, or fail with the reason."""
    get(name)
    before = getattr(_context, "name", None)
    _context.name = name
    try:
        yield
    finally:
        _context.name = before


def get(name: str) -> Backend:
    """Return the module of a backend. Raises BackendError if there is no backend of this name."""
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def select(call: Call, argument: str | None = None) -> str:
    """Return the name of the backend that serves ``call``. Raises BackendError if an explicit choice cannot."""
    wanted, source = _explicit(argument)
    if wanted is not None:
        reason = get(wanted).unsupported_reason(call)
        if reason:
            raise BackendError(f"backend {wanted!r} (chosen by {source}) cannot serve {call.operator}: {reason}")
        return wanted
    if extension.CAPABILITY_ERROR and call.device.type == "cpu":
        raise BackendError(extension.CAPABILITY_ERROR)
    for name in BACKENDS:
        if _reason(name, call) is None:
            break
    if BACKENDS[name].DIFFERENTIABLE and not torch.compiler.is_compiling():
        _log_fallback(call)
    return name


def which_backend(call: Call) -> BackendChoice:
    """Return what :func:`select` chooses, with the reasons of all backends."""
    try:
        chosen = select(call)
    except BackendError:
        chosen = None
    return BackendChoice(chosen, _explicit(None)[1], {name: _reason(name, call) for name in BACKENDS})


def _explicit(argument: str | None) -> tuple[str | None, str]:
    """Return the explicitly chosen backend, if any, and what chose it."""
    if argument is not None:
        return argument, "the backend argument"
    name = getattr(_context, "name", None)
    if name is not None:
        return name, "use_backend"
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return (name, ENVIRONMENT_VARIABLE) if name else (None, "automatic choice")


def _reason(name: str, call: Call) -> str | None:
    """Return why the automatic choice skips a backend, or None if it does not."""
    return BACKENDS[name].unsupported_reason(call) or proof.failure(BACKENDS[name], call)


def _log_fallback(call: Call) -> None:
    compiled = [name for name, backend in BACKENDS.items() if not backend.DIFFERENTIABLE]
    reasons = "; ".join(f"{name}: {_reason(name, call)}" for name in compiled)
    if reasons not in _logged:
        _logged.add(reasons)
        _logger.warning("%s runs on plain PyTorch (%s)", call.operator, reasons)
