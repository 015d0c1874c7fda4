"""Measures a bundled checkpoint into a results file, and prints the checkpoint's card from this file as Markdown.

    python scripts/make_card.py measure VALIDATION --held-out HELD_OUT --left-out LEFT_OUT.json \
        --results benchmarks/results/checkpoint.json
    python scripts/make_card.py print benchmarks/results/checkpoint.json > npr_model/weights/preview.md

VALIDATION is measured three times: unchanged, and with both classes re-encoded as JPEG of quality 90 and 75. HELD_OUT
is made by scripts/make_training_data.py from photographs that were not in the training set. It is measured unchanged
and at JPEG 90. LEFT_OUT is a results file of scripts/leave_families_out.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from npr_model import checkpoints
from npr_model.evaluation.evaluate import Evaluation, collect, evaluate
from npr_model.evaluation.metrics import Metrics
from npr_model.imaging.perturbations import codec as parse_codec
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration

_ELSEWHERE = ("name", "training_data", "licence")  # config fields that the card shows elsewhere
LOSSLESS, CODECS = "unchanged files", ("jpeg:90", "jpeg:75")


def measure(checkpoint: str, validation: list[Path], held_out: list[Path], left_out: Path | None = None) -> dict:
    """Measure all numbers of the card; returns JSON values."""
    loaded = checkpoints.load(checkpoint)
    scorer = Scorer(loaded)

    def section(folders: list[Path], codec: str | None) -> dict:
        result = evaluate(scorer, collect(folders), equalise=parse_codec(codec) if codec else None)
        # Errors are counted, not listed, because they name paths on one machine.
        return result.as_dict() | {"codec": codec, "errors": len(result.errors)}

    return {
        "checkpoint": {"sha256": loaded.sha256} | json.loads(loaded.metadata.to_json()),
        "validation": [section(validation, codec) for codec in (None, *CODECS)],
        "held_out": [section(held_out, codec) for codec in (None, CODECS[0])] if held_out else [],
        "left_out": json.loads(left_out.read_text()) if left_out else None,
    }


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def calibrated(calibration: Calibration | None) -> str:
    if calibration is None:
        return "Not calibrated: the threshold of the verdict is the logit 0; use the logits as a ranking only"
    text = f'Verdict "generated": logits above {calibration.threshold:.3f} ({calibration.note})'
    for point in calibration.points:
        text += f"; {percent(point.rate)} % false positives above {point.threshold:.3f}"
        text += f" (95 % upper bound {percent(point.upper)} %)"
    return text


def table(section: dict, warn: bool) -> list[str]:
    names = {field.name for field in dataclasses.fields(Evaluation)}
    result = Evaluation(**{name: value for name, value in section.items() if name in names})
    title = LOSSLESS if section["codec"] is None else f"all re-encoded, {section['codec'].replace(':', ' ').upper()}"
    lines = [f"### {title.capitalize() if section['codec'] is None else title[0].upper() + title[1:]}", ""]
    lines += [f"{result.comparison[:1].upper()}{result.comparison[1:]}.", ""]
    if result.warning and warn:
        lines += [f"Warning: {result.warning}.", ""]
    lines += ["| generator | real | generated | AUC | average precision | detected (%) |", "|---|---|---|---|---|---|"]
    for name, values in {**result.generators, "**mean**": result.mean}.items():
        row = Metrics(**values)
        numbers = (row.roc_auc, row.average_precision, row.accuracy_fake)
        lines.append(f"| {name} | {row.real} | {row.fake} | {' | '.join(map(percent, numbers))} |")
    if result.reals:
        lines += ["", '| real photographs | images | verdict "generated" (%) |', "|---|---|---|"]
        for name, values in result.reals.items():
            row = Metrics(**values)
            lines.append(f"| {name} | {row.real} | {percent(1 - row.accuracy_real)} |")
    if section["errors"]:
        lines += ["", f"{section['errors']} images could not be scored."]
    return [*lines, ""]


def card(results: dict) -> str:
    """Return the card as Markdown, from the results of :func:`measure`."""
    metadata = checkpoints.Metadata.from_json(json.dumps(results["checkpoint"]))
    training = metadata.training or {}
    lines = [
        f"# Checkpoint `{metadata.name}`",
        "",
        f"- sha256 `{results['checkpoint']['sha256']}`",
        f"- Trained on: {metadata.training_data}.",
        f"- View: {metadata.view}. Decoder: {metadata.decoder}. Licence: {metadata.licence}.",
        f"- {calibrated(metadata.calibration)}.",
        "- Training: "
        + ", ".join(
            f"{name} {json.dumps(value)}"
            for name, value in training.items()
            if value not in ("", []) and name not in _ELSEWHERE
        )
        if training
        else "- Training: not recorded",
        "",
        "A score is a hint, not a proof: the checkpoint misses generated images, and some photographs get the verdict",
        '"generated". It was trained on outputs of autoencoders, super-resolution networks and similar networks, not',
        "on the paper's ProGAN images. Do not rely on it.",
        "",
        "## Generators that were not in the training set",
        "",
        "Numbers are in percent. Each generator is measured against all the photographs of the second table.",
        'The column "detected" is the share of its images with a logit above the threshold.',
        "",
    ]
    for section in results["validation"]:
        lines += table(section, warn=True)
    if results["held_out"]:
        lines += [
            "## Re-creations of photographs that were not in the training set",
            "",
            "Most of these generators were in the training set, with other photographs. Each is measured against the",
            "photographs that it re-created.",
            "",
        ]
        for section in results["held_out"]:
            lines += table(section, warn=False)
    if left_out := results.get("left_out"):
        epochs = "1 epoch" if left_out["epochs"] == 1 else f"{left_out['epochs']} epochs"
        lines += [
            "## Families that were left out of training",
            "",
            "This table shows what to expect for a new kind of generator. Each number is the AUC, in percent, of a",
            f"checkpoint that was trained without the generator's family ({left_out['folds']} folds, {epochs} each).",
            "",
            "| generator | family | images | unchanged files | all JPEG 90 |",
            "|---|---|---|---|---|",
        ]
        for name, row in left_out["generators"].items():
            numbers = f"{percent(row['auc'])} | {percent(row['auc_jpeg_90'])}"
            lines.append(f"| {name} | {row['family']} | {row['images']} | {numbers} |")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("validation", type=Path, nargs="+")
    measuring.add_argument("--held-out", type=Path, nargs="*", default=[])
    measuring.add_argument("--left-out", type=Path)
    measuring.add_argument("--checkpoint", default="preview")
    measuring.add_argument("--results", type=Path, required=True)
    printing = commands.add_parser("print")
    printing.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        results = measure(arguments.checkpoint, arguments.validation, arguments.held_out, arguments.left_out)
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    else:
        print(card(json.loads(arguments.results.read_text())), end="")


if __name__ == "__main__":
    main()
