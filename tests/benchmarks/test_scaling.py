"""The model of the time that screening takes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import scaling
from benchmarks.harness.rows import OURS


def test_scaling_recovers_a_line():
    megapixels = [0.1, 0.5, 2.0, 8.0]
    line = scaling.fit(megapixels, [0.003 + 0.02 * size for size in megapixels])
    assert (line.call, line.megapixel) == pytest.approx((0.003, 0.02))
    assert scaling.fit(megapixels, [0.02 * size for size in megapixels]).call == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cores", [2, 7, 16])
@pytest.mark.parametrize("decode", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("network_cores", [0, 2])
def test_simulated_runs_take_what_they_must(cores, decode, network_cores):
    nothing = scaling.Line(0, 0)
    fitted = scaling.Model(scaling.Line(0, decode), nothing, nothing, scaling.Line(0, 0.4), network_cores)
    paper, simulated = (cost(fitted, 256, cores) for cost in (scaling.seconds_an_image, scaling.simulate))
    assert 0.98 * paper < simulated < 1.15 * paper


def test_scaling_report_holds_parts_runs_and_costs():
    times = {("decode", 1, 256): 0.001}
    for batch in (8, 16):
        times |= {("stem", batch, 256): 0.00025 * batch, ("network", batch, 256): 0.01 * batch}
    threads = torch.get_num_threads()
    fitted = scaling.fit_model(times, threads)
    rows = scaling.rows_of(times, {(256, 0): 0.0125}, fitted)
    assert fitted.trunk(8 * 256**2 / 1e6) == pytest.approx(0.078)
    assert [row["predicted_ms"] for row in rows[:5]] == pytest.approx([1, 2, 80, 4, 160])
    whole = next(row for row in rows if row["contender"] == f"{OURS}, 256x256")
    assert whole["median_ms"] == 12.5 and whole["predicted_ms"] == pytest.approx(1 / threads + 10)
    billion = [row for row in rows if "days" in row]
    assert len(billion) == len(scaling.MACHINES) * len(scaling.FILES) and min(row["days"] for row in billion) > 0
