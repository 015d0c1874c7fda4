"""A folder of parts is gone on with after any end of a run: no row lost, none doubled, all of one kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from npr_model.scoring.rows import Row
from npr_model.screening.outputs import parts, sinks
from npr_model.screening.outputs.parts import SinkError
from npr_model.screening.outputs.sinks import open_sink
from tests.model.screening.outputs.folders import ONE, manifest, remaining, rows


def row(source: str) -> Row:
    return Row(source, "00", 0.5, 0.6, "generated", 8, 8, "PNG", view="native", model="m@1")


def test_goes_on_where_a_run_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 2)
    output = f"{tmp_path}/scores/"
    with pytest.raises(KeyboardInterrupt), open_sink(output, ONE) as sink:
        for source in "abc":
            sink.write(row(source))
        raise KeyboardInterrupt
    assert manifest(tmp_path / "scores")["complete"] is False
    (tmp_path / "scores" / ".part-00002.parquet.1.partial").write_bytes(b"half a part")
    with open_sink(output, ONE) as sink:
        assert sink.finished.count == 3
        for source in remaining(sink.finished, "abcde"):
            sink.write(row(source))
    assert [found["source"] for found in rows(tmp_path / "scores")] == list("abcde")
    state = manifest(tmp_path / "scores")
    assert state["complete"] and state["rows"] == 5 and state["identity"] == ONE
    assert state["parts"] == {f"part-0000{i}.parquet": count for i, count in enumerate((2, 1, 2))}
    with open_sink(output, ONE) as sink:  # nothing is left to do, and nothing is added
        assert remaining(sink.finished, "abcde") == []
    assert len(os.listdir(tmp_path / "scores")) == 5 and manifest(tmp_path / "scores")["complete"]


def test_a_part_that_the_manifest_does_not_know_counts(tmp_path):
    """A run may be killed between the two."""
    output = f"{tmp_path}/scores/"
    with open_sink(output, ONE) as sink:
        sink.write(row("a"))
    state = manifest(tmp_path / "scores") | {"rows": 0, "parts": {}, "complete": False}
    (tmp_path / "scores" / "_manifest.json").write_text(json.dumps(state))
    with open_sink(output, ONE) as sink:
        assert sink.finished.count == 1
        sink.write(row("b"))
    assert [found["source"] for found in rows(tmp_path / "scores")] == ["a", "b"]


@pytest.mark.parametrize("moment", ["before the part has its name", "after it", "manifest"])
def test_no_row_is_written_twice_when_a_part_is_interrupted(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 3)
    output, interrupted = f"{tmp_path}/scores/", []

    def once() -> None:
        if not interrupted:
            interrupted.append(moment)
            raise KeyboardInterrupt

    replace, write_manifest = os.replace, parts.Parts._write_manifest

    def replacing(source, target):
        if Path(target).name.startswith("part-") and moment.startswith("before"):
            once()
        replace(source, target)
        if Path(target).name.startswith("part-") and moment.startswith("after"):
            once()

    def writing(self, complete):
        if self.count and moment == "manifest":
            once()
        write_manifest(self, complete)

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(parts.Parts, "_write_manifest", writing)
    with pytest.raises(KeyboardInterrupt), open_sink(output, ONE) as sink:
        for source in "abcdef":
            sink.write(row(source))
    assert interrupted and [found["source"] for found in rows(tmp_path / "scores")] == list("abc")
    assert manifest(tmp_path / "scores")["rows"] == 3


def test_goes_on_after_a_kill_before_the_first_manifest(tmp_path):
    (tmp_path / "scores").mkdir()
    for name in (".lock", "._manifest.json.0a1b2c3d.partial"):
        (tmp_path / "scores" / name).write_text("{")
    with open_sink(f"{tmp_path}/scores/", ONE) as sink:
        sink.write(row("a"))
    assert [found["source"] for found in rows(tmp_path / "scores")] == ["a"]


def test_refuses_what_is_not_its_own(tmp_path):
    output = f"{tmp_path}/scores/"
    with open_sink(output, ONE) as sink:
        sink.write(row("a"))
        with pytest.raises(SinkError, match="is being written by another run"), open_sink(output, ONE):
            pass
    other = ONE | {"model": "m@2", "threshold": "1"}
    with (
        pytest.raises(SinkError, match=r"holds rows of another run \(model m@1, threshold 0\): choose another folder"),
        open_sink(output, other),
    ):
        pass
    (tmp_path / "scores" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(SinkError, match=r"part-00000\.parquet cannot be read"), open_sink(output, ONE):
        pass
    for text in ("", "{}", "[]", '{"version": 99}'):
        (tmp_path / "scores" / "_manifest.json").write_text(text)
        with pytest.raises(SinkError, match=r"_manifest\.json cannot be read"):
            sinks.check(output)


def test_a_full_disk_keeps_the_parts_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 2)
    output, written = f"{tmp_path}/scores/", []
    write_table = pq.write_table

    def full(table, path, **options):
        written.append(path)
        if len(written) >= 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        write_table(table, path, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(SinkError, match="cannot be written: No space left"), open_sink(output, ONE) as sink:
        for source in "abcdef":
            sink.write(row(source))
    assert [found["source"] for found in rows(tmp_path / "scores")] == ["a", "b"]
    monkeypatch.setattr(pq, "write_table", write_table)
    with open_sink(output, ONE) as sink:
        for source in remaining(sink.finished, "abcdef"):
            sink.write(row(source))
    assert [found["source"] for found in rows(tmp_path / "scores")] == list("abcdef")
