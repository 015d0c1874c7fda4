"""A gate that shuts: no time for a wrong result of ours, no ratio for a wrong peer."""

from __future__ import annotations

import json

import pytest

from benchmarks.harness.runner import Unavailable
from tests.benchmarks.harness.cases import benchmark_of, reported


def test_right_contenders_get_times_and_ratios(tmp_path):
    code, rows, printed = reported(benchmark_of(eager=lambda: 1.05, ours_fast=lambda: 1.0), tmp_path)
    assert code == 0
    assert rows["eager"]["ratio_to_reference"] == 1
    ours = rows["ours fast"]
    assert ours["parity"] == "green" and ours["median_ms"] > 0
    assert ours["ratio_to_reference"] == pytest.approx(rows["eager"]["median_ms"] / ours["median_ms"])
    assert f"{ours['ratio_to_reference']:.1f}" in printed


@pytest.mark.parametrize("wrong", [1.2, float("nan"), float("inf")])
def test_wrong_result_of_ours_gets_no_time(tmp_path, wrong):
    code, rows, printed = reported(benchmark_of(eager=lambda: 1.0, ours=lambda: wrong), tmp_path)
    assert code == 1
    assert rows["ours"]["parity"] == "red"
    assert rows["ours"]["median_ms"] is None and rows["ours"]["ratio_to_reference"] is None
    assert "gflops" not in rows["ours"]
    assert "parity is red: ours (case)" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("│ ours")]
    numbers = [cell.strip() for cell in line.split("│")[2:-2]]
    assert len(numbers) >= 5 and not any(numbers)


def test_failure_of_ours_is_red(tmp_path):
    code, rows, _ = reported(benchmark_of(eager=lambda: 1.0, ours=lambda: 1 / 0), tmp_path)
    assert code == 1
    assert rows["ours"]["parity"] == "red" and "ZeroDivisionError" in rows["ours"]["note"]


def test_wrong_reference_gives_no_ratios(tmp_path):
    code, rows, _ = reported(benchmark_of(eager=lambda: 2.0, ours=lambda: 1.0), tmp_path)
    assert code == 1
    assert rows["ours"]["median_ms"] and rows["ours"]["ratio_to_reference"] is None


def test_peers_never_fail_the_run(tmp_path):
    def missing():
        raise Unavailable("not installed: pip install it")

    contenders = {"eager": lambda: 1.0, "wrong": lambda: 2.0, "broken": lambda: 1 / 0, "missing": missing}
    code, rows, printed = reported(benchmark_of(**contenders), tmp_path)
    assert code == 0
    assert {name: row["parity"] for name, row in rows.items()} == {
        "eager": "green",
        "wrong": "red",
        "broken": "failed",
        "missing": "unavailable",
    }
    assert rows["wrong"]["median_ms"] and rows["wrong"]["ratio_to_reference"] is None
    assert "not installed: pip install it" in printed


def test_rows_are_written_one_by_one(tmp_path):
    """A run that is killed leaves what it had: here, at the second contender."""
    seen = []

    def second():
        seen.append(json.loads((tmp_path / "report.json").read_text())["rows"])
        return 1.0

    code, rows, _ = reported(benchmark_of(eager=lambda: 1.0, ours=second), tmp_path)
    (row,) = seen[0]
    assert row["contender"] == "eager" and row["median_ms"] > 0 and row["parity"] == "green"
    assert code == 0 and rows["ours"]["ratio_to_reference"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
