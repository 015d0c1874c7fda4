"""The kernels one by one, on full batches."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from benchmarks import kernels
from benchmarks.harness.rows import OURS, REFERENCE
from tests.benchmarks.harness.cases import CPU, NOT_COMPILED, reported
from tests.conftest import ROOT


@pytest.mark.parametrize("case", kernels.TABLE, ids=str)
def test_kernels_are_judged_and_timed_on_inputs_in_turn(tmp_path, case):
    case = dataclasses.replace(case, batch=3, size=32)
    benchmark = case.benchmark(CPU)
    code, rows, _ = reported(benchmark, tmp_path)
    assert code == 0 and REFERENCE in rows
    assert NOT_COMPILED or f"{OURS} cpu" in rows
    for row in rows.values():
        assert row["parity"] == "green" and row["median_ms"] > 0 and row["bytes"] == case.bytes
        assert row["microseconds_an_image"] == pytest.approx(row["median_ms"] * 1e3 / 3)
    for contender in benchmark.contenders:
        first, second = (call() for call in contender.build())
        assert not any(map(torch.equal, first, second)), "the same input twice"


@pytest.mark.skipif(bool(NOT_COMPILED), reason=str(NOT_COMPILED))
@pytest.mark.parametrize("operator", kernels.TITLES)
def test_kernels_that_are_wrong_are_red(operator, monkeypatch):
    monkeypatch.setattr(kernels, "PIECE", 2)  # so that the last image is judged in a piece of its own
    case = next(case for case in kernels.TABLE if case.operator == operator)
    benchmark = dataclasses.replace(case, batch=3, size=32).benchmark(CPU)
    ours = next(contender for contender in benchmark.contenders if contender.name.startswith(OURS))
    results = ours.build()[0]()
    assert benchmark.judge(results, ours.dtype).green
    for place, result in enumerate(results):
        if result.dtype == torch.uint8:  # another position in the window, and none
            values = [(result + 1) % 9, torch.full_like(result, 9), torch.zeros_like(result)]
        else:
            last = result.flatten().clone()
            last[-1] += 0.1 * result.abs().max()
            values = [last.view_as(result), torch.full_like(result, float("nan"))]
        for value in values:
            changed = [*results[:place], value, *results[place + 1 :]]
            assert not benchmark.judge(tuple(changed), ours.dtype).green


def test_the_kernels_are_timed_without_what_decodes_images():
    """A machine rented for its GPU may have torch and little else."""
    code = "import sys; sys.modules |= dict.fromkeys(('PIL', 'simplejpeg', 'pyarrow', 'sklearn', 'safetensors'))\n"
    code += "import scripts.gpu.jobs, benchmarks.kernels, benchmarks.ops"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
