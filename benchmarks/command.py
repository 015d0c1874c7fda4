"""What both commands share: options, the errors of bad ones, and how a run begins and ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer
from rich.console import Console

from benchmarks import machine
from benchmarks.harness import Benchmark, report

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write machine and rows here as well.")]
Seconds = Annotated[float, typer.Option(min=0, help="Time to spend on the rounds of each case.")]


def chosen(only: str, names: Sequence[str], what: str) -> set[str]:
    """Those of ``names`` in which the regular expression ``only`` is found; refuses one that is none, or finds none."""
    try:
        found = {name for name in names if re.search(only, name)}
    except re.error as failure:
        refuse(f"--only {only!r} is no regular expression: {failure}")
    if not found:
        refuse(f"--only {only!r} matches none of the {len(names)} {what}, such as {names[0]!r}")
    return found


def refuse(message: str) -> NoReturn:
    """End with one line on the standard error and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(2)


def checked_device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        refuse(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        refuse(f"--device cuda: torch {torch.__version__} finds no CUDA device; use --device cpu")
    return torch.device(name)


def checked_json(file: Path | None) -> None:
    """Refuse before the run what could not be written after it."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as failure:
        refuse(f"--json {file}: {failure.strerror}")


def finish(benchmarks: Iterable[Benchmark], device: torch.device, seconds: float, json_file: Path | None) -> NoReturn:
    """Measure the machine, run the benchmarks, report; exit code 1 if a parity of ours is red."""
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
    raise typer.Exit(report(benchmarks, described, device, seconds, json_file, console))
