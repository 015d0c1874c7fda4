"""Export of a detector to one file, from uint8 pixels to logits: ONNX, or compiled with our own kernels."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from npr_kernels import fold_batch_norm, reference
from npr_kernels.capabilities import cpu_capability
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.detectors.layers.resnet import Bottleneck
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError, reason
from npr_model.files import atomic_write
from npr_model.inference.fused import InferenceDetector
from npr_model.verdicts import Calibration

INPUT, OUTPUT = "pixels", "logit"
OPSET = 18
PACKAGE_SIDE = 16  # smaller sides can shrink to 1, which a compiled graph with dynamic sizes does not support


class PlainDetector(nn.Module):
    """A float32 copy of ``detector`` in plain PyTorch, batch norm folded: (N, 3, H, W) uint8 -> (N, 1) logits.

    H and W must be at least the grid size. Trailing rows and columns that do not fill a cell are trimmed.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, detector: NPRDetector) -> None:
        super().__init__()
        detector = copy.deepcopy(detector).eval().requires_grad_(False)
        conv = detector.conv1
        self.grid_size, self.anchor, self.stride, self.padding = conv.grid_size, conv.anchor, conv.stride, conv.padding
        weight, bias = fold_batch_norm(conv.weight, None, detector.bn1)
        # The mean cancels in differences; scale and standard deviation are folded into the weights.
        factors = torch.tensor([detector.scale / (255 * std) for std in conv.pixel_std or ()]).view(1, -1, 1, 1)
        self.register_buffer("weight", weight.float() * factors)
        self.register_buffer("bias", bias.float())
        self.pool = detector.pool
        self.trunk = nn.Sequential(*map(_folded, (*detector.layer1, *detector.layer2)))
        self.head = detector.fc1.float()
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        npr = reference.npr(pixels, self.grid_size, self.anchor, torch.float32)
        x = F.conv2d(npr, self.weight, self.bias, self.stride, self.padding)
        x = self.trunk(self.pool(F.max_pool2d(F.relu(x), 3, 2, 1)))
        return self.head(x.mean((2, 3)))


def _folded(block: Bottleneck) -> Bottleneck:
    for number in (1, 2, 3):
        conv, bn = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, bn))
        setattr(block, f"bn{number}", nn.Identity())
    if block.downsample is not None:
        block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))
    return block.float()


def export_onnx(checkpoint: LoadedCheckpoint, output: str | os.PathLike) -> None:
    """Write an ONNX file in float32.

    Input "pixels": (batch, 3, height, width) uint8, all sizes but the 3 dynamic. Output "logit": (batch, 1) float32.
    The metadata hold name, view, threshold and temperature. Raises InputError for detectors other than npr, and if onnx
    or onnxscript is missing.
    """
    network = check_exportable(checkpoint)
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it, and would say so in many lines
    except ImportError as error:
        raise InputError("ONNX is not installed: pip install 'npr-kernels[export]'") from error
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    pixels = torch.zeros(2, 3, 66, 70, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # torch warns about each operator of torchvision
        try:
            program = torch.onnx.export(
                PlainDetector(network),
                (pixels,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(sizes,),
            )
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None  # as dynamo is on
    model = program.model_proto
    onnx.helper.set_model_props(model, _facts(checkpoint))
    with atomic_write(Path(output)) as temporary:
        onnx.save(model, temporary)


class _WholeBatch(nn.Module):
    def __init__(self, frozen: InferenceDetector) -> None:
        super().__init__()
        self.frozen = frozen

    def forward(self, pixels: Tensor) -> Tensor:
        return self.frozen.score(pixels)


def export_package(checkpoint: LoadedCheckpoint, output: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write an AOTInductor package (.pt2) with our kernels, for processors like this one.

    Input: (batch, 3, height, width) uint8 on the CPU, sides of PACKAGE_SIDE or more. Output: (batch, 1) float32 logits
    of :class:`InferenceDetector` in ``dtype``. Load it with :func:`load_package`, or in C++ with
    ``torch::inductor::AOTIModelPackageLoader`` after loading the library of ``npr_kernels``. A batch is scored at once:
    give it about PIXELS_AT_ONCE (:mod:`npr_model.inference.fused`) per thread. The export takes half a minute and a C++
    compiler.

    Raises InputError for detectors other than npr, if ``dtype`` is not supported, and if the compilation fails.
    """
    from filelock import FileLock
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    frozen = InferenceDetector(check_exportable(checkpoint), dtype=dtype)
    sides = (torch.export.Dim(name, min=PACKAGE_SIDE) for name in ("height", "width"))
    sizes = dict(zip((0, 2, 3), (torch.export.Dim("batch"), *sides), strict=True))
    facts = _facts(checkpoint) | {"cpu_capability": cpu_capability() or "", "dtype": str(dtype or frozen.dtype)}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns about its own parts
            program = torch.export.export(
                _WholeBatch(frozen), (torch.zeros(2, 3, 66, 70, dtype=torch.uint8),), dynamic_shapes=(sizes,)
            )
            with (
                atomic_write(Path(output)) as temporary,
                tempfile.TemporaryDirectory() as folder,
                # Two compilations at once would write the same files in torch's cache.
                FileLock(f"{cache_dir()}/npr-export.lock"),
            ):
                package = torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=f"{folder}/npr.pt2",  # torch accepts no other suffix
                    # Round weights to bfloat16 as in this process, instead of keeping them in float32.
                    inductor_configs={"aot_inductor.metadata": facts, "emulate_precision_casts": True},
                )
                # torch has written broken packages without an error, so load this one to be sure.
                torch._inductor.aoti_load_package(package)
                shutil.copyfile(package, temporary)
    except InputError:
        raise
    except Exception as failure:
        raise InputError(f"the network could not be compiled ({reason(failure)})") from failure


def load_package(path: str | os.PathLike) -> Callable[[Tensor], Tensor]:
    """Load a package of :func:`export_package`. Raises InputError if it was made for another kind of processor."""
    package = torch._inductor.aoti_load_package(str(path))
    made_for = package.get_metadata().get("cpu_capability", "")
    if made_for != (cpu_capability() or ""):
        raise InputError(
            f"{path} was made for processors with {made_for or 'no compiled kernels'}; export it again here"
        )
    return package


def _facts(checkpoint: LoadedCheckpoint) -> dict[str, str]:
    calibration = checkpoint.metadata.calibration or Calibration()
    return {
        "model": checkpoint.model_id,
        "view": str(checkpoint.metadata.view),
        "threshold": repr(calibration.threshold),
        "temperature": repr(calibration.temperature),
        "licence": checkpoint.metadata.licence,
    }


def check_exportable(checkpoint: LoadedCheckpoint) -> NPRDetector:
    """Return the network. Raises InputError for a detector other than npr."""
    if not isinstance(checkpoint.model, NPRDetector):
        raise InputError(f"only npr detectors can be exported, not {checkpoint.metadata.detector}")
    return checkpoint.model
