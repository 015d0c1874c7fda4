"""The folder of a training run: begun once, resumed after an interruption, and refused to any other run.

It holds

- ``config.json``: the config, to be run again;
- ``last.safetensors`` and, with validation, ``best.safetensors``: checkpoints, of the last and the best epoch;
- ``history.jsonl``: a line for each epoch;
- ``state.pt``: what a resumed run goes on from.

Each is replaced in one step, so a run may be killed at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from npr_model import datasets
from npr_model.datasets import Inspection, Sample
from npr_model.errors import InputError, reason
from npr_model.files import atomic_write
from npr_model.training.config import CONFIG, FIELDS, MACHINE_FIELDS, TrainConfig, load_run
from npr_model.training.fitter import Fitter
from npr_model.training.trainer import Trainer

STATE, HISTORY, BEST, LAST = "state.pt", "history.jsonl", "best.safetensors", "last.safetensors"


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

    def save(self, trainer: Trainer | Fitter, folder: Path) -> None:
        with atomic_write(folder / STATE) as temporary:
            torch.save(vars(self) | {"trainer": trainer.state()}, temporary)

    def write_history(self, folder: Path) -> None:
        with atomic_write(folder / HISTORY) as temporary:
            temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in self.history), encoding="utf-8")

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seconds, self.waited = self.epoch + 1, 0, 0.0, 0.0


def open_run(
    folder: Path,
    config: TrainConfig,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    resume: bool,
    on_read: Callable[[int, int], None],
) -> tuple[Run, Inspection | None]:
    """A new run in a new folder, or, with ``resume``, the one in ``folder`` as it was saved last. Raises InputError."""
    files = hashlib.sha256("\n".join(f"{sample.label} {sample.path}" for sample in samples).encode("utf-8", "replace"))
    run = inspection = None
    if resume:
        run = _saved_run(folder, config, files.hexdigest())
    else:
        prepare(folder)
    if run is None:
        total = len(samples) + len(validation)
        inspection = datasets.inspect_samples(
            samples, config.grid_size, config.workers, lambda count: on_read(count, total)
        )
        datasets.inspect_samples(validation, config.grid_size, config.workers, lambda count: on_read(count, total))
        run = Run(config.to_json(), files.hexdigest(), ", ".join(inspection.decoders))
    run.config = config.to_json()
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(run.config, encoding="utf-8")
    run.write_history(folder)
    return run, inspection


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
