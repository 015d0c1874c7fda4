"""Summary of a table of rows for the HTML page, in one or two passes and bounded memory."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds

from npr_model.errors import InputError, reason
from npr_model.scoring.rows import SCHEMA
from npr_model.screening.outputs import parts
from npr_model.verdicts import DECLARED

BINS, LIMIT = 240, 12.0  # of the histograms, from -LIMIT to LIMIT; logits beyond count in the outer bins
EXAMPLES = 5  # of sources per error code
MAX_GROUPS = 1000  # folders and archives with their own histogram, in order of appearance
OTHERS = "(others)"
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}
_COLUMNS = ("source", "logit", "probability", "verdict", "width", "height", "format", "flags", "declared_by")
_ERRORS = ("error", "error_code")


@dataclass
class Summary:
    """What the page shows.

    Attributes:
        total: Number of rows.
        verdicts, models, declared: Counts. ``declared`` leaves out files that declare nothing.
        histograms: Counts of logits in BINS, by (group, format). A group is a folder or an archive.
        errors: By code, the count and some sources with their messages.
        threshold: Larger logits are called generated; None if the rows do not tell.
        gallery: Rows to show, each with ``why``.
    """

    total: int = 0
    verdicts: Counter = field(default_factory=Counter)
    models: Counter = field(default_factory=Counter)
    declared: Counter = field(default_factory=Counter)
    histograms: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    errors: dict[str, tuple[int, list[tuple[str, str]]]] = field(default_factory=dict)
    threshold: float | None = None
    gallery: list[dict[str, Any]] = field(default_factory=list)


def summarise(path: Path, images: int, seed: int = 0) -> Summary:
    """Summarise an output of ``npr screen``: a .parquet, .csv or .jsonl file, or a folder of parts.

    ``images``: size of the gallery: one third each of the highest logits, of those nearest to the threshold, and at
    random by ``seed``. Raises InputError for another kind of table.
    """
    result = Summary()
    lowest_generated, highest_other = np.inf, -np.inf
    for batch in _batches(path, [*_COLUMNS, *_ERRORS, "declared", "model", "view"]):
        table = batch.to_pydict()
        result.total += len(batch)
        result.declared.update(filter(None, table["declared"]))
        result.models.update(zip(table["model"], table["view"], strict=True))
        logits = np.array([np.nan if value is None else value for value in table["logit"]], float)
        for source, message, code in zip(table["source"], table["error"], table["error_code"], strict=True):
            if message is not None:
                count, examples = result.errors.get(code or "error", (0, []))
                if len(examples) < EXAMPLES:
                    examples.append((source, message))
                result.errors[code or "error"] = count + 1, examples
        scored = np.flatnonzero(~np.isnan(logits))
        result.verdicts.update(table["verdict"][i] for i in scored)
        verdicts = np.array([table["verdict"][i] for i in scored], object)
        generated, others = verdicts == "generated", ~np.isin(verdicts, ["generated", DECLARED])
        lowest_generated = min(lowest_generated, logits[scored][generated].min(initial=np.inf))
        highest_other = max(highest_other, logits[scored][others].max(initial=-np.inf))
        bins = _bins(logits[scored])
        for i, place in zip(scored, bins, strict=True):
            key = group(table["source"][i]), table["format"][i] or ""
            if key not in result.histograms and len(result.histograms) >= MAX_GROUPS:
                key = OTHERS, key[1]
            result.histograms.setdefault(key, np.zeros(BINS, np.int64))[place] += 1
    if path.is_dir():
        result.threshold = parts.threshold(path)
    if result.threshold is None and highest_other < lowest_generated < np.inf:
        result.threshold = float(max(highest_other, lowest_generated - 2 * LIMIT / BINS))
    result.gallery = _gallery(path, result, images, seed)
    return result


def edges() -> np.ndarray:
    """Return the (BINS + 1) edges of the histogram bins."""
    return np.linspace(-LIMIT, LIMIT, BINS + 1)


def _bins(logits: np.ndarray) -> np.ndarray:
    return np.clip(np.floor((logits + LIMIT) * BINS / (2 * LIMIT)), 0, BINS - 1).astype(int)


def group(source: str) -> str:
    """Return the archive or folder that holds an image."""
    archive, inside, _ = source.partition("::")
    return archive if inside else os.path.dirname(source)


def _gallery(path: Path, summary: Summary, images: int, seed: int) -> list[dict[str, Any]]:
    generator, each = np.random.default_rng(seed), -(-images // 3)
    threshold = summary.threshold or 0.0
    keys = {
        "highest": lambda logits: -logits,
        "near the threshold": lambda logits: np.abs(logits - threshold),
        "at random": lambda logits: generator.random(len(logits)),
    }
    best: dict[str, list[tuple[float, int, dict]]] = {why: [] for why in keys}
    number = 0
    for batch in _batches(path, list(_COLUMNS)):
        scored = batch.filter(pa.compute.is_valid(batch.column("logit")))
        logits = scored.column("logit").to_numpy(zero_copy_only=False).astype(float)
        for why, key in keys.items():
            values = key(logits)
            nearest = np.argsort(values, kind="stable")[: 3 * images]  # some may be taken by another reason
            rows = scored.take(pa.array(nearest)).to_pylist()
            candidates = [(values[i], number + int(i), row) for i, row in zip(nearest, rows, strict=True)]
            best[why] = heapq.nsmallest(3 * images, best[why] + candidates, key=lambda entry: entry[:2])
        number += len(scored)
    taken: dict[int, dict] = {}
    for why, candidates in best.items():
        fresh = [(place, row) for _, place, row in candidates if place not in taken]
        taken |= {place: row | {"why": why} for place, row in fresh[:each]}
    return list(taken.values())[:images]


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    name = "parquet" if path.is_dir() else _FORMATS.get(path.suffix.lower())
    if name is None:
        raise InputError(
            f"{path} is not an output of npr screen: use a folder of parts or a file in one of {', '.join(_FORMATS)}"
        )
    options: dict[str, Any] = {}
    if name == "csv":
        types = {column.name: column.type for column in SCHEMA}
        convert = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        options["format"] = ds.CsvFileFormat(convert_options=convert, parse_options=parse)
    else:
        options = {"format": name, "schema": SCHEMA}
    try:
        table = ds.dataset(path, **options)
        if missing := [name for name in columns if name not in table.schema.names]:
            raise InputError(f"{path} has no column {missing[0]}: it is no output of this version of npr screen")
        yield from table.to_batches(columns=columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(f"{path} cannot be read as an output of npr screen: {reason(error)}") from error
