"""A case whose right answer is 1, and what is reported of a case."""

from __future__ import annotations

import json

import torch
from rich.console import Console

from benchmarks.harness import runner
from benchmarks.harness.parity import Parity
from benchmarks.harness.rows import Results
from benchmarks.harness.runner import Benchmark, Contender
from npr_kernels import available_backends

CPU = torch.device("cpu")
NOT_COMPILED = available_backends()["cpu"]  # why there is no backend cpu; None if there is one
PEAKS = {"fma_peak": {"gflops": 1.0}, "bf16_peak": {"gflops": 1.0}, "copy_bandwidth_gb_s": 1.0}


def benchmark_of(**contenders) -> Benchmark:
    """A case whose right answer is 1; names are written with _ for a blank."""
    listed = [Contender(name.replace("_", " "), lambda call=call: call) for name, call in contenders.items()]
    return Benchmark("case", listed, lambda result, dtype: Parity(abs(result - 1), 0.1), flops=1e9, bytes=1e9)


def reported(benchmark: Benchmark, tmp_path) -> tuple[int, dict[str, dict], str]:
    """Exit code, the JSON's rows by contender, and what was printed."""
    file, console = tmp_path / "report.json", Console(record=True, width=200)
    results = Results(PEAKS, file, console)
    runner.measure(benchmark, results, CPU, 0)
    code = results.exit_code()
    return code, {row["contender"]: row for row in json.loads(file.read_text())["rows"]}, console.export_text()
