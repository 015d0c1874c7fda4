"""What test_distributed.py runs under torchrun: training steps in float64, then `npr train`.

Usage: two_processes.py FOLDER...   (each has a config.json; two.pt and the run two are written beside it)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from npr_model import cli
from npr_model.training import config, loop
from npr_model.training.distributed import process_group
from npr_model.training.loading import BalancedBatches, Loader
from npr_model.training.trainer import Trainer


def float64_steps(chosen: config.TrainConfig) -> dict:
    """Losses and final state of one epoch."""
    samples = loop.find_images(chosen).samples
    with process_group("cpu") as process:
        sampler = BalancedBatches(samples, chosen, process.rank, process.size)
        trainer = Trainer(chosen, process)
        trainer.trained.double()
        parts = ((pixels, labels.double()) for pixels, labels in Loader(samples, sampler, process.device))
        losses = [trainer.step(parts).item() for _ in range(sampler.steps)]
        return {
            "processes": process.size,
            "losses": losses,
            "end": trainer.end_epoch(),
            "network": trainer.network.state_dict() if process.is_main else None,
        }


def train(folder: Path, output: str) -> int:
    """Return the exit code of `npr train` with the folder's config.json, in batches that are not accumulated."""
    options = ["--config", f"{folder}/config.json", "--set", "accumulation=1", "--epochs", "2", "--device", "cpu"]
    return cli.main(["train", *options, "-o", f"{folder}/{output}"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")  # one group for everything
    status = 0
    for folder in map(Path, sys.argv[1:]):
        result = float64_steps(config.load(folder / "config.json"))
        if result["network"] is not None:
            torch.save(result, folder / "two.pt")
        status = status or train(folder, "two")
    torch.distributed.destroy_process_group()  # its threads must have ended before the interpreter does
    sys.exit(status)
