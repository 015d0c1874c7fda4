"""The benchmark of precision: each dtype beside float32, on labelled images."""

from __future__ import annotations

from benchmarks import precision
from npr_model import checkpoints
from npr_model.datasets.folders import find_samples
from tests.model.conftest import encoded, noise


def test_rows_of_a_data_set(tmp_path):
    for number in range(6):
        folder = tmp_path / "gan" / ("0_real", "1_fake")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(noise(64, 64, number) // (1 + number)))
    rows = precision.measure(checkpoints.load("fast-1"), find_samples(tmp_path), precision.DTYPES)
    assert rows[0]["contender"] == "ours float32"
    assert rows[0]["rms_difference"] == 0 and rows[0]["rank_correlation"] == 1
    assert all(row["case"].endswith("on 6 images") and 0 <= row["roc_auc"] <= 1 for row in rows)
    assert {row["contender"] for row in rows[1:]} <= {"ours bfloat16", "ours int8"}
