"""``npr export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.terminal import Checkpoint, out, printable
from npr_model.errors import InputError


def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="An .onnx file.")],
    checkpoint: Checkpoint = "preview",
) -> None:
    """The network as an ONNX file of plain operators, for ONNX Runtime, OpenVINO, TensorRT and others.

    Input "pixels": (batch, 3, height, width) uint8, RGB as decoded, of any size; output "logit": (batch, 1).
    """
    if output.suffix.lower() != ".onnx":
        raise InputError(f"output {output} must end in .onnx")
    if not output.parent.is_dir():
        raise InputError(f"output {output} is in a folder that does not exist")

    from npr_model import checkpoints
    from npr_model.export import export_onnx

    export_onnx(checkpoints.load(checkpoint), output)
    out.print(printable(str(output)), soft_wrap=True)
