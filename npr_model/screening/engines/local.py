"""Screening on this machine, in this process. Only inputs that a run may have died of get a process of their own."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from npr_model.scoring.items import Item
from npr_model.scoring.journal import Journal
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row, Totals
from npr_model.scoring.scorer import Scorer
from npr_model.screening.engines.isolated import score_alone
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.outputs.finished import Finished


class LocalEngine:
    """Scores with ``scorer``; ``options`` are those that it was made with, for the other processes."""

    def __init__(self, scorer: Scorer, options: ScoringOptions) -> None:
        self._scorer, self._options = scorer, options

    def score(
        self, sources: Sources, items: Iterable[Item], finished: Finished, journal: Journal, totals: Totals
    ) -> Generator[Row, None, None]:
        """Yield a row for each input that has none yet; what is skipped or has a row is counted in ``totals``.

        ``items`` are those of ``sources``, some of which the caller may have taken already.
        """
        has_row = finished.matcher()
        suspects: list[Item] = []

        def to_score() -> Iterator[Item]:
            for item in items:
                totals.skipped = sources.skipped
                if has_row(item.source):
                    totals.kept, totals.kept_failed = has_row.kept, has_row.kept_failed
                elif journal.is_suspect(item.source):
                    suspects.append(item)
                else:
                    yield item
            totals.skipped = sources.skipped

        yield from self._scorer.score(to_score(), journal)
        blank = Row("", view=str(self._scorer.view), model=self._scorer.model_id)
        yield from score_alone(suspects, self._options, blank, journal)
