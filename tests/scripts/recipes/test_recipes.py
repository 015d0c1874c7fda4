"""The recipes for Spark and Slurm, without either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from npr_model import cli
from npr_model.scoring.rows import SCHEMA
from scripts.recipes import screen_spark
from tests.conftest import ROOT
from tests.model.conftest import encoded, noise


def test_spark_scores_batches_of_bytes():
    files = {"a.png": encoded(noise(64, 64)), "b.png": b"x", "c.png": encoded(noise(80, 64, seed=1))}
    batch = pa.record_batch({"path": list(files), "content": list(files.values())})
    rows = pa.Table.from_batches(screen_spark.score(iter([batch.slice(0, 2), batch.slice(2)])), SCHEMA).to_pylist()
    assert sorted(row["source"] for row in rows) == list(files)
    assert {row["source"]: row["error_code"] for row in rows} == {"a.png": None, "b.png": "not_an_image", "c.png": None}


@pytest.mark.skipif(shutil.which("split") is None, reason="needs split of GNU coreutils")
def test_slurm_shares_a_list(tmp_path):
    names = [tmp_path / f"{i}.png" for i in range(7)]
    for i, name in enumerate(names):
        name.write_bytes(encoded(noise(32, 32, seed=i)))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    for task, tasks in ((0, 2), (1, 2), (7, 8)):  # the last has no share
        subprocess.run(
            [ROOT / "scripts" / "recipes" / "screen_slurm.sh", tmp_path / "list.txt", tmp_path / "scores"],
            env=os.environ
            | {
                "SLURM_PROCID": str(task),
                "SLURM_NTASKS": str(tasks),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            check=True,
            capture_output=True,
        )
    found = ds.dataset(tmp_path / "scores").to_table().to_pylist()
    assert sorted(row["source"] for row in found) == sorted(map(str, names))
    assert len(ds.dataset(tmp_path / "scores" / "0").to_table()) == 4
    assert not (tmp_path / "scores" / "7").exists()
    assert cli.main(["report", str(tmp_path / "scores"), "-o", str(tmp_path / "report.html")]) == 0
