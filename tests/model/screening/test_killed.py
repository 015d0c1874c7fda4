"""A run that was killed at a file is not killed at it again. Failed rows are tried again where that is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from npr_model.scoring.items import in_memory
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row, as_table
from npr_model.screening import isolated
from npr_model.screening.outputs import journal_file
from npr_model.screening.outputs.finished import DIGEST_BYTES, digest
from npr_model.screening.outputs.journal_file import Journal, JournalFile
from npr_model.screening.outputs.parts import Parts
from npr_model.screening.outputs.sinks import open_sink
from tests.model.conftest import encoded, noise
from tests.model.screening.test_restart import manifest, rows

# Python runs it at its start, also in the process that scores files alone.
POISON = """
import hashlib, os, signal
sha256 = hashlib.sha256
def of_a_file(*arguments, **options):
    if arguments and bytes(arguments[0][:6]) == b"poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return sha256(*arguments, **options)
hashlib.sha256 = of_a_file
"""


@pytest.fixture
def poisonous(tmp_path, monkeypatch) -> Path:
    """A folder with a file that kills the process which reads it; only in processes that are started from now on."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(POISON)
    paths = [str(tmp_path / "start"), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(encoded(noise(8, 8, seed=number)))
    (folder / "05.png").write_bytes(b"poison")
    return folder


def test_a_run_is_not_killed_twice_at_a_file(npr, poisonous, tmp_path, checkpoint):
    arguments = ["screen", str(poisonous), "--checkpoint", str(checkpoint), "--workers", "3", "-o", f"{tmp_path}/out/"]
    killed = subprocess.run([sys.executable, "-m", "npr_model.cli", *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    for retry in ([], ["--retry-failed"]):
        code, out, _ = npr(*arguments, *retry)
        by_source = {row["source"]: row for row in rows(tmp_path / "out")}
        assert code == 1 and len(by_source) == 12 == len(rows(tmp_path / "out")), retry
        failed = {source: row for source, row in by_source.items() if row["error"] is not None}
        assert failed.keys() == {f"{poisonous}/05.png"}
        row = failed[f"{poisonous}/05.png"]
        assert row["error_code"] == "killed" and "signal 9" in row["error"] and "--retry-failed" in row["error"]
        assert row["view"] == "native" and row["model"].startswith("random@")
    code, out, _ = npr(*arguments)  # without --retry-failed it is not tried again
    assert code == 1 and "0 images" in out and "12 of the inputs already had rows from earlier runs, 1 of them" in out
    assert not (tmp_path / "out" / ".journal").exists()


def test_what_killed_a_run_when_it_was_alone_is_not_tried_at_all(npr, poisonous, tmp_path, checkpoint):
    """As where the memory's guard ends all processes of a group."""
    output = tmp_path / "scores"
    output.mkdir()
    (output / journal_file.NAME).write_bytes(2 * digest(f"{poisonous}/05.png"))  # alone, and in work
    arguments = ["screen", str(poisonous), "--checkpoint", str(checkpoint), "--workers", "1", "-o", f"{output}/"]
    assert npr(*arguments)[0] == 1
    (row,) = (row for row in rows(output) if row["error"] is not None)
    assert row["error_code"] == "killed" and row["error"].startswith("a run was killed while it scored this file alone")
    assert len(rows(output)) == 12


def test_innocent_files_get_the_row_that_they_would_have(checkpoint, tmp_path):
    """Also from the process that scores them alone; a file that is damaged is only that."""
    options = ScoringOptions(checkpoint, batch_size=8, workers=3)
    items = [in_memory(str(i), encoded(noise(8 + i, 8, seed=i))) for i in range(3)] + [in_memory("bad", b"x")]
    scorer = options.scorer()
    expected = {row.source: row.as_dict() | {"milliseconds": 0} for row in scorer.score(items)}
    blank = Row("", view=str(scorer.view), model=scorer.model_id)
    found = [row.as_dict() | {"milliseconds": 0} for row in isolated.score_alone(items, options, blank, Journal())]
    assert [row["source"] for row in found] == ["0", "1", "2", "bad"]
    assert all(row == expected[row["source"]] for row in found)


def test_the_process_that_scores_alone_may_fail_to_start(checkpoint):
    items = [in_memory("a", b"x")]
    (row,) = isolated.score_alone(items, ScoringOptions("no such checkpoint"), Row(""), Journal())
    assert row.error_code == "killed" and "was ended with exit code 1" in row.error


def reopened(path: Path) -> JournalFile:
    """The journal of the next run, as the one before was killed."""
    return JournalFile(path)


def test_the_journal(tmp_path):
    path = tmp_path / "journal"
    first = JournalFile(path)
    first.start(["a", "b", "c", "a"])
    first.end(["b", "a"])
    second = reopened(path)
    assert [second.is_suspect(name) for name in "abcd"] == [True, False, True, False]
    second.start(["d", "e"])
    second.end(["d"])
    with second.alone("a"):
        pass
    third = reopened(path)  # what had no row yet is suspect still
    assert [third.is_suspect(name) for name in "abcde"] == [False, False, True, False, True]
    with third.alone("c"):
        fourth = reopened(path)
        assert fourth.is_culprit("c") and fourth.is_suspect("c") and not fourth.is_culprit("e")
    fourth.end(["nothing that was started"])
    fourth.close()
    assert not path.exists()


def test_the_journal_stays_small(tmp_path):
    written = JournalFile(tmp_path / "journal")
    for number in range(1000):
        written.start([str(number), str(number + 1)])
        written.end([str(number), str(number + 1)])
    assert (tmp_path / "journal").stat().st_size <= 4 * DIGEST_BYTES
    written.close()


def test_a_damaged_journal_is_no_obstacle(tmp_path):
    (tmp_path / "journal").write_bytes(b"x" * 39)
    written = JournalFile(tmp_path / "journal")
    written.start(["a"])
    assert not written.is_suspect("a")
    written.close()


ONE = {"model": "m@1", "view": "native", "threshold": "0"}


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
