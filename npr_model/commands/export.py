"""``npr export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npr_model import weights
from npr_model.commands.shared.options import Checkpoint, Dtype
from npr_model.commands.shared.terminal import print_paths, work_begins
from npr_model.errors import InputError


def export(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Write to an .onnx file or a .pt2 package.")
    ],
    checkpoint: Checkpoint = weights.DEFAULT,
    dtype: Dtype = None,
) -> None:
    """Export the network. Input "pixels": uint8 (N, 3, H, W), RGB; output "logit": (N, 1).

    .onnx: standard operators in float32, for ONNX Runtime, OpenVINO, TensorRT and others. .pt2: an AOTInductor package
    with this project's kernels, for Python or C++ on processors like this one; H and W must be 16 or more.
    """
    suffix = output.suffix.lower()
    if suffix not in (".onnx", ".pt2"):
        raise InputError(f"output {output} must end in .onnx or .pt2")
    if not output.parent.is_dir():
        raise InputError(f"output {output} is in a folder that does not exist")
    if suffix == ".onnx" and dtype is not None:
        raise InputError("--dtype is for .pt2 packages; an ONNX file is float32")

    from npr_model import checkpoints
    from npr_model.inference.export import check_exportable, export_onnx, export_package
    from npr_model.scoring.options import torch_dtype

    loaded = checkpoints.load(checkpoint)
    check_exportable(loaded)
    work_begins()
    if suffix == ".onnx":
        export_onnx(loaded, output)
    else:
        export_package(loaded, output, torch_dtype(dtype))
    print_paths(output)
