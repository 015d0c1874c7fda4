"""The benchmark of cascades: its rows, and the check that each logit is that of the part that is named."""

from __future__ import annotations

import pytest
import torch
import typer

from benchmarks import cascade as benchmark
from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.datasets.folders import find_samples
from npr_model.detectors.cascade import Cascade
from npr_model.scoring.rows import Row
from tests.model.conftest import encoded, make_detector, noise


def test_rows_of_a_cascade_and_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "LARGE", 1)
    parts = {}
    for name, size in {"quick": "fast", "sure": "paper"}.items():
        checkpoints.save(tmp_path / f"{name}.safetensors", make_detector(size=size), Metadata(name=name))
        parts[name] = checkpoints.load(tmp_path / f"{name}.safetensors")
    quick, sure = parts.values()
    joined = Cascade(quick.model, sure.model, quick.model_id, sure.model_id, low=-1e9, high=1e9)
    checkpoints.save(tmp_path / "both.safetensors", joined, Metadata(name="both"))
    for number in range(6):
        folder = tmp_path / "images" / "gan" / ("0_real", "1_fake")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(noise(32, 32, number)))
    samples = find_samples(tmp_path / "images")
    rows = benchmark.measure(checkpoints.load(tmp_path / "both.safetensors"), samples, torch.float32)
    assert [row["contender"] for row in rows] == ["ours quick", "ours sure", "ours both"]
    assert rows[2]["share_sent_on"] == 1 and rows[2]["roc_auc"] == rows[1]["roc_auc"]
    assert [row["parity"] for row in rows] == ["not judged", "not judged", "green"]
    assert all(row["images_per_second"] > 0 and row["network_images_per_second"] > 0 for row in rows)


def test_the_parts_of_bundled_cascades():
    found = {
        name: [one.metadata.name for one in benchmark.parts(checkpoints.load(name))]
        for name in ("cascade", "cascade+clip")
    }
    assert found == {"cascade": ["fast-1", "wild-2"], "cascade+clip": ["fast-1", "npr+clip", "wild-2"]}


def test_a_logit_of_no_part_is_red():
    rows = {"quick": [Row("a", logit=1.0, model="quick@1")], "both": [Row("a", logit=1.5, scored_by="quick@1")]}
    assert benchmark.parity(rows, "both")["parity"] == "red"
    rows["both"] = [Row("a", logit=1.0, scored_by="quick@1")]
    assert benchmark.parity(rows, "both")["parity"] == "green"


def test_an_image_that_cannot_be_scored_is_one_line(tmp_path, capsys):
    for name, data in {"0_real/a.png": encoded(noise(32, 32)), "1_fake/b.png": b"x"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(typer.Exit) as exit:
        benchmark.main(tmp_path)
    assert exit.value.exit_code == 2 and "b.png: " in capsys.readouterr().err
