"""Measures the contenders of a case: first each result against float64, then all times in interleaved rounds.

A result of ours that is wrong gets neither a time nor a ratio, and the command ends with exit code 1. A wrong peer
keeps its time, because hiding a fast but wrong peer would flatter us, and gets no ratio.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.parity import Parity
from benchmarks.harness.rows import REFERENCE, Results, is_peer
from benchmarks.harness.timing import Call, Timer, interleave


class Unavailable(Exception):
    """A contender cannot run here. The message is one line: why, and what to do."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        build: Does the slow preparations (compilation, export) and returns the call to time; or several calls, the same
            work on different inputs, which are timed in turn and of which the first is judged.
        dtype: What it computes in. The allowed error and the peak to compare with depend on it.
    """

    name: str
    build: Callable[[], Call | Sequence[Call]]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Benchmark:
    """One case: contenders for the same work.

    Attributes:
        judge: Takes a result and its contender's dtype, and returns the parity.
        flops: Operations that the work needs.
        bytes: Least number of bytes to read and write; None where memory is not the limit.
        captured: Whether only work on the device counts. On a GPU a CUDA graph is then replayed.
        images: Images per call, for the time per image; None if that is not shown.
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
    """Check, then time all contenders of ``benchmark`` for about ``seconds``; return a row for each.

    ``save(rows)`` is called after each contender. Until the rounds are done, its row has the time of its first calls.
    """
    rows, timers = [], {}
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
                row |= _measured(benchmark, contender.dtype, [timer.first], machine)
        except Unavailable as reason:
            row |= {"parity": "unavailable", "note": _one_line(reason)}
        except Exception as failure:  # one contender must not stop the others
            row |= {"parity": "failed" if is_peer(contender.name) else "red", "note": _one_line(failure)}
        save(rows)
    times = interleave(timers, seconds)
    reference = statistics.median(times[REFERENCE]) if REFERENCE in times else None
    for row, contender in zip(rows, benchmark.contenders, strict=True):
        if contender.name in times:
            row |= _measured(benchmark, contender.dtype, times[contender.name], machine)
            if reference and row["parity"] == "green":
                row["ratio_to_reference"] = 1e3 * reference / row["median_ms"]
    save(rows)
    return rows


def _measured(benchmark: Benchmark, dtype: torch.dtype, times: list[float], machine: dict) -> dict:
    """Return what a row says of the seconds ``times``."""
    median = statistics.median(times)
    gflops = benchmark.flops / median / 1e9
    values = {"median_ms": median * 1e3, "rounds": len(times), "gflops": gflops}
    if len(times) > 1:
        quarters = statistics.quantiles(times, n=4)
        values["iqr_ms"] = (quarters[2] - quarters[0]) * 1e3
    if benchmark.images:
        values["microseconds_an_image"] = median * 1e6 / benchmark.images
    peak = {1: "int8_peak", 2: "bf16_peak"}.get(dtype.itemsize, "fma_peak")
    if peak in machine:
        values[f"share_of_{peak}"] = gflops / machine[peak]["gflops"]
    if benchmark.bytes is not None:
        values["bytes"] = benchmark.bytes
        values["share_of_bandwidth"] = benchmark.bytes / median / 1e9 / machine["copy_bandwidth_gb_s"]
    return values


def measure(benchmark: Benchmark, results: Results, device: torch.device, seconds: float) -> None:
    """Run a benchmark, and add its rows to ``results``, which are saved after each contender."""
    results.add(run(benchmark, results.machine, device, seconds, results.save))


def _one_line(failure: Exception) -> str:
    kind = "" if isinstance(failure, Unavailable) else f"{type(failure).__name__}: "
    return kind + textwrap.shorten(str(failure), 300)
