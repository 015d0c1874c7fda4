"""The cases of the operators: what their reports hold, and that a wrong kernel is seen."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import ops
from benchmarks.harness.operator_cases import OperatorCase
from benchmarks.harness.rows import OURS, REFERENCE, is_peer
from benchmarks.harness.training_stem_cases import TrainingStemCase
from tests.benchmarks.harness.cases import CPU, NOT_COMPILED, reported


@pytest.mark.parametrize(
    "case",
    [
        OperatorCase("stem", torch.uint8, torch.float32, batch=1, size=16),
        OperatorCase("stem", torch.uint8, torch.bfloat16, batch=1, size=16),
        OperatorCase("conv", torch.float32, torch.float32, batch=1, size=16, gradients="wbx"),
        OperatorCase("conv", torch.bfloat16, torch.bfloat16, batch=2, size=16, channels_last=False, gradients="wb"),
        TrainingStemCase(torch.uint8, torch.float32, batch=2, size=32),
        TrainingStemCase(torch.uint8, torch.bfloat16, batch=2, size=32),
        TrainingStemCase(torch.float32, torch.float32, batch=2, size=32),
    ],
    ids=str,
)
def test_report_of_a_small_case(tmp_path, case):
    benchmark = case.benchmark(CPU)
    quick = [contender for contender in benchmark.contenders if "compile" not in contender.name]
    code, rows, _ = reported(dataclasses.replace(benchmark, contenders=quick), tmp_path)
    assert code == 0
    ours = {f"{OURS} {name}" for name in ("cpu",) if not NOT_COMPILED}
    assert {REFERENCE, "composed 4x4"} | ours <= set(rows)
    for name, row in rows.items():
        assert {"case", "contender", "median_ms", "ratio_to_reference", "parity"} <= set(row)
        assert row["case"] == str(case) and row["median_ms"] > 0
        if not is_peer(name):
            assert row["parity"] == "green" and row["ratio_to_reference"] > 0


@pytest.mark.skipif(bool(NOT_COMPILED), reason=str(NOT_COMPILED))
def test_gate_sees_a_wrong_kernel(tmp_path, monkeypatch):
    """One weight wrong by 1 % is red, with the tolerance of a real case."""
    right, ours = OperatorCase._ours, f"{OURS} cpu"

    def wrong(self, x, weight, bias, backend):
        weight = weight.clone()
        weight[5, 1, 2, 2] *= 1.01
        return right(self, x, weight, bias, backend)

    monkeypatch.setattr(OperatorCase, "_ours", wrong)
    benchmark = OperatorCase("stem", torch.uint8, torch.float32, batch=1, size=32).benchmark(CPU)
    chosen = [contender for contender in benchmark.contenders if contender.name in (REFERENCE, ours)]
    code, rows, _ = reported(dataclasses.replace(benchmark, contenders=chosen), tmp_path)
    assert code == 1 and rows[ours]["parity"] == "red" and rows[ours]["median_ms"] is None
    assert rows[REFERENCE]["parity"] == "green"


def test_cases_are_distinct():
    for table in ops.TABLES.values():
        assert len({str(case) for case in table}) == len(table)
