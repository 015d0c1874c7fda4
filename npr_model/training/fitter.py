"""Training of detectors that scikit-learn fits in closed form, with the interface of
:class:`npr_model.training.trainer.Trainer`: the same steps, epochs and state, so that runs start and resume alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npr_model.checkpoints import Metadata
from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process

MAX_BYTES = 2**31  # for all features of a run


class Fitter:
    """Computes the features of the crops in each step, and fits to all crops so far at the end of an epoch.

    Args:
        config: The training config.
        process: The only process.
        crops: Number of crops in the whole run.

    Raises:
        InputError: There are several processes, or the features would take more than MAX_BYTES.
    """

    learning_rate = 0.0

    def __init__(self, config: TrainConfig, process: Process, crops: int) -> None:
        self.config, self.process = config, process
        architecture = config.architecture(detector_class(config.detector).architecture)
        self._use(Metadata(detector=config.detector, architecture=architecture).network())
        bytes_each = 4 * self.network.fc.in_features
        if process.size > 1:
            raise InputError(f"the detector {config.detector} is fitted in one process: run it without torchrun")
        if crops * bytes_each > MAX_BYTES:
            raise InputError(
                f"the detector {config.detector} is fitted to all crops at once; {crops} are more than the limit of "
                f"{MAX_BYTES // bytes_each}: set fewer epochs"
            )
        self.features: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.first = 0  # index of this epoch's first part in the lists

    def _use(self, network: DetectorNetwork) -> None:
        """Use a network that is ``fitted``: it has fc, features() and fit(). Raises InputError."""
        network.check_ready()
        self.network = cast(Any, network.to(self.process.device).eval())

    def start_from(self, network: DetectorNetwork) -> None:
        """Use ``network`` until the first fit. Raises InputError if something that it needs is not installed."""
        self._use(network)

    @property
    def result(self) -> DetectorNetwork:
        """The network that a checkpoint stores."""
        return self.network

    @torch.no_grad()
    def step(self, parts: Iterator[tuple[Tensor, ...]]) -> Tensor:
        """Store the features of the next ``config.accumulation`` parts.

        Returns the loss of the last fit on them, a scalar.
        """
        for _ in range(self.config.accumulation):
            pixels, labels = next(parts)
            self.features.append(self.network.features(pixels).cpu())
            self.labels.append(labels.cpu().flatten())
        count = self.config.accumulation
        return self._loss(torch.cat(self.features[-count:]), torch.cat(self.labels[-count:]))[0]

    @torch.no_grad()
    def end_epoch(self) -> tuple[float, float]:
        """Fit, and return the mean loss and accuracy on the crops of this epoch."""
        features, labels = torch.cat(self.features), torch.cat(self.labels)
        self.network.fit(features.numpy().astype(np.float64), labels.numpy())
        own = sum(map(len, self.labels[: self.first]))
        loss, right = self._loss(features[own:], labels[own:])
        self.first = len(self.features)
        return loss.item(), right.item()

    def _loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network.fc(features.to(self.process.device)).flatten().cpu()
        return F.binary_cross_entropy_with_logits(logits, labels), ((logits > 0) == (labels > 0)).double().mean()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, for :meth:`load`."""
        return {
            "architecture": {name: getattr(self.network, name) for name in self.network.architecture},
            "network": self.network.state_dict(),
            "features": self.features,
            "labels": self.labels,
            "first": self.first,
        }

    def load(self, state: dict[str, Any]) -> None:
        # A fit may change the architecture, as when it stores embeddings. States of earlier versions have none.
        self._use(Metadata(detector=self.config.detector, architecture=state.get("architecture", {})).network())
        self.network.load_state_dict(state["network"])
        self.features, self.labels, self.first = state["features"], state["labels"], state["first"]
