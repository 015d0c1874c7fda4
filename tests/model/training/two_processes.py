"""What test_distributed.py runs under torchrun: training steps in float64, then `npr train`, also resumed.

Usage: two_processes.py FOLDER...   (each has a config.json; two.pt and the runs two and resumed are written beside it)
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from npr_model import cli
from npr_model.training import config, loop
from npr_model.training.distributed import process_group
from npr_model.training.loading import BalancedBatches, Loader
from npr_model.training.trainer import Trainer
from tests.model.detectors.small import without_dropout

RESUMED = ("gandetection", "selfbland")  # what a process does depends most on its own images and random numbers


def float64_steps(chosen: config.TrainConfig) -> dict:
    """Losses and final state of one epoch, and a random number of each process after each step."""
    samples = loop.find_images(chosen).samples
    with process_group("cpu") as process:
        sampler = BalancedBatches(samples, chosen, process.rank, process.size)
        trainer = Trainer(chosen, process)
        trainer.trained.double()
        parts = ((pixels, labels.double(), *sets) for pixels, labels, *sets in Loader(samples, sampler, process.device))
        losses, drawn = [], []
        for _ in range(sampler.steps):
            losses.append(trainer.step(parts).item())
            drawn.append(torch.rand((), dtype=torch.float64))
        numbers = torch.zeros(process.size, sampler.steps, dtype=torch.float64)
        numbers[process.rank] = torch.stack(drawn)
        process.sum(numbers)
        return {
            "drawn": numbers,
            "processes": process.size,
            "losses": losses,
            "end": trainer.end_epoch(),
            "network": trainer.network.state_dict() if process.is_main else None,
        }


def train(folder: Path, output: str) -> int:
    """Return the exit code of `npr train` with the folder's config.json, in batches that are not accumulated."""
    options = ["--config", f"{folder}/config.json", "--set", "accumulation=1", "--epochs", "2", "--device", "cpu"]
    return cli.main(["train", *options, "-o", f"{folder}/{output}"])


def resume(folder: Path) -> None:
    """Write the run resumed: the one that :func:`train` makes, stopped after the first step of the second epoch."""
    chosen = replace(config.load(folder / "two" / "config.json"), save_steps=1)

    def copy_state(step: loop.Step) -> None:
        if step.number == 4:  # the state of step 3 is saved
            shutil.copytree(folder / "copied", folder / "resumed")

    loop.train(chosen, folder / "copied", callbacks=loop.Callbacks(on_step=copy_state))
    dist.barrier()
    loop.train(chosen, folder / "resumed", resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    without_dropout(setattr)
    dist.init_process_group("gloo")  # one group for everything
    status = 0
    for folder in map(Path, sys.argv[1:]):
        chosen = config.load(folder / "config.json")
        result = float64_steps(chosen)
        if result["network"] is not None:
            torch.save(result, folder / "two.pt")
        status = status or train(folder, "two")
        if not status and chosen.detector in RESUMED:
            resume(folder)
    dist.destroy_process_group()  # its threads must have ended before the interpreter does
    sys.exit(status)
