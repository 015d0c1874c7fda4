"""``python -m benchmarks.ops``: the fused operators against eager, torch.compile and the composed 4x4 convolution."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks import cases, command, training

TABLES = {
    "cpu": [*cases.TABLE, *training.TABLE],
    "cuda": [*cases.GPU_TABLE, *training.GPU_TABLE],
}


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 4.0,
    only: Annotated[str, typer.Option(metavar="REGEX", help="Run only the cases whose name has a match.")] = "",
) -> None:
    """Stem, convolution and training stem: times, ratios to eager, shares of the measured peaks."""
    target = command.checked_device(device)
    table = TABLES[target.type]
    chosen = command.chosen(only, [str(case) for case in table], "cases")
    command.checked_json(json_file)
    command.finish((case.benchmark(target) for case in table if str(case) in chosen), target, seconds, json_file)


if __name__ == "__main__":
    typer.run(main)
