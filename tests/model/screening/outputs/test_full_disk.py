"""A full disk: files end in whole rows and can be read, and the message names the file and says what to do."""

from __future__ import annotations

import contextlib
import csv
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from npr_model.commands.shared import terminal
from npr_model.scoring.rows import SCHEMA, Row
from npr_model.screening.outputs import row_files, sinks
from npr_model.screening.outputs.sinks import SinkError, open_sink
from tests.model.conftest import encoded, noise


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def row(number: int) -> Row:
    name = f'a folder/{number:06}\n "quoted", {"x" * (number % 50)}.png'
    return Row(name, f"{number:064x}", number / 7, 0.5, "generated", 8, 8, "PNG", view="native", model="m@1")


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("size", [9_000, 70_000, 200_001, 300_000])
def test_whole_rows_are_kept(tmp_path, suffix, size, monkeypatch):
    monkeypatch.setattr(row_files, "ROWS_A_GROUP", 300)
    path = tmp_path / f"scores{suffix}"
    with pytest.raises(SinkError) as error, largest_file(size), open_sink(path) as sink:
        for number in range(100_000):
            sink.write(row(number))
    rows = read(path)
    assert [one["source"] for one in rows] == [row(number).source for number in range(len(rows))] and rows
    assert list(rows[0]) == SCHEMA.names
    assert size / 2 < path.stat().st_size <= size
    message = str(error.value)
    assert message.startswith(f"output {path} cannot be written: File too large; the first {len(rows)} rows are in it")
    assert "-o FOLDER/" in message and "\n" not in message
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("count", [1, 7, 50, 90])
def test_a_disk_that_is_full_at_the_end(tmp_path, suffix, count):
    """The rows still wait in memory when the run ends."""
    path = tmp_path / f"scores{suffix}"
    with pytest.raises(SinkError, match="File too large"), largest_file(6000), open_sink(path) as sink:
        for number in range(100 * count):
            sink.write(row(number))
    if path.exists():
        rows = read(path)
        assert 0 < len(rows) < 100 * count and rows[-1]["source"] == row(len(rows) - 1).source


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_without_room_for_a_row_nothing_is_changed(tmp_path, suffix):
    path = tmp_path / f"scores{suffix}"
    path.write_text("old")
    with pytest.raises(SinkError, match="File too large; no row is in it"), largest_file(10), open_sink(path) as sink:
        for number in range(10_000):
            sink.write(row(number))
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_interruption_on_a_full_disk(tmp_path):
    """What matters more is the disk."""
    path = tmp_path / "scores.csv"
    with pytest.raises(SinkError, match="rows are in it"), largest_file(5000), open_sink(path) as sink:
        for number in range(50):
            sink.write(row(number))
        raise KeyboardInterrupt
    assert read(path)


def test_parquet_has_many_groups(tmp_path, monkeypatch):
    """What is reserved for the footer is enough for all of them, and is given back."""
    monkeypatch.setattr(row_files, "ROWS_A_GROUP", 2)
    with open_sink(path := tmp_path / "scores.parquet") as sink:
        for number in range(501):
            sink.write(row(number))
    assert pq.read_metadata(path).num_row_groups == 251 and len(read(path)) == 501
    size = path.stat().st_size
    with pytest.raises(SinkError), largest_file(size - 1), open_sink(path) as sink:
        for number in range(501):
            sink.write(row(number))
    assert 400 < len(read(path)) < 501


def test_a_folder_continues_when_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 200)
    output = f"{tmp_path}/scores/"
    with pytest.raises(SinkError) as error, largest_file(3000), open_sink(output) as sink:
        for number in range(1000):
            sink.write(row(number))
    assert str(error.value).startswith(f"output {tmp_path}/scores cannot be written: File too large; the parts")
    with open_sink(output) as sink:
        for number in range(sink.finished.count, 1000):
            sink.write(row(number))
    assert pq.read_table(tmp_path / "scores").num_rows == 1000


@pytest.mark.parametrize("output", ["scores.csv", "scores.jsonl", "scores.parquet", "scores/"])
def test_commands_name_the_file(npr, tmp_path, checkpoint, output):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(encoded(noise(8, 8, seed=number)))
    with largest_file(500):
        code, _, err = npr("screen", images, "--checkpoint", checkpoint, "-o", f"{tmp_path}/{output}")
    assert code == terminal.EXIT_FAILED and err.count("\n") == 1
    assert f"{tmp_path}/{output}".rstrip("/") in err and "File too large" in err
    assert npr("screen", images, "--checkpoint", checkpoint, "-o", f"{tmp_path}/scores.csv")[0] == 0
    with largest_file(500):
        code, _, err = npr("report", tmp_path / "scores.csv", "-o", tmp_path / "page.html")
    assert code == terminal.EXIT_FAILED and err == f"npr: error: {tmp_path}/page.html: File too large\n"


def test_a_cache_on_a_full_disk_names_its_file_and_loses_no_rows(npr, tmp_path, checkpoint):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(40):
        (images / f"{number}.png").write_bytes(encoded(noise(8, 8, seed=number)))
    arguments = ["screen", images, "--checkpoint", checkpoint, "--cache", tmp_path / "c.sqlite"]
    some = [images / f"{number}.png" for number in range(20)]  # the cache is then larger than a part of 40 rows
    assert npr(*arguments[:1], *some, *arguments[2:])[0] == 0
    with largest_file((tmp_path / "c.sqlite").stat().st_size + 100):
        code, _, err = npr(*arguments, "-o", f"{tmp_path}/scores/")
    assert f"{tmp_path}/c.sqlite" in err and code == terminal.EXIT_FAILED
    assert pq.read_table(tmp_path / "scores").num_rows == 40
