"""A training step, and training from files."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks import train
from tests.benchmarks.harness.cases import CPU
from tests.model.conftest import encoded, noise


def test_training_step_judges_losses_and_gradients():
    case = train.benchmark(4, 32, CPU)
    contenders = {contender.name: contender for contender in case.contenders}
    for name in ("eager", "ours float32", "ours bfloat16"):
        assert case.judge(contenders[name].build()(), contenders[name].dtype).green, name
    right, details = contenders["ours float32"].build()()
    for wrong in ({"losses": right.losses * 1.001}, {"gradients": right.gradients * 1.2}):
        assert not case.judge((dataclasses.replace(right, **wrong), details), torch.float32).green


def test_training_from_files_measures_the_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FILES", 8)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(20, 30, number)))
    for photos in (None, tmp_path):
        rows = list(train.loading(4, 16, 1, CPU, photos, 0))
        assert [row["contender"] for row in rows] == ["loader alone", "ours float32", "ours bfloat16"]
        assert all(row["median_ms"] > 0 and row["images_per_second"] > 0 for row in rows)
        assert all(0 <= row["waiting"] < 1 for row in rows[1:])
