"""Training of detectors that scikit-learn fits in closed form, with the interface of
:class:`npr_model.training.trainer.Trainer`: the same steps, epochs and state, so that runs start and resume alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process

MAX_BYTES = 2**31  # of all features of a run


class Fitter:
    """A step computes the features of its crops; an epoch ends with a fit to all crops so far.

    ``crops``: how many the whole run will see. Raises InputError for several processes, or more crops than MAX_BYTES
    of features.
    """

    learning_rate = 0.0

    def __init__(self, config: TrainConfig, process: Process, crops: int) -> None:
        self.config, self.process = config, process
        self.network: DetectorNetwork = detector_class(config.detector)().to(process.device).eval()
        bytes_each = 4 * self.network.fc.in_features
        if process.size > 1:
            raise InputError(f"the detector {config.detector} is fitted in one process: start it without torchrun")
        if crops * bytes_each > MAX_BYTES:
            raise InputError(
                f"the detector {config.detector} is fitted to all crops at once, at most {MAX_BYTES // bytes_each}, "
                f"not {crops}: set fewer epochs"
            )
        self.features: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.first = 0  # of the lists' parts, those of this epoch

    def start_from(self, network: DetectorNetwork) -> None:
        """Give the logits of ``network`` until the first fit."""
        self.network.load_state_dict(network.state_dict())

    @torch.no_grad()
    def step(self, parts: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """Keep the features of the next ``config.accumulation`` parts; the loss of the last fit on them, a scalar."""
        for _ in range(self.config.accumulation):
            pixels, labels = next(parts)
            self.features.append(self.network.features(pixels).cpu())
            self.labels.append(labels.cpu().flatten())
        count = self.config.accumulation
        return self._loss(torch.cat(self.features[-count:]), torch.cat(self.labels[-count:]))[0]

    @torch.no_grad()
    def end_epoch(self) -> tuple[float, float]:
        """Mean loss and accuracy of the new fit on the epoch's crops; the next one begins."""
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
        """All that the next step depends on, for :meth:`load`."""
        return {
            "network": self.network.state_dict(),
            "features": self.features,
            "labels": self.labels,
            "first": self.first,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.features, self.labels, self.first = state["features"], state["labels"], state["first"]
