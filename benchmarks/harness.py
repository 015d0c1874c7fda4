"""Interleaved rounds, the parity gate, and the report.

Every contender's result is checked before anything is timed. A red one of ours gets neither a time nor a ratio, and
the command exits with 1; a red peer keeps its time (hiding a fast but wrong peer would flatter us) and gets no ratio.
"""

from __future__ import annotations

import json
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

REFERENCE, OURS = "eager", "ours"
SHORTEST_BURST = 0.010  # seconds; shorter calls are repeated within a round, so that no clock or wake-up shows
LEAST_ROUNDS, MOST_ROUNDS = 5, 500


class Unavailable(Exception):
    """A contender that cannot run here. The message is one line: why, and what to do."""


@dataclass(frozen=True)
class Contender:
    """``build`` does the slow preparations (compilation, export) and returns the call that is timed."""

    name: str
    build: Callable[[], Callable[[], Any]]
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
    memory is not what bounds it.
    """

    name: str
    contenders: Sequence[Contender]
    judge: Callable[[Any, torch.dtype], Parity]
    flops: float
    bytes: float | None = None


def run(benchmark: Benchmark, machine: dict, device: torch.device, seconds: float) -> list[dict]:
    """Check, then time all contenders of ``benchmark`` for about ``seconds``; one row of the report for each."""
    rows, calls = [], {}
    for contender in benchmark.contenders:
        row = {"case": benchmark.name, "contender": contender.name, "median_ms": None, "ratio_to_reference": None}
        rows.append(row)
        try:
            call = contender.build()
            parity = benchmark.judge(call(), contender.dtype)
        except Unavailable as reason:
            row |= {"parity": "unavailable", "note": _one_line(reason)}
            continue
        except Exception as failure:  # one contender must not stop the others
            row |= {"parity": "failed" if is_peer(contender.name) else "red", "note": _one_line(failure)}
            continue
        row |= {"parity": "green" if parity.green else "red", "error": parity.error, "allowed_error": parity.allowed}
        row |= parity.details
        if parity.green or is_peer(contender.name):
            calls[contender.name] = call
    times = interleave(calls, device, seconds)
    reference = statistics.median(times[REFERENCE]) if REFERENCE in times else None
    for row in rows:
        if row["contender"] in times:
            dtype = next(c.dtype for c in benchmark.contenders if c.name == row["contender"])
            _fill(row, times[row["contender"]], reference, benchmark, machine, dtype)
    return rows


def interleave(calls: dict[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of each, round by round; every round runs each once, starting with another one."""
    names = list(calls)
    if not names:
        return {}
    repeats = {}
    for name in names:  # warm-up, and how often a call fits into a burst
        burst(calls[name], 1, device)
        repeats[name] = max(1, round(SHORTEST_BURST / min(burst(calls[name], 1, device) for _ in range(2))))
    times: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            calls[name]()  # or it would pay for the caches, and the spinning threads, of the one before it
            times[name].append(burst(calls[name], repeats[name], device))
    return times


def burst(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Seconds a call, over ``repeats`` of them."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fill(
    row: dict, times: list[float], reference: float | None, benchmark: Benchmark, machine: dict, dtype: torch.dtype
) -> None:
    median = statistics.median(times)
    quarters = statistics.quantiles(times, n=4)
    row |= {"median_ms": median * 1e3, "iqr_ms": (quarters[2] - quarters[0]) * 1e3, "rounds": len(times)}
    if reference and row["parity"] == "green":
        row["ratio_to_reference"] = reference / median
    gflops = benchmark.flops / median / 1e9
    row["gflops"] = gflops
    peak = {1: "int8_peak", 2: "bf16_peak"}.get(dtype.itemsize, "fma_peak")  # of what it computes in
    if peak in machine:
        row[f"share_of_{peak}"] = gflops / machine[peak]["gflops"]
    if benchmark.bytes is not None:
        row["share_of_bandwidth"] = benchmark.bytes / median / 1e9 / machine["copy_bandwidth_gb_s"]


def report(
    benchmarks: Iterable[Benchmark],
    machine: dict,
    device: torch.device,
    seconds: float,
    json_file: Path | None,
    console: Console,
) -> int:
    """Run all, print one table a case, write the JSON after each. Exit code: 1 if ours or the reference is red."""
    rows: list[dict] = []
    for benchmark in benchmarks:
        new = run(benchmark, machine, device, seconds)
        console.print(table(new))
        rows += new
        if json_file:
            json_file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    red = [
        f"{row['contender']} ({row['case']})"
        for row in rows
        if row["parity"] == "red" and not is_peer(row["contender"])
    ]
    if red:
        console.print(f"[red]parity is red: {'; '.join(red)}")
    return 1 if red else 0


def _one_line(failure: Exception) -> str:
    kind = "" if isinstance(failure, Unavailable) else f"{type(failure).__name__}: "
    return kind + textwrap.shorten(str(failure), 300)


COLUMNS = {  # title: key of the row, format
    "ms": ("median_ms", ".3f"),
    "±": ("iqr_ms", ".3f"),
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
