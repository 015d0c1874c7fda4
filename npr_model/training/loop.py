"""Training on folders of 0_real / 1_fake, in one process or in several that torchrun starts.

Crops travel as uint8 and are normalised inside the network. A run may be killed at any time and resumed: losses and
weights are those of an uninterrupted run, bit for bit if the hardware adds in the same order.
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

from torch import Tensor

from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.datasets.checks import Inspection
from npr_model.datasets.folders import DatasetError, LeftOut, Sample, find_samples, require_both_classes
from npr_model.detectors import NAMES, detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError
from npr_model.evaluation.evaluate import Evaluation, collect, evaluate
from npr_model.imaging.views import View
from npr_model.scoring.scorer import Scorer
from npr_model.training.config import FIELDS, TrainConfig
from npr_model.training.distributed import Process, process_group
from npr_model.training.fitter import Fitter
from npr_model.training.loading import BalancedBatches, Loader
from npr_model.training.run_folder import BEST, LAST, Run, open_run
from npr_model.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training run. ``left_out``: files in its folders that are not used."""

    samples: list[Sample]
    validation: list[Sample]
    left_out: LeftOut


@dataclass(frozen=True)
class Plan:
    """What is about to be trained.

    Attributes:
        config: The training config.
        images: The images.
        steps: Optimizer steps per epoch.
        processes: Number of processes.
        first_step: Steps of the whole run that are already done.
        inspection: Result of decoding the training images; None for a resumed run.
    """

    config: TrainConfig
    images: TrainingImages
    steps: int
    processes: int
    first_step: int
    inspection: Inspection | None


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: Counts from 1 over the whole run.
        images: Number of images, over all processes.
        loss: Mean over the images.
        waiting: Share of this epoch's time so far that the main process waited for data.
    """

    number: int
    images: int
    loss: float
    waiting: float


@dataclass(frozen=True)
class Epoch:
    """Result of one epoch.

    Attributes:
        number: Counts from 1.
        loss, accuracy: Means over its crops.
        rate: Images per second.
        waiting: Share of the time that the main process waited for data.
        validation: None without validation images.
    """

    number: int
    loss: float
    accuracy: float
    rate: float
    waiting: float
    validation: Evaluation | None

    @property
    def score(self) -> float | None:
        """What "best" means: mean average precision over the validation generators, which needs no threshold."""
        return self.validation.mean.average_precision if self.validation and self.validation.mean else None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: one line of the history."""
        measured = self.validation.as_dict() if self.validation else None
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"validation": measured}

    def scalars(self) -> dict[str, float]:
        """Return the numbers by their names in TensorBoard."""
        values = {"train/accuracy": self.accuracy, "train/images_per_second": self.rate, "train/waiting": self.waiting}
        if self.validation and self.validation.mean:
            mean = self.validation.mean
            values |= {f"validation/{n}": getattr(mean, n) for n in ("accuracy", "average_precision", "roc_auc")}
        return values


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls in its main process. The default ones do nothing.

    Attributes:
        on_read: Called with (images read since the last call, all images) while all images are read once.
        on_start, on_step, on_epoch: Called with the plan, with each step and with each epoch.
    """

    on_read: Callable[[int, int], None] = lambda count, total: None
    on_start: Callable[[Plan], None] = lambda plan: None
    on_step: Callable[[Step], None] = lambda step: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None


def train(config: TrainConfig, folder: Path, *, resume: bool = False, callbacks: Callbacks = Callbacks()) -> Path:
    """Train into ``folder``.

    Args:
        config: The training config.
        folder: A new folder, or with ``resume`` that of the run to continue.
        resume: Continue the run in ``folder``; ``config`` must equal its config except for MACHINE_FIELDS.
        callbacks: Told of the progress.

    Returns:
        The checkpoint to use: best.safetensors with validation (by mean average precision), else last.safetensors.

    Raises:
        InputError: As early as possible: a class without images, unreadable images, a file in both classes, a folder of
            another run.
    """
    folder = Path(folder)
    if config.tensorboard:
        _summary_writer()
    images = find_images(config)
    start = starting_point(config) if config.start and not resume else None  # its errors come before reading all images
    with process_group(config.device) as process:
        if config.dtype == "float16" and process.device.type == "cpu":
            raise InputError("dtype float16 needs a GPU: use bfloat16 on the CPU")
        batches = BalancedBatches(images.samples, config, process.rank, process.size)
        loader = Loader(images.samples, batches, process.device)
        crops = config.epochs * batches.steps * config.batch_size
        trainer = Fitter(config, process, crops) if detector_class(config.detector).fitted else Trainer(config, process)
        if isinstance(trainer, Trainer) and not resume:
            trainer.load_discriminator()  # a bad file is found before all images are read
        run = inspection = None
        if process.is_main:
            run, inspection = open_run(
                folder, config, images.samples, images.validation, resume=resume, on_read=callbacks.on_read
            )
        run = process.from_main(run)
        if run.trainer is not None:
            trainer.load(run.trainer)
            run.trainer = None
        else:
            if isinstance(trainer, Trainer) and resume:  # it was stopped before its first save
                trainer.load_discriminator()
            if config.start:
                trainer.start_from(start or starting_point(config))
        first_step = run.epoch * batches.steps + run.step
        with _scalars(config, folder, process, first_step) as write_scalars:
            if process.is_main:
                callbacks.on_start(Plan(config, images, batches.steps, process.size, first_step, inspection))
            session = _Session(run, trainer, loader, folder, images.validation, callbacks, write_scalars)
            while run.epoch < config.epochs:
                session.run_epoch()
    return folder / (BEST if run.best is not None else LAST)


def find_images(config: TrainConfig) -> TrainingImages:
    """Return the training and the validation images. Raises DatasetError."""
    if not config.folders:
        raise DatasetError("no folders to train on")
    left_out = LeftOut()
    samples = [sample for root in config.folders for sample in find_samples(root, on_other=left_out.add)]
    if config.classes:
        groups = dict.fromkeys(sample.group for sample in samples)
        for name in config.classes:
            if name not in groups:
                raise DatasetError(
                    f"the training folders have no class {name!r}; set classes to some of {', '.join(groups)}"
                )
        samples = [sample for sample in samples if sample.group in config.classes]
    require_both_classes(samples, "the training data")
    validation = collect(config.validation, on_other=left_out.add) if config.validation else []
    return TrainingImages(samples, validation, left_out)


def starting_point(config: TrainConfig) -> DetectorNetwork:
    """Return the network of ``config.start``. Raises InputError if it cannot be read or has another architecture."""
    network = checkpoints.load(config.start).model
    for name in ("detector", *(name for name in network.architecture if name in FIELDS)):
        if (theirs := getattr(network, name)) != (ours := getattr(config, name)):
            possible = name != "detector" or theirs in NAMES
            instead = f"set {name}={theirs}, or use another start" if possible else "use another start"
            raise InputError(f"start {config.start} has {name} {theirs}, not {ours}: {instead}")
    if (has_one := getattr(network, "pretrained", False)) != (config.discriminator != ""):
        instead = "set discriminator to that file" if has_one else "leave out discriminator"
        raise InputError(f"start {config.start} has {'a' if has_one else 'no'} discriminator from a file: {instead}")
    return network


@dataclass(frozen=True)
class _Session:
    """What the epochs of one call of :func:`train` share. ``run`` is advanced by them."""

    run: Run
    trainer: Trainer | Fitter
    loader: Loader
    folder: Path
    validation: Sequence[Sample]
    callbacks: Callbacks
    write_scalars: Callable[[dict[str, float], int], None]

    def run_epoch(self) -> None:
        """Run the rest of the current epoch, in all processes."""
        run, trainer, batches = self.run, self.trainer, self.loader.batches
        batches.start(run.epoch, run.step)
        for step in self._steps():
            self.write_scalars({"train/loss": step.loss, "train/learning_rate": trainer.learning_rate}, step.number)
            self.callbacks.on_step(step)
        loss, accuracy = trainer.end_epoch()
        if trainer.process.is_main:
            epoch = self._finish_epoch(loss, accuracy)
            self.write_scalars(epoch.scalars(), run.epoch * batches.steps)
            self.callbacks.on_epoch(epoch)
        else:
            run.next_epoch()
        trainer.process.barrier()

    def _steps(self) -> Iterator[Step]:
        """Run the remaining steps of an epoch; yields them in the main process.

        A step is yielded while the next one is running, so that a GPU never waits for its loss to be read.
        """
        run, loader, batches = self.run, self.loader, self.loader.batches
        unread: deque[tuple[int, Tensor]] = deque()
        began, parts = time.perf_counter() - run.seconds, iter(loader)
        loader.waited = run.waited

        def read() -> Step:
            number, unread_loss = unread.popleft()
            if not math.isfinite(loss := unread_loss.item()):
                raise InputError(f"the loss became {loss} in step {number}; try a lower learning_rate")
            return Step(number, batches.config.batch_size, loss, run.waited / run.seconds)

        while run.step < batches.steps:
            loss = self.trainer.step(parts)
            run.step += 1
            run.seconds, run.waited = time.perf_counter() - began, loader.waited
            if not self.trainer.process.is_main:
                continue
            unread.append((run.epoch * batches.steps + run.step, loss))
            save = run.step % batches.config.save_steps == 0 and run.step < batches.steps
            while len(unread) > (0 if save or run.step == batches.steps else 1):
                yield read()
            if save:
                run.save(self.trainer, self.folder)

    def _finish_epoch(self, loss: float, accuracy: float) -> Epoch:
        """Write the checkpoints, validate, and save the history and the state to resume from."""
        run, network, config = self.run, self.trainer.result, self.trainer.config
        metadata = Metadata(
            name=config.name,
            view=View.parse(config.view),
            decoder=run.decoder,
            training_data=config.training_data,
            licence=config.licence,
            training=config.recipe(),
        )
        checkpoints.save(self.folder / LAST, network, metadata)
        measured = None
        if self.validation:
            loaded = checkpoints.load(self.folder / LAST)
            scorer = Scorer(loaded, workers=config.workers, device=self.trainer.process.device)
            measured = evaluate(scorer, self.validation)
        rate = run.step * config.batch_size / run.seconds
        epoch = Epoch(run.epoch + 1, loss, accuracy, rate, run.waited / run.seconds, measured)
        if epoch.score is not None and (run.best is None or epoch.score > run.best):
            run.best = epoch.score
            checkpoints.save(self.folder / BEST, network, metadata)
        run.history.append(epoch.as_dict())
        run.next_epoch()
        run.write_history(self.folder)
        run.save(self.trainer, self.folder)
        return epoch


@contextlib.contextmanager
def _scalars(
    config: TrainConfig, folder: Path, process: Process, first_step: int
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Yield write(scalars, step), which writes to TensorBoard if the config asks for it."""
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
    """Return TensorBoard's writer class. Raises InputError if it is not installed."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard=true needs TensorBoard: pip install 'npr-kernels[tensorboard]'") from error
