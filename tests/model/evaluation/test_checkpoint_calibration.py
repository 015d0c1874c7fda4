"""Calibrating from Python: each callback, and what is checked before anything is scored."""

from __future__ import annotations

import pytest

from npr_model import checkpoints
from npr_model.errors import InputError
from npr_model.evaluation.checkpoint_calibration import calibrate_checkpoint, collect
from npr_model.scoring.options import ScoringOptions


def test_a_program_calibrates_a_checkpoint(labelled, checkpoint, tmp_path):
    root, rows, scores, measured = labelled({"gan/0_real": 20, "gan/1_fake": 4}), [], [], []
    samples = collect([root / "gan"])
    assert [sample.label for sample in samples].count(0) == 20 and len(collect([root / "gan", root / "gan"])) == 24
    calibrated = calibrate_checkpoint(
        ScoringOptions(checkpoint, view="native"),
        samples,
        tmp_path / "mine.safetensors",
        on_row=rows.append,
        on_scores=scores.append,
        on_measured=lambda: measured.append(1),
    )
    assert len(rows) == len(measured) == 24 and scores == [calibrated.scores]
    loaded = checkpoints.load(tmp_path / "mine.safetensors")
    assert loaded.metadata.calibration == calibrated.result.calibration and loaded.metadata.view == calibrated.view
    assert loaded.metadata.calibration.points[0].photographs == 20 and loaded.model.activation_steps


@pytest.mark.parametrize("output", ["mine.pth", "absent/mine.safetensors"])
def test_a_bad_output_is_found_before_anything_is_scored(output, checkpoint, tmp_path, labelled):
    samples, rows = collect([labelled({"gan/0_real": 20})]), []
    with pytest.raises(InputError, match=r"must be a \.safetensors file in a folder that exists"):
        calibrate_checkpoint(ScoringOptions(checkpoint), samples, tmp_path / output, on_row=rows.append)
    assert rows == []
