"""The logits of different images: a copy of a photograph is no second observation of how a detector judges photographs.

Two files are copies if their decoded pixels are equal. So a copy with another name, other metadata or another lossless
format is recognised; one that was resized or compressed again is a different image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from npr_model.dataset_checks import Contradictions
from npr_model.datasets import Sample
from npr_model.imaging.decode import DecodedImage, decode
from npr_model.scoring.items import Item, file_item
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer


@dataclass
class DistinctScores:
    """Scores of labelled images, each content once per class.

    Attributes:
        scored: Samples with their logits.
        copies: Number of files that were left out as copies of one in ``scored``.
        errors: Messages of the images that could not be scored, by source.
        contradictions: Images of both classes.
    """

    scored: list[tuple[Sample, float]] = field(default_factory=list)
    copies: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    contradictions: Contradictions = field(default_factory=Contradictions)

    def logits(self, label: int) -> list[float]:
        """Return the logits of one class."""
        return [logit for sample, logit in self.scored if sample.label == label]


def score_distinct(
    scorer: Scorer, samples: Sequence[Sample], on_row: Callable[[Row], None] = lambda row: None
) -> DistinctScores:
    """Score every sample. ``on_row`` is called with each row, also of copies."""
    by_source = {file_item(sample.path).source: sample for sample in samples}
    result, contents = DistinctScores(), set()
    for row in scorer.score(_decoded_items(samples, scorer.decoder.max_pixels)):
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
    return result


def _decoded_items(samples: Iterable[Sample], max_pixels: int) -> Iterable[Item]:
    """Items that give pixels instead of encoded bytes, so that the sha256 in their rows is that of the pixels."""

    def load(item: Item) -> DecodedImage:
        data = item.load()
        return decode(data, max_pixels=max_pixels) if isinstance(data, bytes) else data

    for sample in samples:
        item = file_item(sample.path)
        yield Item(item.source, functools.partial(load, item))
