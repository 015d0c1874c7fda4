"""Failed rows are tried again where that is asked for, and their parts are rewritten."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from npr_model.scoring.rows import Row, as_table
from npr_model.screening.outputs.parts import Parts
from npr_model.screening.outputs.sinks import open_sink
from tests.model.screening.outputs.folders import ONE, manifest


def good(source: str) -> Row:
    return Row(source, "00", 0.5, 0.6, "generated", view="native", model="m@1")


def bad(source: str) -> Row:
    return Row(source, error="No such file", error_code="unreadable", view="native", model="m@1")


@pytest.fixture
def output(tmp_path) -> str:
    """A folder with two parts: one of good and bad rows, one of bad rows alone."""
    with open_sink(f"{tmp_path}/scores/", ONE) as sink:
        for row in (good("a"), bad("b"), good("c"), bad("other")):
            sink.write(row)
    with open_sink(f"{tmp_path}/scores/", ONE) as sink:
        sink.write(bad("d"))
    return f"{tmp_path}/scores/"


def states(output: str) -> dict[str, bool]:
    """By source whether it was scored; no source twice."""
    table = pq.read_table(output).to_pylist()
    assert len({row["source"] for row in table}) == len(table) == manifest(Path(output))["rows"]
    return {row["source"]: row["error"] is None for row in table}


def test_failed_rows_are_replaced(output):
    """Those of other inputs stay."""
    with open_sink(output, ONE, retry_failed=True) as sink:
        has_row = sink.finished.matcher()
        assert [source for source in "abcd" if not has_row(source)] == ["b", "d"]
        sink.write(good("b"))
        sink.write(bad("d"))
        assert not any("retry" in name for name in os.listdir(output))
    assert states(output) == {"a": True, "b": True, "c": True, "d": False, "other": False}
    assert sorted(name for name in os.listdir(output) if name.endswith(".parquet")) == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    with open_sink(output, ONE) as sink:
        assert (sink.finished.count, sink.finished.failed) == (5, 2)


@pytest.mark.parametrize(
    "moment", ["before a part is rewritten", "before a part is removed", "before a part is renamed"]
)
def test_a_run_that_is_killed_before(output, moment, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments: object, **options: object) -> None:
        raise Killed

    parts = Parts(Path(output), ONE, retry_failed=True)
    parts.add(as_table([good("b"), good("d")]))
    if "rewritten" in moment:
        monkeypatch.setattr(parts, "_write", killed)
    else:
        monkeypatch.setattr(Path, "unlink" if "removed" in moment else "replace", killed)
    with pytest.raises(Killed):
        parts.finish(complete=True)
    monkeypatch.undo()
    parts.close()
    with open_sink(output, ONE) as sink:  # the next run, of any kind, does the rest
        assert sink.finished.count == 5
    assert states(output) == {"a": True, "b": True, "c": True, "d": True, "other": False}


def test_an_interrupted_retry_keeps_what_it_did(output):
    with pytest.raises(KeyboardInterrupt), open_sink(output, ONE, retry_failed=True) as sink:
        sink.write(good("b"))
        raise KeyboardInterrupt
    assert states(output) == {"a": True, "b": True, "c": True, "d": False, "other": False}


def test_a_retry_with_nothing_to_retry(output):
    with open_sink(output, ONE, retry_failed=True):
        pass
    assert states(output) == {"a": True, "b": False, "c": True, "d": False, "other": False}
