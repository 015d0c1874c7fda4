"""``python -m benchmarks.ops``: the fused operators against eager, torch.compile and the composed 4x4 convolution."""

from __future__ import annotations

import typer

from benchmarks.harness import command, operator_cases, training_stem_cases

TABLES = {
    "cpu": [*operator_cases.TABLE, *training_stem_cases.TABLE],
    "cuda": [*operator_cases.GPU_TABLE, *training_stem_cases.GPU_TABLE],
}


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 4.0,
    only: command.Only = "",
) -> None:
    """Time the inference stem, npr_conv2d and the training stem; fail if a result of ours is wrong."""
    target = command.available(device)
    table = TABLES[device]
    chosen = command.matching(only, [str(case) for case in table], "cases")
    benchmarks = (case.benchmark(target) for case in table if str(case) in chosen)
    command.measure_all(benchmarks, target, seconds, json_file, only)


if __name__ == "__main__":
    typer.run(main)
