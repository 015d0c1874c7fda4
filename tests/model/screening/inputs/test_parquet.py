"""Parquet files with images: all ways to keep bytes in a column, and files that are not what they should be."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npr_model.screening.inputs.skipped import EMPTY_ROW
from npr_model.screening.inputs.sources import Sources
from tests.model.conftest import encoded, noise
from tests.model.screening.collections import PICTURES, loaded, members


@pytest.mark.parametrize("nested", [False, True])
def test_parquet(nested, tmp_path):
    values = [*PICTURES.values(), None]
    if nested:  # as data sets on hubs are
        column = pa.array([value and {"bytes": value, "path": "x"} for value in values])
    else:
        column = pa.array(values, pa.large_binary())
    pq.write_table(pa.table({"label": list(range(6)), "image": column}), tmp_path / "a.parquet", row_group_size=4)
    expected = {f"{tmp_path}/a.parquet::{row}": data for row, data in enumerate(PICTURES.values())}
    found = loaded(Sources([tmp_path / "a.parquet"]))
    assert found.pop(f"{tmp_path}/a.parquet::5") == "the column image has no image bytes in this row"
    assert found == expected


def test_parquet_with_several_columns_of_bytes(tmp_path):
    table = pa.table({"thumbnail": [b"t"], "image": [b"i"], "label": [1]})
    pq.write_table(table, path := tmp_path / "a.parquet")
    assert loaded(Sources([path], column="image")) == {f"{path}::0": b"i"}
    for column, message in (
        (None, r"several binary columns \(thumbnail, image\): choose"),
        ("nope", "no column 'nope'"),
    ):
        (found,) = loaded(Sources([path], column=column)).values()  # of a million shards one must not stop the others
        assert re.search(message, found)
    pq.write_table(table.select(["label"]), path)
    assert loaded(Sources([path])) == {str(path): f"{path} has no binary column; it has: label (int64)"}


BYTES = [encoded(noise(8, 8, seed=i)) for i in range(3)]
STRUCTS = [{"bytes": data, "path": "x.png"} for data in BYTES]
COLUMNS = {
    "binary": pa.array(BYTES, pa.binary()),
    "large_binary": pa.array(BYTES, pa.large_binary()),
    "binary_view": pa.array(BYTES, pa.binary_view()),
    "dictionary": pa.array(BYTES).dictionary_encode(),
    "struct": pa.array(STRUCTS),
    "struct of views": pa.array(STRUCTS, pa.struct({"bytes": pa.binary_view(), "path": pa.string()})),
}
LISTS = {
    "list": pa.array([[data] for data in BYTES]),
    "large_list": pa.array([[data] for data in BYTES], pa.large_list(pa.binary())),
    "fixed_size_list": pa.array([[data] for data in BYTES], pa.list_(pa.binary(), 1)),
    "list of structs": pa.array([[struct] for struct in STRUCTS]),
}


@pytest.mark.parametrize("kind", COLUMNS | LISTS)
def test_columns_of_bytes(tmp_path, kind):
    table = pa.table({"label": [0, 1, 2], "image": (COLUMNS | LISTS)[kind], "note": ["x"] * 3})
    pq.write_table(table, path := tmp_path / "a.parquet")
    names = [f"{row}::0" if kind in LISTS else str(row) for row in range(3)]
    assert members(path) == (dict(zip(names, BYTES, strict=True)), None)
    assert members(path)[0] == {
        name.partition("::")[2]: data for name, data in loaded(Sources([path], column="image")).items()
    }


def test_bytes_of_a_fixed_size(tmp_path):
    """They are read, but taken for digests if there is another column of bytes."""
    digests = pa.array([b"x" * 32] * 3, pa.binary(32))
    pq.write_table(pa.table({"image": digests}), path := tmp_path / "a.parquet")
    assert members(path)[0] == dict.fromkeys("012", b"x" * 32)
    pq.write_table(pa.table({"sha256": digests, "image": BYTES}), path)
    assert list(members(path)[0].values()) == BYTES


def test_rows_without_bytes(tmp_path):
    lists = pa.array([[{"bytes": BYTES[0], "path": "x"}, {"bytes": None, "path": "photo.png"}], [], None])
    pq.write_table(pa.table({"images": lists}), path := tmp_path / "a.parquet")
    source = Sources([path])
    contents = {name.partition("::")[2]: value for name, value in loaded(source).items()}
    assert contents == {
        "0::0": BYTES[0],
        "0::1": "the column images has no image bytes in this row, only the path photo.png",
        "2": "the column images has no image bytes in this row",
    }
    assert source.skipped == {EMPTY_ROW: 1}


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ({"label": [1], "text": ["x"]}, None, "has no binary column; it has: label (int64), text (string)"),
        ({"label": [1], "image": [b"x"]}, "label", "the column 'label' of {} holds no bytes; the columns are: label"),
        ({"label": [1]}, "image", "has no column 'image'; it has: label (int64)"),
        ({"a": [b"x"], "b": [{"bytes": b"x"}]}, None, "has several binary columns (a, b): choose one with --column"),
        ({"a": [{"path": "x"}]}, None, "has no binary column; it has: a (struct<path: string>)"),
    ],
)
def test_what_is_wrong_with_the_columns(tmp_path, table, column, message):
    pq.write_table(pa.table(table), path := tmp_path / "a.parquet")
    (error,) = loaded(Sources([path], column=column)).values()
    assert message.format(path) in error


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("gap", [0, 1, 2**20 + 3])
def test_parquet_files_that_follow_each_other_are_an_error(tmp_path, group, gap):
    """Also if they are of the same shape, so that the data of one would be read as the other's."""
    for name in "ab":
        images = [name.encode() * 100] * 3
        pq.write_table(pa.table({"image": images}), tmp_path / name, row_group_size=group, compression="none")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a").read_bytes() + bytes(gap) + (tmp_path / "b").read_bytes())
    _, error = members(tmp_path / "c.parquet")
    assert "several Parquet files follow each other" in error
    assert members(tmp_path / "b")[0] == dict.fromkeys("012", b"b" * 100)


def test_a_footer_that_does_not_follow_the_data_at_once(tmp_path):
    """As with an index of pages."""
    table = pa.table({"image": BYTES, "label": [1, 2, 3]})
    pq.write_table(table, path := tmp_path / "a.parquet", write_page_index=True)
    assert list(members(path)[0].values()) == BYTES
