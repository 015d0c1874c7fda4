"""Measures the bundled checkpoint into a CSV file, and prints the checkpoint's card from this file as Markdown.

    python scripts/make_card.py measure VALIDATION --training TRAINING --results benchmarks/results/checkpoint.csv
    python scripts/make_card.py print benchmarks/results/checkpoint.csv > npr_model/weights/wild-1.md

VALIDATION and TRAINING hold <family>/{0_real,1_fake}. A family of VALIDATION is seen if TRAINING has it too.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import binomtest

from npr_model import checkpoints
from npr_model.datasets import REAL, Sample
from npr_model.evaluation import evaluate as evaluation
from npr_model.evaluation.evaluate import Evaluation, Scores, collect
from npr_model.imaging import perturbations
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.tables import Table, percent
from npr_model.verdicts import Calibration

CONDITIONS = {"as they are": None, "JPEG 90": "jpeg:90", "JPEG 75": "jpeg:75", "half size": "resize:0.5"}
LARGE = 10  # images of a family that counts in the means
FAMILY, MEAN, SOURCE, PHOTOGRAPHS = "family", "mean", "real source", "real images"  # kinds of lines
ALL, UNSEEN = f"families with {LARGE} images or more", "families never trained on"


@dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
        condition: Key of CONDITIONS.
        kind: FAMILY or MEAN of families, SOURCE or PHOTOGRAPHS of a format.
        name: What was measured.
        images: Its number of images, of one class.
        seen: Whether the training set has other images of the family; None for other kinds.
        auc, auc_low, auc_high: ROC AUC against all real images, with a 95 % bootstrap interval; None for real images.
        found: Share of the family above the threshold that 5 % of the real images exceed; None for real images.
        flagged, flagged_low, flagged_high: Share with the verdict "generated", with a 95 % interval (Clopper-Pearson).
    """

    condition: str
    kind: str
    name: str
    images: int
    seen: bool | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    found: float | None
    flagged: float
    flagged_low: float | None
    flagged_high: float | None


def measure(checkpoint: str, validation: Path, training: Path) -> list[Line]:
    """Measure all numbers of the card."""
    scorer = Scorer(checkpoints.load(checkpoint))
    samples = against_all_reals(collect([validation]))
    seen = {path.name for path in training.iterdir()}
    lines = []
    for condition, steps in CONDITIONS.items():
        rows: list[Row] = []
        result = evaluation.evaluate(
            scorer, samples, perturbation=perturbations.Perturbation.parse(steps) if steps else None, on_row=rows.append
        )
        lines += condition_lines(condition, result, seen)
        if steps is None:
            lines += format_lines(condition, rows, samples, result.threshold)
    return lines


def against_all_reals(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples in groups so that every family is measured against all real images."""
    return [replace(s, group=f"{s.group} (real)") if s.label == REAL else s for s in samples]


def condition_lines(condition: str, result: Evaluation, seen: set[str]) -> list[Line]:
    """Return the lines of families, means and sources of real images."""
    lines = [
        line(condition, FAMILY, name, name in seen, [scores], result.threshold)
        for name, scores in result.scores.items()
    ]
    large = {name: scores for name, scores in result.scores.items() if len(scores.fake) >= LARGE}
    unseen = [scores for name, scores in large.items() if name not in seen]
    lines.append(line(condition, MEAN, ALL, None, list(large.values()), result.threshold))
    if unseen:
        lines.append(line(condition, MEAN, UNSEEN, False, unseen, result.threshold))
    for name, metrics in result.reals.items():
        flagged = round((1 - (metrics.accuracy_real or 0)) * metrics.real)
        lines.append(real_line(condition, SOURCE, name.removesuffix(" (real)"), flagged, metrics.real))
    total = sum(entry.images for entry in lines if entry.kind == SOURCE)
    flagged = round(sum(entry.flagged * entry.images for entry in lines if entry.kind == SOURCE))
    return [*lines, real_line(condition, PHOTOGRAPHS, "all", flagged, total)]


def line(condition: str, kind: str, name: str, seen: bool | None, scores: Sequence[Scores], threshold: float) -> Line:
    """Return the line of one family, or of the mean over several."""
    metrics = evaluation.mean(scores, threshold)
    assert metrics is not None  # as there are images of both classes
    images = sum(len(one.fake) for one in scores)
    low, high = metrics.intervals["roc_auc"]
    flagged = metrics.accuracy_fake or 0.0
    bounds = interval(round(flagged * images), images) if kind == FAMILY else (None, None)
    found = metrics.at_rates[0].detected
    return Line(condition, kind, name, images, seen, metrics.roc_auc, low, high, found, flagged, *bounds)


def format_lines(condition: str, rows: Iterable[Row], samples: Sequence[Sample], threshold: float) -> list[Line]:
    """Return the lines of real images by the format of their files."""
    reals = {str(sample.path) for sample in samples if sample.label == REAL}
    logits: dict[str, list[float]] = {}
    for row in rows:
        if row.source in reals and row.logit is not None:
            logits.setdefault("JPEG" if row.format == "JPEG" else "lossless", []).append(row.logit)
    return [
        real_line(condition, PHOTOGRAPHS, name, sum(logit > threshold for logit in values), len(values))
        for name, values in sorted(logits.items())
    ]


def real_line(condition: str, kind: str, name: str, flagged: int, images: int) -> Line:
    return Line(
        condition, kind, name, images, None, None, None, None, None, flagged / images, *interval(flagged, images)
    )


def interval(count: int, of: int) -> tuple[float, float]:
    """Return the exact 95 % confidence interval of a share."""
    bounds = binomtest(count, of).proportion_ci(0.95, "exact")
    return float(bounds.low), float(bounds.high)


def calibrated(calibration: Calibration | None) -> str:
    if calibration is None:
        return "Not calibrated: the threshold of the verdict is the logit 0; use the logits as a ranking only"
    text = f'Verdict "generated": logits above {calibration.threshold:.3f} ({calibration.note})'
    for point in calibration.points:
        text += f"; {percent(point.rate)} % false positives above {point.threshold:.3f}"
        text += f" (95 % upper bound {percent(point.upper)} %)"
    return text


def card(metadata: checkpoints.Metadata, sha256: str, lines: Sequence[Line]) -> str:
    """Return the card as Markdown."""
    recipe = ", ".join(
        f"{name} {value}"
        for name, value in (metadata.training or {}).items()
        if value not in ("", [], None) and name not in ("name", "training_data", "licence")
    )
    parts = [
        f"# Checkpoint `{metadata.name}`",
        f"- SHA-256: `{sha256}`\n"
        f"- Trained on {metadata.training_data}.\n"
        f"- View: `{metadata.view}`. Decoder: {metadata.decoder}. Licence: {metadata.licence}.\n"
        f"- {calibrated(metadata.calibration)}.\n"
        f"- Training config: {recipe}.",
        "A score is a hint, not a proof: the checkpoint misses generated images, and some photographs get the verdict "
        '"generated".',
        "All numbers are in percent, with 95 % intervals in brackets. The images come from repositories that the "
        'training set does not use. Each family of generators is measured against all real images. "Found" is the '
        "share of its images above the threshold that 5 % of the real images exceed. The verdict's threshold was "
        "chosen on the same real images, as they are.",
        "## Summary",
        summary(lines).markdown().rstrip(),
        "## Families of generators",
        "AUC by condition. A seen family has other images in the training set.",
        families(lines).markdown().rstrip(),
        "## Real images",
        'Share with the verdict "generated".',
        sources(lines).markdown().rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def summary(lines: Sequence[Line]) -> Table:
    rows = []
    for condition in CONDITIONS:
        of = {(entry.kind, entry.name): entry for entry in lines if entry.condition == condition}
        families, unseen, reals = of[MEAN, ALL], of.get((MEAN, UNSEEN)), of[PHOTOGRAPHS, "all"]
        rows.append((condition, auc(families), auc(unseen), percent(families.found), flagged(reals)))
    columns = ("images", f"AUC, {ALL}", f"AUC, {UNSEEN}", "found", 'real images with the verdict "generated"')
    return Table("", columns, tuple(rows))


def families(lines: Sequence[Line]) -> Table:
    first = [entry for entry in lines if entry.kind == FAMILY and entry.condition == next(iter(CONDITIONS))]
    rows = []
    for entry in sorted(first, key=lambda entry: (-entry.images, entry.name)):
        others = [other for other in lines if (other.kind, other.name) == (FAMILY, entry.name)]
        by_condition = [auc(entry), *(percent(other.auc) for other in others[1:])]
        rows.append((entry.name, str(entry.images), "yes" if entry.seen else "no", *by_condition, percent(entry.found)))
    return Table("", ("family", "images", "seen", *CONDITIONS, "found"), tuple(rows))


def sources(lines: Sequence[Line]) -> Table:
    first = [entry for entry in lines if entry.kind in (SOURCE, PHOTOGRAPHS)]
    names = dict.fromkeys((entry.kind, entry.name) for entry in first)
    rows = []
    for kind, name in sorted(names, key=lambda key: (key[0] != PHOTOGRAPHS, key[1])):
        of = [entry for entry in first if (entry.kind, entry.name) == (kind, name)]
        cells = [flagged(of[0]), *(percent(entry.flagged) for entry in of[1:])]
        cells += [""] * (len(CONDITIONS) - len(cells))
        rows.append((name, str(of[0].images), *cells))
    return Table("", ("source", "images", *CONDITIONS), tuple(rows))


def auc(entry: Line | None) -> str:
    return "-" if entry is None else f"{percent(entry.auc)} ({percent(entry.auc_low)}-{percent(entry.auc_high)})"


def flagged(entry: Line) -> str:
    return f"{percent(entry.flagged)} ({percent(entry.flagged_low)}-{percent(entry.flagged_high)})"


def write(path: Path, lines: Sequence[Line]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Line.__annotations__)
        for entry in lines:
            values = vars(entry).values()
            writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in values])


def read(path: Path) -> list[Line]:
    with path.open(newline="", encoding="utf-8") as file:
        return [_parsed(row) for row in csv.DictReader(file)]


def _parsed(row: dict[str, str]) -> Line:
    texts = {name: row[name] for name in ("condition", "kind", "name")}
    numbers = {
        name: float(text) if text else None for name, text in row.items() if name not in (*texts, "images", "seen")
    }
    seen = {"": None, "True": True, "False": False}[row["seen"]]
    return Line(**texts, images=int(row["images"]), seen=seen, **numbers)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure the checkpoint into the results file")
    measuring.add_argument("validation", type=Path)
    measuring.add_argument("--training", type=Path, required=True)
    measuring.add_argument("--checkpoint", default=checkpoints.DEFAULT)
    measuring.add_argument("--results", type=Path, required=True)
    printing = commands.add_parser("print", help="print the card from the results file")
    printing.add_argument("results", type=Path)
    printing.add_argument("--checkpoint", default=checkpoints.DEFAULT)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        write(arguments.results, measure(arguments.checkpoint, arguments.validation, arguments.training))
    else:
        loaded = checkpoints.load(arguments.checkpoint)
        print(card(loaded.metadata, loaded.sha256, read(arguments.results)), end="")


if __name__ == "__main__":
    main()
