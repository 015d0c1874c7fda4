"""What is measured of the machine."""

from __future__ import annotations

import json

import torch
from rich.console import Console

from benchmarks.harness import machine, runner
from benchmarks.harness.rows import Results
from tests.benchmarks.harness.cases import CPU, benchmark_of


def test_machine_description(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(machine, "MATRIX_SIZES", {"cpu": (64,)})
    described = machine.describe(CPU)
    results = Results(described, tmp_path / "report.json", Console(quiet=True))
    runner.measure(benchmark_of(eager=lambda: 1.0), results, CPU, 0)
    assert json.loads((tmp_path / "report.json").read_text())["machine"] == described
    assert described["threads"] == torch.get_num_threads() and described["torch"] == torch.__version__
    assert described["copy_bandwidth_gb_s"] > 0
    for peak in (described[name] for name in ("fma_peak", "bf16_peak", "int8_peak") if name in described):
        assert peak["gflops"] == max(peak["all"].values()) == peak["all"][peak["method"]] > 0
