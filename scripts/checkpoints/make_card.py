"""Measures the bundled checkpoint into a CSV file, and prints the checkpoint's card from this file as Markdown.

    python -m scripts.checkpoints.make_card measure VALIDATION --training TRAINING --results docs/results/wild-2.csv
    python -m scripts.checkpoints.make_card print docs/results/wild-2.csv \
        --curve docs/results/learning-curve.csv > npr_model/weights/wild-2.md

VALIDATION and TRAINING hold <family>/{0_real,1_fake}. A family of VALIDATION is seen if TRAINING has it too.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import binomtest

from npr_model import checkpoints, weights
from npr_model.datasets.folders import FAKE, REAL, Sample
from npr_model.evaluation import evaluate as evaluation
from npr_model.evaluation.evaluate import Evaluation, Scores, collect
from npr_model.imaging import perturbations
from npr_model.reporting.tables import Table, percent
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration

CONDITIONS = {"as they are": None, "JPEG 90": "jpeg:90", "JPEG 75": "jpeg:75", "half size": "resize:0.5"}
LARGE = 10  # images of a family that counts in the means
FAMILY, MEAN, SOURCE, PHOTOGRAPHS = "family", "mean", "real source", "real images"  # kinds of lines
# What else was chosen on the images of the card, by the name of its checkpoint.
CHOSEN = {
    "wild-2": " The shares of the averaged networks and the strength of the last layer's regularisation were chosen on "
    "these images, too.",
    "fast-1": " The range of logits in which the checkpoint `cascade` asks `wild-2` was chosen on these images, too, "
    "so that its AUC is at most 0.2 below that of `wild-2`; on other images the loss may be larger. The strength of "
    "the last layer's regularisation was chosen on them, too.",
}
ALL, UNSEEN = f"families with {LARGE} images or more", "families never trained on"


@dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
        model: Name and digest of the checkpoint.
        condition: Key of CONDITIONS.
        kind: FAMILY or MEAN of families, SOURCE or PHOTOGRAPHS of a format.
        name: What was measured.
        images: Its number of images, of one class.
        seen: Whether the training set has other images of the family; None for other kinds.
        auc, auc_low, auc_high: ROC AUC against all real images, with a 95 % bootstrap interval; None for real images.
        found: Share of the family above the threshold that 5 % of the real images exceed; None for real images.
        flagged, flagged_low, flagged_high: Share with the verdict "generated", with a 95 % interval (Clopper-Pearson).
    """

    model: str
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
    by_source = {str(sample.path): sample for sample in samples}
    seen = {path.name for path in training.iterdir()}
    lines = []
    for condition, steps in CONDITIONS.items():
        rows: list[Row] = []
        perturbation = perturbations.Perturbation.parse(steps) if steps else None
        result = evaluation.evaluate(scorer, samples, perturbation=perturbation, on_row=rows.append)
        scored = [(by_source[row.source], row) for row in rows if row.error is None]
        lines += family_lines(
            scorer.model_id, condition, result, seen, [pair for pair in scored if pair[0].label == FAKE]
        )
        lines += real_lines(
            scorer.model_id, condition, [pair for pair in scored if pair[0].label == REAL], by_file=steps is None
        )
    return lines


def against_all_reals(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples in groups so that every family is measured against all real images."""
    return [replace(s, group=f"{s.group} (real)") if s.label == REAL else s for s in samples]


def family_lines(
    model: str, condition: str, result: Evaluation, seen: set[str], scored: Sequence[tuple[Sample, Row]]
) -> list[Line]:
    """Return the lines of families and of the means over families."""
    flagged = counted((sample.group, row) for sample, row in scored)
    lines = []
    for name, scores in result.scores.items():
        separation = aucs([scores])
        lines.append(
            Line(model, condition, FAMILY, name, len(scores.fake), name in seen, *separation, *shares(*flagged[name]))
        )
    large = {name: scores for name, scores in result.scores.items() if len(scores.fake) >= LARGE}
    for title, names in {ALL: list(large), UNSEEN: [name for name in large if name not in seen]}.items():
        if names:
            images = sum(len(large[name].fake) for name in names)
            share = sum(flagged[name][0] / flagged[name][1] for name in names) / len(names)
            separation = aucs([large[name] for name in names])
            lines.append(Line(model, condition, MEAN, title, images, None, *separation, share, None, None))
    return lines


def real_lines(model: str, condition: str, scored: Sequence[tuple[Sample, Row]], *, by_file: bool) -> list[Line]:
    """Return the lines of sources of real images, of all of them and, with ``by_file``, of conditions of files."""
    kinds = {SOURCE: counted((sample.group.removesuffix(" (real)"), row) for sample, row in scored)}
    kinds[PHOTOGRAPHS] = counted(("all", row) for _, row in scored)
    if by_file:
        kinds[PHOTOGRAPHS] |= counted((str(row.condition), row) for _, row in scored)
    return [
        Line(model, condition, kind, name, count, None, None, None, None, None, *shares(flagged, count))
        for kind, counts in kinds.items()
        for name, (flagged, count) in sorted(counts.items())
    ]


def counted(rows: Iterable[tuple[str, Row]]) -> dict[str, tuple[int, int]]:
    """Return by key how many rows have the verdict "generated", and how many there are."""
    counts: dict[str, tuple[int, int]] = {}
    for key, row in rows:
        flagged, count = counts.get(key, (0, 0))
        counts[key] = flagged + (row.verdict == "generated"), count + 1
    return counts


def aucs(scores: Sequence[Scores]) -> tuple[float | None, float, float, float]:
    """Return the mean AUC, its interval, and the mean share above the threshold that 5 % of the real images exceed."""
    metrics = evaluation.mean(scores, 0.0)
    assert metrics is not None  # as there are images of both classes
    return metrics.roc_auc, *metrics.intervals["roc_auc"], metrics.at_rates[0].detected


def shares(flagged: int, count: int) -> tuple[float, float, float]:
    return flagged / count, *interval(flagged, count)


def interval(count: int, of: int) -> tuple[float, float]:
    """Return the exact 95 % confidence interval of a share."""
    bounds = binomtest(count, of).proportion_ci(0.95, "exact")
    return float(bounds.low), float(bounds.high)


def calibrated(calibration: Calibration | None) -> str:
    if calibration is None:
        return "Not calibrated: the threshold of the verdict is the logit 0; use the logits as a ranking only"
    text = 'Verdict "generated": logits above the threshold at 5 % for the condition of the file'
    for name, own in {"all files": calibration, **calibration.conditions}.items():
        for point in own.points:
            text += f"\n  - {name}: {percent(point.rate)} % false positives above {point.threshold:.3f}, on "
            text += f"{point.photographs} images (95 % upper bound {percent(point.upper)} %)"
    return text


def card(
    metadata: checkpoints.Metadata,
    sha256: str,
    lines: Sequence[Line],
    curve: Sequence[dict[str, str]] = (),
    beside: Sequence[Sequence[Line]] = (),
) -> str:
    """Return the card as Markdown.

    ``curve``: the table of scripts/checkpoints/fit_last_layer.py. ``beside``: the measurements of other checkpoints.
    """
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
        f"- {calibrated(metadata.calibration)}\n"
        f"- Training config: {recipe}.",
        "A score is a hint, not a proof: the checkpoint misses generated images, and some photographs get the verdict "
        '"generated".',
        "All numbers are in percent, with 95 % intervals in brackets. The images come from repositories that the "
        'training set does not use. Each family of generators is measured against all real images. "Found" is the '
        "share of its images above the threshold that 5 % of the real images exceed. The verdict's threshold was "
        "chosen on the same real images, as they are, for each condition of files by itself: lossless, JPEG of quality "
        "90 or more, JPEG below, recompressed JPEG, other lossy formats." + CHOSEN.get(metadata.name, ""),
        "## Summary",
        summary(lines).markdown().rstrip(),
        *(["## Beside other checkpoints", side_by_side([lines, *beside]).markdown().rstrip()] if beside else []),
        "## Families of generators",
        "AUC by condition. A seen family has other images in the training set.",
        families(lines).markdown().rstrip(),
        "## Real images",
        'Share with the verdict "generated".',
        sources(lines).markdown().rstrip(),
    ]
    if curve:
        parts += [
            "## Would more images help?",
            "The last layer was fitted anew on the crops from some of the repositories, drawn at random several times; "
            "the lowest and the highest result are in brackets. The other layers stayed as they are, trained on all "
            "repositories. Its own crops, of which three in four were changed as in training, are measured all "
            "together; the validation images as in the summary.",
            learning(curve).markdown().rstrip(),
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


def side_by_side(checkpoints_lines: Sequence[Sequence[Line]]) -> Table:
    """One row for each checkpoint."""
    rows = []
    for lines in checkpoints_lines:
        of = {(entry.condition, entry.kind, entry.name): entry for entry in lines}
        plain = next(iter(CONDITIONS))
        name = lines[0].model.partition("@")[0]
        cells = [auc(of[condition, MEAN, ALL]) for condition in CONDITIONS]
        found, reals = of[plain, MEAN, ALL].found, of[plain, PHOTOGRAPHS, "all"]
        rows.append((f"`{name}`", *cells, auc(of.get((plain, MEAN, UNSEEN))), percent(found), flagged(reals)))
    columns = [f"AUC {condition}" for condition in CONDITIONS]
    ends = (f"AUC, {UNSEEN}", "found", 'real images with the verdict "generated"')
    return Table("", ("checkpoint", *columns, *ends), tuple(rows))


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


def learning(curve: Sequence[dict[str, str]]) -> Table:
    """Mean, lowest and highest AUC of the draws of each number of repositories."""
    rows = []
    for count in dict.fromkeys(line["repositories"] for line in curve):
        draws = [line for line in curve if line["repositories"] == count]
        cells = []
        for column in ("auc_training", "auc_validation"):
            values = [float(line[column]) for line in draws]
            spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.1f}{spread}")
        rows.append((count, f"{sum(int(line['crops']) for line in draws) / len(draws):.0f}", *cells))
    return Table("", ("repositories", "crops", "AUC, its own crops", "AUC, validation images"), tuple(rows))


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


def read_curve(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _parsed(row: dict[str, str]) -> Line:
    texts = {name: row[name] for name in ("model", "condition", "kind", "name")}
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
    measuring.add_argument("--checkpoint", default=weights.DEFAULT)
    measuring.add_argument("--results", type=Path, required=True)
    printing = commands.add_parser("print", help="print the card from the results file")
    printing.add_argument("results", type=Path)
    printing.add_argument("--curve", type=Path)
    printing.add_argument("--beside", type=Path, nargs="+", default=[], help="results files of other checkpoints")
    printing.add_argument("--checkpoint", default=weights.DEFAULT)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        write(arguments.results, measure(arguments.checkpoint, arguments.validation, arguments.training))
    else:
        loaded = checkpoints.load(arguments.checkpoint)
        curve = read_curve(arguments.curve) if arguments.curve else ()
        others = [read(path) for path in arguments.beside]
        print(card(loaded.metadata, loaded.sha256, read(arguments.results), curve, others), end="")


if __name__ == "__main__":
    main()
