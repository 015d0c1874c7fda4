"""The detector as one file, from uint8 pixels to logits: ONNX for other engines, or compiled with our own kernels."""

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
from npr_kernels.info import cpu_capability
from npr_model.checkpoints import LoadedCheckpoint
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.resnet import Bottleneck
from npr_model.errors import InputError, reason
from npr_model.files import atomic_write
from npr_model.inference.fused import InferenceDetector
from npr_model.verdicts import Calibration

INPUT, OUTPUT = "pixels", "logit"
OPSET = 18
PACKAGE_SIDE = 16  # below it a side may shrink to one value, which a compiled graph with dynamic sizes cannot follow


class PlainDetector(nn.Module):
    """A float32 copy of ``detector`` in plain PyTorch, batch norm folded: (N, 3, H, W) uint8 -> (N, 1) logits.

    H and W are at least the grid size; as everywhere, trailing rows and columns that fill no cell are left out.
    """

    def __init__(self, detector: NPRDetector) -> None:
        super().__init__()
        detector = copy.deepcopy(detector).eval().requires_grad_(False)
        conv = detector.conv1
        self.grid_size, self.anchor, self.stride, self.padding = conv.grid_size, conv.anchor, conv.stride, conv.padding
        weight, bias = fold_batch_norm(conv.weight, None, detector.bn1)
        # Of differences of pixels the mean cancels, and scale and deviation can be the weights'.
        factors = torch.tensor([conv.scale / (255 * std) for std in conv.pixel_std]).view(1, -1, 1, 1)
        self.register_buffer("weight", weight.float() * factors)
        self.register_buffer("bias", bias.float())
        self.trunk = nn.Sequential(*map(_folded, (*detector.layer1, *detector.layer2)))
        self.head = detector.fc1.float()
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        npr = reference.npr(pixels, self.grid_size, self.anchor, torch.float32)
        x = F.conv2d(npr, self.weight, self.bias, self.stride, self.padding)
        x = self.trunk(F.max_pool2d(F.relu(x), 3, 2, 1))
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
    """Write ``output``, an ONNX file with the input "pixels", (batch, 3, height, width) uint8, all but the 3 dynamic,
    and the output "logit", (batch, 1) float32.

    Its metadata say name, view, threshold and temperature. Raises InputError for detectors other than NPR's, and where
    onnx or onnxscript is missing.
    """
    check_exportable(checkpoint)
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it, and would say so in many lines
    except ImportError as error:
        raise InputError("ONNX is not installed: pip install 'npr-kernels[export]'") from error
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    pixels = torch.zeros(2, 3, 66, 70, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # of every operator that torchvision would add
        try:
            program = torch.onnx.export(
                PlainDetector(checkpoint.model),
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
    """Write ``output``, an AOTInductor package (.pt2) with this package's kernels for processors like this one.

    Input: (batch, 3, height, width) uint8 on the CPU, sides from PACKAGE_SIDE on; output: (batch, 1) float32, the
    logits of :class:`InferenceDetector` in ``dtype``. :func:`load_package` reads it; in C++, with the library of
    ``npr_kernels`` loaded, ``torch::inductor::AOTIModelPackageLoader`` does. A batch is scored at once: give it
    PIXELS_AT_ONCE (:mod:`npr_model.inference.fused`) for each thread. Takes half a minute and a C++ compiler. Raises
    InputError for detectors other than NPR's, where ``dtype`` cannot be, and where nothing can be compiled.
    """
    from filelock import FileLock  # which torch brings
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    check_exportable(checkpoint)
    frozen = InferenceDetector(checkpoint.model, dtype=dtype)
    sides = (torch.export.Dim(name, min=PACKAGE_SIDE) for name in ("height", "width"))
    sizes = dict(zip((0, 2, 3), (torch.export.Dim("batch"), *sides), strict=True))
    facts = _facts(checkpoint) | {"cpu_capability": cpu_capability() or "", "dtype": str(dtype or frozen.dtype)}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns of parts of itself
            program = torch.export.export(
                _WholeBatch(frozen), (torch.zeros(2, 3, 66, 70, dtype=torch.uint8),), dynamic_shapes=(sizes,)
            )
            with (
                atomic_write(Path(output)) as temporary,
                tempfile.TemporaryDirectory() as folder,
                # Compilations of two networks of one kind write the same files there.
                FileLock(f"{cache_dir()}/npr-export.lock"),
            ):
                package = torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=f"{folder}/npr.pt2",  # no other ending is taken
                    # Weights are rounded to bfloat16 as they are here, not left in float32 for being used in it.
                    inductor_configs={"aot_inductor.metadata": facts, "emulate_precision_casts": True},
                )
                # One has come out broken, and nothing said so until it was loaded.
                torch._inductor.aoti_load_package(package)
                shutil.copyfile(package, temporary)
    except InputError:
        raise
    except Exception as failure:
        raise InputError(f"the network could not be compiled ({reason(failure)})") from failure


def load_package(path: str | os.PathLike) -> Callable[[Tensor], Tensor]:
    """The function that :func:`export_package` wrote. Raises InputError where it is for another kind of processor."""
    package = torch._inductor.aoti_load_package(str(path))
    made_for = package.get_metadata().get("cpu_capability", "")
    if made_for != (cpu_capability() or ""):
        raise InputError(
            f"{path} was made for processors with {made_for or 'no compiled kernels'}; export it anew here"
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


def check_exportable(checkpoint: LoadedCheckpoint) -> None:
    """Raise InputError for a detector other than npr."""
    if not isinstance(checkpoint.model, NPRDetector):
        raise InputError(f"only the detector npr can be exported, not {checkpoint.metadata.detector}")
