"""Two processes under torchrun compute the same as one, apart from what each draws at random, and are resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from npr_kernels.distributed import SyncBatchNorm
from npr_model import checkpoints
from npr_model.detectors.npr import NPRDetector
from npr_model.devices import choose_device
from npr_model.errors import InputError
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process, process_group
from tests.model.detectors.small import without_dropout
from tests.model.training import two_processes

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.xdist_group("training in processes")  # slow: it must not be the last
def test_two_processes_give_the_losses_and_weights_of_one(labelled, checkpoint, tmp_path, monkeypatch, capsys):
    """Steps in float64 agree up to rounding, and `npr train` in float32 approximately.

    Not those of selfbland: each process draws other blends. A resumed run equals one that was not interrupted.
    """
    without_dropout(monkeypatch.setattr)
    root = labelled({"0_real": 8, "1_fake": 8})
    options = {"folders": (str(root),), "crop_size": 24, "batch_size": 8, "accumulation": 2, "workers": 0}
    # The batch norms of npr have weights, those of frank have none. The members of gandetection have other numbers of
    # images in each process, often none; so has selfbland.
    names = ("npr", "frank", "gandetection", "selfbland")
    configs = {name: TrainConfig(detector=name, **options) for name in names}
    configs["taught"] = TrainConfig(size="fast", teacher=str(checkpoint), **options)
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config.to_json())
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    launch += ["tests.model.training.two_processes", *(str(tmp_path / name) for name in configs)]
    finished = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("in 2 processes") == 5 and finished.stdout.count("checkpoint: ") == 5
    for name, config in configs.items():
        folder = tmp_path / name
        if name in two_processes.RESUMED:
            runs = [(folder / run / "last.safetensors").read_bytes() for run in ("two", "copied", "resumed")]
            assert runs[0] == runs[1] == runs[2], name
        drawn = torch.load(folder / "two.pt")["drawn"]
        assert len(set(drawn.flatten().tolist())) == drawn.numel() == 4, name  # by process and step
        if name != "selfbland":
            check_one_process(config, folder)


def check_one_process(config: TrainConfig, folder: Path) -> None:
    one, two = two_processes.float64_steps(config), torch.load(folder / "two.pt")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-10)
    assert two["end"] == pytest.approx(one["end"], rel=1e-10)
    for name, tensor in one["network"].items():
        torch.testing.assert_close(two["network"][name], tensor, rtol=1e-7, atol=1e-9, msg=name)

    assert two_processes.train(folder, "one") == 0
    losses = [
        [json.loads(line)["loss"] for line in (folder / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert checkpoints.load(folder / "two" / "last.safetensors").metadata.training["batch_size"] == 8


def test_batch_norm_is_replaced_with_its_state():
    network, copied = NPRDetector(), NPRDetector()
    copied.load_state_dict(network.state_dict())
    network.bn1.running_mean.fill_(3)
    copied.bn1.running_mean.fill_(3)
    SyncBatchNorm.replace(network)
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d | SyncBatchNorm)]
    assert len(layers) == 24 and all(type(module) is SyncBatchNorm for module in layers)
    assert list(network.state_dict()) == list(copied.state_dict())
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for mode in (True, False):  # with one process it equals nn.BatchNorm2d
        torch.testing.assert_close(network.train(mode)(x), copied.train(mode)(x), rtol=0, atol=0)


def test_one_process_shares_nothing():
    process, tensor = Process(torch.device("cpu")), torch.ones(2)
    process.sum(tensor)
    process.average([tensor])
    assert process.is_main and process.from_main("x") == "x" and tensor.tolist() == [1, 1]


def test_devices(monkeypatch):
    assert choose_device("cpu") == "cpu"
    for name in ("tpu", "cuda:", "cuda:x", "CPU"):
        with pytest.raises(InputError, match="unknown device"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="torch finds no CUDA GPU"), process_group("cuda"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in ("auto", "cuda", "cuda:0", "cuda:1")] == [
        "cuda",
        "cuda",
        "cuda:0",
        "cuda:1",
    ]
    with pytest.raises(InputError, match=r"only 2 GPUs, cuda:0 to cuda:1"):
        choose_device("cuda:2")
    with process_group("cuda:1") as process:
        assert process.device == torch.device("cuda", 1)
    for name, value in {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="process 2 of this machine finds only 2 GPUs"), process_group("auto"):
        pass
    with pytest.raises(InputError, match="3 processes need one each"), process_group("cuda:1"):
        pass
