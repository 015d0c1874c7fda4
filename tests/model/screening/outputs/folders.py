"""Folders of parts: what a run writes about itself, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from npr_model.screening.outputs.finished import Finished

ONE = {"model": "m@1", "view": "native", "threshold": "0"}


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "_manifest.json").read_text())


def remaining(there: Finished, sources) -> list[str]:
    has_row = there.matcher()
    return [source for source in sources if not has_row(source)]
