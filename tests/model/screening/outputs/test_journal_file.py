"""The journal: which files were in work when a run was killed."""

from __future__ import annotations

from pathlib import Path

from npr_model.screening.outputs.finished import DIGEST_BYTES
from npr_model.screening.outputs.journal_file import JournalFile


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


def test_a_closed_journal_writes_no_more(tmp_path):
    """Its descriptor may be another file's by then."""
    journal = JournalFile(tmp_path / "journal")
    journal.start(["a"])
    journal.close()
    with open(tmp_path / "rows", "wb+") as other:
        assert other.fileno() == journal._descriptor
        journal.start(["b"])
        journal.end(["a"])
        assert (tmp_path / "rows").stat().st_size == 0
