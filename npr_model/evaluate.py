"""Evaluation on labelled folders: one row of metrics for every generator, and whether the comparison was fair."""

from __future__ import annotations

import functools
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

from npr_model import images, metrics
from npr_model.datasets import FAKE, REAL, DatasetError, Sample, find_reals, find_samples
from npr_model.errors import InputError
from npr_model.metrics import Metrics
from npr_model.screening.runner import Row, Scorer
from npr_model.screening.sources import Item, file_item

CLASS_NAMES = {REAL: "real", FAKE: "generated"}


@dataclass(frozen=True)
class Codec:
    """Re-encoding in memory that gives both classes the same last codec: "png", or "jpeg:Q" with a quality Q.

    It can only add traces: what an earlier JPEG took from one class stays taken.
    """

    name: str
    quality: int | None = None

    @classmethod
    def parse(cls, text: str) -> Codec:
        """From its text. Raises InputError."""
        name, _, quality = text.partition(":")
        if text == "png":
            return cls("png")
        if name == "jpeg" and quality.isascii() and quality.isdigit() and 1 <= int(quality) <= 100:
            return cls("jpeg", int(quality))
        raise InputError(f"no codec {text!r}; give png, or jpeg:Q with a quality Q of 1 to 100, as in jpeg:90")

    def encode(self, data: bytes) -> bytes:
        """An image file re-encoded. Raises ImageError where it cannot be decoded."""
        pixels = images.decode(data).pixels
        return images.encode_png(pixels) if self.name == "png" else images.encode_jpeg(pixels, self.quality)


@dataclass(frozen=True)
class Evaluation:
    """``generators``: by name, each against its own reals or the pooled ones. ``reals``: folders of reals alone.

    ``mean`` is over generators that have both classes. ``errors``: images that were not scored, by source.
    ``comparison``: how the classes were encoded and how large they are; ``warning``: why the numbers may measure that.
    """

    view: str
    model: str
    threshold: float
    generators: dict[str, Metrics]
    reals: dict[str, Metrics]
    mean: Metrics | None
    errors: dict[str, str] = field(default_factory=dict)
    comparison: str = ""
    warning: str | None = None

    as_dict = asdict


def collect(roots: Iterable[str | os.PathLike], reals: Iterable[str | os.PathLike] = ()) -> list[Sample]:
    """The samples of an evaluation; images below ``reals`` join the real ones that generators without any share.

    Raises DatasetError where there is nothing to score, or no real or no generated image.
    """
    samples = [sample for root in roots for sample in find_samples(root)]
    samples += [sample for root in reals for sample in find_reals(root)]
    samples = list({sample.path.resolve(): sample for sample in samples}.values())  # roots may overlap
    for label, hint in ((REAL, "; give a folder of them with --real"), (FAKE, "")):
        if not any(sample.label == label for sample in samples):
            raise DatasetError(f"no {CLASS_NAMES[label]} images to evaluate on{hint}")
    return samples


def evaluate(
    scorer: Scorer,
    samples: Sequence[Sample],
    *,
    equalise: Codec | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Evaluation:
    """Score every sample once; ``on_row`` is given each row as it comes.

    A generator with real images of its own is measured against them; one with generated images alone against the real
    images of all groups that have no generated ones.
    """
    items = [file_item(sample.path) for sample in samples]
    if equalise:
        items = [Item(item.source, functools.partial(_reencoded, item, equalise)) for item in items]
    by_source = dict(zip((item.source for item in items), samples, strict=True))
    scored: list[tuple[Sample, Row]] = []
    errors = {}
    for row in scorer.score(items):
        on_row(row)
        if row.error is None:
            scored.append((by_source[row.source], row))
        else:
            errors[row.source] = row.error
    if not scored:
        raise DatasetError(f"none of {len(samples)} images could be scored, e.g. {next(iter(errors.items()))}")

    threshold = scorer.calibration.threshold
    labels_of = {}
    for sample in samples:
        labels_of.setdefault(sample.group, set()).add(sample.label)
    pool = [(s, row) for s, row in scored if FAKE not in labels_of[s.group]]
    generators, real_groups = {}, {}
    for group, labels in labels_of.items():
        own = [(s, row) for s, row in scored if s.group == group]
        rows = own + pool if labels == {FAKE} else own
        measured = metrics.measure([s.label for s, _ in rows], [row.logit for _, row in rows], threshold)
        (generators if FAKE in labels else real_groups)[group] = measured
    comparison, warning = _compare(scored, equalise)
    return Evaluation(
        view=str(scorer.view),
        model=scorer.model_id,
        threshold=threshold,
        generators=generators,
        reals=real_groups,
        mean=metrics.mean(list(generators.values())),
        errors=errors,
        comparison=comparison,
        warning=warning,
    )


def _reencoded(item: Item, codec: Codec) -> bytes:
    return codec.encode(item.load())


def _compare(scored: Sequence[tuple[Sample, Row]], equalise: Codec | None) -> tuple[str, str | None]:
    """What the two classes went through, in words, and a warning where it differs."""
    described, formats = [], []
    for label, name in CLASS_NAMES.items():
        rows = [row for sample, row in scored if sample.label == label]
        if not rows:
            continue
        counts = Counter(row.format for row in rows)
        formats.append({format: count / len(rows) for format, count in counts.items()})
        shares = ", ".join(f"{count} {format}" for format, count in counts.most_common())
        width, height = (round(statistics.median(getattr(row, side) for row in rows)) for side in ("width", "height"))
        described.append(f"{name}: {shares}, median size {width}x{height}")
    text = "; ".join(described)
    if equalise:
        return f"{text} (all re-encoded as {equalise.name}{f':{equalise.quality}' if equalise.quality else ''})", None
    # A tenth of a class in another format is enough to move an accuracy by percents.
    if len(formats) == 2 and any(
        abs(formats[0].get(f, 0) - formats[1].get(f, 0)) > 0.1 for f in {**formats[0], **formats[1]}
    ):
        return text, "the classes differ in file format, so the numbers may measure the codec; try --equalise jpeg:90"
    return text, None
