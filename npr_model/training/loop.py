"""Training on folders of 0_real / 1_fake, as a :class:`TrainConfig` says: alone, or in several processes by torchrun.

Crops travel as uint8 and are normalised inside the network. A run may be killed at any time and resumed: its losses and
weights are then those of a run that was never interrupted, to the bit where the hardware computes the same sums in the
same order.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from npr_model import checkpoints, datasets
from npr_model.checkpoints import Metadata
from npr_model.datasets import DatasetError, Inspection, Sample
from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError
from npr_model.evaluation.evaluate import Evaluation, collect, evaluate
from npr_model.imaging.views import View
from npr_model.screening.runner import Scorer
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process, process_group
from npr_model.training.fitter import Fitter
from npr_model.training.loading import BalancedBatches, Loader
from npr_model.training.run_folder import BEST, LAST, Run, open_run
from npr_model.training.trainer import Trainer


@dataclass(frozen=True)
class Plan:
    """What is about to be trained: ``steps`` in an epoch, in ``processes``, from a ``first_step`` of the whole run on.

    ``inspection`` of the training images is None where a resumed run makes none.
    """

    config: TrainConfig
    samples: Sequence[Sample]
    validation: Sequence[Sample]
    steps: int
    processes: int
    first_step: int
    inspection: Inspection | None


@dataclass(frozen=True)
class Step:
    """One optimizer step; ``number`` counts from 1 over the whole run, ``loss`` is the mean over ``images``.

    ``waiting``: share of this epoch's time so far that the first process waited for data.
    """

    number: int
    images: int
    loss: float
    waiting: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: ``loss`` and ``accuracy`` are means over its crops, ``rate`` is images/s.

    ``waiting``: share of the time that the first process waited for data.
    """

    number: int
    loss: float
    accuracy: float
    rate: float
    waiting: float
    validation: Evaluation | None

    @property
    def score(self) -> float | None:
        """What "best" means: the mean average precision over the validation generators, as it needs no threshold."""
        return self.validation.mean.average_precision if self.validation and self.validation.mean else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values: a line of the run's history."""
        measured = self.validation.as_dict() if self.validation else None
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"validation": measured}

    def scalars(self) -> dict[str, float]:
        """Its numbers by the names they have in TensorBoard."""
        values = {"train/accuracy": self.accuracy, "train/images_per_second": self.rate, "train/waiting": self.waiting}
        if self.validation and self.validation.mean:
            mean = self.validation.mean
            values |= {f"validation/{n}": getattr(mean, n) for n in ("accuracy", "average_precision", "roc_auc")}
        return values


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_read: Callable[[int, int], None] = lambda count, total: None,
    on_start: Callable[[Plan], None] = lambda plan: None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Path:
    """Train into ``folder``; returns the checkpoint to use: best.safetensors with validation, else last.safetensors.

    With ``resume`` it goes on with the run in ``folder``, whose config must be ``config`` but for MACHINE_FIELDS.
    "Best" is by the mean average precision over the validation generators. The callbacks are called in the first
    process only; ``on_read`` (images read, of how many) while all images are read once. Raises InputError, as early as
    can be: a class without images, unreadable ones, a folder already used or of another config.
    """
    folder = Path(folder)
    if config.tensorboard:
        _summary_writer()
    samples, validation = find_samples(config)
    if config.start and not resume:
        starting_point(config)  # before all images are read
    with process_group(config.device) as process:
        if config.dtype == "float16" and process.device.type == "cpu":
            raise InputError("dtype float16 is for GPUs; on the CPU use bfloat16")
        batches = BalancedBatches([sample.label for sample in samples], config, process.rank, process.size)
        crops = config.epochs * batches.steps * config.batch_size
        trainer = Fitter(config, process, crops) if detector_class(config.detector).fitted else Trainer(config, process)
        run = inspection = None
        if process.is_main:
            run, inspection = open_run(folder, config, samples, validation, resume, on_read)
        run = process.from_main(run)
        if run.trainer is not None:
            trainer.load(run.trainer)
            run.trainer = None
        elif config.start:
            trainer.start_from(starting_point(config))
        loader = Loader(samples, batches, process.device)
        first_step = run.epoch * batches.steps + run.step
        with _scalars(config, folder, process, first_step) as write_scalars:
            if process.is_main:
                on_start(Plan(config, samples, validation, batches.steps, process.size, first_step, inspection))
            while run.epoch < config.epochs:
                batches.start(run.epoch, run.step)
                for step in _steps(run, trainer, loader, folder):
                    write_scalars({"train/loss": step.loss, "train/learning_rate": trainer.learning_rate}, step.number)
                    on_step(step)
                loss, accuracy = trainer.end_epoch()
                if process.is_main:
                    epoch = _finish_epoch(run, trainer, loss, accuracy, validation, folder)
                    write_scalars(epoch.scalars(), run.epoch * batches.steps)
                    on_epoch(epoch)
                else:
                    run.next_epoch()
                process.barrier()
    return folder / (BEST if run.best is not None else LAST)


def find_samples(config: TrainConfig) -> tuple[list[Sample], list[Sample]]:
    """The images to train and to validate on. Raises DatasetError."""
    if not config.folders:
        raise DatasetError("no folders to train on")
    samples = [sample for root in config.folders for sample in datasets.find_samples(root)]
    if config.classes:
        groups = dict.fromkeys(sample.group for sample in samples)
        for name in config.classes:
            if name not in groups:
                raise DatasetError(
                    f"the training folders have no class {name!r}, but {', '.join(groups)}; the field classes chooses"
                )
        samples = [sample for sample in samples if sample.group in config.classes]
    datasets.require_both_classes(samples, "the training data")
    return samples, collect(config.validation) if config.validation else []


def starting_point(config: TrainConfig) -> DetectorNetwork:
    """The network of ``config.start``. Raises InputError where it cannot be read or differs in architecture."""
    network = checkpoints.load(config.start).model
    for name in ("detector", "grid_size", "anchor"):
        if (theirs := getattr(network, name, None)) not in (None, ours := getattr(config, name)):
            raise InputError(
                f"start {config.start} has {name} {theirs}, not {ours}: set {name}={theirs}, or start from another"
            )
    return network


def _steps(run: Run, trainer: Trainer | Fitter, loader: Loader, folder: Path) -> Iterator[Step]:
    """The steps that are left of an epoch; in the first process they are yielded.

    A step is reported when the next one is on its way, so that a GPU never waits for the loss to be read.
    """
    batches, first = loader.batches, trainer.process.is_main
    began, parts, unread = time.perf_counter() - run.seconds, iter(loader), deque()
    loader.waited = run.waited

    def read() -> Step:
        number, loss = unread.popleft()
        if not math.isfinite(loss := loss.item()):
            raise InputError(f"the loss became {loss} in step {number}; try a lower learning_rate")
        return Step(number, batches.config.batch_size, loss, run.waited / run.seconds)

    while run.step < batches.steps:
        loss = trainer.step(parts)
        run.step += 1
        run.seconds, run.waited = time.perf_counter() - began, loader.waited
        if not first:
            continue
        unread.append((run.epoch * batches.steps + run.step, loss))
        save = run.step % batches.config.save_steps == 0 and run.step < batches.steps
        while len(unread) > (0 if save or run.step == batches.steps else 1):
            yield read()
        if save:
            run.save(trainer, folder)


def _finish_epoch(
    run: Run, trainer: Trainer | Fitter, loss: float, accuracy: float, validation: Sequence[Sample], folder: Path
) -> Epoch:
    """Checkpoints, validation and history of the epoch whose steps are done, and the state to resume from."""
    config, images = trainer.config, run.step * trainer.config.batch_size
    metadata = Metadata(
        name=config.name,
        view=View.parse(config.view),
        decoder=run.decoder,
        training_data=config.training_data,
        licence=config.licence,
        training=config.recipe(),
    )
    checkpoints.save(folder / LAST, trainer.network, metadata)
    measured = None
    if validation:
        loaded = checkpoints.load(folder / LAST)
        measured = evaluate(Scorer(loaded, workers=config.workers, device=trainer.process.device), validation)
    epoch = Epoch(run.epoch + 1, loss, accuracy, images / run.seconds, run.waited / run.seconds, measured)
    if epoch.score is not None and (run.best is None or epoch.score > run.best):
        run.best = epoch.score
        checkpoints.save(folder / BEST, trainer.network, metadata)
    run.history.append(epoch.as_dict())
    run.next_epoch()
    run.write_history(folder)
    run.save(trainer, folder)
    return epoch


@contextlib.contextmanager
def _scalars(
    config: TrainConfig, folder: Path, process: Process, first_step: int
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Gives write(scalars, step), which shows them in TensorBoard if the config asks for it."""
    if not config.tensorboard or not process.is_main:
        yield lambda scalars, step: None
        return
    writer = _summary_writer()(folder / "tensorboard", purge_step=first_step + 1)

    def write(scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    with contextlib.closing(writer):
        yield write


def _summary_writer() -> type:
    """TensorBoard's. Raises InputError where it is not installed."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise InputError(
            "scalars for TensorBoard were asked for, but it is not installed: pip install 'npr-kernels[tensorboard]'"
        ) from error
