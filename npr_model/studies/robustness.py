"""How metrics change when images are compressed, resized, blurred, cropped, re-encoded or decoded otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from npr_model.datasets.folders import Sample
from npr_model.errors import InputError, reason
from npr_model.evaluation.evaluate import Evaluation, evaluate
from npr_model.evaluation.metrics import Metrics
from npr_model.files import make_folder, write_text
from npr_model.imaging.perturbations import Perturbation
from npr_model.reporting.tables import Table, percent
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer

UNCHANGED = "png"  # decoded and written losslessly: the files' own pixels
RESULTS = "robustness.json"

# By family, which is the label of its axis: the perturbations along it. Their first number is the value on the axis.
FAMILIES: dict[str, tuple[str, ...]] = {
    "JPEG quality": ("jpeg:100", "jpeg:95", "jpeg:90", "jpeg:80", "jpeg:70", "jpeg:50", "jpeg:30"),
    "WebP quality": ("webp:100", "webp:95", "webp:90", "webp:80", "webp:70", "webp:50"),
    "resize factor": ("resize:0.25", "resize:0.5", "resize:0.75", "resize:0.9", "resize:1.1", "resize:1.5", "resize:2"),
    "blur sigma (pixels)": ("blur:0.25", "blur:0.5", "blur:0.75", "blur:1", "blur:2"),
    "cell offset (rows, columns)": ("offset:0,1", "offset:1,0", "offset:1,1"),
    "re-encoding": ("jpeg:90+jpeg:90", "jpeg:70+jpeg:90", "jpeg:90+jpeg:70", "resize:0.5+jpeg:90"),
    "JPEG decoder": ("decoder:pillow", "decoder:simplejpeg", "decoder:fast"),
}


@dataclass(frozen=True)
class Point:
    """Metrics after one perturbation: by generator, and their mean."""

    perturbation: str
    generators: dict[str, Metrics]
    mean: Metrics
    errors: int


def measure(
    scorer: Scorer,
    samples: Sequence[Sample],
    perturbations: Sequence[str],
    folder: Path,
    *,
    on_row: Callable[[Row], None] = lambda row: None,
    on_point: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Evaluate every perturbation in order; each result is saved in ``folder`` at once.

    Saved results of the same checkpoint, view and files are not measured again. Raises InputError for a folder with
    results of others.
    """
    parsed = {text: Perturbation.parse(text) for text in perturbations}
    make_folder(folder)
    path, identity = folder / RESULTS, _identity(scorer, samples)
    known = _load(path, identity)
    points = []
    for text, perturbation in parsed.items():
        if text not in known:
            known[text] = _point(text, evaluate(scorer, samples, perturbation=perturbation, on_row=on_row))
            write_text(path, _dump(identity, known))
        points.append(known[text])
        on_point(known[text])
    return points


def table(points: Sequence[Point], note: str) -> Table:
    """Return one row per perturbation: ROC AUC of each generator, and the mean metrics."""
    generators = list(points[0].generators)
    columns = ("perturbation", *generators, "mean ROC AUC", "mean AP", "false positives", "detected")
    rows = []
    for point in points:
        mean = point.mean
        rows.append(
            (
                "unchanged" if point.perturbation == UNCHANGED else point.perturbation,
                *(percent(point.generators[name].roc_auc) for name in generators),
                percent(mean.roc_auc),
                percent(mean.average_precision),
                percent(None if mean.accuracy_real is None else 1 - mean.accuracy_real),
                percent(mean.accuracy_fake),
            )
        )
    return Table("Robustness", columns, tuple(rows), (note,))


def axis_values(texts: Sequence[str]) -> list[float] | None:
    """Return the numbers of "jpeg:90", "jpeg:80", ... for an axis; None if they are not single numbers."""
    try:
        return [float(text.partition(":")[2]) for text in texts]
    except ValueError:
        return None


def _point(text: str, evaluation: Evaluation) -> Point:
    if evaluation.mean is None:
        raise InputError("no generator has both real and generated images: give real ones with --real")
    return Point(text, evaluation.generators, evaluation.mean, len(evaluation.errors))


def _identity(scorer: Scorer, samples: Sequence[Sample]) -> dict[str, str]:
    """What results belong to: results for other files or another network do not apply."""
    files = hashlib.sha256()
    for sample in samples:
        status = sample.path.stat() if sample.path.exists() else None
        size = status.st_size if status else -1
        files.update(f"{sample.group}/{sample.label}/{sample.path.name}/{size}\n".encode("utf-8", "surrogateescape"))
    return {"model": scorer.model_id, "view": str(scorer.view), "files": files.hexdigest()}


def _load(path: Path, identity: Mapping[str, str]) -> dict[str, Point]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        points = {text: _from_json(text, point) for text, point in values["points"].items()}
        stored = values["identity"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): remove it, or choose another folder") from error
    if stored != identity:
        different = ", ".join(name for name in identity if stored.get(name) != identity[name])
        raise InputError(f"{path} holds results for different {different}: choose another folder")
    return points


def _from_json(text: str, point: Mapping) -> Point:
    generators = {name: Metrics(**values) for name, values in point["generators"].items()}
    return Point(text, generators, Metrics(**point["mean"]), point["errors"])


def _dump(identity: Mapping[str, str], points: Mapping[str, Point]) -> str:
    values = {"identity": identity, "points": {text: asdict(point) for text, point in points.items()}}
    return json.dumps(values, indent=1) + "\n"
