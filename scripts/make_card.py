"""The card of a checkpoint: what it says of itself, and how it scores on a validation folder, as Markdown.

    python scripts/make_card.py --checkpoint preview --validation VALIDATION --output npr_model/weights/preview.md

Measures the folder three times: as the files are, and with both classes re-encoded as JPEG of quality 90 and 75.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from npr_model import checkpoints
from npr_model.evaluate import Codec, Evaluation, collect, evaluate
from npr_model.screening.runner import Scorer

CODECS = {"files as they are": None, "all re-encoded, JPEG 90": "jpeg:90", "all re-encoded, JPEG 75": "jpeg:75"}


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def calibrated(calibration: checkpoints.Calibration | None) -> str:
    if calibration is None:
        return "Not calibrated: verdicts are those of logit 0, take them as a ranking"
    text = f"Generated above the logit {calibration.threshold:.3f} ({calibration.note})"
    for point in calibration.points:
        text += f"; {percent(point.rate)} % above {point.threshold:.3f}, with 95 % confidence {percent(point.upper)} %"
    return text


def section(title: str, result: Evaluation) -> list[str]:
    lines = [f"## {title}", "", f"{result.comparison}.", ""]
    if result.warning:
        lines += [f"Warning: {result.warning}.", ""]
    lines += ["| generator | real | generated | AUC | average precision | accuracy |", "|---|---|---|---|---|---|"]
    for name, row in {**result.generators, "**mean**": result.mean}.items():
        numbers = (row.roc_auc, row.average_precision, row.accuracy)
        lines.append(f"| {name} | {row.real} | {row.fake} | {' | '.join(map(percent, numbers))} |")
    lines += ["", "| real photographs | images | called generated (%) |", "|---|---|---|"]
    for name, row in result.reals.items():
        lines.append(f"| {name} | {row.real} | {percent(1 - row.accuracy_real)} |")
    if result.errors:
        lines += ["", f"{len(result.errors)} images could not be scored."]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="preview")
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--note", default="", help="a paragraph of Markdown for the top of the card")
    arguments = parser.parse_args()

    loaded = checkpoints.load(arguments.checkpoint)
    metadata = loaded.metadata
    samples = collect([arguments.validation])
    scorer = Scorer(loaded)
    lines = [
        f"# Checkpoint `{metadata.name}`",
        "",
        *([arguments.note, ""] if arguments.note else []),
        f"- sha256 `{loaded.sha256}`",
        f"- Trained on: {metadata.training_data}.",
        f"- View: {metadata.view}. Decoder: {metadata.decoder}. Licence: {metadata.licence}.",
        f"- {calibrated(metadata.calibration)}.",
        "",
        f"Scores on {len(samples)} images that were neither trained on nor chosen by, in percent. A generator without "
        "real images of its own is measured against all real photographs below.",
        "",
    ]
    for title, codec in CODECS.items():
        lines += section(title.capitalize(), evaluate(scorer, samples, equalise=Codec.parse(codec) if codec else None))
    arguments.output.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
