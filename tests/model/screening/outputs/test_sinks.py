"""Where rows go: files of three formats and folders of parts, which keep their rows whatever happens to the run."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from npr_kernels import BackendError
from npr_model.scoring.rows import SCHEMA, Row
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.outputs import sinks
from npr_model.screening.outputs.sinks import SinkError
from tests.model.conftest import encoded, noise

ODD_NAMES = [b"new\nline.png", b"not utf-8 \xff\xfe.png", "grüße 漢字.png".encode(), b'quo"te, comma.png', b"tab\t.png"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_odd_names_survive(tmp_path, suffix, scorer):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(ODD_NAMES):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(encoded(noise(8, 8, seed=i)))
    output = tmp_path / f"scores{suffix}"
    with sinks.open_sink(output) as sink:
        for row in scorer().score(Sources([folder])):
            sink.write(row)
    rows = read(output)
    expected = {name.decode("utf-8", "backslashreplace") for name in ODD_NAMES}
    assert {os.path.relpath(row["source"], folder) for row in rows} == expected
    assert all(row["error"] in (None, "") for row in rows)


def read(output: Path) -> list[dict]:
    if output.suffix == ".csv":
        with open(output, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(output).to_pylist()


LOGIT = float(np.float32(0.1))
GOOD = Row("a.png", "00ff", LOGIT, 0.525, "generated", 4, 5, "PNG", view="native", milliseconds=0.1, model="m@1")
FAILED = Row("b.png", error="the file is empty", error_code="empty", view="native", model="m@1")


def test_parquet_schema_and_compression(tmp_path):
    output = tmp_path / "scores.parquet"
    with sinks.open_sink(output) as sink:
        sink.write(GOOD)
        sink.write(FAILED)
    file = pq.ParquetFile(output)
    assert file.schema_arrow.equals(SCHEMA)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    first, second = read(output)
    assert first["logit"] == LOGIT and first["source"] == "a.png" and first["error"] is None
    assert second["logit"] is None and second["error"] == "the file is empty"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_text_formats_round_to_float32(tmp_path, suffix):
    output = tmp_path / f"scores{suffix}"
    with sinks.open_sink(output) as sink:
        sink.write(GOOD)
        sink.write(FAILED)
    first, second = read(output)
    assert str(first["logit"]) == "0.1"
    assert second["logit"] in (None, "")
    assert list(first) == SCHEMA.names


def test_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 2)
    output = f"{tmp_path}/scores/"
    with sinks.open_sink(output) as sink:
        for i in range(5):
            sink.write(GOOD)
            assert len(list(Path(output).glob("*.parquet"))) == (i + 1) // 2
    names = [f"part-0000{number}.parquet" for number in range(3)]
    assert sorted(os.listdir(output)) == [".lock", "_manifest.json", *names]
    assert pq.read_table(output).num_rows == 5
    manifest = json.loads((Path(output) / "_manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == 5 and list(manifest["parts"]) == names


def test_parts_are_closed_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "SECONDS_A_PART", -1)
    with sinks.open_sink(f"{tmp_path}/scores/") as sink:
        sink.write(GOOD)
        assert pq.read_table(tmp_path / "scores").num_rows == 1


OUTPUTS = ["scores.parquet", "scores.csv", "scores.jsonl", "scores/"]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, BackendError])
def test_rows_before_a_failure_are_kept(tmp_path, name, failure):
    output = f"{tmp_path}/{name}"
    with pytest.raises(failure), sinks.open_sink(output) as sink:
        sink.write(GOOD)
        sink.write(FAILED)
        raise failure
    assert len(read(Path(output))) == 2
    assert os.listdir(tmp_path) == [name.rstrip("/")]


@pytest.mark.parametrize("name", OUTPUTS[:3])
def test_a_failure_before_any_row_leaves_the_old_file(tmp_path, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), sinks.open_sink(tmp_path / name):
        raise KeyboardInterrupt
    assert (tmp_path / name).read_text() == "old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_the_rows_come_from_is_not_blamed_on_the_output(tmp_path, name):
    with pytest.raises(ConnectionError, match=r"^reset$"), sinks.open_sink(f"{tmp_path}/{name}"):
        raise ConnectionError("reset")


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_run_without_rows_is_an_empty_table(tmp_path, name):
    with sinks.open_sink(f"{tmp_path}/{name}"):
        pass
    assert read(tmp_path / name) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scores.xlsx", "must end in .parquet, .csv, .jsonl"),
        ("scores", "must end in"),
        ("absent/scores.csv", "in a folder that does not exist"),
        ("folder.csv", "is a folder"),
        ("file/", "is a file, not a folder"),
        ("used/", "holds other files than rows"),
        ("s3://bucket/scores.parquet", "is a URL"),
        ("s3://bucket/scores/", "is a URL"),
    ],
)
def test_unusable_outputs(tmp_path, name, message):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    with pytest.raises(SinkError, match=message):
        sinks.check(name if "://" in name else f"{tmp_path}/{name}")
