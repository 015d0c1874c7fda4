"""``python -m benchmarks.memory``: the most memory that ``npr screen`` takes, for few images and for many."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.harness import command
from benchmarks.harness.inputs import make_tars
from benchmarks.harness.rows import OURS, unjudged

CASE = "memory of screening tars of 16x16 PNGs"


def screen(folder: Path) -> tuple[float, float]:
    """Return the seconds of a run, and the most MiB that its process held. Ends with the run's error if it fails."""
    program = [sys.executable, "-m", "npr_model.cli", "screen", f"{folder}/*.tar", "-o", f"{folder}/scores/"]
    watched = f"import resource, subprocess, sys; code = subprocess.call({program!r}, stdout=subprocess.DEVNULL); "
    watched += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    began = time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", watched], stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise typer.Exit(1)
    return time.perf_counter() - began, int(finished.stdout) * (1 if sys.platform == "darwin" else 1024) / 2**20


def main(
    json_file: command.JsonFile = None,
    counts: Annotated[
        list[int] | None, typer.Option("--count", min=1, help="Images of a run; repeat the option for more runs.")
    ] = None,
) -> None:
    """Screen tiny images in tars with the bundled checkpoint, and print how memory grows with their number."""
    results, rows = command.start(torch.device("cpu"), json_file), []
    for count in sorted(counts or [1_000, 200_000]):
        with tempfile.TemporaryDirectory() as folder:
            make_tars(Path(folder), count)
            seconds, peak = screen(Path(folder))
        rows.append(unjudged(CASE, f"{OURS}, {count:,} images", seconds, count, peak_mib=peak))
        results.save(rows)
    results.add(rows)
    growth = rows[-1]["peak_mib"] / rows[0]["peak_mib"] - 1
    results.console.print(f"{growth:+.1%} from the fewest images to the most")


if __name__ == "__main__":
    typer.run(main)
