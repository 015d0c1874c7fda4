"""The CUDA kernels compiled for the CPU, on emulated threads (emulation.h), and called through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from tests.conftest import ROOT

HERE = Path(__file__).parent
TYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)  # in the order of npr::cuda::Type
POISON = dict.fromkeys(TYPES, float("nan")) | {torch.uint8: 255}


def compile_emulation(library: Path) -> None:
    """Takes a quarter of a minute."""
    command = ["g++", "-std=c++20", "-O1", "-DNPR_EMULATION", f"-I{HERE}", "-fPIC", "-shared"]
    command += ["-Wall", "-Wno-unknown-pragmas", "-x", "c++", HERE / "emulation.cpp"]
    subprocess.run([*command, *sorted((ROOT / "csrc" / "cuda").glob("*.cu")), "-o", library], check=True)


class CImage(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int64), ("stride", ctypes.c_int64 * 4)]

    def __init__(self, x: Tensor):
        super().__init__(x.data_ptr(), TYPES.index(x.dtype), (ctypes.c_int64 * 4)(*x.stride()))


class CTask(ctypes.Structure):
    _fields_ = [
        ("x", CImage),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "anchor", "out_channels")),
        ("scale", ctypes.c_double * 3),
    ]

    def __init__(self, x: Tensor, out_channels: int, anchor: int, scale: tuple[float, ...]):
        height, width = (n - n % 2 for n in x.shape[-2:])
        factors = scale if len(scale) == 3 else scale * 3
        super().__init__(CImage(x), x.shape[0], height, width, anchor, out_channels, (ctypes.c_double * 3)(*factors))


class Emulation:
    """The launchers of csrc/cuda/kernels.h as ``processors`` blocks, with warps in the random order of ``seed``."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.configure(3)

    def configure(self, processors: int, seed: int = 0) -> None:
        self.processors = processors
        self.library.emulate(processors, seed)

    def _call(self, name: str, *values) -> None:
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        pointers = [
            ctypes.byref(v) if isinstance(v, ctypes.Structure)
            else ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor)
            else v
            for v in values
        ]  # fmt: skip
        failure = function(*pointers)
        assert failure is None, failure

    def readable(self, x: Tensor) -> Tensor:
        """x, or the copy that the operators make of what the kernels cannot read."""
        self.library.emulated_readable.restype = ctypes.c_bool
        if self.library.emulated_readable(ctypes.byref(CImage(x)), ctypes.c_int64(x.shape[0])):
            return x
        n, c, h, w = x.shape
        copy = torch.full((n, h, -(-w // 16) * 16, c), POISON[x.dtype], dtype=x.dtype).permute(0, 3, 1, 2)[..., :w]
        return copy.copy_(x)

    def stem(self, x, weight, bias, anchor, scale, argmax: bool) -> tuple[Tensor, Tensor | None]:
        shape = pooled_shape(x, weight.shape[0])
        pooled = poisoned(shape, weight.dtype).contiguous(memory_format=torch.channels_last)
        positions = torch.full(shape, 77, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        x, types = self.readable(x), [TYPES.index((t if t is not None else weight).dtype) for t in (weight, bias)]
        task = CTask(x, weight.shape[0], anchor, scale)
        out_type, argmax = types[0], positions if argmax else None
        self._call("emulated_stem", task, weight, bias, *types, pooled, out_type, argmax)
        return pooled, argmax

    def moments(self, x, anchor, scale) -> tuple[Tensor, Tensor]:
        first, second = poisoned((27,), torch.float64), poisoned((27, 27), torch.float64)
        partial = poisoned((4 * self.processors, 27, 28), torch.float64)
        x = self.readable(x)
        self._call("emulated_moments", CTask(x, 16, anchor, scale), first, second, partial)
        return first, second

    def stem_grad_weight(self, grad, argmax, x, anchor, scale) -> tuple[Tensor, Tensor]:
        out_channels = grad.shape[1]
        products, sums = poisoned((out_channels, 27), torch.float32), poisoned((out_channels,), torch.float32)
        partial = poisoned((4 * self.processors, -(-out_channels // 64) * 64, 32), torch.float64)
        x, type_ = self.readable(x), TYPES.index(grad.dtype)
        task = CTask(x, out_channels, anchor, scale)
        grad, argmax = (t.contiguous(memory_format=torch.channels_last) for t in (grad, argmax))  # as the operator does
        self._call("emulated_stem_grad_weight", task, grad, type_, argmax, products, sums, partial)
        return products, sums


def poisoned(shape, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def pooled_shape(x: Tensor, out_channels: int) -> tuple[int, ...]:
    return (x.shape[0], out_channels, *((n // 2 + 1) // 2 for n in x.shape[-2:]))
