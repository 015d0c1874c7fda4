"""Optimizer steps, in one process or several, and the state that the next step needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from npr_kernels.capabilities import onednn_serves
from npr_kernels.distributed import SyncBatchNorm
from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.layers.stylegan_discriminator import StyleGANDiscriminator
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError, reason
from npr_model.training.config import TrainConfig
from npr_model.training.distillation import Distillation, load_teacher
from npr_model.training.distributed import Process

_logger = logging.getLogger("npr_model")


class Trainer:
    """The network, its optimizer, and the totals of the epoch: loss, correct answers and images.

    The first weights depend on the seed alone, so they are equal in all processes. The random numbers that a network
    draws depend on (seed, process, step, part), so each process has its own, and a resumed run draws the same.
    """

    def __init__(self, config: TrainConfig, process: Process) -> None:
        self.config, self.process, device = config, process, process.device
        torch.manual_seed(config.seed)
        architecture = config.architecture(detector_class(config.detector).architecture)
        self.network = Metadata(detector=config.detector, architecture=architecture).network()
        if process.size > 1:
            SyncBatchNorm.replace(self.network)
        self.distillation, self.teacher_id = None, ""
        if config.teacher:
            student = cast(NPRDetector, self.network)
            teacher = load_teacher(config.teacher, student)
            self.teacher_id = teacher.model_id
            self.distillation = Distillation(student, cast(NPRDetector, teacher.model).to(device), process).to(device)
        # torch's type hints leave memory_format out.
        self.network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.trained = nn.ModuleList([self.network, *([self.distillation] if self.distillation else [])])
        self.optimizer = torch.optim.Adam(
            self.trained.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        averaging, self.average = get_ema_multi_avg_fn(config.average_decay), None
        if config.average_decay:
            self.average = AveragedModel(self.network, multi_avg_fn=averaging, use_buffers=True)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, config.decay_epochs, config.decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self.steps = 0  # optimizer steps so far
        if config.dtype == "bfloat16" and device.type == "cpu" and not onednn_serves(torch.bfloat16):
            _logger.warning(
                "bfloat16 is slow on this processor, which does not multiply it natively; float32 is faster"
            )

    def load_discriminator(self) -> None:
        """Load the discriminator that the config names, if it names one. Raises InputError if it does not fit."""
        if self.config.discriminator:
            load_discriminator(self.config.discriminator, cast(StyleGANDiscriminator, self.network.discriminator))

    def start_from(self, network: DetectorNetwork) -> None:
        """Start with the weights and running statistics of ``network``, which has the same architecture.

        Raises InputError if the config names another discriminator than that of ``network``.
        """
        if self.config.discriminator:
            ours, theirs = (one.discriminator.state_dict() for one in (self.network, network))  # type: ignore[union-attr]
            if any(not torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours):
                raise InputError(
                    f"start {self.config.start} has another discriminator than {self.config.discriminator}: give the "
                    "file that it was trained with"
                )
        self.network.load_state_dict(network.state_dict())
        if self.average is not None:
            self.average.module.load_state_dict(network.state_dict())

    @property
    def result(self) -> DetectorNetwork:
        """The network that a checkpoint stores: the running average where the config asks for one."""
        return self.network if self.average is None else cast(DetectorNetwork, self.average.module)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def step(self, parts: Iterator[tuple[Tensor, ...]]) -> Tensor:
        """Run one optimizer step on the next ``config.accumulation`` parts, as a loader yields them.

        Returns the mean loss over all processes, a scalar, without what the detector adds of its own.
        """
        device, accumulation = self.process.device, self.config.accumulation
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for part in range(accumulation):
            pixels, labels, *sets = next(parts)
            self._seed(part)  # after loading, which draws a number in the first step of an epoch or a resumed run
            logits, loss, own = self._losses(pixels, labels, *sets)
            self.scaler.scale((loss + own) / accumulation).backward()
            right = ((logits.mean(1, keepdim=True) > 0) == (labels > 0)).sum()
            count = torch.full_like(right, len(labels))
            sums += torch.stack([loss.detach().double() * len(labels), right.double(), count.double()])
        gradients = (parameter.grad for parameter in self.trained.parameters())
        self.process.average(gradient for gradient in gradients if gradient is not None)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.process.sum(sums)
        self.totals += sums
        self.steps += 1
        return sums[0] / sums[2]

    def _seed(self, part: int) -> None:
        """Start the random numbers that this process draws in a part of this step."""
        key = np.random.SeedSequence((self.config.seed, self.process.rank, self.steps, part))
        seed = int(key.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would note the stack for each absent device
        if self.process.device.type == "cuda":
            with torch.cuda.device(self.process.device):
                torch.cuda.manual_seed(seed)

    def _losses(self, pixels: Tensor, labels: Tensor, *sets: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return the logits, (N, 1) or one for each patch, the mean loss, and the loss of the detector's own parts."""
        device, dtype, share = self.process.device, getattr(torch, self.config.dtype), self.config.distillation
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if self.distillation is None:
                logits, own = self.network.forward_training(pixels, labels, *sets)
                logits = logits.to(labels.dtype)
                return logits, F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits)), own
            network = cast(NPRDetector, self.network)
            features = network.maps(pixels).mean((2, 3))
            logits = network.fc1(features).to(labels.dtype)
            agreement = self.distillation(pixels, features, logits)
        return logits, share * agreement + (1 - share) * F.binary_cross_entropy_with_logits(logits, labels), 0.0

    def end_epoch(self) -> tuple[float, float]:
        """Return the mean loss and accuracy of the epoch, and start the next one."""
        loss, right, images = self.totals.tolist()
        self.totals.zero_()
        self.schedule.step()
        return loss / images, right / images

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, in every process, for :meth:`load`."""
        return {
            "network": self.network.state_dict(),
            "teacher": self.teacher_id,
            "distillation": None if self.distillation is None else self.distillation.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals,
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. Raises InputError if another teacher or another version wrote it."""
        taught_by = state.get("teacher", "")
        if taught_by != self.teacher_id:
            now = self.teacher_id or "none"
            raise InputError(f"this run learns from {taught_by or 'no teacher'}, but its teacher is {now} now")
        try:
            self._load(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"the saved state does not fit the detector {self.config.detector} of this version ({reason(error)}): "
                "train it anew in another folder"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.distillation is not None:
            self.distillation.load_state_dict(state["distillation"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.totals.copy_(state["totals"])
        self.steps = state["steps"]


def load_discriminator(path: str, network: StyleGANDiscriminator) -> None:
    """Load the weights of a file, and nothing else in it. Raises InputError if they do not fit."""
    checkpoints.load_part(path, network)
    if level := float(network.lod):
        raise InputError(
            f"discriminator {path} is of a GAN that had not grown to its full size (lod {level:g}): use one with lod 0"
        )
