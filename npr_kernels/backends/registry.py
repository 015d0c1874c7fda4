"""Which backend serves a call: an argument, then the context manager, then the environment, then automatic choice.

An explicit choice never falls back: what it cannot serve is a :class:`BackendError` with the reason. The automatic
choice takes the first of ``ORDER`` that can, and that gets a small case right (:mod:`npr_kernels.backends.proof`); when
only ``eager`` does, that is logged once for each set of reasons.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from npr_kernels.backends import cpu, cuda, eager, extension, proof, triton
from npr_kernels.backends.base import Backend, Call, Convolution

ENVIRONMENT_VARIABLE = "NPR_KERNELS_BACKEND"
ORDER = ("cuda", "triton", "cpu", "eager")

_BACKENDS: dict[str, Backend] = {"cuda": cuda, "triton": triton, "cpu": cpu, "eager": eager}
_logger = logging.getLogger("npr_kernels")
_logged: set[str] = set()
_context = threading.local()  # of each thread: what use_backend asked for


class BackendError(RuntimeError):
    """The backend asked for does not exist or cannot serve the call."""


@dataclass(frozen=True)
class Explanation:
    """``chosen`` serves the call because of ``source``; ``reasons`` maps every backend to why it does not, or None.

    ``chosen`` is None where an explicit choice cannot serve: the call itself would raise BackendError.
    """

    chosen: str | None
    source: str
    reasons: dict[str, str | None]

    def __str__(self) -> str:
        lines = [f"{self.chosen or 'no backend'} serves the call (chosen by {self.source})"]
        lines += [f"  {name:8} {reason or 'can serve it'}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def available_backends() -> dict[str, str | None]:
    """Every backend, in the order of automatic choice, and why it is not available here (None: it is).

    Judged for a plain float32 image on the kind of device that the backend is made for, and an operator that it has;
    :func:`npr_kernels.which_backend` judges for a call.
    """
    call = Call("npr_conv2d", torch.device("cpu"), torch.float32, torch.float32, Convolution())
    calls = {
        "cuda": replace(call, operator="npr_stem", device=torch.device("cuda")),
        "triton": replace(call, device=torch.device(triton.DEVICE)),
    }
    return {name: _BACKENDS[name].refusal(calls.get(name, call)) for name in ORDER}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every call without a ``backend`` argument uses ``name``, or fails with its reason."""
    get(name)
    before = getattr(_context, "name", None)
    _context.name = name
    try:
        yield
    finally:
        _context.name = before


def get(name: str) -> Backend:
    """Return the module of a backend. Raises BackendError if there is none of that name."""
    if name not in _BACKENDS:
        raise BackendError(f"there is no backend {name!r}; there are {', '.join(ORDER)}")
    return _BACKENDS[name]


def select(call: Call, argument: str | None = None) -> str:
    """Name of the backend that serves ``call``. Raises BackendError if an explicit choice cannot."""
    name, source = _explicit(argument)
    if name is not None:
        reason = get(name).refusal(call)
        if reason:
            raise BackendError(f"backend {name!r} (chosen by {source}) cannot serve {call.operator}: {reason}")
        return name
    if extension.MISCONFIGURED and call.device.type == "cpu":
        raise BackendError(extension.MISCONFIGURED)
    for name in ORDER:
        if _reason(name, call) is None:
            break
    if name == "eager" and not torch.compiler.is_compiling():
        _log_fallback(call)
    return name


def which_backend(call: Call) -> Explanation:
    """As :func:`select`, with the reasons of all backends."""
    try:
        chosen = select(call)
    except BackendError:
        chosen = None
    return Explanation(chosen, _explicit(None)[1], {name: _reason(name, call) for name in ORDER})


def _explicit(argument: str | None) -> tuple[str | None, str]:
    """The backend asked for, if any, and by what."""
    if argument is not None:
        return argument, "the backend argument"
    name = getattr(_context, "name", None)
    if name is not None:
        return name, "use_backend"
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return (name, ENVIRONMENT_VARIABLE) if name else (None, "automatic choice")


def _reason(name: str, call: Call) -> str | None:
    """Why the automatic choice passes a backend over, None if it does not."""
    return _BACKENDS[name].refusal(call) or proof.failure(name, call)


def _log_fallback(call: Call) -> None:
    reasons = "; ".join(f"{name}: {_reason(name, call)}" for name in ORDER if name != "eager")
    if reasons not in _logged:
        _logged.add(reasons)
        _logger.warning("%s runs on plain PyTorch (%s)", call.operator, reasons)
