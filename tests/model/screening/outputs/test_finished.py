"""Which sources have rows from earlier runs, of sources that are listed several times too."""

from __future__ import annotations

from npr_model.screening.outputs import finished
from npr_model.screening.outputs.finished import Finished
from tests.model.screening.outputs.folders import remaining


def scored(*sources: str) -> Finished:
    """Sources that have rows without error."""
    return Finished((source, False) for source in sources)


def test_only_sources_without_rows_remain():
    """Of a source that is listed several times, as many as have no row."""
    sources = [f"{i}.png" for i in range(1000)] + ["0.png", "0.png", "grüße\n.png"]
    there = scored(*sources[:500], "0.png", "grüße\n.png")
    assert there.count == 502
    assert remaining(there, sources) == [*sources[500:1000], "0.png"]
    assert remaining(Finished(), "ab") == ["a", "b"]


def test_rows_of_the_inputs_are_counted():
    """Not those of other inputs in the same folder; of the rows of one source the failed ones come last."""
    there = Finished([("a", False), ("b", True), ("c", True), ("c", False), ("other", True), ("other", False)])
    assert (there.count, there.failed) == (6, 3)
    has_row = there.matcher()
    assert [has_row(source) for source in "abcd"] == [True, True, True, False]
    assert (has_row.kept, has_row.kept_failed) == (3, 1)
    assert has_row("c") and not has_row("c") and (has_row.kept, has_row.kept_failed) == (4, 2)


def test_digests_that_begin_alike_are_told_apart(monkeypatch):
    monkeypatch.setattr(finished, "digest", lambda source: bytes(8) + source.encode().ljust(8))
    assert remaining(scored("a", "b"), "cbadb") == ["c", "d", "b"]
