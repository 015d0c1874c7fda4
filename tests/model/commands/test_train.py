"""``npr train``: a run, its continuation and its config, and what it says when it cannot go on."""

from __future__ import annotations

import json

import pytest
import torch

from npr_model import checkpoints
from npr_model.commands.shared import terminal
from tests.model.conftest import encoded, noise


def test_train_then_screen(npr, labelled, tmp_path):
    root = labelled({"train/0_real": 4, "train/1_fake": 4, "held/0_real": 2, "held/1_fake": 2})
    small = ["--epochs", 2, "--batch-size", 4, "--crop-size", 16, "--set", "workers=0", "--name", "tiny"]
    run = tmp_path / "run"
    code, out, err = npr("train", root / "train", "-o", run, "--validation", root / "held", *small)
    assert code == 0 and err == "" and "epoch 2: loss" in out and "average precision" in out
    assert "best.safetensors" in out
    assert "0_real: 4 PNG; 1_fake: 4 PNG" in out and "waiting for data" in out and "warning" not in out
    code, out, _ = npr("screen", root / "held", "--checkpoint", run / "last.safetensors")
    assert code == 0 and "4 images: " in out and "tiny@" in out
    code, out, err = npr("train", "--resume", run, "--epochs", 3)
    assert code == 0 and err == "" and "continued after 4 of 6 steps" in out and "epoch 3: loss" in out
    code, out, err = npr("train", "--resume", run, "--set", "seed=7")
    assert code == terminal.EXIT_USAGE and "was trained with seed=100, not 7" in err and err.count("\n") == 1


def test_a_printed_config_can_be_edited_and_run(npr, labelled, tmp_path):
    root = labelled({"0_real": 4, "1_fake": 4})
    settings = ["--set", "batch_size=4", "--set", "crop_size=16", "--set", "workers=0", "--epochs", 1]
    code, printed, err = npr("train", root, "--preset", "paper", "--set", "classes=", *settings, "--print-config")
    values = json.loads(printed)
    assert code == 0 and err == "" and values["resize"] == 256 and values["epochs"] == 1
    (tmp_path / "mine.json").write_text(json.dumps(values | {"resize": 20, "name": "edited"}))
    code, out, err = npr("train", "--config", tmp_path / "mine.json", "-o", tmp_path / "run", "--dtype", "bfloat16")
    assert code == 0 and err == "" and "1 epochs of 2 steps of 4 crops" in out
    loaded = checkpoints.load(tmp_path / "run" / "last.safetensors").metadata
    assert (loaded.name, loaded.training["resize"], loaded.training["dtype"]) == ("edited", 20, "bfloat16")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["folders"] == [str(root)]


def test_train_warns_of_classes_that_differ_in_format(npr, labelled, tmp_path):
    root = labelled({"0_real": 2, "1_fake": 2})
    for path in (root / "0_real").iterdir():
        path.write_bytes(encoded(noise(16, 16), "JPEG"))
    settings = ["--batch-size", 4, "--crop-size", 16, "--set", "workers=0", "--epochs", 1]
    code, _, err = npr("train", root, "-o", tmp_path / "a", *settings, "--set", "match_classes=false")
    assert code == 0 and "npr: warning: the classes differ in file format" in err
    code, out, err = npr("train", root, "-o", tmp_path / "b", *settings)
    assert code == 0 and "0_real: 2 JPEG; 1_fake: 2 PNG" in out and err == ""


def test_an_interrupted_training_says_how_to_go_on(npr, labelled, tmp_path, monkeypatch):
    from npr_model.training.trainer import Trainer

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupt)
    root, run = labelled({"0_real": 2, "1_fake": 2}), tmp_path / "run"
    code, _, err = npr("train", root, "-o", run, "--batch-size", 4, "--crop-size", 16, "--set", "workers=0")
    assert code == terminal.EXIT_INTERRUPTED and f"npr train --resume {run}" in "".join(err.splitlines())


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")]
)
def test_no_memory_is_one_line(npr, labelled, tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("npr_model.training.trainer.Trainer.step", fail)
    root = labelled({"0_real": 2, "1_fake": 2})
    options = ["--epochs", 1, "--batch-size", 2, "--crop-size", 16, "--set", "workers=0"]
    code, _, err = npr("train", root, "-o", tmp_path / "run", *options)
    assert code == terminal.EXIT_FAILED and err.count("\n") == 1
    assert err.startswith("npr: error: out of memory (") and err.endswith("); lower the batch size\n")
