"""``python -m benchmarks.screening``: files on disk to rows, against decoding or the network alone, and a plain loop.

The reference is what the authors' code does: Pillow in a DataLoader's workers, and the network in plain PyTorch. A
whole run can be no faster than the slower of decoding and network; the share of that which it reaches is what screening
loses. Without its network, screening reads, hashes, decodes, describes and gathers: that is how fast it could feed a
GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import command, peers
from benchmarks.harness.inputs import as_checkpoint, make_files, random_detector
from benchmarks.harness.parity import Parity
from benchmarks.harness.rows import OURS, REFERENCE, Results
from benchmarks.harness.runner import Benchmark, Contender, run
from benchmarks.model import LogitJudge, Network, needed_flops
from npr_kernels.trunk import cpu_bottleneck
from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.npr import NPRDetector
from npr_model.imaging.decode import decode
from npr_model.imaging.views import View
from npr_model.inference import quantisation
from npr_model.inference.freeze import freeze
from npr_model.inference.fused import default_dtype
from npr_model.scoring.scorer import Scorer
from npr_model.screening.inputs.sources import Sources

SAMPLE = "sample:8x128"
CASES = (  # format, side of the images, number of files, view
    ("JPEG", 256, 64, "native"),
    ("JPEG", 512, 32, "native"),
    ("JPEG", 1024, 16, "native"),
    ("JPEG", 3464, 8, SAMPLE),  # 12 megapixels
    ("JPEG", 6928, 2, SAMPLE),  # 48 megapixels
    ("PNG", 512, 32, "native"),
    ("WEBP", 512, 32, "native"),
)
BATCH = {"cpu": 8, "cuda": 64}
MORE_FILES = {"cpu": 1, "cuda": 32}  # times as many
MOST_WORKERS = 16
JUDGED = 16  # images whose logits are compared with float64, which takes its time
DECODING, NETWORK = f"{OURS}, decoding alone", f"{OURS}, network alone"
WITHOUT_NETWORK = f"{OURS}, without the network"
OURS_INT8 = f"{OURS} int8"
PARTS = (DECODING, WITHOUT_NETWORK, NETWORK)  # of a run; a ratio to the whole plain loop would mean nothing
OPERATIONS = ("gflops", "share_of_fma_peak", "share_of_bf16_peak")


class Zeros(DetectorNetwork):
    """Gives every image the logit 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 1, device=x.device)


class PlainFiles(Dataset):
    """The parts of files as Pillow opens them, (P, 3, H, W) uint8."""

    def __init__(self, paths: Sequence[Path], view: View) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        pixels = np.array(Image.open(self.paths[number]).convert("RGB"))
        return torch.from_numpy(self.view.parts(pixels)).permute(0, 3, 1, 2)


class Job:
    """Screening of equally large files, whole and in parts."""

    def __init__(
        self, detector: NPRDetector, paths: Sequence[Path], view: View, workers: int, device: torch.device
    ) -> None:
        self.paths, self.view, self.workers, self.device = paths, view, workers, device
        self.detector, self.dtype = detector.to(device), default_dtype(device)
        self.batch_size = BATCH[device.type]
        self.decoded = np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])
        parts = [view.parts(pixels) for pixels in self.decoded]
        self.parts = len(parts[0])  # of each image
        self.pixels = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2)
        self.serves_int8 = device.type == "cpu" and cpu_bottleneck.unsupported_reason(torch.int8, 64) is None
        if self.serves_int8:  # scales for these pixels: a checkpoint's own are those of photographs
            few = self.pixels[: JUDGED * self.parts].split(1)
            self.detector.activation_steps = quantisation.measure_steps(self.detector, few)
        self._judge_logits = LogitJudge(self.detector, self.pixels[: JUDGED * self.parts], device, self.parts)

    # Each of these builds a call. Its result is the logits in the order of the files; of decoding alone it is the
    # pixels, and without the network the sizes of the images.

    def plain_loop(self) -> Callable[[], Tensor]:
        network = peers.AuthorsDetector(self.detector).to(self.device)
        options = {"batch_size": self.batch_size, "num_workers": self.workers, "pin_memory": self.device.type == "cuda"}
        return lambda: self._logits(network, DataLoader(PlainFiles(self.paths, self.view), **options))

    def end_to_end(self, dtype: torch.dtype) -> Callable[[], Tensor]:
        scorer = self._scorer(self.detector, dtype)

        def call() -> Tensor:
            logits = {row.source: row.logit for row in scorer.score(Sources(self.paths))}
            return torch.tensor([[logits[str(path)]] for path in self.paths])

        return call

    def without_network(self) -> Callable[[], list[tuple[int, int]]]:
        scorer = self._scorer(Zeros(), self.dtype)
        return lambda: [(row.height, row.width) for row in scorer.score(Sources(self.paths)) if row.error is None]

    def decoding(self) -> Callable[[], list[np.ndarray]]:
        def read(path: Path) -> np.ndarray:
            return decode(path.read_bytes()).pixels

        def call() -> list[np.ndarray]:
            with ThreadPoolExecutor(self.workers) as pool:
                return list(pool.map(read, self.paths))

        return call

    def network(self) -> Callable[[], Tensor]:
        frozen = freeze(self.detector, self.dtype)
        pixels = self.pixels.pin_memory() if self.device.type == "cuda" else self.pixels
        batches = pixels.split(self.batch_size)
        return lambda: self._logits(frozen, batches)

    def judge(self, result: Tensor | list, dtype: torch.dtype) -> Parity:
        """Judge logits by the rule; count the images whose pixels or sizes are wrong."""
        if isinstance(result, Tensor):
            return self._judge_logits(result[:JUDGED], dtype)
        sizes = [self.decoded.shape[1:3]] * len(self.paths)
        expected = self.decoded if isinstance(result[0], np.ndarray) else sizes
        wrong = sum(not np.array_equal(*pair) for pair in zip(result, expected, strict=False))
        return Parity(float(wrong + abs(len(result) - len(expected))), 0.0)

    def _logits(self, network: Network, batches: Sequence[Tensor] | DataLoader) -> Tensor:
        with torch.inference_mode():
            parts = (batch.flatten(0, -4).to(self.device, non_blocking=True) for batch in batches)
            return torch.cat([network(part) for part in parts]).view(-1, self.parts).mean(1, keepdim=True).cpu()

    def _scorer(self, network: DetectorNetwork, dtype: torch.dtype) -> Scorer:
        options = {"batch_size": self.batch_size, "workers": self.workers, "dtype": dtype, "device": self.device}
        return Scorer(as_checkpoint(network), view=self.view, **options)


def benchmark(
    detector: NPRDetector, format: str, paths: Sequence[Path], view: View, workers: int, device: torch.device
) -> Benchmark:
    """The case: all files once."""
    job = Job(detector, paths, view, workers, device)
    height, width = job.decoded.shape[1:3]
    contenders = [
        Contender(REFERENCE, job.plain_loop),
        Contender(OURS, lambda: job.end_to_end(job.dtype), job.dtype),
        Contender(f"{OURS} float32", lambda: job.end_to_end(torch.float32)),
        *([Contender(OURS_INT8, lambda: job.end_to_end(torch.int8), torch.int8)] if job.serves_int8 else []),
        Contender(DECODING, job.decoding),
        Contender(WITHOUT_NETWORK, job.without_network),
        Contender(NETWORK, job.network, job.dtype),
    ]
    flops = needed_flops(peers.AuthorsDetector(job.detector).to(device), job.pixels[:1].to(device))
    name = f"screening {len(paths)} {format} files of {width}x{height}"
    if view.kind != "native":
        name += f", view {view}"
    if detector.size != "paper":
        name += f", network {detector.size}"
    return Benchmark(name, contenders, job.judge, len(paths) * job.parts * flops)


def with_rates(rows: list[dict], count: int) -> list[dict]:
    """Add images per second to the ``rows`` of a case, and the shares that whole runs reach of their parts."""
    for row in rows:
        if row["median_ms"]:
            row["images_per_second"] = count / row["median_ms"] * 1e3
        if row["contender"] in PARTS:
            row["ratio_to_reference"] = None
        if row["contender"] in (DECODING, WITHOUT_NETWORK):  # which do none of the operations
            row.update({key: None for key in OPERATIONS if key in row})
    by_name = {row["contender"]: row for row in rows}
    rates = {name: row.get("images_per_second") for name, row in by_name.items()}
    if rates[OURS] and rates[DECODING] and rates[NETWORK]:
        by_name[OURS]["share_of_slower_half"] = rates[OURS] / min(rates[DECODING], rates[NETWORK])
    for name in (OURS, OURS_INT8, WITHOUT_NETWORK):
        if rates[DECODING] and rates.get(name):
            by_name[name]["share_of_decoding"] = rates[name] / rates[DECODING]
    return rows


def print_shares(results: Results, rows: list[dict]) -> None:
    for row in rows:
        if "share_of_slower_half" in row:
            results.console.print(f"whole run: {row['share_of_slower_half']:.0%} of the slower of decoding and network")
        if "share_of_decoding" in row:
            results.console.print(f"{row['contender']}: {row['share_of_decoding']:.0%} of decoding alone")


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 30.0,
    workers: command.Workers = 0,
    network: command.Network = "paper",
    only: command.Only = "",
) -> None:
    """Time screening from files to rows; fail if a logit or a pixel of ours is wrong. Case names: "JPEG 256"."""
    target = command.available(device)
    names = [f"{format} {size}" for format, size, _, _ in CASES]
    chosen = command.matching(only, names, "cases")
    results = command.start(target, json_file, only)
    detector = random_detector(network)
    workers = workers or min(MOST_WORKERS, results.machine["cores"])
    for name, (format, size, count, view) in zip(names, CASES, strict=True):
        if name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if view == "native":  # large images are too many bytes
                count *= MORE_FILES[device]
            paths = make_files(Path(folder), format, size, count)
            case = benchmark(detector, format, paths, View.parse(view), workers, target)
            rows = with_rates(run(case, results.machine, target, seconds, results.save), count)
        results.add(rows)
        print_shares(results, rows)
    raise typer.Exit(results.exit_code())


if __name__ == "__main__":
    typer.run(main)
