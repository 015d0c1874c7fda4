"""``python -m benchmarks.device``: everything that needs a GPU, in one go, into one JSON.

Builds the CUDA kernels for the torch at hand, runs the tests (parity over the whole table, CUDA graphs, streams) with
NPR_REQUIRE_CUDA=1, looks for memory errors and races with compute-sanitizer, times operators, detector, training
and screening, and reads the memory counters of the stem with Nsight Compute. Steps run in processes of their own, the
file is written after each, and a step that fails, hangs or lacks its tool is recorded and does not stop the ones behind
it. What it needs: torch with CUDA, triton, pytest, hypothesis, numpy, rich and typer, and nvcc for the build; for the
network pillow and simplejpeg, too, for training and screening the package's other dependencies.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import command, machine
from benchmarks.command import refuse
from tests.cases import Case

ROOT = Path(__file__).resolve().parent.parent
SHORT_CASES = (
    Case(out_channels=64, dtype=torch.uint8, weight_dtype=torch.bfloat16, height=33, width=66),
    Case(out_channels=64, dtype=torch.uint8, layout="contiguous", height=6, width=7),
    Case(out_channels=64, dtype=torch.bfloat16, batch=3),
    Case(grid_size=3, anchor="max", out_channels=15),
)
COUNTERS = {
    "time_ns": "gpu__time_duration.sum",
    "read_bytes": "dram__bytes_read.sum",
    "written_bytes": "dram__bytes_write.sum",
    "share_of_memory_throughput": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "share_of_issue_slots": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "tensor_core_share": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "registers": "launch__registers_per_thread",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
}

app = typer.Typer(add_completion=False)


@app.command("run")
def run(
    json_file: Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the results go.")],
    steps: Annotated[str, typer.Option(help="Which, separated by commas; all if left out.")] = "",
    limit: Annotated[int, typer.Option(min=10, help="Seconds that a step may take.")] = 900,
) -> None:
    """Build, test, sanitize, benchmark and profile on this machine's GPU."""
    chosen = steps.split(",") if steps else list(STEPS)
    unknown = [name for name in chosen if name not in STEPS]
    if unknown:
        refuse(f"--steps: there is no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    command.checked_device("cuda")
    command.checked_json(json_file)
    result = {"machine": machine.describe(torch.device("cuda")), "steps": {}, "rows": [], "counters": []}
    for name in chosen:
        start = time.monotonic()
        outcome = STEPS[name](json_file, limit)
        result["rows"] += outcome.pop("rows", [])
        result["counters"] += outcome.pop("counters", [])
        result["steps"][name] = {**outcome, "seconds": round(time.monotonic() - start, 1)}
        json_file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: {outcome['outcome']}", flush=True)
    raise typer.Exit(any(step["outcome"].startswith("failed") for step in result["steps"].values()))


@app.command("short")
def short() -> None:
    """Every operator, forward and backward, on a few small cases: what the sanitizer watches and the profiler times."""
    for case in SHORT_CASES:
        exercise(case)


@app.command("stem")
def stem() -> None:
    """The inference stem of 64 images of 256x256, on each backend: what the profiler reads the counters of."""
    case = Case(out_channels=64, dtype=torch.uint8, weight_dtype=torch.bfloat16, batch=64, height=256, width=256)
    for backend in gpu_backends():
        exercise(case, backend, training=False)


def gpu_backends() -> list[str]:
    import npr_kernels

    return [name for name, reason in npr_kernels.backends().items() if name in ("cuda", "triton") and reason is None]


def exercise(case: Case, backend: str | None = None, training: bool = True) -> None:
    import npr_kernels

    x, weight, bias = (None if t is None else t.cuda() for t in case.tensors())
    if not training:
        with torch.inference_mode():
            npr_kernels.npr_stem(x, weight, bias, backend=backend, **case.options)
        torch.cuda.synchronize()
        return
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None and t.is_floating_point()]
    npr_kernels.npr(x, case.grid_size, case.anchor, backend=backend)
    for operator in (npr_kernels.npr_conv2d, npr_kernels.npr_stem):
        operator(x, weight, bias, backend=backend, **case.options).float().sum().backward(inputs=inputs)
    stem = npr_kernels.NPRStem(3, case.out_channels, grid_size=case.grid_size, anchor=case.anchor, backend=backend)
    with torch.autocast("cuda", torch.bfloat16):
        stem.cuda().train()(x).float().sum().backward()
    torch.cuda.synchronize()


def build(json_file: Path, limit: int) -> dict:
    environment = {
        "NPR_KERNELS_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability()),
    }
    return finished(["setup.py", "-q", "build_ext", "--inplace"], json_file, "build", limit, environment)


def test(json_file: Path, limit: int) -> dict:
    arguments = ["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "tests/kernels"]
    return finished(arguments, json_file, "test", limit, {"NPR_REQUIRE_CUDA": "1"})


def test_network(json_file: Path, limit: int) -> dict:
    arguments = ["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "tests/model/test_cuda_graphs.py"]
    return finished(arguments, json_file, "test_network", limit, {"NPR_REQUIRE_CUDA": "1"})


def test_screening(json_file: Path, limit: int) -> dict:
    arguments = ["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "tests/model/test_screening.py", "-k", "gpu"]
    return finished(arguments, json_file, "test_screening", limit, {"NPR_REQUIRE_CUDA": "1"})


def sanitize(tool: str) -> Callable[[Path, int], dict]:
    def step(json_file: Path, limit: int) -> dict:
        program = shutil.which("compute-sanitizer")
        if program is None:
            return {"outcome": "left out: there is no compute-sanitizer on the PATH"}
        before = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        return finished(["-m", "benchmarks.device", "short"], json_file, tool, limit, before=before)

    return step


def benchmark(module: str, *arguments: str, name: str = "") -> Callable[[Path, int], dict]:
    name = name or module

    def step(json_file: Path, limit: int) -> dict:
        part = json_file.with_suffix(f".{name}.json")
        command = ["-m", f"benchmarks.{module}", "--device", "cuda", "--json", str(part), *arguments]
        outcome = finished(command, json_file, name, limit)
        text = part.read_text() if part.exists() else ""
        part.unlink(missing_ok=True)
        return outcome | {"rows": json.loads(text)["rows"] if text else []}

    return step


def profile(json_file: Path, limit: int) -> dict:
    program = shutil.which("ncu")
    if program is None:
        return {"outcome": "left out: there is no ncu on the PATH"}
    before = [program, "--csv", "--clock-control", "none", "--metrics", ",".join(COUNTERS.values())]
    outcome = finished(["-m", "benchmarks.device", "stem"], json_file, "profile", limit, before=before)
    return outcome | {"counters": counters(json_file.with_suffix(".profile.log").read_text())}


def counters(text: str) -> list[dict]:
    """One row a kernel launch with the COUNTERS, from what ``ncu --csv`` prints (other lines around it are skipped)."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names = {metric: name for name, metric in COUNTERS.items()}
    launches: dict[str, dict] = {}
    for row in csv.DictReader(lines):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        if row.get("Metric Name") in names:
            launch[names[row["Metric Name"]]] = row["Metric Value"] + " " + row["Metric Unit"]
    return list(launches.values())


def finished(
    arguments: list[str],
    json_file: Path,
    name: str,
    limit: int,
    environment: dict[str, str] | None = None,
    before: list[str] | None = None,
) -> dict:
    """Run Python with ``arguments``; its output goes to a log beside the JSON, its last line and verdict come back."""
    log = json_file.with_suffix(f".{name}.log")
    with log.open("w") as output:
        try:
            code = subprocess.run(
                [*(before or []), sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"outcome": f"failed: not done after {limit} s, see {log.name}"}
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    return {"outcome": "passed" if code == 0 else f"failed: exit code {code}, see {log.name}", "last_line": last}


STEPS: dict[str, Callable[[Path, int], dict]] = {
    "build": build,
    "test": test,
    "test_network": test_network,
    "test_screening": test_screening,
    "memcheck": sanitize("memcheck"),
    "racecheck": sanitize("racecheck"),
    "ops": benchmark("ops", "--seconds", "2"),
    "model": benchmark("model", "--seconds", "20", "--batch", "256"),
    "small_batch": benchmark("model", "--seconds", "10", "--batch", "4", "--only", "ours|compile", name="small_batch"),
    "train": benchmark("train", "--seconds", "20"),
    "screening": benchmark("screening", "--seconds", "20", "--only", "JPEG"),
    "profile": profile,
}

if __name__ == "__main__":
    app()
