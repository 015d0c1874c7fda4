"""What the commands share: options, errors for bad ones, and how a run begins."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import torch
import typer
from rich.console import Console

from benchmarks.harness import machine, runner
from benchmarks.harness.rows import Results, earlier_rows
from benchmarks.harness.runner import Benchmark


def refuse(message: str) -> NoReturn:
    """End with one line on the standard error and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(2)


def writable(file: Path | None) -> Path | None:
    """Return the path of a results file. Refuses, before the run, one that could not be written after it."""
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("a").close()
        except OSError as failure:
            refuse(f"--json {file}: {failure.strerror}")
    return file


DeviceName = Literal["cpu", "cuda"]
Device = Annotated[DeviceName, typer.Option(help="Device to run on.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", callback=writable, show_default=False, help="Write machine and rows to FILE."
    ),
]
Seconds = Annotated[float, typer.Option(min=0, help="Time for the rounds of each case.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per batch.")]
Size = Annotated[int, typer.Option(min=4, help="Height and width of an image.")]
NetworkName = Literal["paper", "fast"]
Network = Annotated[NetworkName, typer.Option(help="Size of the network, which has random weights.")]
Workers = Annotated[int, typer.Option(min=0, help="Decoding workers (0: one per core, at most 16).")]
Only = Annotated[
    str,
    typer.Option(
        metavar="REGEX", show_default=False, help="Run only the cases whose name matches; FILE keeps the others."
    ),
]
OnlyContenders = Annotated[
    str, typer.Option(metavar="REGEX", show_default=False, help="Run only eager and the contenders that match.")
]


def matching(only: str, names: Sequence[str], what: str) -> set[str]:
    """Return the ``names`` that the regular expression ``only`` matches somewhere. Refuses one that matches none."""
    try:
        matches = {name for name in names if re.search(only, name)}
    except re.error as failure:
        refuse(f"--only {only!r} is no regular expression: {failure}")
    if not matches:
        refuse(f"--only {only!r} matches none of the {len(names)} {what}, such as {names[0]!r}")
    return matches


def available(device: DeviceName) -> torch.device:
    """Return the device. Refuses a GPU that torch does not see."""
    if device == "cuda" and not torch.cuda.is_available():
        refuse(f"--device cuda: torch {torch.__version__} finds no CUDA device; use --device cpu")
    return torch.device(device)


def start(device: torch.device, json_file: Path | None, only: str = "") -> Results:
    """Measure the machine, print it, and return where the rows go.

    ``only``: if it is not empty, the rows of other cases in the file are kept, provided they come from such a machine.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    torch.manual_seed(0)
    described = machine.describe(device)
    arithmetic = "".join(
        f"{name} {described[peak]['gflops']:.0f} GFLOP/s ({described[peak]['method']}), "
        for name, peak in (("float32", "fma_peak"), ("bfloat16", "bf16_peak"), ("int8", "int8_peak"))
        if peak in described
    )
    console.print(
        f"{described.get('gpu', described['cpu'])}, {described['threads']} threads, torch {described['torch']}, "
        f"kernels: {described['cpu_capability'] or 'none compiled'}\n"
        f"measured peaks: {arithmetic}copy {described['copy_bandwidth_gb_s']:.1f} GB/s"
    )
    if described["load_average_before"] > described["cores"] / 4:
        console.print(
            f"[yellow]load average {described['load_average_before']:.1f} before the start: other programs share the "
            "processor, so peaks are too low and times too long"
        )
    return Results(described, json_file, console, earlier_rows(json_file, described) if only else ())


def measure_all(
    benchmarks: Iterable[Benchmark], device: torch.device, seconds: float, json_file: Path | None, only: str = ""
) -> NoReturn:
    """Run the benchmarks on a freshly measured machine, and end with exit code 1 if a result of ours is wrong."""
    results = start(device, json_file, only)
    for benchmark in benchmarks:
        runner.measure(benchmark, results, device, seconds)
    raise typer.Exit(results.exit_code())
