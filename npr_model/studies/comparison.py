"""Several detectors on the same files, in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npr_model.evaluation.evaluate import Evaluation
from npr_model.evaluation.report import interval
from npr_model.files import write_text
from npr_model.reporting.tables import Table, percent


@dataclass(frozen=True)
class Entry:
    """Evaluation of one checkpoint. ``detector``: name of its kind in the paper's tables."""

    detector: str
    evaluation: Evaluation


def table(entries: Sequence[Entry]) -> Table:
    """Return one row per checkpoint: ROC AUC of each generator, and the mean metrics of the paper's tables."""
    first = entries[0].evaluation
    means = ("mean accuracy", "mean AP", "mean ROC AUC")
    rows = []
    for entry in entries:
        evaluation = entry.evaluation
        cells = [percent(evaluation.generators[name].roc_auc) for name in first.generators]
        names = ("accuracy", "average_precision", "roc_auc")
        cells += [interval(evaluation.mean, name) if evaluation.mean else percent(None) for name in names]
        rows.append((evaluation.model, entry.detector, evaluation.view, *cells))
    notes = [
        f"Columns of generators show the ROC AUC. Accuracy is at the logit {first.threshold:g}. In percent, means with "
        f"95 % bootstrap intervals. {first.comparison[:1].upper()}{first.comparison[1:]}."
    ]
    notes += [f"Warning: {warning}." for warning in (first.warning, first.contradiction) if warning]
    for entry in entries:
        if entry.evaluation.errors:
            count = len(entry.evaluation.errors)
            notes.append(f"{entry.evaluation.model}: {count} images could not be scored and are excluded.")
    columns = ("checkpoint", "detector", "view", *first.generators, *means)
    return Table("Comparison of detectors", columns, tuple(rows), tuple(notes))


def write(entries: Sequence[Entry], folder: Path) -> list[Path]:
    """Write comparison.md and comparison.json, which has all digits; return their paths."""
    values = [{"detector": entry.detector} | entry.evaluation.as_dict() for entry in entries]
    texts = {"comparison.md": table(entries).markdown(), "comparison.json": json.dumps(values, indent=2) + "\n"}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
