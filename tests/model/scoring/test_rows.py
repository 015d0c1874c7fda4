"""Rows, and the totals of a run."""

from __future__ import annotations

from npr_model.scoring.rows import Row, Totals


def test_summary():
    good, failed = Row("a.png", logit=0.1, verdict="generated"), Row("b.png", error="the file is empty")
    summary = Totals()
    for row in (good, good, failed):
        summary.add(row)
    assert (summary.scored, summary.failed) == (2, 1)
    assert summary.verdicts == {"real": 0, "generated": 2, "uncertain": 0, "generated (declared)": 0}
