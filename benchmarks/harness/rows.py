"""Rows of results: the JSON file that keeps them, and the columns that show them.

A row is a dict: "case", "contender", "median_ms", "ratio_to_reference" (reference time / this contender's time),
"parity", and what else was measured. Our own contenders' names begin with OURS, the reference's name is REFERENCE.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

REFERENCE, OURS = "eager", "ours"
SAME_MACHINE = ("cpu", "cpu_capability", "threads", "gpu")  # keys of a machine that must agree for rows to be kept


def is_peer(name: str) -> bool:
    """Return whether a contender is neither ours nor the reference."""
    return name != REFERENCE and not name.startswith(OURS)


def unjudged(
    case: str, contender: str, seconds: float | None = None, images: int | None = None, **values: Any
) -> dict[str, Any]:
    """Return the row of a measurement without a parity check.

    Args:
        seconds: Time of one call; None if no time was measured.
        images: Images per call, for the row's "images_per_second".
        values: More keys of the row.
    """
    row: dict[str, Any] = {"case": case, "contender": contender, "median_ms": None, "ratio_to_reference": None}
    row["parity"] = "not judged"
    if seconds is not None:
        row["median_ms"] = 1e3 * seconds
        if images is not None:
            row["images_per_second"] = images / seconds
    return row | values


# ---- the JSON file


class Results:
    """The machine and the rows of one run. Each case is printed as a table, and the file is written after each row.

    Attributes:
        content: What the file holds: {"machine": {...}, "rows": [...]}.
    """

    def __init__(self, machine: dict, file: Path | None, console: Console, earlier: Sequence[dict] = ()) -> None:
        """``earlier``: rows of a previous run; the file keeps those whose case this run does not measure."""
        self.content: dict[str, Any] = {"machine": machine, "rows": []}
        self.console = console
        self._file, self._earlier = file, earlier

    @property
    def machine(self) -> dict:
        return self.content["machine"]

    @property
    def rows(self) -> list[dict]:
        return self.content["rows"]

    def save(self, unfinished: Sequence[dict] = ()) -> None:
        """Write the file, with the rows of a case that is still being measured."""
        if self._file is None:
            return
        rows = [*self.rows, *unfinished]
        measured = {row["case"] for row in rows}
        kept = [row for row in self._earlier if row["case"] not in measured]
        write_json(self._file, self.content | {"rows": rows + kept})

    def add(self, rows: Sequence[dict]) -> None:
        """Add the rows of a case, print its table and write the file."""
        self.rows.extend(rows)
        self.save()
        self.console.print(table(rows))

    def exit_code(self) -> int:
        """Return 1, and print why, if a result of ours or the reference's is wrong; else 0."""
        red = [row for row in self.rows if row["parity"] == "red" and not is_peer(row["contender"])]
        if red:
            names = "; ".join(f"{row['contender']} ({row['case']})" for row in red)
            self.console.print(f"[red]parity is red: {escape(names)}")
        return int(bool(red))


def write_json(file: Path, content: dict) -> None:
    """Write a JSON file at once, so that an interrupted write leaves the old content."""
    unfinished(file).write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished(file), file)


def unfinished(file: Path) -> Path:
    """Return the temporary file of :func:`write_json`."""
    return file.with_name(f"{file.name}.new")


def earlier_rows(file: Path | None, machine: dict) -> list[dict]:
    """Return the rows of ``file`` if the same kind of machine wrote them, else none."""
    try:
        content = json.loads(file.read_text()) if file else {}
    except ValueError:  # an empty file, or no JSON
        return []
    before = content.get("machine")
    return content["rows"] if before and all(before.get(key) == machine.get(key) for key in SAME_MACHINE) else []


# ---- columns and tables


def three_digits(value: float) -> str:
    """Format a number with three significant digits: 0.0516, 14.9, 1,360."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def percent(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


class Column(NamedTuple):
    """How a value of a row is shown. ``documented``: in documents too, not only on the terminal."""

    key: str
    form: Callable[[float], str]
    documented: bool = True


COLUMNS = {
    "ms": Column("median_ms", three_digits),
    "±": Column("iqr_ms", three_digits, documented=False),
    "us an image": Column("microseconds_an_image", three_digits),
    "images/s": Column("images_per_second", three_digits),
    "images/s of the networks": Column("network_images_per_second", three_digits),
    "x eager": Column("ratio_to_reference", "{:.1f}".format),
    "GFLOP/s": Column("gflops", three_digits, documented=False),
    "of FMA peak": Column("share_of_fma_peak", percent),
    "of bf16 peak": Column("share_of_bf16_peak", percent),
    "of int8 peak": Column("share_of_int8_peak", percent),
    "of bandwidth": Column("share_of_bandwidth", percent),
    "most MiB": Column("peak_mib", "{:.0f}".format),
    "waiting for data": Column("waiting", lambda share: f"{100 * share:.1f} %"),
    "rank correlation": Column("rank_correlation", "{:.5f}".format),
    "RMS difference": Column("rms_difference", "{:.3f}".format),
    "largest difference": Column("largest_difference", "{:.3f}".format, documented=False),
    "ROC AUC": Column("roc_auc", "{:.4f}".format),
    "sent on": Column("share_sent_on", percent),
    "average precision": Column("average_precision", "{:.4f}".format),
    "on paper, ms": Column("predicted_ms", three_digits),
    "simulated, ms": Column("simulated_ms", three_digits),
    "days": Column("days", three_digits),
}


def filled_columns(rows: Sequence[dict], titles: Iterable[str]) -> dict[str, Column]:
    """Return those of the columns that at least one row has a value for."""
    return {title: COLUMNS[title] for title in titles if any(row.get(COLUMNS[title].key) is not None for row in rows)}


def cells(row: dict, columns: dict[str, Column]) -> list[str]:
    """Return the texts of a row, empty where it has no value."""
    return ["" if row.get(key) is None else form(row[key]) for key, form, _ in columns.values()]


def table(rows: Sequence[dict]) -> Table:
    """Return the rows of one case for the terminal, the fastest first and those without a time last."""
    judged = any(row["parity"] != "not judged" for row in rows)
    result = Table(title=rows[0]["case"], title_justify="left", title_style="bold", min_width=100)
    result.add_column("contender", no_wrap=True)
    columns = filled_columns(rows, COLUMNS)
    for title in columns:
        result.add_column(title, justify="right", no_wrap=True)
    if judged:
        result.add_column("parity (error / allowed)")
    for row in sorted(rows, key=lambda row: row["median_ms"] or float("inf")):
        name = row["contender"] if is_peer(row["contender"]) else f"[bold]{row['contender']}[/]"
        result.add_row(name, *cells(row, columns), *([_verdict(row)] if judged else []))
    return result


def _verdict(row: dict) -> str:
    if "error" in row:
        colour = "green" if row["parity"] == "green" else "red"
        return f"[{colour}]{row['parity']}[/] {row['error']:.2g} / {row['allowed_error']:.2g}"
    note = textwrap.shorten(row.get("note", ""), 120)
    return f"{row['parity']}: {escape(note)}" if note else row["parity"]
