"""Every backend by its name, in the order of automatic choice. A new backend is a module and a line here."""

from __future__ import annotations

from typing import cast

from npr_kernels.backends import cpu, cuda, eager, triton
from npr_kernels.backends.base import Backend

# `cuda` has the stem's operators only, and its unsupported_reason() says so: no other call is given to it.
BACKENDS: dict[str, Backend] = {"cuda": cast(Backend, cuda), "triton": triton, "cpu": cpu, "eager": eager}
