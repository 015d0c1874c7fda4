"""``npr export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model.commands.terminal import Checkpoint, DtypeOption, out, printable, scoring_dtype
from npr_model.errors import InputError


def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="An .onnx file, or a .pt2 package.")],
    checkpoint: Checkpoint = "preview",
    dtype: DtypeOption = None,
) -> None:
    """The network as one file, from "pixels", (batch, 3, height, width) uint8, RGB as decoded, of any size, to "logit",
    (batch, 1).

    .onnx: plain operators, float32, for ONNX Runtime, OpenVINO, TensorRT and others. .pt2: an AOTInductor package with
    this project's kernels, for Python or C++ on processors like this one; sides of 16 pixels or more.
    """
    suffix = output.suffix.lower()
    if suffix not in (".onnx", ".pt2"):
        raise InputError(f"output {output} must end in .onnx or .pt2")
    if not output.parent.is_dir():
        raise InputError(f"output {output} is in a folder that does not exist")
    if suffix == ".onnx" and dtype is not None:
        raise InputError("--dtype is for .pt2 packages; an ONNX file is float32")

    from npr_model import checkpoints
    from npr_model.inference.export import export_onnx, export_package

    loaded = checkpoints.load(checkpoint)
    if suffix == ".onnx":
        export_onnx(loaded, output)
    else:
        export_package(loaded, output, scoring_dtype(dtype))
    out.print(printable(str(output)), soft_wrap=True)
