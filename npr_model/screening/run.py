"""One screening from sources to an output, on this machine or on a Ray cluster: what ``npr screen`` does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from npr_model.devices import choose_device
from npr_model.errors import InputError
from npr_model.screening import sinks
from npr_model.screening.options import ScoringOptions
from npr_model.screening.parts import Finished
from npr_model.screening.rows import Row, Totals
from npr_model.screening.runner import Scorer
from npr_model.screening.sources import Sources

ENGINES = ("local", "ray")


class Screening:
    """Scores ``sources`` and writes a row for each image to ``output``. Iterate over it to run it, once.

    Args:
        sources: The images.
        output: File or folder as in :func:`npr_model.screening.sinks.open_sink`; None writes nothing.
        options: What to score with.
        engine: One of ENGINES.
        actors: Ray only: workers that run the network; 0 for one per GPU, or one per node without GPUs.
        announce: Called with a line on the cluster, once it is there.

    Attributes:
        scorer: What scores; on Ray a copy that only describes it. None until the run has begun.
        totals: Counts of the rows written so far.
        kept, failed_before: Rows, and failed rows, that earlier runs had written to the same folder.

    Raises:
        InputError: An option, the checkpoint or the output cannot be used.
    """

    def __init__(
        self,
        sources: Sources,
        output: str | None,
        options: ScoringOptions,
        *,
        engine: str = "local",
        actors: int = 0,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}: use {' or '.join(ENGINES)}")
        if engine == "ray" and (options.workers or options.cache is not None):
            raise InputError(f"{'workers' if options.workers else 'cache'} is supported by the engine local only")
        if engine == "local" and actors:
            raise InputError("actors is supported by the engine ray only")
        if output is not None:
            sinks.check(output)
        self.sources, self.output, self.options = sources, output, options
        self.engine, self.actors, self._announce = engine, actors, announce
        self._make_scorer = options.scorer_maker()
        self.scorer: Scorer | None = None
        self.totals = Totals()
        self.kept = self.failed_before = 0

    def __iter__(self) -> Iterator[Row]:
        """The rows, each written first. If the loop over them ends early, the rows so far are kept."""
        with (
            self._running() as (scorer, score),
            self._sink(scorer) as sink,
        ):
            self.scorer = scorer
            self.kept, self.failed_before = sink.finished.count, sink.finished.failed
            for row in score(sink.finished):
                sink.write(row)
                self.totals.add(row)
                yield row

    def _sink(self, scorer: Scorer) -> contextlib.AbstractContextManager[sinks.Sink]:
        if self.output is None:
            return contextlib.nullcontext(sinks.Sink(lambda row: None))
        return sinks.open_sink(self.output, scorer.identity)

    @contextlib.contextmanager
    def _running(self) -> Iterator[tuple[Scorer, Callable[[Finished], Iterator[Row]]]]:
        """A scorer to ask for model, view and rates, and what gives the rows that are missing."""
        if self.engine == "local":
            scorer = self._make_scorer(device=choose_device(self.options.device))
            yield scorer, lambda finished: scorer.score(finished.remaining(self.sources))
            return
        from npr_model.screening.ray_engine import RayEngine

        scorer = self._make_scorer(device="cpu")
        with contextlib.closing(
            RayEngine(self._make_scorer, device=self.options.device, actors=self.actors)
        ) as cluster:
            self._announce(f"Ray: {len(cluster.nodes)} nodes, {cluster.actors} actors")
            yield scorer, functools.partial(cluster.score, self.sources, scorer.decoder)
