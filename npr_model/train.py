"""Training on folders of 0_real / 1_fake, as a :class:`TrainConfig` says: alone, or in several processes by torchrun.

Crops travel as uint8 and are normalised inside the network. The output folder holds

- ``config.json``: the config, to be run again;
- ``last.safetensors`` and, with validation, ``best.safetensors``: checkpoints, of the last and the best epoch;
- ``history.jsonl``: a line for each epoch;
- ``state.pt``: what a resumed run goes on from.

Each is replaced in one step, so a run may be killed at any time and resumed: its losses and weights are then those of
a run that was never interrupted, to the bit where the hardware computes the same sums in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npr_model import checkpoints, datasets
from npr_model.checkpoints import Metadata
from npr_model.config import CONFIG, FIELDS, MACHINE_FIELDS, TrainConfig, load_run
from npr_model.datasets import DatasetError, Sample, Survey
from npr_model.distributed import Process, SyncBatchNorm, joined
from npr_model.errors import InputError, reason
from npr_model.evaluate import Evaluation, collect, evaluate
from npr_model.files import replacing
from npr_model.images import View
from npr_model.loading import BalancedBatches, Loader
from npr_model.screening.runner import Scorer

STATE, HISTORY, BEST, LAST = "state.pt", "history.jsonl", "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class Plan:
    """What is about to be trained: ``steps`` in an epoch, in ``processes``, from a ``first_step`` of the whole run on.

    ``survey`` of the training images is None where a resumed run makes none.
    """

    config: TrainConfig
    samples: Sequence[Sample]
    validation: Sequence[Sample]
    steps: int
    processes: int
    first_step: int
    survey: Survey | None


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

    def scalars(self) -> dict[str, float]:
        """Its numbers by the names they have in TensorBoard."""
        values = {"train/accuracy": self.accuracy, "train/images_per_second": self.rate, "train/waiting": self.waiting}
        if self.validation and self.validation.mean:
            mean = self.validation.mean
            values |= {f"validation/{n}": getattr(mean, n) for n in ("accuracy", "average_precision", "roc_auc")}
        return values


class Trainer:
    """The network with its optimizer, and one step of it. ``totals``: loss, right answers and images of the epoch."""

    def __init__(self, config: TrainConfig, process: Process) -> None:
        self.config, self.process, device = config, process, process.device
        torch.manual_seed(config.seed)
        self.network = Metadata(grid_size=config.grid_size, anchor=config.anchor).network()
        if process.size > 1:
            SyncBatchNorm.replace(self.network)
        self.network.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, betas=config.betas)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, config.decay_epochs, config.decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def step(self, parts: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One optimizer step on the next ``config.accumulation`` parts; the mean loss over all processes, a scalar."""
        device, dtype, accumulation = self.process.device, getattr(torch, self.config.dtype), self.config.accumulation
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for _ in range(accumulation):
            pixels, labels = next(parts)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = self.network(pixels).to(labels.dtype)
            loss = F.binary_cross_entropy_with_logits(logits, labels)
            self.scaler.scale(loss / accumulation).backward()
            right = ((logits > 0) == (labels > 0)).sum()
            count = torch.full_like(right, len(labels))
            sums += torch.stack([loss.detach().double() * len(labels), right.double(), count.double()])
        self.process.average(parameter.grad for parameter in self.network.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.process.sum(sums)
        self.totals += sums
        return sums[0] / sums[2]

    def end_epoch(self) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch; the next one begins."""
        loss, right, images = self.totals.tolist()
        self.totals.zero_()
        self.schedule.step()
        return loss / images, right / images

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, for :meth:`load`."""
        cuda = self.process.device.type == "cuda"
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.totals,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.process.device) if cuda else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.totals.copy_(state["totals"])
        torch.set_rng_state(state["random"].cpu())
        if state["cuda_random"] is not None and self.process.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"].cpu(), self.process.device)


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
    with joined(config.device) as process:
        if config.dtype == "float16" and process.device.type == "cpu":
            raise InputError("dtype float16 is for GPUs; on the CPU use bfloat16")
        batches = BalancedBatches([sample.label for sample in samples], config, process.rank, process.size)
        run = survey = None
        if process.first:
            run, survey = open_run(folder, config, samples, validation, resume, on_read)
        run = process.from_first(run)
        trainer = Trainer(config, process)
        if run.trainer is not None:
            trainer.load(run.trainer)
            run.trainer = None
        loader = Loader(samples, batches, process.device)
        first_step = run.epoch * batches.steps + run.step
        with _scalars(config, folder, process, first_step) as write_scalars:
            if process.first:
                on_start(Plan(config, samples, validation, batches.steps, process.size, first_step, survey))
            while run.epoch < config.epochs:
                batches.start(run.epoch, run.step)
                for step in _steps(run, trainer, loader, folder):
                    write_scalars({"train/loss": step.loss, "train/learning_rate": trainer.learning_rate}, step.number)
                    on_step(step)
                loss, accuracy = trainer.end_epoch()
                if process.first:
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


@dataclass
class Run:
    """How far a run has come: ``epoch`` whole epochs and ``step`` steps of the next one, which took ``seconds``.

    ``trainer``: its state at the beginning of this session, None of a new run. ``history``: the epochs as JSON values.
    """

    config: str
    files: str
    decoder: str
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    trainer: dict[str, Any] | None = None

    def save(self, trainer: Trainer, folder: Path) -> None:
        with replacing(folder / STATE) as temporary:
            torch.save(vars(self) | {"trainer": trainer.state()}, temporary)

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seconds, self.waited = self.epoch + 1, 0, 0.0, 0.0


def open_run(
    folder: Path,
    config: TrainConfig,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    resume: bool,
    on_read: Callable[[int, int], None],
) -> tuple[Run, Survey | None]:
    """A new run in a new folder, or, with ``resume``, the one in ``folder`` as it was saved last. Raises InputError."""
    files = hashlib.sha256("\n".join(f"{sample.label} {sample.path}" for sample in samples).encode("utf-8", "replace"))
    run = survey = None
    if resume:
        run = _saved_run(folder, config, files.hexdigest())
    else:
        prepare(folder)
    if run is None:
        total = len(samples) + len(validation)
        survey = datasets.survey(samples, config.grid_size, config.workers, lambda count: on_read(count, total))
        datasets.survey(validation, config.grid_size, config.workers, lambda count: on_read(count, total))
        run = Run(config.to_json(), files.hexdigest(), ", ".join(survey.decoders))
    run.config = config.to_json()
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(run.config, encoding="utf-8")
    _write_history(run, folder)
    return run, survey


def prepare(folder: Path) -> None:
    """Make the output folder. Raises InputError if it holds a training already, or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = [
            path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".jsonl") or path.name == CONFIG
        ]
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be used: {reason(error)}") from error
    if used:
        raise InputError(
            f"output folder {folder} already holds {', '.join(sorted(used))}; choose another, or resume that run"
        )


def _saved_run(folder: Path, config: TrainConfig, files: str) -> Run | None:
    """The run of ``folder``, None if it was killed before its first save. Raises InputError if it is another one."""
    stored, run = load_run(folder), None
    for left in folder.glob(".*.partial"):  # by a run that was killed while writing
        left.unlink(missing_ok=True)
    if (folder / STATE).exists():
        try:
            run = Run(**torch.load(folder / STATE, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises whatever a damaged file leads it to
            raise InputError(f"{folder / STATE} cannot be read: {reason(error)}") from error
        stored = TrainConfig().changed(**json.loads(run.config))
        if run.files != files:
            raise InputError(f"{folder} was trained on other files than the training folders hold now")
    for name in FIELDS:
        old, new = getattr(stored, name), getattr(config, name)
        if old != new and name not in MACHINE_FIELDS:
            raise InputError(
                f"{folder} was trained with {name}={json.dumps(old)}, not {json.dumps(new)}: resume it without the "
                "change, or begin in another folder"
            )
    return run


def _steps(run: Run, trainer: Trainer, loader: Loader, folder: Path) -> Iterator[Step]:
    """The steps that are left of an epoch; in the first process they are yielded.

    A step is reported when the next one is on its way, so that a GPU never waits for the loss to be read.
    """
    batches, first = loader.batches, trainer.process.first
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
    run: Run, trainer: Trainer, loss: float, accuracy: float, validation: Sequence[Sample], folder: Path
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
    run.history.append(asdict(epoch))
    run.next_epoch()
    _write_history(run, folder)
    run.save(trainer, folder)
    return epoch


def _write_history(run: Run, folder: Path) -> None:
    with replacing(folder / HISTORY) as temporary:
        temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in run.history), encoding="utf-8")


@contextlib.contextmanager
def _scalars(
    config: TrainConfig, folder: Path, process: Process, first_step: int
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Gives write(scalars, step), which shows them in TensorBoard if the config asks for it."""
    if not config.tensorboard or not process.first:
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
