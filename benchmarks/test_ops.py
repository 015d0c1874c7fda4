"""``pytest benchmarks --benchmark-only``: the operator cases from commit to commit, for pytest-benchmark to compare.

``--benchmark-autosave`` keeps a run, ``--benchmark-compare`` sets the next one beside it.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import OURS, REFERENCE
from benchmarks.ops import TABLE


@pytest.mark.parametrize("name", [f"{OURS} cpu", REFERENCE])
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_operator(benchmark, case, name):
    known = case.benchmark(torch.device("cpu"))
    contender = next(contender for contender in known.contenders if contender.name == name)
    call = contender.build()
    parity = known.judge(call(), contender.dtype)
    assert parity.green, f"error {parity.error:.3g} against float64, at most {parity.allowed:.3g} is allowed"
    benchmark.group = str(case)
    benchmark(call)
