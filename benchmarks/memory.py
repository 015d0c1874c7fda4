"""``python -m benchmarks.memory``: the most memory that ``npr screen`` takes, for few images and for many."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks import command, machine
from benchmarks.harness import OURS
from npr_model.imaging.encode import encode_png

CASE = "memory of screening tars of 16x16 PNGs"


def make_tars(folder: Path, count: int, images_a_tar: int = 20_000) -> None:
    """``count`` different PNGs of 16x16."""
    generator = np.random.default_rng(0)
    for first in range(0, count, images_a_tar):
        with tarfile.open(folder / f"{first:09}.tar", "w") as archive:
            for number in range(first, min(count, first + images_a_tar)):
                data = encode_png(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                member = tarfile.TarInfo(f"{number:09}.png")
                member.size = len(data)
                archive.addfile(member, BytesIO(data))


def screen(folder: Path) -> tuple[float, float]:
    """Seconds, and the most MiB that the process and its threads held."""
    program = [sys.executable, "-m", "npr_model.cli", "screen", f"{folder}/*.tar", "-o", f"{folder}/scores/"]
    watched = f"import resource, subprocess, sys; code = subprocess.call({program!r}, stdout=subprocess.DEVNULL); "
    watched += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    began = time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, int(finished.stdout) * (1 if sys.platform == "darwin" else 1024) / 2**20


def main(
    json_file: command.JsonFile = None,
    counts: Annotated[list[int] | None, typer.Option("--count", min=1, help="Images; once for each run.")] = None,
) -> None:
    """The bundled checkpoint on tiny images in tars; prints how much more the largest run takes than the smallest."""
    command.checked_json(json_file)
    console, rows = Console(), []
    for count in sorted(counts or [1_000, 200_000]):
        with tempfile.TemporaryDirectory() as name:
            make_tars(Path(name), count)
            seconds, peak = screen(Path(name))
        console.print(f"{count} images: {peak:.0f} MiB, {count / seconds:.0f} images/s", highlight=False)
        row = {"case": CASE, "contender": f"{OURS}, {count:,} images", "median_ms": 1000 * seconds}
        rows.append(row | {"ratio_to_reference": None, "parity": "not judged", "peak_mib": peak})
    console.print(f"{rows[-1]['peak_mib'] / rows[0]['peak_mib'] - 1:+.1%} from the fewest to the most", highlight=False)
    if json_file:
        content = {"machine": machine.describe(torch.device("cpu")), "rows": rows}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
