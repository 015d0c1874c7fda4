"""Evaluation on labelled folders: metrics for each generator, and whether the comparison was fair."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from npr_model.datasets.checks import Contradictions, formats_differ
from npr_model.datasets.folders import (
    CLASS_NAMES,
    FAKE,
    REAL,
    DatasetError,
    LeftOut,
    OnOther,
    Sample,
    find_reals,
    find_samples,
)
from npr_model.evaluation import bootstrap, metrics
from npr_model.evaluation.metrics import Metrics
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import header_size
from npr_model.imaging.perturbations import Perturbation
from npr_model.imaging.views import View
from npr_model.scoring.items import Item, file_item
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer

SMALL_SHARE = 0.05  # share of images that may be smaller than the size that --equalise cuts the others to


@dataclass(frozen=True)
class Scores:
    """Logits of one generator and of the real images it is measured against; float64, sorted."""

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
    """Result of an evaluation.

    Attributes:
        view, model, threshold, temperature: What was measured, and how.
        generators: Metrics by generator, each against its own real images or the pooled ones.
        reals: Metrics of folders with real images only.
        mean: Over the generators that have both classes; None if there are none.
        flagged: By condition of the files (:mod:`npr_model.imaging.condition`), the number of real images and how many
            of them get the verdict "generated". Verdicts use the condition's own threshold, the metrics ``threshold``.
        errors: Messages of the images that were not scored, by source.
        left_out: Files in the folders that were not used, with the reasons.
        comparison: How the classes were encoded, and their sizes.
        warning: Why the numbers may measure the codec; None if there is no sign of it.
        contradiction: Which files are in both classes, in words; empty if there are none.
        protocol, missing, unused: As in :class:`npr_model.evaluation.protocols.BenchmarkSet`.
        scores: Logits by generator, from which everything else is computed; not written to files.
    """

    view: str
    model: str
    threshold: float
    generators: dict[str, Metrics]
    reals: dict[str, Metrics]
    mean: Metrics | None
    temperature: float = 1.0
    flagged: dict[str, tuple[int, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    comparison: str = ""
    warning: str | None = None
    contradiction: str = ""
    protocol: str | None = None
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    scores: Mapping[str, Scores] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict:
        """Return JSON values."""
        values = asdict(replace(self, scores={})) | {"left_out": dict(self.left_out)}
        del values["scores"]
        return values


def collect(
    roots: Iterable[str | os.PathLike],
    reals: Iterable[str | os.PathLike] = (),
    on_other: OnOther = lambda path, reason: None,
) -> list[Sample]:
    """Return the samples of an evaluation, each file once.

    Args:
        roots: Folders with 0_real and 1_fake.
        reals: Folders of real images, which are pooled for generators without their own.
        on_other: Called with each file that is not used, and the reason.

    Raises:
        DatasetError: There is nothing to score, or a class has no images.
    """
    samples = [sample for root in roots for sample in find_samples(root, on_other=on_other)]
    samples += [sample for root in reals for sample in find_reals(root, on_other)]
    return require_classes(samples)


def require_classes(samples: Iterable[Sample]) -> list[Sample]:
    """Return ``samples``, each file once. Raises DatasetError if there is no real or no generated image."""
    samples = list({(sample.path.resolve(), sample.group, sample.label): sample for sample in samples}.values())
    for label, hint in ((REAL, "; give a folder of real images with --real"), (FAKE, "")):
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
    """Score every sample once and compute the metrics.

    A generator with its own real images is measured against them. A generator with generated images only is measured
    against the real images of all groups that have no generated ones.

    Args:
        scorer: The detector.
        samples: The images.
        equalise: Codec that both classes are re-encoded with after cutting them to one size, in memory. It can only add
            traces: what an earlier JPEG removed from one class stays removed.
        perturbation: Applied to every image before that.
        threshold: Logit above which an image counts as generated. Default: the calibration's.
        on_row: Called with each row.

    Raises:
        DatasetError: No image could be scored.
    """
    threshold = scorer.calibration.threshold if threshold is None else threshold
    treatment = _Treatment(perturbation, equalise, common_size(samples) if equalise else None)
    scored = _score(scorer, samples, treatment, on_row)
    scores, reals = _by_group(samples, scored.logits)
    return Evaluation(
        view=str(scorer.view),
        model=scorer.model_id,
        threshold=threshold,
        temperature=scorer.calibration.temperature,
        generators={name: _measured(generator, threshold) for name, generator in scores.items()},
        reals={name: metrics.measure([REAL] * len(logits), logits, threshold) for name, logits in reals.items()},
        mean=mean(scores.values(), threshold),
        flagged=dict(sorted(scored.flagged.items())),
        errors=scored.errors,
        comparison=scored.composition.text + treatment.text,
        warning=None if equalise else scored.composition.warning,
        contradiction=str(scored.contradictions),
        scores=scores,
    )


def mean(scores: Iterable[Scores], threshold: float) -> Metrics | None:
    """Return the unweighted mean over generators that have both classes, with intervals; None if there are none."""
    complete = [generator for generator in scores if len(generator.real) and len(generator.fake)]
    if not complete:
        return None
    average = metrics.mean([metrics.measure(one.labels, one.logits, threshold) for one in complete])
    assert average is not None  # as all of them are complete
    replicates = np.mean([bootstrap.replicates(one.real, one.fake, threshold) for one in complete], axis=0)
    return replace(average, intervals=bootstrap.intervals(replicates))


def common_size(samples: Iterable[Sample]) -> int:
    """Side of the square that fits into all but a share SMALL_SHARE of the readable images."""
    sides = []
    for sample in samples:
        try:
            sides.append(min(header_size(sample.path)))
        except ImageError:
            continue
    return max(2, int(np.quantile(sides, SMALL_SHARE, method="lower"))) if sides else 2


@dataclass(frozen=True)
class _Treatment:
    """What is done to every image before it is scored, as in :func:`evaluate`. ``size``: side that all are cut to."""

    perturbation: Perturbation | None
    equalise: Perturbation | None
    size: int | None

    def of(self, item: Item) -> Item:
        """Return the item of the changed image."""
        if self.perturbation is None and self.equalise is None:
            return item
        return Item(item.source, functools.partial(self._changed, item))

    def _changed(self, item: Item) -> bytes:
        data = item.load()
        assert isinstance(data, bytes)  # as it is that of a file
        if self.perturbation:
            data = self.perturbation.apply(data)
        if self.equalise:
            data = self.equalise.apply(data, lambda pixels: View("crop", self.size).apply(pixels, 2))
        return data

    @property
    def text(self) -> str:
        """The changes in brackets, or nothing."""
        parts = [f"after {self.perturbation.text}"] if self.perturbation else []
        if self.equalise:
            parts.append(f"all cut to {self.size}x{self.size} at most and written as {self.equalise.text}")
        return f" ({', '.join(parts)})" if parts else ""


class _Composition:
    """File formats and sizes of the scored files, by class."""

    def __init__(self) -> None:
        self._formats: dict[int, Counter[str]] = {label: Counter() for label in CLASS_NAMES}
        self._sizes: dict[int, Counter[tuple[int | None, int | None]]] = {label: Counter() for label in CLASS_NAMES}

    def add(self, label: int, row: Row) -> None:
        self._formats[label][str(row.format)] += 1
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
        """Why the numbers may measure the codec; None if both classes have the same formats."""
        if formats_differ(*self._formats.values()):
            return "the classes differ in file format, so the numbers may measure the codec; try --equalise jpeg:90"
        return None


def _median(sizes: Counter, axis: int) -> int:
    values = [size[axis] for size in sizes]
    order = np.argsort(values)
    below = np.cumsum(np.array(list(sizes.values()))[order])
    return int(values[order[np.searchsorted(below, below[-1] / 2)]])


@dataclass
class _Scored:
    """The logits by group and label, and what else the rows tell."""

    logits: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    flagged: dict[str, tuple[int, int]] = field(default_factory=dict)
    composition: _Composition = field(default_factory=_Composition)
    contradictions: Contradictions = field(default_factory=Contradictions)


def _score(scorer: Scorer, samples: Sequence[Sample], treatment: _Treatment, on_row: Callable[[Row], None]) -> _Scored:
    """Score each file once, also one that belongs to several groups. Raises DatasetError if all fail."""
    by_source: dict[str, list[Sample]] = {}
    for sample in samples:
        by_source.setdefault(file_item(sample.path).source, []).append(sample)
    scored = _Scored()
    for row in scorer.score(treatment.of(file_item(members[0].path)) for members in by_source.values()):
        on_row(row)
        if row.error is not None:
            scored.errors[row.source] = row.error
            continue
        assert row.logit is not None  # as it has no error
        members = by_source[row.source]
        scored.composition.add(members[0].label, row)
        if members[0].label == REAL and row.condition is not None:
            count, flagged = scored.flagged.get(row.condition, (0, 0))
            scored.flagged[row.condition] = count + 1, flagged + (row.verdict == "generated")
        for sample in members:
            scored.logits.setdefault((sample.group, sample.label), []).append(row.logit)
            if row.sha256 is not None:
                scored.contradictions.add(bytes.fromhex(row.sha256), sample.label, row.source)
    if not scored.logits:
        source, message = next(iter(scored.errors.items()))
        raise DatasetError(f"none of {len(samples)} images could be scored, e.g. {source}: {message}")
    return scored


def _by_group(
    samples: Iterable[Sample], logits: Mapping[tuple[str, int], list[float]]
) -> tuple[dict[str, Scores], dict[str, np.ndarray]]:
    """Return the scores by generator, and the logits of real images by group without generated images."""
    labels: dict[str, set[int]] = {}
    for sample in samples:
        labels.setdefault(sample.group, set()).add(sample.label)
    # Sorted, so that the result does not depend on the order of scoring.
    arrays = {key: np.sort(np.array(values)) for key, values in logits.items()}
    nothing = np.empty(0)
    reals = {group: arrays.get((group, REAL), nothing) for group in labels if FAKE not in labels[group]}
    pool = np.sort(np.concatenate([nothing, *reals.values()]))
    scores = {}
    for group in labels:
        if FAKE in labels[group]:
            real = arrays.get((group, REAL), nothing) if REAL in labels[group] else pool
            scores[group] = Scores(real, arrays.get((group, FAKE), nothing))
    return scores, reals


def _measured(generator: Scores, threshold: float) -> Metrics:
    measured = metrics.measure(generator.labels, generator.logits, threshold)
    if measured.reason is not None:
        return measured
    replicates = bootstrap.replicates(generator.real, generator.fake, threshold)
    return replace(measured, intervals=bootstrap.intervals(replicates))
