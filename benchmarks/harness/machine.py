"""The machine: what it is, and its measured peaks of arithmetic in float32, bfloat16 and int8, and of copying."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.harness.timing import by_wall_clock
from npr_kernels import capabilities, info

SOURCE = Path(__file__).with_name("microkernels.c")
INSTRUCTION_SETS = [
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve", "sve2"),
]
MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}  # more than any cache holds


def describe(device: torch.device) -> dict:
    """Return description and measured peaks of the machine as plain JSON types. Takes some seconds."""
    known = info.collect()
    result = {
        "device": device.type,
        **_processor(),
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg()[0],
        **{key: known[key] for key in ("platform", "python", "torch", "npr_kernels", "cpu_capability")},
        "built_with": known["build"].get("compiler") if isinstance(known["build"], dict) else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result |= {"gpu": properties.name, "gpu_memory_gib": properties.total_memory / 2**30}
        result["cuda"] = torch.version.cuda
    return result | peaks(device)


def peaks(device: torch.device) -> dict:
    """Return the measured peaks: operations per second, with the method that reached them, and copy bandwidth."""
    micro = _microkernels() if device.type == "cpu" else {}
    fma = {"torch.mm float32": _matrix_peak(torch.float32, device)}
    bf16 = {}
    if device.type == "cuda" or capabilities.onednn_serves(torch.bfloat16):  # elsewhere it takes minutes
        bf16["torch.mm bfloat16"] = _matrix_peak(torch.bfloat16, device)
    if "fma_chains" in micro:
        fma["micro-kernel of fused multiply-adds"] = _threaded_peak(micro["fma_chains"])
    if "bf16_dot_chains" in micro:
        bf16["micro-kernel of bfloat16 dot products"] = _threaded_peak(micro["bf16_dot_chains"])
    result = {"fma_peak": _best(fma), "copy_bandwidth_gb_s": _copy_bandwidth(device)}
    if bf16:
        result["bf16_peak"] = _best(bf16)
    if "int8_dot_chains" in micro:
        result["int8_peak"] = _best({"micro-kernel of int8 dot products": _threaded_peak(micro["int8_dot_chains"])})
    return result


def _best(gflops: dict[str, float]) -> dict:
    method = max(gflops, key=gflops.get)
    return {"gflops": gflops[method], "method": method, "all": gflops}


def _processor() -> dict:
    """Return model, cores, instruction sets and caches, as far as the system tells."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        caches[f"L{level} {kind.lower()}"] = size
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if flags and name in flags[1].split()],
        "caches": caches,
    }


def _microkernels() -> dict[str, Callable]:
    """Return the functions of microkernels.c that this processor can run; none without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return {}
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "microkernels.so"
        command = [compiler, "-O3", native, "-ffp-contract=fast", "-shared", "-fPIC", SOURCE, "-o", library]
        if subprocess.run(command, capture_output=True).returncode:
            return {}
        loaded = ctypes.CDLL(str(library))
    functions = {}
    for name in ("fma_chains", "bf16_dot_chains", "int8_dot_chains"):
        if hasattr(loaded, name):
            function = getattr(loaded, name)
            function.argtypes = [ctypes.c_int64, ctypes.c_float, ctypes.c_float, ctypes.POINTER(ctypes.c_float)]
            function.restype = ctypes.c_double
            functions[name] = function
    return functions


def _threaded_peak(function: Callable) -> float:
    """Return the GFLOP/s of a micro-kernel on as many threads as torch uses. ctypes releases Python's lock."""
    threads = torch.get_num_threads()

    def work(rounds: int) -> float:
        return function(rounds, 0.5, 0.5, ctypes.byref(ctypes.c_float()))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for rounds in (10_000, *[3_000_000] * 40):  # the first only wakes the threads; then some 20 ms each
            start = time.perf_counter()
            done = sum(pool.map(work, [rounds] * threads))
            best = max(best, done / (time.perf_counter() - start) / 1e9)
    return best


def _matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the GFLOP/s of torch.mm, the best of some sizes."""
    best = 0.0
    for size in MATRIX_SIZES[device.type]:
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        seconds = min(by_wall_clock(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 1, device) for _ in range(6))
        best = max(best, 2 * size**3 / seconds / 1e9)
    return best


def _copy_bandwidth(device: torch.device) -> float:
    """Return the GB/s that Tensor.copy_ reads and writes together."""
    count = COPIED_BYTES[device.type]
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)  # zeros may be faster
    target = torch.empty_like(source).copy_(source)
    return 2 * count / min(by_wall_clock(lambda: target.copy_(source), 1, device) for _ in range(8)) / 1e9
