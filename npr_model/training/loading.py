"""Which images a training step sees, and how they get there: order, worker processes, time waited for data.

The crops depend only on (seed, epoch, position in the epoch's order), not on the numbers of workers, processes or
interruptions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from npr_model.datasets.folders import FAKE, REAL, DatasetError, Sample, read
from npr_model.detectors import detector_class
from npr_model.errors import InputError
from npr_model.files import readable_name
from npr_model.imaging.errors import ImageError
from npr_model.training.augmentation import augment, encoding_of
from npr_model.training.config import TrainConfig
from npr_model.training.division import divided

Draw = tuple[int, int, int]  # sample number, epoch, position in the epoch's order


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return a random generator for ``key``, independent of other keys."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class TrainingCrops(Dataset):
    """Random crops with their labels, indexed by :data:`Draw`.

    If the detector has several training sets, the number of the image's training set follows the label.

    Raises:
        InputError: There are too few images for these training sets.
    """

    def __init__(self, samples: Sequence[Sample], config: TrainConfig) -> None:
        self.samples, self.config = samples, config
        count = detector_class(config.detector).training_sets
        self.sets = divided(samples, count) if count > 1 else None
        # The images of the other class in the same training set, by label and training set.
        self.others: dict[tuple[int, int], list[Sample]] = {}
        for number, sample in enumerate(samples):
            self.others.setdefault((FAKE if sample.label == REAL else REAL, self._set(number)), []).append(sample)

    def _set(self, number: int) -> int:
        """The training set of a sample."""
        return 0 if self.sets is None else int(self.sets[number])

    def __getitem__(self, draw: Draw) -> tuple | ImageError:
        """Return (S, S, 3) uint8, the label and perhaps the number of the training set, or an error.

        The error is returned, as a worker process would wrap an exception in its traceback.
        """
        number, epoch, position = draw
        random = generator(self.config.seed, epoch, position)
        sample, partner = self.samples[number], None
        path = sample.path
        try:
            pixels = read(path).pixels
            if self.config.match_classes:
                others = self.others[sample.label, self._set(number)]
                path = others[random.integers(len(others))].path
                partner = encoding_of(path)
            own = () if self.sets is None else (self._set(number),)
            return augment(pixels, self.config, random, partner), sample.label, *own
        except ImageError as error:
            return ImageError(f"{readable_name(path)}: {error}")


class BalancedBatches(Sampler):
    """Draws the crops of one process. An epoch has as many images of each class as the larger class.

    The smaller class is used several times, and so are small groups if ``config.balance_groups`` is above 0. All
    processes compute the same order of an epoch and cut it into batches of ``config.batch_size``, each batch into
    ``config.accumulation`` parts, and each part into equal shares. Iterating yields share ``rank`` of ``size`` of each
    part, as a list of :data:`Draw`. Images after the last whole batch are not used.
    """

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, rank: int = 0, size: int = 1) -> None:
        labels = np.asarray([sample.label for sample in samples])
        groups = np.asarray([sample.group for sample in samples])
        self.classes = [np.flatnonzero(labels == label) for label in (REAL, FAKE)]
        self.draws = max(map(len, self.classes))
        self.expected = [self.draws * _shares(groups[members], config.balance_groups) for members in self.classes]
        self.config, self.rank, self.size = config, rank, size
        self.steps = 2 * self.draws // config.batch_size
        self.epoch, self.first_step = 0, 0
        if not self.steps:
            raise InputError(
                f"an epoch has {2 * self.draws} images, fewer than one batch of {config.batch_size}: lower batch_size"
            )
        if config.batch_size % (config.accumulation * size):
            raise InputError(
                f"a batch of {config.batch_size} cannot be divided equally among {size} processes in "
                f"{config.accumulation} parts: choose another batch_size"
            )

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Set where the next iteration begins."""
        self.epoch, self.first_step = epoch, first_step

    def order(self, epoch: int) -> np.ndarray:
        """Return the sample numbers in the order of an epoch."""
        random = generator(self.config.seed, epoch)
        repeated = []
        for members, expected in zip(self.classes, self.expected, strict=True):
            # Systematic sampling: each image comes as often as expected, rounded up or down at random.
            order, start = random.permutation(len(members)), random.random()
            ends = np.floor(np.cumsum(expected[order]).round(9) + start).astype(int)
            repeated.append(np.repeat(members[order], np.diff(ends, prepend=0)))
        return random.permutation(np.concatenate(repeated))

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.config.accumulation

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.order(self.epoch)
        part = self.config.batch_size // self.config.accumulation
        share = part // self.size
        first = self.first_step * self.config.accumulation
        for number in range(first, self.steps * self.config.accumulation):
            start = number * part + self.rank * share
            yield [(int(order[position]), self.epoch, position) for position in range(start, start + share)]


def _shares(groups: np.ndarray, balance: float) -> np.ndarray:
    """Return each image's share of its class, given the images' groups; ``balance`` as in :class:`TrainConfig`."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights = sizes[group].astype(float) ** -balance
    return weights / weights.sum()


class Loader:
    """Yields batch parts on ``device``, made in worker processes. ``waited``: seconds spent waiting for them."""

    def __init__(self, samples: Sequence[Sample], batches: BalancedBatches, device: torch.device) -> None:
        config = batches.config
        self.batches, self.device, self.waited = batches, device, 0.0
        self._loader = DataLoader(
            TrainingCrops(samples, config),
            batch_sampler=batches,
            num_workers=config.workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            prefetch_factor=4 if config.workers else None,
            persistent_workers=config.workers > 0,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield (N, 3, S, S) uint8 with channels_last strides, and labels (N, 1) float32. Raises DatasetError.

        If the detector has several training sets, their numbers follow, (N,) int64.
        """
        began = time.perf_counter()
        for batch in self._loader:
            if isinstance(batch, ImageError):
                raise DatasetError(str(batch))
            pixels, *others = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            self.waited += time.perf_counter() - began
            yield pixels.permute(0, 3, 1, 2), *others
            began = time.perf_counter()


def collate(crops: list) -> tuple[Tensor, ...] | ImageError:
    """Return (N, S, S, 3) uint8, (N, 1) float32 and perhaps (N,) int64, or the first error among the crops."""
    for crop in crops:
        if isinstance(crop, ImageError):
            return crop
    pixels, labels, *sets = zip(*crops, strict=True)
    others = (torch.tensor(numbers, dtype=torch.int64) for numbers in sets)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels, dtype=torch.float32)[:, None], *others
