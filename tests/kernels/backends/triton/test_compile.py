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

from npr_kernels.backends.triton import library, operators, patches, specialisation  # noqa: E402, F401
from npr_kernels.trunk.gpu_bottleneck import GpuBottlenecks  # noqa: E402
from tests.kernels.trunk.blocks import trunk  # noqa: E402

CONVOLUTION = (2, 2), (1, 1), 2, 0, (2 / 3 / (255 * 0.229), 2 / 3 / (255 * 0.224), 2 / 3 / (255 * 0.225))
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    "uint8-bfloat16": (torch.uint8, torch.bfloat16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "uint8-float32": (torch.uint8, torch.float32),
    "float32": (torch.float32, torch.float32),
}
SPILLS = {  # bytes at most, by kernel and block of channels; all others have none
    ("npr_stem_kernel", 64): 176,  # float32; 112 from uint8 to float32, 88 for bfloat16. Smaller blocks take more time.
    ("npr_stem_grad_weight_kernel", 32): 32,  # by Triton 3.6; none by 3.9
    ("partial_sums_kernel", ""): 8,
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


@pytest.fixture
def launches(monkeypatch):
    """``launches(capability)``: a list of (kernel, keywords, compiled kernel) that launches from now on add to."""
    compile_and_run = JITFunction.run

    def intercept(capability: int) -> list:
        kernels = []

        class Driver:
            def get_current_device(self):
                return capability  # a device of its own for each architecture: compiled kernels are kept by device

            def get_current_stream(self, device):
                return 0

            def get_current_target(self):
                return GPUTarget("cuda", capability, 32)

        def compile_only(kernel, *args, grid, warmup, **keywords):
            result = compile_and_run(kernel, *args, grid=grid, warmup=True, **keywords)
            kernels.append((kernel.fn.__name__, keywords, result))

        monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
        monkeypatch.setattr(JITFunction, "run", compile_only)
        monkeypatch.setattr(specialisation, "has_tensor_cores", lambda device: capability >= 80)
        return kernels

    return intercept


def registers_and_stack(kernel, tmp_path: Path) -> tuple[int, int]:
    """Registers, and bytes of stack (spills and local arrays)."""
    usage = said_of(kernel, tmp_path, "cuobjdump", "-res-usage")
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return registers, stack


def instructions(kernel, tmp_path: Path) -> set[str]:
    """The instructions that stand in the machine code. Half a second."""
    code = said_of(kernel, tmp_path, "nvdisasm", "-c")
    return set(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", code, re.M))


def said_of(kernel, tmp_path: Path, tool: str, option: str) -> str:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    return subprocess.run([TOOLS / tool, option, cubin], capture_output=True, text=True, check=True).stdout


def launch_operators(
    image: torch.dtype,
    parameters: torch.dtype,
    out_channels: int = 64,
    channels_last: bool = True,
    kernel: tuple[int, int] = (3, 3),
    convolution: tuple = CONVOLUTION,
    forward_only: bool = False,
) -> None:
    """Every operator, by default in the paper's case: 3 channels to 64, cells of 2x2, anchor 0, stride 2, padding 1."""
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.zeros(4, 3, 256, 256, dtype=image).contiguous(memory_format=format_)
    launch_operators_for(x, parameters, out_channels, kernel, convolution, forward_only)


def launch_operators_for(
    x: torch.Tensor,
    parameters: torch.dtype,
    out_channels: int,
    kernel: tuple[int, int] = (3, 3),
    convolution: tuple = CONVOLUTION,
    forward_only: bool = False,
) -> None:
    call, channels_last = library.implementations, x.stride(1) == 1
    weight, bias = torch.zeros(out_channels, 3, *kernel, dtype=parameters), torch.zeros(out_channels, dtype=parameters)
    y = call["npr_conv2d"](x, weight, bias, *convolution, channels_last)
    call["npr_stem"](x, weight, bias, *convolution)
    if forward_only:
        return
    call["npr"](x, *convolution[2:4], channels_last)
    call["npr_conv2d_grad_weight"](y, x, kernel, *convolution)
    pooled, argmax = call["npr_stem_argmax"](x, weight, bias, *convolution)
    call["npr_stem_grad_weight"](pooled, argmax, x, kernel, *convolution)
    call["npr_moments"](x, kernel, *convolution)
    call["npr_conv2d_grad_input"](y, x.to(parameters), weight, *convolution, channels_last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "types", "forward_only"),
    [
        (90, "uint8-bfloat16", False),
        (80, "uint8-bfloat16", False),
        (100, "uint8-bfloat16", False),
        (75, "uint8-bfloat16", False),
        (90, "bfloat16", True),
        (90, "uint8-float32", True),
        (90, "float32", True),
    ],
)
def test_registers_and_spills(capability, types, forward_only, launches, tmp_path):
    compiled = launches(capability)
    launch_operators(*TYPES[types], forward_only=forward_only)
    names = {name for name, *_ in compiled}
    assert names == {"npr_conv2d_kernel", "npr_stem_kernel"} if forward_only else names == REGISTERS.keys()
    for name, keywords, kernel in compiled:
        registers, stack = registers_and_stack(kernel, tmp_path)
        block, warps = keywords.get("BLOCK_O", ""), keywords["num_warps"]
        print(f"{name:30} O {block:2} {warps} warps {registers:3} registers, {stack:3} bytes spilled")
        assert stack <= SPILLS.get((name, block), 0), f"{name} spills {stack} bytes"
        assert registers <= REGISTERS[name]
        if capability >= 80 and ("conv2d_kernel" in name or "grad_weight" in name or "stem" in name):
            code = instructions(kernel, tmp_path)
            assert any(re.match("HMMA|HGMMA|UTCHMMA", instruction) for instruction in code), f"{name}: no tensor cores"
        if name == "npr_kernel":
            code = instructions(kernel, tmp_path)
            assert any(instruction.startswith("STG.E.128") or "STG.E.64" in instruction for instruction in code)


@pytest.fixture(params=["tf32", "ieee"])
def fp32_precision(request):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = request.param
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def test_float32_products_are_split_whatever_torch_says_of_tf32(fp32_precision, launches):
    """Six products of bfloat16 parts for one of float32, three where the image's differences are exact as they are."""
    compiled = launches(90)
    count = {}
    for types in ("uint8-bfloat16", "uint8-float32", "float32"):
        compiled.clear()
        launch_operators(*TYPES[types], forward_only=True)
        for name, _, kernel in compiled:
            code = kernel.asm["ptx"]
            assert "tf32" not in code
            count[name, types] = len(re.findall(r"wgmma\.mma_async[.\w]*\.f32\.bf16\.bf16", code))
    for name in ("npr_conv2d_kernel", "npr_stem_kernel"):
        assert count[name, "uint8-bfloat16"] > 0
        assert count[name, "uint8-float32"] == 3 * count[name, "uint8-bfloat16"]
        assert count[name, "float32"] == 6 * count[name, "uint8-bfloat16"]


@pytest.mark.slow
def test_sizes_compile_nothing_anew(launches):
    """Three programs at most: for aligned vectors of four pixels, for single pixels, and for an odd first address."""
    compiled = launches(90)

    def programs(*images: torch.Tensor) -> Counter:
        compiled.clear()
        for x in images:
            launch_operators_for(x, torch.bfloat16, 64)
        return Counter(name for name, _ in {(name, id(kernel)) for name, _, kernel in compiled})

    def image(batch, height, width):
        return torch.zeros(batch, height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    one = programs(image(4, 256, 256))
    assert programs(*(image(4, *size) for size in ((256, 256), (224, 224), (200, 336), (720, 1280)))) == one
    photographs = [image(1, *size) for size in ((768, 1024), (333, 500), (768, 1023), (1023, 1537), (480, 642))]
    views = [image(1, 1200, 1600)[..., top : top + 512, left : left + 512] for top, left in ((0, 0), (16, 32), (3, 34))]
    found = programs(*photographs, *views)
    assert all(found[name] <= 3 * one[name] for name in one), (found, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "product", "most_shared"),
    [
        (80, torch.bfloat16, "HMMA", 163),
        (90, torch.bfloat16, "HGMMA", 227),
        (90, torch.float16, "HGMMA", 227),
        (100, torch.bfloat16, "UTCHMMA", 227),
    ],
)
def test_residual_blocks(capability, dtype, product, most_shared, launches, tmp_path):
    """The network's blocks spill nothing, and multiply on the fastest units."""
    compiled = launches(capability)
    channels = [(64, 64, 1), (256, 64, 1), (256, 64, 1), (256, 128, 2), (512, 128, 1), (512, 128, 1)]
    channels = [channels[i] for i in (range(6) if (capability, dtype) == (90, torch.bfloat16) else (0, 2, 3, 5))]
    GpuBottlenecks(trunk(channels, dtype), dtype, averaged=True)(torch.zeros(2, 64, 8, 8, dtype=dtype))
    assert [name for name, *_ in compiled] == [
        "pointwise_kernel",
        *["bottleneck_kernel"] * len(channels),
        "mean_kernel",
    ]
    for name, keywords, kernel in compiled:
        registers, stack = registers_and_stack(kernel, tmp_path)
        shared = kernel.metadata.shared
        print(f"{name:18} {keywords.get('INPUT', ''):3} {registers:3} registers, {shared:6} bytes shared")
        assert stack == 0, f"{name} spills {stack} bytes"
        assert shared <= most_shared * 2**10
        if name != "mean_kernel":
            assert any(instruction.startswith(product) for instruction in instructions(kernel, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "parameters", "anchor"),
    [
        (torch.uint8, torch.float16, patches.MEAN),
        (torch.float32, torch.float32, patches.MAX),
        (torch.uint8, torch.float64, 4),
    ],
)
def test_every_other_geometry_compiles(image, parameters, anchor, launches):
    """The compiler is stricter than the interpreter: types, names and shapes must agree on every path."""
    compiled = launches(90)
    convolution = (2, 1), (0, 2), 3, anchor, (0.5,)
    launch_operators(image, parameters, 16, channels_last=False, kernel=(5, 3), convolution=convolution)
    assert {name for name, *_ in compiled} == REGISTERS.keys()
