"""The folder of a training run.

- ``config.json``: the config;
- ``last.safetensors`` and, with validation, ``best.safetensors``: checkpoints of the last and the best epoch;
- ``history.jsonl``: one line per epoch;
- ``state.pt``: what a resumed run continues from.

Each file is replaced in one step, so a run may be killed at any time. A folder is never used for another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from npr_model.datasets import checks
from npr_model.datasets.checks import Inspection
from npr_model.datasets.folders import DatasetError, Sample
from npr_model.errors import InputError, reason
from npr_model.files import atomic_write, remove_partials, write_text
from npr_model.training.config import CONFIG, FIELDS, MACHINE_FIELDS, TrainConfig, load_run
from npr_model.training.fitter import Fitter
from npr_model.training.trainer import Trainer

STATE, HISTORY, BEST, LAST = "state.pt", "history.jsonl", "best.safetensors", "last.safetensors"


@dataclass
class Run:
    """Progress of a run.

    Attributes:
        config, files: The config as JSON, and a hash of the training files.
        decoder: Decoders that read the training files.
        epoch, step: Finished epochs, and finished steps of the next one.
        seconds, waited: Time spent in those steps, and waiting for data in them.
        best: Best validation score so far.
        history: Finished epochs as JSON values.
        trainer: State of the trainer at the start of this session; None for a new run.
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

    def save(self, trainer: Trainer | Fitter, folder: Path) -> None:
        with atomic_write(folder / STATE) as temporary:
            torch.save(vars(self) | {"trainer": trainer.state()}, temporary)

    def write_history(self, folder: Path) -> None:
        write_text(folder / HISTORY, "".join(json.dumps(epoch) + "\n" for epoch in self.history))

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seconds, self.waited = self.epoch + 1, 0, 0.0, 0.0


def open_run(
    folder: Path,
    config: TrainConfig,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    resume: bool,
    on_read: Callable[[int, int], None],
) -> tuple[Run, Inspection | None]:
    """Start a new run in a new folder or, with ``resume``, load the last saved state of the run there.

    A new run reads all images once; ``on_read`` is called as in :class:`npr_model.training.loop.Callbacks`. Raises
    InputError.
    """
    names = "\n".join(f"{sample.label} {sample.path}" for sample in samples)
    files = hashlib.sha256(names.encode("utf-8", "replace")).hexdigest()
    run = inspection = None
    if resume:
        run = _saved_run(folder, config, files)
    else:
        prepare(folder)
    if run is None:
        inspection = _inspect(config, samples, validation, on_read)
        run = Run(config.to_json(), files, ", ".join(inspection.decoders))
    run.config = config.to_json()
    write_text(folder / CONFIG, run.config)
    run.write_history(folder)
    return run, inspection


def _inspect(
    config: TrainConfig,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    on_read: Callable[[int, int], None],
) -> Inspection:
    """Read all images, so that bad ones are found before hours of training. Returns what the training images are."""
    for part in (samples, validation):
        if contradiction := str(checks.find_contradictions(part)):
            raise DatasetError(f"{contradiction}; remove the wrong one")
    total = len(samples) + len(validation)

    def inspect(part: Sequence[Sample]) -> Inspection:
        return checks.inspect_samples(part, config.grid_size, config.workers, lambda count: on_read(count, total))

    inspection = inspect(samples)
    inspect(validation)
    return inspection


def prepare(folder: Path) -> None:
    """Create the output folder. Raises InputError if it holds a run already or cannot be created."""
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
    """Load the run in ``folder``; None if it was killed before its first save. Raises InputError for another run."""
    stored, run = load_run(folder), None
    remove_partials(folder)
    if (folder / STATE).exists():
        try:
            run = Run(**torch.load(folder / STATE, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged file can make torch.load raise anything
            raise InputError(f"{folder / STATE} cannot be read: {reason(error)}") from error
        stored = TrainConfig().changed(**json.loads(run.config))
        if run.files != files:
            raise InputError(f"{folder} was trained on other files: the training folders have changed")
    if run is not None and run.epoch > config.epochs:
        raise InputError(f"{folder} was trained for {run.epoch} epochs, more than epochs={config.epochs}")
    for name in FIELDS:
        old, new = getattr(stored, name), getattr(config, name)
        if old != new and name not in MACHINE_FIELDS:
            raise InputError(
                f"{folder} was trained with {name}={json.dumps(old)}, not {json.dumps(new)}: resume it without this "
                "change, or start in another folder"
            )
    return run
