"""An evaluation as tables with published numbers beside the measured ones: Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npr_model.errors import InputError
from npr_model.evaluation import bootstrap, published
from npr_model.evaluation.evaluate import Evaluation, mean
from npr_model.evaluation.metrics import RATES, Metrics
from npr_model.evaluation.protocols import PROTOCOLS
from npr_model.files import write_text
from npr_model.reporting.tables import Table, percent

MEAN = "mean"
PAPER_SUBSETS = sum(len(protocol.subsets) for protocol in PROTOCOLS.values() if protocol.table)  # 38, as in Table 6


@dataclass(frozen=True)
class Report:
    """Evaluations of one checkpoint on one or several sets. ``compare``: methods of the paper to show beside them."""

    evaluations: tuple[Evaluation, ...]
    compare: tuple[str, ...] = ()

    @property
    def overall(self) -> Metrics | None:
        """Unweighted mean over the sub-sets of all sets, as in Table 6; None if there is only one set."""
        if len(self.evaluations) < 2:
            return None
        scores = [generator for evaluation in self.evaluations for generator in evaluation.scores.values()]
        return mean(scores, self.evaluations[0].threshold)

    def tables(self, *, brief: bool = False) -> list[Table]:
        """Return one table per set and, for several sets, one over all of them."""
        tables = [evaluation_table(evaluation, self.compare, brief=brief) for evaluation in self.evaluations]
        return [*tables, self._overall_table(self.overall)] if self.overall else tables

    def _overall_table(self, overall: Metrics) -> Table:
        count = sum(row.reason is None for evaluation in self.evaluations for row in evaluation.generators.values())
        rows = [("measured", *_cells(overall)[2:5])]
        notes = []
        for method in self.compare:
            if method in published.mean_accuracies():
                rows.append((f"{method}, published", f"{published.mean_accuracies()[method]:.1f}", "", ""))
        if self.compare and count != PAPER_SUBSETS:
            notes.append(f"Published means are over {PAPER_SUBSETS} sub-sets, {count} of which are measured here.")
        return Table(f"Mean over {count} sub-sets", ("", *_COLUMNS[3:6]), tuple(rows), tuple(notes))

    def write(self, path: Path) -> None:
        """Write the report in the format of the suffix. Raises InputError for a suffix that is not in SUFFIXES."""
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"output {path} must end in one of {', '.join(SUFFIXES)}")
        write_text(path, SUFFIXES[path.suffix.lower()](self))


def evaluation_table(evaluation: Evaluation, compare: Sequence[str] = (), *, brief: bool = False) -> Table:
    """Return the percentages of one evaluation, with bootstrap intervals where there are any.

    ``brief`` leaves out the intervals, the best accuracy and the metrics at fixed rates.
    """
    table = PROTOCOLS[evaluation.protocol].table if evaluation.protocol else None
    title = PROTOCOLS[evaluation.protocol].title if evaluation.protocol else "Evaluation"
    rows, emphasised = [], set()
    cells_of, columns = (_brief_cells, list(_BRIEF_COLUMNS)) if brief else (_cells, list(_COLUMNS))
    known = [method for method in compare if (table, method) in published.results()]

    def add(name: str, row: Metrics, generator: str) -> None:
        cells = list(cells_of(row))
        for method in known:
            cells += _published(row, published.results()[table, method].get(generator))
        rows.append((name, *cells))

    for name, row in evaluation.generators.items():
        add(name, row, name)
    if evaluation.mean and len(evaluation.generators) > 1:
        emphasised.add(len(rows))
        # A mean over other sub-sets than the paper's cannot be compared.
        add(MEAN, evaluation.mean, "" if evaluation.missing else published.MEAN)
    for name, row in evaluation.reals.items():
        rows.append((name, *cells_of(row), *[""] * (2 * len(known))))
    for method in known:
        columns += [f"accuracy of {method}", f"AP of {method}"]
    return Table(title, tuple(columns), tuple(rows), tuple(_notes(evaluation, table, known)), frozenset(emphasised))


_COLUMNS = (
    "generator",
    "real",
    "generated",
    "accuracy",
    "AP",
    "ROC AUC",
    "best accuracy",
    "accuracy of real",
    "accuracy of generated",
    *(f"detected at {100 * rate:g} % false positives" for rate in RATES),
)


def _cells(row: Metrics) -> tuple[str, ...]:
    """Cells of _COLUMNS, without the first."""
    detected = {point.rate: point.detected for point in row.at_rates}
    return (
        str(row.real),
        str(row.fake),
        interval(row, "accuracy"),
        interval(row, "average_precision"),
        interval(row, "roc_auc"),
        percent(row.best_accuracy),
        percent(row.accuracy_real),
        percent(row.accuracy_fake),
        *(percent(detected.get(rate)) for rate in RATES),
    )


_BRIEF_COLUMNS = ("generator", "real", "gen.", "accuracy", "acc. real", "acc. gen.", "AP", "ROC AUC")


def _brief_cells(row: Metrics) -> tuple[str, ...]:
    values = (row.accuracy, row.accuracy_real, row.accuracy_fake, row.average_precision, row.roc_auc)
    return (str(row.real), str(row.fake), *map(percent, values))


def interval(row: Metrics, name: str) -> str:
    """Format a field of ``row`` in percent, with its bootstrap interval in brackets if there is one."""
    value = getattr(row, name)
    if name not in row.intervals:
        return percent(value)
    low, high = row.intervals[name]
    return f"{percent(value)} ({percent(low)}-{percent(high)})"


def _published(row: Metrics, result: published.Result | None) -> list[str]:
    """Published accuracy and average precision, with measured minus published in brackets."""
    if result is None:
        return ["", ""]
    cells = []
    for value, theirs in ((row.accuracy, result.accuracy), (row.average_precision, result.average_precision)):
        if theirs is None:
            cells.append("")
        else:
            cells.append(f"{theirs:.1f}" + ("" if value is None else f" ({100 * value - theirs:+.1f})"))
    return cells


def _notes(evaluation: Evaluation, table: int | None, methods: Iterable[str]) -> list[str]:
    notes = [
        f"Checkpoint {evaluation.model}, view {evaluation.view}; accuracy at the logit {evaluation.threshold:g}. "
        f"In percent, with 95 % bootstrap intervals. {evaluation.comparison[:1].upper()}{evaluation.comparison[1:]}."
    ]
    if evaluation.flagged:
        shares = (
            f"{name} {flagged} of {count} ({100 * flagged / count:.1f} %)"
            for name, (count, flagged) in evaluation.flagged.items()
        )
        notes.append(f'Real images with the verdict "generated", by condition: {", ".join(shares)}.')
    if evaluation.warning:
        notes.append(f"Warning: {evaluation.warning}.")
    if evaluation.contradiction:
        notes.append(f"Warning: {evaluation.contradiction}.")
    for name, row in evaluation.generators.items():
        if row.reason:
            notes.append(f"{name}: {row.reason}, so there is no average precision and no ROC AUC.")
    if evaluation.missing:
        notes.append(f"Missing sub-sets, excluded from the averages: {', '.join(evaluation.missing)}.")
    if evaluation.unused:
        notes.append(f"Ignored folders that are not part of the set: {', '.join(evaluation.unused)}.")
    if evaluation.left_out:
        notes.append(f"Warning: {evaluation.left_out}.")
    if evaluation.errors:
        notes.append(f"{len(evaluation.errors)} images could not be scored and are excluded.")
    for method in methods:
        notes.append(f"{method}: Table {table} of Tan et al. (CVPR 2024); in brackets measured minus published.")
        if (table, method) in published.notes():
            notes.append(f"Note on {method}'s published row: {published.notes()[table, method]}.")
    return notes


def _json(report: Report) -> str:
    sets: list[dict[str, Any]] = []
    for evaluation in report.evaluations:
        table = PROTOCOLS[evaluation.protocol].table if evaluation.protocol else None
        sets.append(evaluation.as_dict())
        sets[-1]["published"] = {
            method: {name: asdict(result) for name, result in published.results()[table, method].items()}
            for method in report.compare
            if (table, method) in published.results()
        }
    values = {"sets": sets, "mean": asdict(report.overall) if report.overall else None}
    return json.dumps(values, indent=2) + "\n"


_AT_RATE = ("threshold", "accuracy", "detected")


def _csv(report: Report) -> str:
    """One line per generator and per folder of real images; shares in 0 .. 1 with all digits."""
    names = ("real", "fake", *bootstrap.NAMES, "accuracy_real", "accuracy_fake", "best_accuracy", "best_threshold")
    header = ["set", "model", "view", "threshold", "generator", *names]
    header += [f"{name}_{end}" for name in bootstrap.NAMES for end in ("low", "high")]
    header += [f"{name}_at_{rate:g}" for rate in RATES for name in _AT_RATE]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    for evaluation in report.evaluations:
        for generator, row in {**evaluation.generators, **evaluation.reals}.items():
            values = {name: getattr(row, name) for name in names}
            for name, (low, high) in row.intervals.items():
                values |= {f"{name}_low": low, f"{name}_high": high}
            for point in row.at_rates:
                values |= {f"{name}_at_{point.rate:g}": getattr(point, name) for name in _AT_RATE}
            values |= {"set": evaluation.protocol or "", "model": evaluation.model, "view": evaluation.view}
            writer.writerow(values | {"threshold": evaluation.threshold, "generator": generator})
    return buffer.getvalue()


SUFFIXES = {
    ".json": _json,
    ".csv": _csv,
    ".md": lambda report: "\n".join(table.markdown() for table in report.tables()),
    ".tex": lambda report: "\n".join(table.latex() for table in report.tables()),
}
