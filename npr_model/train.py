"""Training on folders of 0_real / 1_fake, in the manner of the paper (section 4.1): Adam, binary cross-entropy, crops.

Crops travel as uint8 and are normalised inside the network. What is drawn depends on the seed alone, not on the number
of workers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from npr_model import checkpoints, datasets, images
from npr_model.checkpoints import Metadata
from npr_model.datasets import DatasetError, Sample
from npr_model.errors import InputError, reason
from npr_model.evaluate import Evaluation, evaluate
from npr_model.files import readable_name
from npr_model.images import ImageError, View
from npr_model.screening.runner import Scorer


@dataclass(frozen=True)
class TrainOptions:
    """What the paper gives a value, has the paper's: Adam 2e-4, batch 32, rate x 0.9 every 10 epochs, crops of 224.

    ``jpeg_probability`` of the crops, of both classes alike, go through a JPEG of a quality drawn from
    ``jpeg_quality`` (low, high). ``view`` is the one to validate with, and the one the checkpoints name. ``dtype``
    bfloat16 computes the convolutions in it (autocast), about twice as fast where the hardware has it; weights and
    statistics stay float32.
    """

    epochs: int = 50
    batch_size: int = 32
    crop_size: int = 224
    learning_rate: float = 2e-4
    decay: float = 0.9
    decay_epochs: int = 10
    jpeg_probability: float = 0.0
    jpeg_quality: tuple[int, int] = (60, 100)
    view: View = field(default_factory=lambda: View("native"))
    workers: int = 2
    seed: int = 100
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        low, high = self.jpeg_quality
        problems = {
            "epochs must be at least 1": self.epochs < 1,
            "the batch size must be at least 2, batch norm needs it": self.batch_size < 2,
            "the crop size must be at least 8": self.crop_size < 8,
            "the rate must decay after at least 1 epoch": self.decay_epochs < 1,
            "the learning rate must be positive": not 0 < self.learning_rate < math.inf,
            "the JPEG probability must be in 0 .. 1": not 0 <= self.jpeg_probability <= 1,
            "JPEG qualities must be in 1 .. 100, the lower one first": not 1 <= low <= high <= 100,
            "the number of workers must not be negative": self.workers < 0,
        }
        for problem, found in problems.items():
            if found:
                raise InputError(problem)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: ``loss`` and ``accuracy`` are means over its training crops, ``rate`` is images/s."""

    number: int
    loss: float
    accuracy: float
    rate: float
    validation: Evaluation | None

    @property
    def score(self) -> float | None:
        """What "best" means: the mean average precision over the validation generators, as it needs no threshold."""
        return self.validation.mean.average_precision if self.validation and self.validation.mean else None


class TrainingCrops(Dataset):
    """Random crops with their labels, addressed by (sample number, seed of the draw).

    A crop may begin at odd offsets and may be flipped: images met in the wild have been cut at any phase of the cells.
    """

    def __init__(self, samples: Sequence[Sample], options: TrainOptions, grid_size: int) -> None:
        self.samples, self.options, self.grid_size = samples, options, grid_size

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int] | ImageError:
        """(S, S, 3) uint8 and the label. An error is returned, as a worker process would wrap it in a traceback."""
        index, seed = key
        sample = self.samples[index]
        try:
            pixels = datasets.read(sample.path).pixels
            pixels = images.tile(pixels, self.options.crop_size, self.grid_size)
            return augment(pixels, self.options, np.random.default_rng(seed)), sample.label
        except ImageError as error:
            return ImageError(f"{readable_name(sample.path)}: {error}")


def augment(pixels: np.ndarray, options: TrainOptions, random: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 of at least S x S to (S, S, 3): a random crop, perhaps flipped, perhaps JPEG-encoded."""
    size = options.crop_size
    top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
    pixels = pixels[top : top + size, left : left + size]
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if random.random() < options.jpeg_probability:
        low, high = options.jpeg_quality
        pixels = images.decode(images.encode_jpeg(pixels, int(random.integers(low, high + 1)))).pixels
    return np.ascontiguousarray(pixels)


class BalancedSampler(Sampler):
    """As many draws of either class as the larger one has samples; the smaller one is gone through several times.

    Yields (sample number, seed of the draw). Each pass over it is the next epoch.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        labels = np.asarray(labels)
        self.classes = [np.flatnonzero(labels == label) for label in (datasets.REAL, datasets.FAKE)]
        self.draws = max(map(len, self.classes))
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return 2 * self.draws

    def __iter__(self) -> Iterator[tuple[int, int]]:
        passes = [-(-self.draws // len(members)) for members in self.classes]
        chosen = np.concatenate(
            [
                np.concatenate([self.random.permutation(members) for _ in range(count)])[: self.draws]
                for members, count in zip(self.classes, passes, strict=True)
            ]
        )
        seeds = self.random.integers(2**63, size=len(chosen))
        order = self.random.permutation(len(chosen))
        return iter([(int(chosen[i]), int(seeds[i])) for i in order])


def train(
    samples: Sequence[Sample],
    folder: Path,
    options: TrainOptions,
    *,
    metadata: Metadata = Metadata(),
    validation: Sequence[Sample] = (),
    on_batch: Callable[[int, float], None] = lambda count, loss: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Path:
    """Train; returns the checkpoint to use: best.safetensors with ``validation``, else last.safetensors.

    Both are rewritten in one step at the end of an epoch (best: when the mean average precision over the validation
    generators rises), and history.jsonl gets a line. ``metadata`` gives the architecture and what the checkpoints say
    of themselves; the view and the decoders are filled in. Images smaller than a crop are tiled. Raises InputError,
    as early as can be: one class only, unreadable images, a folder already used.
    """
    folder = Path(folder)
    datasets.require_both_classes(samples, "the training data")
    prepare(folder)
    decoders = datasets.require_readable([*samples, *validation], metadata.grid_size, options.workers)
    metadata = replace(metadata, view=options.view, decoder=", ".join(decoders))

    torch.manual_seed(options.seed)
    model = metadata.network().to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, options.decay_epochs, options.decay)
    sampler = BalancedSampler([sample.label for sample in samples], options.seed)
    loader = DataLoader(
        TrainingCrops(samples, options, metadata.grid_size),
        batch_size=min(options.batch_size, len(sampler)),
        sampler=sampler,
        num_workers=options.workers,
        collate_fn=_collate,
        drop_last=True,
        persistent_workers=options.workers > 0,
    )
    best = -math.inf
    for number in range(1, options.epochs + 1):
        loss, accuracy, rate = _train_epoch(model, loader, optimizer, options.dtype, on_batch)
        schedule.step()
        measured = None
        last = folder / "last.safetensors"
        checkpoints.save(last, model, metadata)
        if validation:
            measured = evaluate(
                Scorer(checkpoints.load(last), view=options.view, workers=options.workers, device=options.device),
                validation,
            )
        epoch = Epoch(number, loss, accuracy, rate, measured)
        if epoch.score is not None and epoch.score > best:
            best = epoch.score
            checkpoints.save(folder / "best.safetensors", model, metadata)
        with open(folder / "history.jsonl", "a", encoding="utf-8") as history:
            history.write(json.dumps(asdict(epoch)) + "\n")
        on_epoch(epoch)
    return folder / ("best.safetensors" if best > -math.inf else "last.safetensors")


def prepare(folder: Path) -> None:
    """Make the output folder. Raises InputError if it holds a training already, or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".jsonl")]
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be used: {reason(error)}") from error
    if used:
        raise InputError(f"output folder {folder} already holds {', '.join(sorted(used))}; choose another")


def _collate(draws: list) -> tuple[torch.Tensor, torch.Tensor] | ImageError:
    """(N, 3, S, S) uint8 with channels_last strides and (N, 1) float32, or the first error among the draws."""
    for draw in draws:
        if isinstance(draw, ImageError):
            return draw
    pixels, labels = zip(*draws, strict=True)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(labels, dtype=torch.float32)[:, None]


def _train_epoch(model, loader, optimizer, dtype, on_batch) -> tuple[float, float, float]:
    """Mean loss, accuracy and images/s."""
    model.train()
    device = next(model.parameters()).device
    seen, total, right, began = 0, 0.0, 0, time.perf_counter()
    for batch in loader:
        if isinstance(batch, ImageError):
            raise DatasetError(str(batch))
        pixels, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(pixels).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        if not loss.isfinite():
            raise InputError(f"the loss became {loss.item()}; try a lower learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        total += loss.item() * len(labels)
        right += int(((logits > 0) == (labels > 0)).sum())
        on_batch(len(labels), loss.item())
    return total / seen, right / seen, seen / (time.perf_counter() - began)
