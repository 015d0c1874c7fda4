"""Every Triton kernel compiled for Ampere, Hopper and Blackwell, without a GPU: no spills, few enough registers.

What is compiled is what the operators launch for the paper's case: launches are intercepted, so signatures, alignment
and constants are those of real calls. Registers and spills are read from the machine code.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from npr_kernels.backends.triton import launch, operators  # noqa: E402

CONVOLUTION = (2, 2), (1, 1), 2, 0, (2 / 3 / (255 * 0.229), 2 / 3 / (255 * 0.224), 2 / 3 / (255 * 0.225))
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    "uint8-bfloat16": (torch.uint8, torch.bfloat16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32": (torch.float32, torch.float32),
}
REGISTERS = {  # at most, on any architecture
    "npr_kernel": 64,
    "npr_backward_kernel": 96,
    "npr_conv2d_kernel": 255,
    "npr_conv2d_grad_weight_kernel": 255,
    "npr_conv2d_grad_map_kernel": 128,
    "npr_stem_kernel": 255,
    "npr_moments_kernel": 255,
    "npr_stem_grad_weight_kernel": 255,
    "partial_sums_kernel": 96,
}


@pytest.fixture(params=[80, 90, 100], ids="sm_{}".format)
def compiled(request, monkeypatch):
    """A list of (kernel, warps, compiled kernel) that launches add to instead of running."""
    kernels = []

    class Driver:
        def get_current_device(self):
            return request.param  # a device of its own for each architecture, so that nothing is taken from another

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", request.param, 32)

    compile_and_run = JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **keywords):
        result = compile_and_run(kernel, *args, grid=grid, warmup=True, **keywords)
        kernels.append((kernel.fn.__name__, keywords["num_warps"], result))

    def every_tile(kernel, device, tiles, shape_class, arguments):
        for tile in tiles:
            launch.run(kernel, tile, arguments)

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(operators, "launch", every_tile)
    return kernels


def machine_code(kernel, tmp_path: Path) -> tuple[int, int, Counter]:
    """Registers, bytes of stack (spills and local arrays), and how often each instruction stands in the code."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    code = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    return registers, stack, Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", code, re.M))


def launch_everything(image: torch.dtype, parameters: torch.dtype, channels_last: bool) -> None:
    """Every operator in the paper's case: 3 -> 64 channels, cells of 2x2, anchor 0, 3x3 kernel, stride 2, padding 1."""
    call = operators.implementations
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.zeros(4, 3, 256, 256, dtype=image).contiguous(memory_format=format_)
    weight, bias = torch.zeros(64, 3, 3, 3, dtype=parameters), torch.zeros(64, dtype=parameters)
    call["npr"](x, 2, 0, channels_last)
    y = call["npr_conv2d"](x, weight, bias, *CONVOLUTION, channels_last)
    call["npr_conv2d_grad_weight"](y, x, (3, 3), *CONVOLUTION)
    call["npr_stem"](x, weight, bias, *CONVOLUTION)
    pooled, argmax = call["npr_stem_argmax"](x, weight, bias, *CONVOLUTION)
    call["npr_stem_grad_weight"](pooled, argmax, x, (3, 3), *CONVOLUTION)
    call["npr_moments"](x, (3, 3), *CONVOLUTION)
    if x.is_floating_point():
        call["npr_conv2d_grad_input"](y, x, weight, *CONVOLUTION, channels_last)


@pytest.mark.parametrize("types", TYPES)
def test_no_spills(types, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(operators, "_tf32_allowed", lambda: False)
    launch_everything(*TYPES[types], channels_last=True)
    assert {name for name, *_ in compiled} >= REGISTERS.keys() - {"npr_backward_kernel", "npr_conv2d_grad_map_kernel"}
    print()
    for name, warps, kernel in compiled:
        registers, stack, code = machine_code(kernel, tmp_path)
        size = f"{sum(code.values())} instructions"
        print(f"{name:30} {warps} warps {registers:4} registers {stack:4} bytes of stack {size}")
        assert stack == 0, f"{name} spills {stack} bytes"
        assert registers <= REGISTERS[name]
        if types != "float32" and ("conv2d_kernel" in name or "stem" in name):
            assert any(re.match("HMMA|HGMMA|UTCHMMA|UTC", instruction) for instruction in code), "no tensor cores"
