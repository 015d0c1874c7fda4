"""Peers: what a user could build without this project, as fast as we could make it."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.runner import Unavailable
from npr_kernels import NPRConv2d
from npr_kernels.reference import Anchor, trim
from npr_model.detectors.base import IMAGENET_MEAN, IMAGENET_STD
from npr_model.detectors.npr import NPRDetector

# ---- NPR + 3x3/2 convolution as one 4x4/2 convolution on the image


def compose(weight: Tensor, anchor: Anchor = 0, scale: Sequence[float] = (2 / 3,)) -> Tensor:
    """Return the weights of one convolution that equals NPR (grid_size 2) and a 3x3 one: (O, C, 3, 3) -> (O, C, 4, 4).

    Output row o sees NPR rows 2o - 1 .. 2o + 1, which two cell rows make, image rows 2o - 2 .. 2o + 1: the kernel
    grows by a row above and a column to the left. Every cell's weights then also weigh its anchor, negatively. NPR
    must be linear, so anchor is an index or "mean". Differentiable.
    """
    factors = torch.tensor(scale, dtype=weight.dtype, device=weight.device).view(1, -1, 1, 1)
    weight = F.pad(weight * factors, (1, 0, 1, 0))
    share = weight.new_full((4,), 1 / 4)
    if anchor != "mean":
        share = F.one_hot(torch.tensor(anchor, device=weight.device), 4).to(weight.dtype)
    cell_sums = F.avg_pool2d(weight, 2, divisor_override=1)
    cell_sums = cell_sums.repeat_interleave(2, -2).repeat_interleave(2, -1)
    return weight - cell_sums * share.view(2, 2).repeat(2, 2)


def composed_conv2d(x: Tensor, composed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``npr_conv2d`` of stride 2 and padding 1 with :func:`compose`'s weights: (N, O, H / 2, W / 2).

    A whole cell of zeros above and to the left pads the NPR map with zeros exactly: a constant cell's NPR is zero.
    Below and to the right the even image needs no padding. (The convolution's own would pad all four sides.)
    """
    x = F.pad(trim(x, 2), (2, 0, 2, 0)).to(composed.dtype, memory_format=torch.channels_last)
    return F.conv2d(x, composed, bias, stride=2)


class Composed(nn.Module):
    """``npr_conv2d``, or ``npr_stem`` if ``pool``, with weights composed once, in float64."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: Sequence[float], pool: bool) -> None:
        super().__init__()
        composed = compose(weight.double(), 0, scale).to(weight.dtype)
        self.register_buffer("composed", composed.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = composed_conv2d(x, self.composed, self.bias)
        return F.max_pool2d(F.relu(y), 3, 2, 1) if self.pool else y


# ---- the authors' layers, one after another


class AuthorsStem(nn.Module):
    """uint8 pixels -> normalised image -> NPR by scaling down and up -> conv -> batch norm -> ReLU -> max-pool.

    The image and its NPR map are float32 (float64 for a ``dtype`` of float64); what follows is in ``dtype``.
    """

    def __init__(self, conv: NPRConv2d, bn: nn.BatchNorm2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN, dtype=wide).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD, dtype=wide).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, conv.out_channels, 3, 2, 1, bias=False)
        self.conv.weight = nn.Parameter(conv.weight.detach().to(dtype))
        self.bn = copy.deepcopy(bn).to(dtype)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = (trim(pixels, 2).to(self.mean.dtype) / 255 - self.mean) / self.std
        low = F.interpolate(x, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
        npr = x - F.interpolate(low, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)
        x = (npr * 2.0 / 3.0).to(self.conv.weight.dtype)
        return F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)


class AuthorsDetector(nn.Module):
    """A copy of ``detector``, layer by layer in plain PyTorch: uint8 (N, 3, H, W) -> (N, 1) logits in ``dtype``."""

    def __init__(self, detector: NPRDetector, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        detector = copy.deepcopy(detector)
        self.stem, self.pool = AuthorsStem(detector.conv1, detector.bn1, dtype), detector.pool
        self.layer1, self.layer2, self.fc1 = (m.to(dtype) for m in (detector.layer1, detector.layer2, detector.fc1))
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.pool(self.stem(pixels))))
        return self.fc1(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


# ---- engines


def compiled(function: Callable, device: torch.device, *, frozen: bool = False) -> Callable:
    """Return torch.compile of the whole graph for one size, on a GPU with max-autotune.

    ``frozen`` also folds and lays out the weights beforehand.
    """
    options = {"freezing": frozen, "max_autotune": device.type == "cuda"}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


def onnx_runtime(onnx_file: bytes, pixels: Tensor) -> Callable[[], Tensor]:
    """Return a call of ONNX Runtime on :func:`exported`'s model, with as many threads as torch uses."""
    onnxruntime = _optional("onnxruntime", pixels.device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its idle threads slow down the others
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # its own types, a dozen of them
        raise Unavailable(f"it refuses the model: {failure}") from failure
    feed = {session.get_inputs()[0].name: pixels.contiguous().numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def quantised(onnx_file: bytes, pixels: Tensor) -> bytes:
    """Return :func:`exported`'s model with 8-bit convolutions, by ONNX Runtime's static quantisation.

    It has a scale for each channel of the weights and one for each tensor of activations, measured on ``pixels``.
    OpenVINO reads it, too.
    """
    quantization = _optional("onnxruntime.quantization", pixels.device)
    shape_inference = _optional("onnxruntime.quantization.shape_inference", pixels.device)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"pixels": pixels.contiguous().numpy()}])

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        plain, prepared, done = (os.path.join(folder, f"{name}.onnx") for name in ("plain", "prepared", "done"))
        Path(plain).write_bytes(onnx_file)
        try:
            shape_inference.quant_pre_process(plain, prepared)  # folds the batch norms
            quantization.quantize_static(
                prepared, done, Reader(), per_channel=True, op_types_to_quantize=["Conv", "Add", "Relu", "MaxPool"]
            )
        finally:
            logging.disable(logging.NOTSET)
        return Path(done).read_bytes()


def openvino(onnx_file: bytes, pixels: Tensor, precision: str) -> Callable[[], Tensor]:
    """Return a call of OpenVINO on :func:`exported`'s model; ``precision``, f32 or bf16, is a hint."""
    engine = _optional("openvino", pixels.device)
    core = engine.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(onnx_file), "CPU", properties).create_infer_request()
    request.set_input_tensor(engine.Tensor(pixels.contiguous().numpy(), shared_memory=True))

    def infer() -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    return infer


def _optional(name: str, device: torch.device) -> Any:
    if device.type != "cpu":
        raise Unavailable(f"{name} is compared on the CPU only")
    try:
        return importlib.import_module(name)
    except ImportError as failure:
        raise Unavailable("not installed: pip install --group benchmark") from failure


def exported(model: nn.Module, pixels: Tensor) -> bytes:
    """Return the ONNX file of ``model``, normalisation included, for exactly this shape of uint8 ``pixels``."""
    for name in ("onnx", "onnxscript"):
        _optional(name, pixels.device)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # of every operator that torchvision would add
        file = os.path.join(folder, "model.onnx")
        try:
            torch.onnx.export(model, (pixels,), file, dynamo=True, verbose=False, external_data=False)
        finally:
            logging.disable(logging.NOTSET)
        return Path(file).read_bytes()
