"""The logits of different images: a copy of a photograph is no second observation of how a detector judges photographs.

Two files are copies if their decoded pixels are equal. So a copy with another name, other metadata or another lossless
format is recognised; one that was resized or compressed again is a different image.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from npr_model.datasets.checks import Contradictions
from npr_model.datasets.folders import Sample
from npr_model.imaging.condition import file_facts
from npr_model.imaging.decode import DecodedImage, decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import read_encoding
from npr_model.scoring.items import Item, file_item
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer


@dataclass
class DistinctScores:
    """Scores of labelled images, each content once per class.

    Attributes:
        scored: Samples with their logits.
        conditions: Conditions of their files (:mod:`npr_model.imaging.condition`), in the same order.
        copies: Number of files that were left out as copies of one in ``scored``.
        errors: Messages of the images that could not be scored, by source.
        contradictions: Images of both classes.
    """

    scored: list[tuple[Sample, float]] = field(default_factory=list)
    conditions: list[str | None] = field(default_factory=list)
    copies: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    contradictions: Contradictions = field(default_factory=Contradictions)

    def logits(self, label: int) -> list[float]:
        """Return the logits of one class."""
        return [logit for sample, logit in self.scored if sample.label == label]

    def logits_by_condition(self, label: int) -> dict[str, list[float]]:
        """Return the logits of one class by the condition of the files, where it is known."""
        found: dict[str, list[float]] = {}
        for (sample, logit), condition in zip(self.scored, self.conditions, strict=True):
            if sample.label == label and condition is not None:
                found.setdefault(condition, []).append(logit)
        return found


def score_distinct(
    scorer: Scorer, samples: Sequence[Sample], on_row: Callable[[Row], None] = lambda row: None
) -> DistinctScores:
    """Score every sample. ``on_row`` is called with each row, also of copies."""
    by_source = {file_item(sample.path).source: sample for sample in samples}
    result, contents = DistinctScores(), set()
    conditions: dict[str, str | None] = {}
    for row in scorer.score(_decoded_items(samples, scorer.decoder.max_pixels, conditions)):
        on_row(row)
        sample = by_source[row.source]
        if row.error is not None:
            result.errors[row.source] = row.error
        elif (sample.label, row.sha256) in contents:
            result.copies += 1
        else:
            contents.add((sample.label, row.sha256))
            assert row.sha256 is not None and row.logit is not None  # as it has no error
            result.contradictions.add(bytes.fromhex(row.sha256), sample.label, row.source)
            result.scored.append((sample, row.logit))
            result.conditions.append(conditions.get(row.source))
    return result


def _decoded_items(samples: Iterable[Sample], max_pixels: int, conditions: dict[str, str | None]) -> Iterable[Item]:
    """Items that give pixels instead of encoded bytes, so that the sha256 in their rows is that of the pixels.

    The condition of each file is added to ``conditions`` by its source.
    """

    def load(item: Item) -> DecodedImage:
        data = item.load()
        assert isinstance(data, bytes)  # as it is that of a file
        decoded = decode(data, max_pixels=max_pixels)
        with contextlib.suppress(ImageError):  # a header that only the decoder understands
            conditions[item.source] = file_facts(read_encoding(decoded.file or data), decoded.pixels).condition
        return replace(decoded, file=None)

    for sample in samples:
        item = file_item(sample.path)
        yield Item(item.source, functools.partial(load, item))
