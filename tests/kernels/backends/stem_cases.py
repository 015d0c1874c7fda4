"""The cases of the stem that the backend `cuda` serves, and what it must give."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from npr_kernels import reference
from npr_kernels.backends.base import Convolution
from npr_kernels.backends.cuda import DTYPES
from npr_kernels.testing import TABLE, Case
from tests.kernels.backends.emulation import TYPES


def served(case: Case) -> bool:
    geometry = (case.grid_size, case.channels, case.kernel, case.stride, case.padding)
    types = case.dtype in TYPES and case.parameter_dtype in DTYPES
    return types and geometry == (2, 3, (3, 3), 2, 1) and isinstance(case.anchor, int)


def channels(case: Case) -> Case:
    return case if case.out_channels % 16 == 0 else replace(case, out_channels=16)


CASES = list(dict.fromkeys(channels(case) for case in TABLE if served(case)))
CASES += [Case(dtype=torch.uint8, weight_dtype=d, out_channels=128, height=21, width=20) for d in DTYPES]
CASES += [  # several strips, several walks of a block, batches that do not divide evenly
    Case(dtype=torch.uint8, weight_dtype=d, out_channels=16, batch=b, height=h, width=w, layout=layout, anchor=3)
    for d in DTYPES
    for b, h, w, layout in ((3, 30, 38, "contiguous"), (1, 14, 262, "channels_last"), (2, 6, 520, "sliced"))
]
# A block goes through many rows with the same memory: of one image, and of one image after another.
LONG_WALKS = [
    Case(dtype=x, weight_dtype=d, out_channels=32, batch=b, height=h, width=w, layout=layout)
    for x, d in ((torch.uint8, torch.bfloat16), (torch.uint8, torch.float32), (torch.bfloat16, torch.bfloat16))
    for b, h, w, layout in ((5, 64, 64, "channels_last"), (1, 402, 30, "contiguous"))
]
CASES += LONG_WALKS
CASES += [  # strips of whole warpgroups
    Case(dtype=torch.uint8, weight_dtype=d, out_channels=o, batch=3, height=h, width=w, layout=layout)
    for d in (torch.bfloat16, torch.float16)
    for o, h, w, layout in ((64, 22, 128, "channels_last"), (80, 7, 250, "contiguous"), (16, 4, 402, "pitched"))
]


def windows(y: Tensor) -> Tensor:
    """The nine values of every pooling window, -1 outside: (N, O, Hp, Wp, 9)."""
    return (
        F.pad(y, (1, 2, 1, 2), value=-1.0)
        .unfold(2, 3, 2)
        .unfold(3, 3, 2)
        .flatten(4)[:, :, : (y.shape[2] + 1) // 2, : (y.shape[3] + 1) // 2]
    )


def convolution(anchor: int, scale: tuple[float, ...]) -> Convolution:
    return Convolution((2, 2), (1, 1), 2, anchor, scale)


def exact(*tensors):
    return [None if t is None else t if t.dtype == torch.uint8 else t.double() for t in tensors]


def patches(x: Tensor, anchor: int, scale: tuple[float, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """What the convolution sees, (N, 27, positions), the map computed in ``dtype``."""
    factors = torch.tensor(scale if len(scale) == 3 else scale * 3, dtype=torch.float64).view(1, 3, 1, 1)
    return F.unfold(reference.npr(x.to(dtype), 2, anchor, dtype).double() * factors, 3, stride=2, padding=1)
