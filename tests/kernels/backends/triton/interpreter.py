"""Triton's interpreter, which needs no GPU, in a process of its own.

Triton decides between compiler and interpreter when a kernel is defined. So a file of tests has one test that calls
`run_under_interpreter(__file__)`; the tests marked `interpreted` are there in that process alone.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable

from tests.conftest import PLAIN_PYTEST, ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    from triton.runtime import interpreter

    # The interpreter checks each sum and product of integers for overflow, which takes half of its time. The offsets of
    # these small images cannot overflow; tests of large ones need a GPU.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    # The interpreter puts its functions in the place of Triton's at each call of a function, which takes a third of its
    # time. In this process, which compiles nothing for a GPU, they may stay there.
    patch_language = interpreter._patch_lang

    @functools.cache
    def patch_language_once(function: Callable) -> interpreter._LangPatchScope:
        patch_language(function)
        return interpreter._LangPatchScope()  # nothing that a kernel would restore at its end

    interpreter._patch_lang = patch_language_once


def interpreted(test: Callable) -> Callable | None:
    """Keep a test for the interpreter's process, and hide it from pytest elsewhere."""
    return test if INTERPRETED else None


def run_under_interpreter(file: str, **environment: str) -> None:
    """Run the tests of ``file`` under the interpreter; fails if one does, or if none ran."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **PLAIN_PYTEST, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
