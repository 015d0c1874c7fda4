"""``pytest benchmarks --benchmark-only``: the operator cases from commit to commit, for pytest-benchmark to compare.

``--benchmark-autosave`` keeps a run, ``--benchmark-compare`` shows the next one beside it.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.rows import OURS, REFERENCE
from benchmarks.ops import TABLES


@pytest.mark.parametrize("name", [f"{OURS} cpu", REFERENCE])
@pytest.mark.parametrize("case", TABLES["cpu"], ids=str)
def test_operator(benchmark, case, name):
    built = case.benchmark(torch.device("cpu"))
    contender = next(contender for contender in built.contenders if contender.name == name)
    call = contender.build()
    parity = built.judge(call(), contender.dtype)
    assert parity.green, f"error {parity.error:.3g} against float64, at most {parity.allowed:.3g} is allowed"
    benchmark.group = str(case)
    benchmark(call)
