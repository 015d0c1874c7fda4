"""Can a labelled set be told apart without its pixels? Formats, JPEG tables and sizes of the classes.

Generators write PNGs of one size, cameras JPEGs of many sizes. A detector may score well by recognising the codec. The
baseline is a classifier that knows only the file headers; a detector must clearly beat it to show anything.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from npr_model.datasets.checks import SHARES_DIFFER, find_contradictions
from npr_model.datasets.folders import CLASS_NAMES, FAKE, REAL, Sample
from npr_model.errors import InputError, reason
from npr_model.files import readable_name, write_text
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import Encoding, read_encoding
from npr_model.imaging.jpeg_quality import estimate_quality
from npr_model.reporting.tables import Table

FOLDS = 5
TREES = 200
SUSPICIOUS_AUC = 0.7  # a baseline above this is a reason to equalise
_SAMPLING = ("4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1", "4:1:0")
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class File:
    """Facts from a file's header. ``quality`` is None for files other than JPEGs."""

    label: int
    group: str
    bytes: int
    encoding: Encoding
    quality: int | None

    @property
    def format(self) -> str:
        return self.encoding.format

    def features(self, formats: Sequence[str]) -> list[float]:
        """Features of the baseline: numbers only, 0 for what a file does not have."""
        width, height = self.encoding.width, self.encoding.height
        tables = self.encoding.quantization or ((), ())
        return [
            *(float(self.format == name) for name in formats),
            width,
            height,
            width / height,
            float(width % 8 == 0) + float(height % 8 == 0),
            8 * self.bytes / (width * height),
            self.quality or 0,
            *(float(np.mean(table)) if table else 0.0 for table in tables),
            _SAMPLING.index(self.encoding.subsampling) + 1 if self.encoding.subsampling in _SAMPLING else 0,
        ]


@dataclass(frozen=True)
class Side:
    """Facts about one class.

    Attributes:
        files: Number of files.
        formats: Number of files by format.
        widths, heights: Minimum, quartiles and maximum.
        qualities: Number of JPEGs by estimated quality, such as "76 to 80".
        subsampling: Number of JPEGs by chroma subsampling; "none" for those without chroma.
        tables: Number of different JPEG tables.
        bits_per_pixel: Mean over all pixels.
    """

    files: int
    formats: dict[str, int]
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    qualities: dict[str, int]
    subsampling: dict[str, int]
    tables: int
    bits_per_pixel: float


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        sides: Facts by class.
        baseline: Cross-validated ROC AUC of the headers by generator, and over all files as ""; None with too few
            files.
        errors: Messages of the files whose header cannot be read.
        contradiction: Which files are in both classes, in words; empty if there are none.
    """

    sides: dict[str, Side]
    baseline: dict[str, float | None]
    errors: dict[str, str]
    contradiction: str = ""

    @property
    def findings(self) -> list[str]:
        """What tells the classes apart, and files that are in both, in words; empty if there is nothing."""
        findings = [self.contradiction] if self.contradiction else []
        real, fake = self.sides["real"], self.sides["generated"]
        for what, one, other in (
            ("file format", real.formats, fake.formats),
            ("JPEG quality", real.qualities, fake.qualities),
            ("chroma subsampling", real.subsampling, fake.subsampling),
        ):
            if (distance := _distance(one, other)) > SHARES_DIFFER:
                findings.append(f"{what} differs for {100 * distance:.0f} % of the files")
        if min(real.widths[2], fake.widths[2]) < 0.9 * max(real.widths[2], fake.widths[2]):
            findings.append(f"median width is {real.widths[2]} of real and {fake.widths[2]} of generated images")
        overall = self.baseline[""]
        if overall is not None and overall > SUSPICIOUS_AUC:
            findings.append(f"headers alone tell the classes apart with a ROC AUC of {100 * overall:.1f} %")
        return findings

    def tables(self) -> list[Table]:
        """Return the facts of both classes and the baseline, with the findings as notes."""
        facts = {
            "files": lambda side: str(side.files),
            "formats": lambda side: _counts(side.formats),
            "width: minimum, quartiles, maximum": lambda side: " ".join(map(str, side.widths)),
            "height": lambda side: " ".join(map(str, side.heights)),
            "JPEG quality": lambda side: _counts(side.qualities),
            "chroma subsampling": lambda side: _counts(side.subsampling),
            "different JPEG tables": lambda side: str(side.tables),
            "bits per pixel": lambda side: f"{side.bits_per_pixel:.2f}",
        }
        rows = tuple((name, *map(text, self.sides.values())) for name, text in facts.items())
        baseline = tuple(
            (name or "all", "too few files" if value is None else f"{100 * value:.1f}")
            for name, value in self.baseline.items()
        )
        notes = [f"Warning: {finding}." for finding in self.findings]
        if len(notes) > bool(self.contradiction):
            notes.append("A detector's numbers on these files may measure that; use --equalise jpeg:90 to remove it.")
        if self.errors:
            notes.append(f"{len(self.errors)} files have no readable header and are excluded.")
        return [
            Table("Files", ("", *self.sides), rows),
            Table("Baseline without pixels", ("generator", "ROC AUC of headers alone (%)"), baseline, tuple(notes)),
        ]

    def write(self, path: Path) -> None:
        """Write Markdown or JSON, by the suffix. Raises InputError for a suffix that is not in SUFFIXES."""
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"output {path} must end in one of {', '.join(SUFFIXES)}")
        write_text(path, SUFFIXES[path.suffix.lower()](self))


def _json(audit: Audit) -> str:
    return json.dumps(asdict(audit) | {"findings": audit.findings}, indent=2) + "\n"


SUFFIXES = {".json": _json, ".md": lambda audit: "\n".join(table.markdown() for table in audit.tables())}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "-"


def audit(samples: Sequence[Sample], workers: int = 4, on_read: Callable[[int], None] = lambda count: None) -> Audit:
    """Read the headers of all ``samples``, and compare files of equal size in both classes.

    ``on_read`` is called with the number of headers read since the last call.
    """
    files, errors = [], {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for sample, result in zip(samples, pool.map(read, samples), strict=True):
            on_read(1)
            if isinstance(result, File):
                files.append(result)
            else:
                errors[readable_name(sample.path)] = str(result)
    sides = {name: _side([file for file in files if file.label == label]) for label, name in CLASS_NAMES.items()}
    return Audit(sides, _baselines(files), errors, str(find_contradictions(samples)))


def read(sample: Sample) -> File | ImageError:
    """Read a sample's header; errors are returned."""
    try:
        encoding, size = read_encoding(sample.path), os.stat(sample.path).st_size
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"the file cannot be read ({reason(error)})")
    quality = estimate_quality(encoding.quantization[0]) if encoding.quantization else None
    return File(sample.label, sample.group, size, encoding, quality)


def _side(files: Sequence[File]) -> Side:
    def quantiles(values: list[int]) -> tuple[int, ...]:
        return tuple(np.quantile(values, _QUANTILES, method="nearest").tolist()) if values else (0,) * len(_QUANTILES)

    jpegs = [file for file in files if file.quality is not None]
    pixels = sum(file.encoding.width * file.encoding.height for file in files)
    return Side(
        files=len(files),
        formats=dict(Counter(file.format for file in files).most_common()),
        widths=quantiles([file.encoding.width for file in files]),
        heights=quantiles([file.encoding.height for file in files]),
        qualities=dict(Counter(_decade(quality) for quality in sorted(file.quality or 0 for file in jpegs))),
        subsampling=dict(Counter(file.encoding.subsampling or "none" for file in jpegs).most_common()),
        tables=len({file.encoding.quantization for file in jpegs}),
        bits_per_pixel=8 * sum(file.bytes for file in files) / pixels if pixels else 0.0,
    )


def _decade(quality: int) -> str:
    low = (quality - 1) // 5 * 5 + 1
    return f"{low} to {low + 4}"


def _baselines(files: Sequence[File]) -> dict[str, float | None]:
    groups = {file.group for file in files if file.label == FAKE}
    pool = [file for file in files if file.group not in groups]
    baselines = {"": _baseline(files)}
    for group in dict.fromkeys(file.group for file in files if file.label == FAKE):
        own = [file for file in files if file.group == group]
        baselines[group] = _baseline(own if any(file.label == REAL for file in own) else own + pool)
    return baselines


def _baseline(files: Sequence[File]) -> float | None:
    """ROC AUC of a random forest on the headers; each file is judged by trees that were not trained on it."""
    labels = np.array([file.label for file in files])
    if min(np.bincount(labels, minlength=2)) < FOLDS:
        return None
    formats = sorted({file.format for file in files})
    features = np.array([file.features(formats) for file in files])
    forest = RandomForestClassifier(TREES, class_weight="balanced", random_state=0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    probabilities = cross_val_predict(forest, features, labels, cv=folds, method="predict_proba")
    return float(roc_auc_score(labels, probabilities[:, 1]))


def _distance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Total variation distance of two distributions given as counts; 0 if one is empty."""
    if not one or not other:
        return 0.0
    first, second = ({name: count / sum(side.values()) for name, count in side.items()} for side in (one, other))
    return sum(abs(first.get(name, 0) - second.get(name, 0)) for name in {**first, **second}) / 2
