"""One screening from sources to an output, on this machine or on a Ray cluster: what ``npr screen`` does."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator

from npr_model.devices import choose_device
from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row, Totals
from npr_model.scoring.scorer import Scorer
from npr_model.screening.engines.local import LocalEngine
from npr_model.screening.inputs.skipped import describe_skipped
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.outputs import sinks
from npr_model.screening.outputs.sinks import Sink

ENGINES = ("local", "ray")


class Screening:
    """Scores ``sources`` and writes a row for each image to ``output``. Iterate over it to run it, once.

    Args:
        sources: The images.
        output: File or folder as in :func:`npr_model.screening.outputs.sinks.open_sink`; None writes nothing.
        options: What to score with.
        retry_failed: Whether to score again what has a row with an error in the output folder.
        engine: One of ENGINES.
        actors: Ray only: processes that run the network; 0 for one per GPU, or without GPUs one per machine.
        announce: Called with a line on the cluster, once it is there.

    Attributes:
        scorer: What scores; on Ray a copy that only describes it. None until the run has begun.
        totals: Counts so far.

    Raises:
        InputError: An option, the checkpoint or the output cannot be used. When it runs: there is nothing to screen.
    """

    def __init__(
        self,
        sources: Sources,
        output: str | None,
        options: ScoringOptions,
        *,
        retry_failed: bool = False,
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
            sinks.check(output, retry_failed=retry_failed)
        elif retry_failed:
            raise InputError("failed rows are retried in an output folder: name it with --output")
        self.sources, self.output, self.options = sources, output, options
        self.engine, self.actors, self._announce = engine, actors, announce
        self._retry_failed = retry_failed
        self._make_scorer = options.scorer_maker()
        self.scorer: Scorer | None = None
        self.totals = Totals()

    def __iter__(self) -> Generator[Row, None, None]:
        """The rows, each written first. If the loop over them ends early, the rows so far are kept."""
        score = self._score_here if self.engine == "local" else self._score_on_ray
        with contextlib.closing(score()) as rows:
            yield from rows

    def _score_here(self) -> Generator[Row, None, None]:
        items = iter(self.sources)
        first = next(items, None)  # before anything slow, and before the output is touched
        if first is None:
            raise self._nothing()
        scorer = self._make_scorer(device=choose_device(self.options.device))
        with self._opened(scorer) as sink:
            engine, items = LocalEngine(scorer, self.options), itertools.chain([first], items)
            scored = engine.score(self.sources, items, sink.finished, sink.journal, self.totals)
            with contextlib.closing(scored) as rows:  # before the sink: threads that decode write to its journal
                yield from self._written(rows, sink)

    def _score_on_ray(self) -> Generator[Row, None, None]:
        from npr_model.screening.engines.ray import RayEngine  # it may be missing

        scorer = self._make_scorer(device="cpu")
        with contextlib.closing(
            RayEngine(self._make_scorer, device=self.options.device, actors=self.actors)
        ) as cluster:
            self._announce(f"Ray: {len(cluster.nodes)} machines, {cluster.actors} actors")
            with self._opened(scorer) as sink:
                scored = cluster.score(self.sources, scorer.decoder, sink.finished, self.totals)
                with contextlib.closing(scored) as rows:
                    yield from self._written(rows, sink)
                if not self.totals.count and not self.totals.kept:
                    raise self._nothing()

    @contextlib.contextmanager
    def _opened(self, scorer: Scorer) -> Iterator[Sink]:
        with contextlib.ExitStack() as stack:
            sink = Sink(lambda row: None)
            if self.output is not None:
                sink = stack.enter_context(
                    sinks.open_sink(self.output, scorer.identity, retry_failed=self._retry_failed)
                )
            self.scorer = scorer
            yield sink

    def _written(self, rows: Iterable[Row], sink: Sink) -> Iterator[Row]:
        for row in rows:
            sink.write(row)
            self.totals.add(row)
            yield row

    def _nothing(self) -> InputError:
        skipped = describe_skipped(self.sources.skipped)
        why = f"no images in the inputs; skipped: {skipped}" if skipped else self.sources.why_empty
        return InputError(f"there is nothing to screen: {why}")
