"""Images in the rows of Parquet files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from npr_model.errors import InputError
from npr_model.scoring.items import Item, failing, in_memory
from npr_model.screening.inputs.decompression import DamagedError
from npr_model.screening.inputs.skipped import EMPTY_ROW, Skip

_ROWS_AT_ONCE = 16
_END = re.compile(rb"(....)PAR1", re.DOTALL)  # of a file: the size of its footer, and a mark
_END_BYTES = 8
_SCANNED = 2**20  # bytes at once


def parquet_items(file: BinaryIO, name: str, column: str | None, skip: Skip) -> Iterator[Item]:
    """Yield an item for each row, named "NAME::ROW", or "NAME::ROW::PLACE" for each element of a list in a row.

    Args:
        file: The Parquet file; it must be seekable.
        name: What items are named after.
        column: Column that holds the encoded images. None: the only one that can.
        skip: Called with each row that holds an empty list.

    Raises:
        InputError: There is no such column, or several.
        Exception: The file is damaged.
    """
    table = pq.ParquetFile(file)
    _check_alone(file, table.metadata)
    chosen = _chosen(table.schema_arrow, name, column)
    row = 0
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[chosen]):
        for value in batch.column(0):
            source, content = f"{name}::{row}", value.as_py()
            row += 1
            if not isinstance(content, list):
                yield _item(source, content, chosen)
                continue
            if not content:
                skip(source, EMPTY_ROW)
            for place, element in enumerate(content):
                yield _item(f"{source}::{place}", element, chosen)


def _check_alone(file: BinaryIO, metadata: pq.FileMetaData) -> None:
    """Raise DamagedError if several Parquet files follow each other: only the last one's footer is read."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    data_end = max((_start(chunk) + chunk.total_compressed_size for chunk in chunks), default=4)
    footer_start = file.seek(0, io.SEEK_END) - metadata.serialized_size - _END_BYTES
    place = file.seek(data_end)
    while place < footer_start and (data := file.read(min(_SCANNED, footer_start - place))):
        for end in _END.finditer(data):
            if 0 < int.from_bytes(end[1], "little") <= place + end.start():
                raise DamagedError("several Parquet files follow each other in it")
        place += len(data) if len(data) < _SCANNED else len(data) - _END_BYTES + 1
        file.seek(place)


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    return min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)


def _item(source: str, value: Any, column: str) -> Item:
    path = None
    if isinstance(value, dict):  # as in data sets on hubs
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return in_memory(source, value)
    only = f", only the path {path}" if path else ""
    return failing(source, f"the column {column} has no image bytes in this row{only}")


def _chosen(schema: pa.Schema, name: str, column: str | None) -> str:
    """Return the column with the images. Raises InputError."""
    described = ", ".join(f"{field.name} ({_short(field.type)})" for field in schema) or "none"
    if column is not None:
        places = schema.get_all_field_indices(column)
        if not places:
            raise InputError(f"{name} has no column {column!r}; it has: {described}")
        if len(places) > 1:
            raise InputError(f"{name} has {len(places)} columns named {column!r}")
        if not _holds_bytes(schema.field(places[0]).type):
            raise InputError(f"the column {column!r} of {name} holds no bytes; the columns are: {described}")
        return column
    # Bytes of a fixed size are rather digests than images.
    for is_candidate in (lambda kind: _holds_bytes(kind) and not _is_fixed(kind), _holds_bytes):
        candidates = [field.name for field in schema if is_candidate(field.type)]
        if len(candidates) > 1:
            raise InputError(f"{name} has several binary columns ({', '.join(candidates)}): choose one with --column")
        if candidates:
            return candidates[0]
    raise InputError(f"{name} has no binary column; it has: {described}")


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether values are bytes, structs with the field "bytes", or lists of one of these."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_bytes(kind.storage_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    if _is_list(kind):
        return not _is_list(kind.value_type) and _holds_bytes(kind.value_type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_kind(kind)
        for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    )


def _is_fixed(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
            types.is_list_view,
            types.is_large_list_view,
        )
    )


def _short(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:40]}..."
