"""Several detectors on the same files, in one table; those that are not trained yet are trained alike before."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npr_model.checkpoints import Metadata
from npr_model.datasets.folders import Sample
from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork, JoinedNetwork
from npr_model.errors import InputError, reason
from npr_model.evaluation import published
from npr_model.evaluation.evaluate import evaluate
from npr_model.evaluation.metrics import Metrics
from npr_model.evaluation.tables import interval
from npr_model.files import write_text
from npr_model.imaging.perturbations import Perturbation
from npr_model.reporting.tables import Table, percent
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.training.config import CONFIG, TrainConfig
from npr_model.training.loop import Callbacks, train
from npr_model.training.run_folder import LAST

RESULTS = "comparison.json"
PAGE = "comparison.md"

# What a method cannot do without, whatever the shared config says. All else is the same for all detectors.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "frank": {"weight_decay": 0.02},  # as the authors; 49,152 weights overfit a small training set
    "ojha": {"resize": 224, "crop_size": 224, "view": "resize:224"},  # the encoder's input: whole images
}


@dataclass(frozen=True)
class Entry:
    """Evaluation of one checkpoint.

    Attributes:
        checkpoint: Its name and digest.
        detector: Name of its kind in the paper's tables.
        view: What the network saw.
        parameters: Number of weights, without those of an image encoder.
        rate: Images per second in this evaluation, from files to logits.
        generators, mean, comparison, errors: As in :class:`npr_model.evaluation.evaluate.Evaluation`.
        warnings: Why the numbers may measure something else than the detector.
        conditions: Digest of the images, their changes and the precision. Results with another one are not comparable.
    """

    checkpoint: str
    detector: str
    view: str
    parameters: int
    rate: float
    generators: dict[str, Metrics]
    mean: Metrics
    comparison: str
    errors: dict[str, str]
    warnings: tuple[str, ...]
    conditions: str


def recipes(names: Sequence[str], config: TrainConfig, settings: Sequence[str] = ()) -> list[TrainConfig]:
    """Return the training config of each of ``names``: ``config``, overridden by ``name=value`` texts, with RECIPES.

    Raises InputError: a setting would change what is compared, or what it asks for is not installed.
    """
    for setting in settings:
        if (field := setting.partition("=")[0]) in ("detector", "name", "folders"):
            raise InputError(f"--set {field} is decided by --detectors and --train: leave it out")
    shared = config.overridden(settings)
    own = [shared.changed(detector=name, name=name, **RECIPES.get(name, {})) for name in names]
    for one in own:  # before hours of training
        architecture = one.architecture(detector_class(one.detector).architecture)
        Metadata(detector=one.detector, architecture=architecture).network().check_ready()
    return own


def trained(config: TrainConfig, folder: Path, callbacks: Callbacks = Callbacks()) -> Path:
    """Train a detector in a folder named after it, below ``folder``, and return its last checkpoint.

    A started training is continued, and a finished one is only read. Validation would choose the epoch of some
    detectors and not of others, so the last one counts. Raises InputError as :func:`npr_model.training.loop.train`.
    """
    run = folder / config.detector
    train(config, run, resume=(run / CONFIG).exists(), callbacks=callbacks)
    return run / LAST


def measure(
    scorer: Scorer,
    samples: Sequence[Sample],
    known: Sequence[Entry] = (),
    *,
    equalise: Perturbation | None = None,
    perturbation: Perturbation | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Entry:
    """Evaluate a checkpoint at the logit 0, or return its entry among ``known``.

    Arguments are those of :func:`npr_model.evaluation.evaluate.evaluate`.

    Raises:
        InputError: No generator has images of both classes, or no image could be scored.
    """
    network = scorer.checkpoint.model
    conditions = _conditions(scorer, samples, equalise, perturbation)
    for entry in known:
        if (entry.checkpoint, entry.view, entry.conditions) == (scorer.model_id, str(scorer.view), conditions):
            return entry
    began = ended = time.perf_counter()

    def note_time(row: Row) -> None:
        nonlocal ended
        ended = time.perf_counter()
        on_row(row)

    evaluation = evaluate(
        scorer, samples, equalise=equalise, perturbation=perturbation, threshold=0.0, on_row=note_time
    )
    if evaluation.mean is None:
        raise InputError("no generator has both real and generated images: give real ones with --real")
    return Entry(
        checkpoint=evaluation.model,
        detector=network.paper_name,
        view=evaluation.view,
        parameters=_count(network),
        rate=len({sample.path for sample in samples}) / (ended - began),
        generators=evaluation.generators,
        mean=evaluation.mean,
        comparison=evaluation.comparison,
        errors=evaluation.errors,
        warnings=tuple(text for text in (evaluation.warning, evaluation.contradiction) if text),
        conditions=conditions,
    )


def tables(entries: Sequence[Entry]) -> tuple[Table, Table]:
    """Return the means of every detector, beside the paper's, and the ROC AUC on every generator."""
    means = ("accuracy", "average_precision", "roc_auc")
    rows = []
    for entry in entries:
        theirs = published.mean_accuracies().get(entry.detector)
        rows.append(
            (
                entry.checkpoint,
                entry.detector,
                entry.view,
                f"{entry.parameters:,}",
                f"{entry.rate:.1f}",
                *(interval(entry.mean, name) for name in means),
                "" if theirs is None else f"{theirs:.1f}",
            )
        )
    measured = ("mean accuracy", "mean AP", "mean ROC AUC", "published mean accuracy")
    columns = ("checkpoint", "detector", "view", "parameters", "images/s", *measured)
    summary = Table("Comparison of detectors", columns, tuple(rows), tuple(_notes(entries)))
    counted = [f"{name} ({m.real} real, {m.fake} generated)" for name, m in entries[0].generators.items()]
    by_generator = [
        (label, *(percent(entry.generators[name].roc_auc) for entry in entries))
        for label, name in zip(counted, entries[0].generators, strict=True)
    ]
    checkpoints = ("generator", *(entry.checkpoint for entry in entries))
    return summary, Table("ROC AUC on each generator", checkpoints, tuple(by_generator))


def write(entries: Sequence[Entry], folder: Path, known: Sequence[Entry] = ()) -> list[Path]:
    """Write comparison.md and comparison.json; return their paths.

    The JSON file has all digits, and keeps the entries ``known`` of earlier calls, which are not on the page.
    """
    values = [asdict(entry) for entry in (*entries, *(entry for entry in known if entry not in entries))]
    texts = {
        PAGE: "\n".join(table.markdown() for table in tables(entries)),
        RESULTS: json.dumps(values, indent=2) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def read(folder: Path) -> list[Entry]:
    """Return the entries that :func:`write` wrote to ``folder``; none if it has none. Raises InputError."""
    path = folder / RESULTS
    try:
        return [_entry(values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): remove it, or choose another output") from error


def _entry(values: dict[str, Any]) -> Entry:
    generators = {name: Metrics.from_dict(row) for name, row in values.pop("generators").items()}
    mean = Metrics.from_dict(values.pop("mean"))
    return Entry(generators=generators, mean=mean, warnings=tuple(values.pop("warnings")), **values)


def _count(network: DetectorNetwork) -> int:
    """The number of weights of a network, and of those that it joins."""
    parts = network.parts if isinstance(network, JoinedNetwork) else ()
    return sum(parameter.numel() for parameter in network.parameters()) + sum(map(_count, parts))


def _conditions(
    scorer: Scorer, samples: Sequence[Sample], equalise: Perturbation | None, perturbation: Perturbation | None
) -> str:
    changes = [change.text if change else "" for change in (perturbation, equalise)]
    images = sorted([sample.group, sample.label, str(sample.path), sample.path.stat().st_size] for sample in samples)
    return hashlib.sha256(json.dumps([scorer.dtype, changes, images]).encode()).hexdigest()


def _notes(entries: Sequence[Entry]) -> list[str]:
    first = entries[0]
    counted = sum(1 for m in first.generators.values() if m.roc_auc is not None)
    notes = [
        f"Means over {counted} generators, in percent, with 95 % bootstrap intervals. Accuracy is at the logit 0. "
        f"{first.comparison[:1].upper()}{first.comparison[1:]}. The published mean accuracies are those of Table 6 of "
        "Tan et al. (CVPR 2024), over other images. Parameters do not include the encoder of Ojha. Rates are from "
        "files to logits."
    ]
    notes += [f"Warning: {warning}." for warning in first.warnings]
    notes += [
        f"{entry.checkpoint}: {len(entry.errors)} images could not be scored and are excluded."
        for entry in entries
        if entry.errors
    ]
    return notes
