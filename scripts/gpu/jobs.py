"""``python -m scripts.gpu.jobs check``: what needs a GPU, as plans for ten minutes on a rented machine.

``scripts/gpu_check.sh``, ``gpu_rest.sh`` and ``gpu_train.sh`` call it. Everything goes into one folder: the log, and
results.json with the steps, the rows of the benchmarks and the counters of the profiler (:mod:`scripts.gpu.plan`). The
most telling steps come first. Needed are torch with CUDA, triton, nvcc, pytest with xdist and timeout, hypothesis,
numpy, rich and typer; Python packages that the machine lacks are installed from wheels in ``.wheels/``, into a folder
that is deleted afterwards.
"""

from __future__ import annotations

import csv
import os
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.harness.command import refuse
from npr_kernels.backends import proof
from npr_kernels.testing import Case
from scripts.gpu.plan import ROOT, Step, run_plan

SECONDS = 550.0  # of a plan: 570 with the start of Python and the end of the last step
TRAINING = "/tmp/npr-training"
LARGEST_FILE = "12M"  # the run's state, which is larger, is kept in parts
WHEELS = ROOT / ".wheels"
# One line a test: what is killed at its limit says how far it came.
PYTEST = (sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--timeout=100")
WALKS = (  # every block takes many rows, one after another, from the same shared memory
    Case(batch=128, height=64, width=64, out_channels=64, dtype=torch.uint8, weight_dtype=torch.bfloat16),
    Case(batch=4, height=4096, width=64, out_channels=64, dtype=torch.uint8, weight_dtype=torch.bfloat16),
    Case(batch=32, height=64, width=64, out_channels=64, dtype=torch.uint8, layout="contiguous"),
    Case(batch=32, height=64, width=64, out_channels=64, dtype=torch.bfloat16),
    Case(batch=16, height=256, width=256, out_channels=64, dtype=torch.uint8, weight_dtype=torch.bfloat16),
)
PROFILED = Case(batch=256, height=256, width=256, out_channels=64, dtype=torch.uint8, weight_dtype=torch.bfloat16)
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables",
            "SchedulerStats", "WarpStateStats", "LaunchStats", "Occupancy")  # fmt: skip
STALL = "smsp__average_warps_issue_stalled_"
COUNTERS = {
    "time_ns": "gpu__time_duration.sum",
    "read_bytes": "dram__bytes_read.sum",
    "written_bytes": "dram__bytes_write.sum",
    "share_of_memory_throughput": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "share_of_issue_slots": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "tensor_core_share": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "registers": "launch__registers_per_thread",
    "blocks": "launch__grid_size",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
}

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder for log.txt and results.json.")]

app = typer.Typer(add_completion=False)


@app.command("check")
def check(output: Output = ROOT / "gpu-results") -> None:
    """Build, check and time the kernels: the first ten minutes on a GPU."""
    finish(check_steps(), output)


@app.command("rest")
def rest(output: Output = ROOT / "gpu-results") -> None:
    """All that `check` leaves out: torch.compile, training, screening and the whole parity table."""
    finish(rest_steps(), output)


@app.command("train")
def train(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A tar file with config.json and its folders of images.")
    ],
    output: Output = ROOT / "gpu-results",
) -> None:
    """Train for six minutes on the images in one tar file, or go on with the run in it."""
    if not data.is_file() or not tarfile.is_tarfile(data):
        refuse(f"{data}: not a tar file")
    finish(train_steps(data.resolve(), output.resolve()), output)


@app.command("walk")
def walk() -> None:
    """Every kernel of the cuda backend on long walks, and a small detector: what the sanitizers watch."""
    from benchmarks.harness.inputs import random_detector
    from npr_kernels.backends import cuda
    from npr_model.inference.freeze import freeze

    freeze(random_detector().cuda(), torch.bfloat16)(torch.randint(256, (9, 3, 96, 96), dtype=torch.uint8).cuda())

    for case in WALKS:
        x, weight, bias = (None if t is None else t.cuda() for t in case.tensors())
        cuda.npr_stem(x, weight, bias, case.convolution)
        pooled, argmax = cuda.npr_stem_argmax(x, weight, bias, case.convolution)
        cuda.npr_stem_grad_weight(pooled, argmax, x, case.kernel, case.convolution)
        cuda.npr_moments(x, case.kernel, case.convolution)
        torch.cuda.synchronize()


@app.command("stem")
def stem() -> None:
    """Run the inference stem of the cuda backend on a full batch, for the profiler."""
    from npr_kernels.backends import cuda

    x, weight, bias = (None if t is None else t.cuda() for t in PROFILED.tensors())
    for _ in range(2):
        cuda.npr_stem(x, weight, bias, PROFILED.convolution)
    torch.cuda.synchronize()


@app.command("blocks")
def blocks() -> None:
    """Run the detector on a full batch in bfloat16, so that the profiler can watch its residual blocks."""
    from benchmarks.harness.inputs import random_detector
    from npr_model.inference.freeze import freeze

    x, _, _ = PROFILED.tensors()
    detector = freeze(random_detector().cuda(), torch.bfloat16)
    for _ in range(2):
        detector(x.cuda())
    torch.cuda.synchronize()


def finish(steps: list[Step], output: Path) -> None:
    """Run the steps with the packages of WHEELS, and end with the plan's exit code."""
    if not torch.cuda.is_available():
        refuse(f"this needs a GPU, and torch {torch.__version__} finds no CUDA device")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        refuse(f"{output}: {failure.strerror}")
    with tempfile.TemporaryDirectory() as packages:
        path = os.pathsep.join(filter(None, [packages, str(ROOT), os.environ.get("PYTHONPATH")]))
        raise typer.Exit(run_plan([*packages_steps(packages), *steps], SECONDS, output, {"PYTHONPATH": path}))


def packages_steps(folder: str) -> list[Step]:
    """Installs what is in WHEELS, if there is anything, into ``folder``."""
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
    return [Step("packages", [*install, *wheels], 40)] if wheels else []


def check_steps() -> list[Step]:
    """On an H200 with 16 cores all steps up to the trunk took four minutes together."""
    cuda, parity = "tests/kernels/backends/test_cuda.py", "tests/kernels/test_parity.py"
    blocks, proof = "tests/kernels/trunk/test_hopper_bottleneck.py", "tests/kernels/backends/test_proof.py"
    return [
        *build_steps(),
        test("long_walk", cuda, limit=60, only="long_walk", processes=6),
        benchmark("kernels", "--seconds", "1", limit=120),
        test("test_cuda", cuda, limit=120, only="not long_walk and not 2_to_the_31", processes=14),
        sanitizer("racecheck"),
        sanitizer("memcheck"),
        profile("profile", "stem", "stem_kernel", launches=1),
        profile("profile_blocks", "blocks", "bottleneck_kernel", launches=7),
        test("2_to_the_31", cuda, limit=60, only="2_to_the_31"),
        test("residual_blocks", blocks, limit=40, only="gpu"),
        benchmark("model", "--batch", "256", "--seconds", "3", "--only", "^(ours|eager) bfloat16$", limit=60),
        benchmark("trunk", "--seconds", "1", "--only", "^trunk$", limit=60),
        test("parity_uint8", parity, limit=200, least=60, only="triton and uint8", processes=14, after=()),
        test("proof", proof, limit=100, least=40, only="gpu", processes=14),
    ]


def rest_steps() -> list[Step]:
    stems = "^stem forward, uint8 .*, 256x3x256x256$|^training stem .*uint8 .*, 256x3x256x256$"
    others = "^conv forward.*bfloat16.*, 256x3x256x256$"
    graphs = ("tests/model/inference/test_cuda_graphs.py", "tests/benchmarks/harness/test_timing.py")
    return [
        *build_steps(),
        test("parity", "tests/kernels/test_parity.py", limit=200, only="triton", processes=14, after=()),
        benchmark("ops", "--seconds", "1", "--only", f"{stems}|{others}", limit=150),
        benchmark("train", "--seconds", "10", limit=70),
        benchmark("screening", "--seconds", "10", "--only", "JPEG (256|512|1024)", limit=70),
        test("test_cuda_graphs", *graphs, limit=60),
        test("test_screening", "tests/model/scoring/test_scorer.py", limit=60, only="gpu"),
    ]


def train_steps(data: Path, output: Path) -> list[Step]:
    """``npr train`` in TRAINING, a path that stays the same: a resumed run must find its images where they were."""
    source, target, python = (shlex.quote(str(path)) for path in (data, output, sys.executable))
    unpack = f"rm -rf {TRAINING} && mkdir {TRAINING} && tar -xf {source} -C {TRAINING}"
    which = "if [ -d run ]; then set -- --resume run; else set -- --config config.json --output run; fi"
    train = f'cd {TRAINING} && {which} && exec {python} -m npr_model.cli train "$@"'
    keep = f"cd {TRAINING}/run && cp *.safetensors config.json history.jsonl {target}"
    keep += f"; split -b {LARGEST_FILE} state.pt {target}/state.pt."
    return [
        *build_steps(),
        Step("unpack", ["bash", "-c", unpack], 60),
        Step("train", ["bash", "-c", train], 360, 60, ["unpack"]),
        Step("keep", ["bash", "-c", keep], 30, 0, ["unpack"]),
    ]


def build_steps() -> list[Step]:
    """What the machine is, and the extension for its GPU alone."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""
    about = "nvidia-smi; nproc; free -g; df -h . ; nvcc --version; exec {} -m npr_kernels.info"
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {"NPR_KERNELS_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": capability, "MAX_JOBS": "16"}
    return [
        Step("environment", ["bash", "-c", about.format(sys.executable)], 30),
        Step("build", build, 150, environment=environment),
    ]


def test(
    name: str,
    *paths: str,
    limit: float,
    least: float = 15,
    only: str = "",
    processes: int = 0,
    after: Sequence[str] = ("build",),
) -> Step:
    spread = ["-n", str(processes), "--dist", "loadgroup"] if processes else []
    chosen = ["-k", only] if only else []
    return Step(name, [*PYTEST, *spread, *paths, *chosen], limit, least, after, {"NPR_REQUIRE_CUDA": "1"})


def benchmark(name: str, *arguments: str, limit: float, least: float = 25) -> Step:
    """It runs without the build, too: Triton's kernels need none."""
    line = [sys.executable, "-m", f"benchmarks.{name}", "--device", "cuda", *arguments]
    return Step(name, line, limit, least, json=True)


def sanitizer(tool: str) -> Step:
    """Each tensor gets memory of its own, so that an access behind its end is one."""
    line = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    line += [sys.executable, "-m", "scripts.gpu.jobs", "walk"]
    return Step(tool, line, 60, 20, ["build"], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def profile(name: str, command: str, kernel: str, launches: int) -> Step:
    """Nsight Compute on a kernel, the second time that ``command`` launches it; the first time loads the code."""
    line = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    line += ["--kernel-name", f"regex:{kernel}", "--launch-skip", str(launches), "--launch-count", str(launches)]
    line += [argument for section in SECTIONS for argument in ("--section", section)]
    line += [sys.executable, "-m", "scripts.gpu.jobs", command]
    return Step(name, line, 60, 20, ["build"], {proof.ENVIRONMENT_VARIABLE: "0"}, counters=counters)


def counters(text: str) -> list[dict]:
    """One row a kernel launch with COUNTERS and stall reasons, from what ``ncu --csv --page raw`` prints: a line of
    names, one of units, and one for each launch. Other lines around them are skipped."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))[1:]
    wanted = {metric: name for name, metric in COUNTERS.items()}
    return [
        {"kernel": row["Kernel Name"]}
        | {wanted[metric]: number(row[metric]) for metric in wanted if metric in row}
        | {
            "stalled_" + metric.removeprefix(STALL).partition("_per_issue")[0]: number(value)
            for metric, value in row.items()
            if metric and metric.startswith(STALL)
        }
        for row in rows
    ]


def number(text: str) -> float | str:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


if __name__ == "__main__":
    app()
