"""Interleaved rounds, the parity gate, and the report.

Every contender's result is checked before anything is timed. A red one of ours gets neither a time nor a ratio, and
the command exits with 1; a red peer keeps its time (hiding a fast but wrong peer would flatter us) and gets no ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.timing import Call, Timer, interleave

REFERENCE, OURS = "eager", "ours"


class Unavailable(Exception):
    """A contender that cannot run here. The message is one line: why, and what to do."""


@dataclass(frozen=True)
class Contender:
    """``build`` does the slow preparations (compilation, export) and returns the call that is timed.

    Or several calls, the same work on different inputs: they are timed in turn, and the first one's result is judged.
    """

    name: str
    build: Callable[[], Call | Sequence[Call]]
    dtype: torch.dtype = torch.float32  # that it computes in, which decides how exact it has to be


def is_peer(name: str) -> bool:
    """Whether a contender is neither ours nor the reference."""
    return name != REFERENCE and not name.startswith(OURS)


@dataclass(frozen=True)
class Parity:
    """Error of a result against float64, and how much the tolerance rule allows; ``details`` go into the report."""

    error: float
    allowed: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def green(self) -> bool:
        return self.error <= self.allowed  # False for NaN


@dataclass(frozen=True)
class Benchmark:
    """One case: contenders for the same work, and ``judge(result, dtype)``, the parity of a result.

    ``flops``: operations that the work needs. ``bytes``: what it must read and write at least, None where the
    memory is not what bounds it. ``captured``: the work is the device's alone, so that on a GPU a CUDA graph of it is
    replayed. ``images``: how many a call takes, where the time for one is to be shown.
    """

    name: str
    contenders: Sequence[Contender]
    judge: Callable[[Any, torch.dtype], Parity]
    flops: float
    bytes: float | None = None
    captured: bool = False
    images: int | None = None


def run(
    benchmark: Benchmark,
    machine: dict,
    device: torch.device,
    seconds: float,
    save: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict]:
    """Check, then time all contenders of ``benchmark`` for about ``seconds``; one row of the report for each.

    ``save(rows)`` is called after each contender: its row has the time of its first burst until the rounds are done.
    """
    rows, timers = [], {}

    def fill(row: dict, times: list[float], reference: float | None) -> None:
        dtype = next(c.dtype for c in benchmark.contenders if c.name == row["contender"])
        _fill(row, times, reference, benchmark, machine, dtype)

    for contender in benchmark.contenders:
        row = {"case": benchmark.name, "contender": contender.name, "median_ms": None, "ratio_to_reference": None}
        rows.append(row)
        try:
            calls = contender.build()
            calls = [calls] if callable(calls) else calls
            parity = benchmark.judge(calls[0](), contender.dtype)
            row |= {"parity": "green" if parity.green else "red"}
            row |= {"error": parity.error, "allowed_error": parity.allowed, **parity.details}
            if parity.green or is_peer(contender.name):
                timer = timers[contender.name] = Timer(calls, device, benchmark.captured)
                row |= {"note": timer.note} if timer.note else {}
                fill(row, [timer.first], None)
        except Unavailable as reason:
            row |= {"parity": "unavailable", "note": _one_line(reason)}
        except Exception as failure:  # one contender must not stop the others
            row |= {"parity": "failed" if is_peer(contender.name) else "red", "note": _one_line(failure)}
        save(rows)
    times = interleave(timers, seconds)
    reference = statistics.median(times[REFERENCE]) if REFERENCE in times else None
    for row in rows:
        if row["contender"] in times:
            fill(row, times[row["contender"]], reference)
    save(rows)
    return rows


def _fill(
    row: dict, times: list[float], reference: float | None, benchmark: Benchmark, machine: dict, dtype: torch.dtype
) -> None:
    median = statistics.median(times)
    row |= {"median_ms": median * 1e3, "rounds": len(times)}
    if len(times) > 1:
        quarters = statistics.quantiles(times, n=4)
        row["iqr_ms"] = (quarters[2] - quarters[0]) * 1e3
    if benchmark.images:
        row["microseconds_an_image"] = median * 1e6 / benchmark.images
    if reference and row["parity"] == "green":
        row["ratio_to_reference"] = reference / median
    gflops = benchmark.flops / median / 1e9
    row["gflops"] = gflops
    peak = {1: "int8_peak", 2: "bf16_peak"}.get(dtype.itemsize, "fma_peak")  # of what it computes in
    if peak in machine:
        row[f"share_of_{peak}"] = gflops / machine[peak]["gflops"]
    if benchmark.bytes is not None:
        row["bytes"] = benchmark.bytes
        row["share_of_bandwidth"] = benchmark.bytes / median / 1e9 / machine["copy_bandwidth_gb_s"]


def report(
    benchmarks: Iterable[Benchmark],
    machine: dict,
    device: torch.device,
    seconds: float,
    json_file: Path | None,
    console: Console,
) -> int:
    """Run all, print one table a case, write the JSON after each row. Exit code: 1 if ours or the reference is red."""
    rows: list[dict] = []

    def save(new: list[dict]) -> None:
        if json_file:
            write_json(json_file, {"machine": machine, "rows": rows + new})

    for benchmark in benchmarks:
        new = run(benchmark, machine, device, seconds, save)
        console.print(table(new))
        rows += new
    red = [
        f"{row['contender']} ({row['case']})"
        for row in rows
        if row["parity"] == "red" and not is_peer(row["contender"])
    ]
    if red:
        console.print(f"[red]parity is red: {'; '.join(red)}")
    return 1 if red else 0


def write_json(file: Path, content: dict) -> None:
    """Write at once: who is killed meanwhile leaves the file as it was."""
    unfinished(file).write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished(file), file)


def unfinished(file: Path) -> Path:
    """Where :func:`write_json` writes before it puts the file in its place."""
    return file.with_name(f"{file.name}.new")


def _one_line(failure: Exception) -> str:
    kind = "" if isinstance(failure, Unavailable) else f"{type(failure).__name__}: "
    return kind + textwrap.shorten(str(failure), 300)


COLUMNS = {  # title: key of the row, format
    "ms": ("median_ms", ".3f"),
    "±": ("iqr_ms", ".3f"),
    "us/image": ("microseconds_an_image", ".3f"),
    "x eager": ("ratio_to_reference", ".2f"),
    "images/s": ("images_per_second", ".1f"),
    "GFLOP/s": ("gflops", ".0f"),
    "of FMA peak": ("share_of_fma_peak", ".0%"),
    "of bf16 peak": ("share_of_bf16_peak", ".0%"),
    "of int8 peak": ("share_of_int8_peak", ".0%"),
    "of bandwidth": ("share_of_bandwidth", ".0%"),
    "peak MiB": ("peak_mib", ".0f"),
}


def table(rows: list[dict]) -> Table:
    """The rows of one case, the fastest first, those without a time last."""
    result = Table(title=rows[0]["case"], title_justify="left", title_style="bold", min_width=100)
    result.add_column("contender", no_wrap=True)
    columns = {title: column for title, column in COLUMNS.items() if any(row.get(column[0]) for row in rows)}
    for title in columns:
        result.add_column(title, justify="right", no_wrap=True)
    result.add_column("parity (error / allowed)")
    for row in sorted(rows, key=lambda row: row["median_ms"] or float("inf")):
        cells = [_number(row.get(key), form) for key, form in columns.values()]
        if "error" in row:
            colour = "green" if row["parity"] == "green" else "red"
            verdict = f"[{colour}]{row['parity']}[/] {row['error']:.2g} / {row['allowed_error']:.2g}"
        else:
            verdict = f"{row['parity']}: {escape(textwrap.shorten(row['note'], 120))}"
        name = row["contender"] if is_peer(row["contender"]) else f"[bold]{row['contender']}[/]"
        result.add_row(name, *cells, verdict)
    return result


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
