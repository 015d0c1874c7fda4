"""Evaluation on labelled folders: one row of metrics for every generator, and whether the comparison was fair."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from npr_model.datasets import CLASS_NAMES, FAKE, REAL, DatasetError, Sample, find_reals, find_samples, formats_differ
from npr_model.evaluation import bootstrap, metrics
from npr_model.evaluation.metrics import Metrics
from npr_model.imaging.decode import ImageError
from npr_model.imaging.headers import header_size
from npr_model.imaging.perturbations import Perturbation
from npr_model.imaging.views import View
from npr_model.screening.items import Item
from npr_model.screening.rows import Row
from npr_model.screening.runner import Scorer
from npr_model.screening.sources import file_item

SMALL_SHARE = 0.05  # of the images may be smaller than what --equalise cuts the others to


@dataclass(frozen=True)
class Scores:
    """The logits of one generator and of the real images it is measured against: float64, either sorted."""

    real: np.ndarray
    fake: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([np.full(len(self.real), REAL), np.full(len(self.fake), FAKE)])

    @property
    def logits(self) -> np.ndarray:
        return np.concatenate([self.real, self.fake])


@dataclass(frozen=True)
class Evaluation:
    """``generators``: by name, each against its own reals or the pooled ones. ``reals``: folders of reals alone.

    ``mean`` is over generators that have both classes. ``errors``: images that were not scored, by source.
    ``comparison``: how the classes were encoded and how large they are; ``warning``: why the numbers may measure that.
    ``protocol``, ``missing`` and ``unused`` are those of a :class:`npr_model.evaluation.protocols.Found`. ``scores``
    are the logits by generator, from which everything else is computed; they are not written to files.
    """

    view: str
    model: str
    threshold: float
    generators: dict[str, Metrics]
    reals: dict[str, Metrics]
    mean: Metrics | None
    temperature: float = 1.0
    errors: dict[str, str] = field(default_factory=dict)
    comparison: str = ""
    warning: str | None = None
    protocol: str | None = None
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict:
        """As JSON values."""
        values = asdict(replace(self, scores={}))
        del values["scores"]
        return values


def collect(roots: Iterable[str | os.PathLike], reals: Iterable[str | os.PathLike] = ()) -> list[Sample]:
    """The samples of an evaluation; images below ``reals`` join the real ones that generators without any share.

    Raises DatasetError where there is nothing to score, or no real or no generated image.
    """
    samples = [sample for root in roots for sample in find_samples(root)]
    samples += [sample for root in reals for sample in find_reals(root)]
    return require_classes(samples)


def require_classes(samples: Iterable[Sample]) -> list[Sample]:
    """``samples``, each file once. Raises DatasetError where there is no real or no generated image."""
    samples = list({(sample.path.resolve(), sample.group): sample for sample in samples}.values())
    for label, hint in ((REAL, "; give a folder of them with --real"), (FAKE, "")):
        if not any(sample.label == label for sample in samples):
            raise DatasetError(f"no {CLASS_NAMES[label]} images to evaluate on{hint}")
    return samples


def evaluate(
    scorer: Scorer,
    samples: Sequence[Sample],
    *,
    equalise: Perturbation | None = None,
    perturbation: Perturbation | None = None,
    threshold: float | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Evaluation:
    """Score every sample once; ``on_row`` is given each row as it comes.

    A generator with real images of its own is measured against them; one with generated images alone against the real
    images of all groups that have no generated ones. ``equalise``: a codec with which both classes are written, cut to
    one size, in memory; it can only add traces: what an earlier JPEG took from one class stays taken. ``perturbation``
    is done to every image before that. ``threshold`` is the calibration's by default.
    """
    threshold = scorer.calibration.threshold if threshold is None else threshold
    size = common_size(samples) if equalise else None
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.path), []).append(sample)

    def items() -> Iterable[Item]:
        for members in groups.values():
            item = file_item(members[0].path)
            if equalise or perturbation:
                item = Item(item.source, functools.partial(_changed, item, perturbation, equalise, size))
            yield item

    by_source = {file_item(members[0].path).source: members for members in groups.values()}
    logits: dict[tuple[str, int], list[float]] = {}
    composition = _Composition()
    errors = {}
    for row in scorer.score(items()):
        on_row(row)
        if row.error is not None:
            errors[row.source] = row.error
            continue
        composition.add(by_source[row.source][0].label, row)
        for sample in by_source[row.source]:
            logits.setdefault((sample.group, sample.label), []).append(row.logit)
    if not logits:
        raise DatasetError(f"none of {len(samples)} images could be scored, e.g. {next(iter(errors.items()))}")

    scores, reals = _groups(samples, logits)
    generators = {name: _measured(found, threshold) for name, found in scores.items()}
    return Evaluation(
        view=str(scorer.view),
        model=scorer.model_id,
        threshold=threshold,
        temperature=scorer.calibration.temperature,
        generators=generators,
        reals={name: metrics.measure([REAL] * len(found), found, threshold) for name, found in reals.items()},
        mean=mean(scores.values(), threshold),
        errors=errors,
        comparison=composition.text + _treatment(perturbation, equalise, size),
        warning=None if equalise else composition.warning,
        scores=scores,
    )


def mean(scores: Iterable[Scores], threshold: float) -> Metrics | None:
    """The unweighted mean over generators that have both classes, with its intervals; None of none."""
    complete = [found for found in scores if len(found.real) and len(found.fake)]
    if not complete:
        return None
    rows = metrics.mean([metrics.measure(found.labels, found.logits, threshold) for found in complete])
    replicates = np.mean([bootstrap.replicates(found.real, found.fake, threshold) for found in complete], axis=0)
    return replace(rows, intervals=bootstrap.intervals(replicates))


def common_size(samples: Iterable[Sample]) -> int:
    """The side of the square that all but a few (SMALL_SHARE) of the images hold; unreadable ones do not count."""
    sides = []
    for sample in samples:
        try:
            sides.append(min(header_size(sample.path)))
        except ImageError:
            continue
    return max(2, int(np.quantile(sides, SMALL_SHARE, method="lower"))) if sides else 2


def _groups(
    samples: Iterable[Sample], logits: Mapping[tuple[str, int], list[float]]
) -> tuple[dict[str, Scores], dict[str, np.ndarray]]:
    """By generator its scores, and by group without generated images the logits of its real ones."""
    labels: dict[str, set[int]] = {}
    for sample in samples:
        labels.setdefault(sample.group, set()).add(sample.label)
    found = {key: np.sort(np.array(values)) for key, values in logits.items()}  # in no order but that of the values
    nothing = np.empty(0)
    reals = {group: found.get((group, REAL), nothing) for group in labels if FAKE not in labels[group]}
    pool = np.sort(np.concatenate([nothing, *reals.values()]))
    scores = {}
    for group in labels:
        if FAKE in labels[group]:
            real = found.get((group, REAL), nothing) if REAL in labels[group] else pool
            scores[group] = Scores(real, found.get((group, FAKE), nothing))
    return scores, reals


def _measured(found: Scores, threshold: float) -> Metrics:
    measured = metrics.measure(found.labels, found.logits, threshold)
    if measured.reason is not None:
        return measured
    return replace(measured, intervals=bootstrap.intervals(bootstrap.replicates(found.real, found.fake, threshold)))


def _changed(item: Item, perturbation: Perturbation | None, equalise: Perturbation | None, size: int | None) -> bytes:
    data = item.load()
    if perturbation:
        data = perturbation.apply(data)
    if equalise:
        data = equalise.apply(data, lambda pixels: View("crop", size).apply(pixels, 2))
    return data


def _treatment(perturbation: Perturbation | None, equalise: Perturbation | None, size: int | None) -> str:
    parts = [f"after {perturbation.text}"] if perturbation else []
    if equalise:
        parts.append(f"all cut to {size}x{size} at most and written as {equalise.text}")
    return f" ({', '.join(parts)})" if parts else ""


class _Composition:
    """What the scored files of either class are: how many of each format, how large."""

    def __init__(self) -> None:
        self._formats = {label: Counter() for label in CLASS_NAMES}
        self._sizes = {label: Counter() for label in CLASS_NAMES}

    def add(self, label: int, row: Row) -> None:
        self._formats[label][row.format] += 1
        self._sizes[label][(row.width, row.height)] += 1

    @property
    def text(self) -> str:
        described = []
        for label, name in CLASS_NAMES.items():
            if self._formats[label]:
                shares = ", ".join(f"{count} {format}" for format, count in self._formats[label].most_common())
                width, height = (_median(self._sizes[label], axis) for axis in (0, 1))
                described.append(f"{name}: {shares}, median size {width}x{height}")
        return "; ".join(described)

    @property
    def warning(self) -> str | None:
        """Why the numbers may measure the codec; None where both classes have the same formats."""
        if formats_differ(*self._formats.values()):
            return "the classes differ in file format, so the numbers may measure the codec; try --equalise jpeg:90"
        return None


def _median(sizes: Counter, axis: int) -> int:
    values = [size[axis] for size in sizes]
    order = np.argsort(values)
    below = np.cumsum(np.array(list(sizes.values()))[order])
    return int(values[order[np.searchsorted(below, below[-1] / 2)]])
