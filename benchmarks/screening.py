"""``python -m benchmarks.screening``: files on disk to rows, against decoding or the network alone, and a plain loop.

End to end can be no faster than the slower of its two halves; the share of that is what the runner loses. With zeros in
the network's place the runner, which reads, hashes, decodes, describes and gathers, shows how fast it could feed a GPU.
The reference is what the authors' code does: Pillow in a DataLoader's workers, and the network in plain PyTorch.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import command, machine, peers
from benchmarks.harness import OURS, REFERENCE, Benchmark, Contender, Parity, run, table
from benchmarks.model import FLOAT32_LIMIT, needed_flops, random_detector, random_pixels
from npr_kernels.testing import allowed, error
from npr_model.checkpoints import LoadedCheckpoint, Metadata
from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.npr import NPRDetector
from npr_model.imaging.decode import decode
from npr_model.imaging.encode import encode_jpeg, encode_png, encode_webp
from npr_model.inference.freeze import freeze
from npr_model.inference.fused import default_dtype
from npr_model.screening.runner import Scorer
from npr_model.screening.sources import Sources

CASES = (("JPEG", 256, 64), ("JPEG", 512, 32), ("JPEG", 1024, 16), ("PNG", 512, 32), ("WEBP", 512, 32))
BATCH = {"cpu": 8, "cuda": 64}
MORE_FILES = {"cpu": 1, "cuda": 32}  # times as many
DECODING, NETWORK = f"{OURS}, decoding alone", f"{OURS}, network alone"
WITHOUT_NETWORK = f"{OURS}, without the network"


class Zeros(DetectorNetwork):
    """Scores nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 1, device=x.device)


class PlainFiles(Dataset):
    """Files as Pillow opens them, (3, H, W) uint8."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        pixels = np.array(Image.open(self.paths[number]).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def make_files(folder: Path, format: str, size: int, count: int) -> list[Path]:
    """Different images of smooth patches and noise: JPEG and WebP of quality 90."""
    encode = {
        "JPEG": functools.partial(encode_jpeg, quality=90),
        "WEBP": functools.partial(encode_webp, quality=90),
        "PNG": encode_png,
    }[format]
    paths = []
    for number, pixels in enumerate(random_pixels(count, size).permute(0, 2, 3, 1).numpy()):
        paths.append(folder / f"{number:04}.{format.lower()}")
        paths[-1].write_bytes(encode(pixels))
    return paths


def benchmark(
    detector: NPRDetector, format: str, paths: Sequence[Path], workers: int, device: torch.device
) -> Benchmark:
    """All files once: the logits in the order of ``paths``, or for decoding alone the pixels."""
    decoded = np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])
    pixels = torch.from_numpy(decoded).permute(0, 3, 1, 2)
    detector, dtype = detector.to(device), default_dtype(device)
    wide, plain, low = (
        peers.AuthorsDetector(detector, computed_in).to(device) for computed_in in (torch.float64, torch.float32, dtype)
    )

    def logits(network: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode():
            return torch.cat([network(batch.to(device, non_blocking=True)) for batch in batches]).cpu()

    batch_size = BATCH[device.type]
    parts = (pixels.pin_memory() if device.type == "cuda" else pixels).split(batch_size)
    truth = logits(wide, pixels[:16].split(2))  # float64 takes its time
    largest = truth.abs().max().item()
    limits = {
        computed_in: allowed(error(logits(network, pixels[:16].split(8)), truth), computed_in) * largest
        for computed_in, network in ((dtype, low), (torch.float32, plain))
    }
    limits[torch.float32] = max(FLOAT32_LIMIT, limits[torch.float32])

    def judge(result: Tensor | list, computed_in: torch.dtype) -> Parity:
        """Of logits, of all pixels, or of what the rows say of the sizes."""
        if isinstance(result, list):
            expected = decoded if isinstance(result[0], np.ndarray) else [decoded.shape[1:3]] * len(paths)
            wrong = sum(not np.array_equal(*pair) for pair in zip(result, expected, strict=False))
            return Parity(float(wrong + abs(len(result) - len(expected))), 0.0)
        return Parity(error(result[: len(truth)], truth) * largest, limits[computed_in])

    def plain_loop() -> Callable[[], Tensor]:
        network = peers.AuthorsDetector(detector).to(device)
        options = {"batch_size": batch_size, "num_workers": workers, "pin_memory": device.type == "cuda"}
        return lambda: logits(network, DataLoader(PlainFiles(paths), **options))

    def end_to_end(computed_in: torch.dtype) -> Callable[[], Tensor]:
        scorer = made_scorer(detector, computed_in)

        def call() -> Tensor:
            found = {row.source: row.logit for row in scorer.score(Sources(paths))}
            return torch.tensor([[found[str(path)]] for path in paths])

        return call

    def without_network() -> Callable[[], list[tuple[int, int]]]:
        scorer = made_scorer(Zeros(), dtype)
        return lambda: [(row.height, row.width) for row in scorer.score(Sources(paths)) if row.error is None]

    def made_scorer(network: nn.Module, computed_in: torch.dtype) -> Scorer:
        loaded = LoadedCheckpoint(network, Metadata(), "0" * 64, Path("random"))
        return Scorer(loaded, batch_size=batch_size, workers=workers, dtype=computed_in, device=device)

    def decoding() -> Callable[[], list[np.ndarray]]:
        def read(path: Path) -> np.ndarray:
            return decode(path.read_bytes()).pixels

        def call() -> list[np.ndarray]:
            with ThreadPoolExecutor(workers) as pool:
                return list(pool.map(read, paths))

        return call

    def network() -> Callable[[], Tensor]:
        frozen = freeze(detector, dtype)
        return lambda: logits(frozen, parts)

    contenders = [
        Contender(REFERENCE, plain_loop),
        Contender(OURS, lambda: end_to_end(dtype), dtype),
        Contender(f"{OURS} float32", lambda: end_to_end(torch.float32)),
        Contender(DECODING, decoding),
        Contender(WITHOUT_NETWORK, without_network),
        Contender(NETWORK, network, dtype),
    ]
    name = f"screening {len(paths)} {format} files of {decoded.shape[2]}x{decoded.shape[1]}"
    flops = needed_flops(peers.AuthorsDetector(detector).to(device), pixels[:1].to(device))
    return Benchmark(name, contenders, judge, len(paths) * flops)


def with_rates(rows: list[dict], count: int) -> list[dict]:
    """``rows`` of a case with images a second, and of end to end the share of the slower half's."""
    for row in rows:
        if row["median_ms"]:
            row["images_per_second"] = count / row["median_ms"] * 1e3
        if row["contender"] in (DECODING, WITHOUT_NETWORK):  # which do none of the operations
            row.update({name: None for name in ("gflops", "share_of_fma_peak", "share_of_bf16_peak") if name in row})
    rates = {row["contender"]: row.get("images_per_second") for row in rows}
    if rates[OURS] and rates[DECODING] and rates[NETWORK]:
        next(row for row in rows if row["contender"] == OURS)["share_of_slower_half"] = rates[OURS] / min(
            rates[DECODING], rates[NETWORK]
        )
    if rates[DECODING] and rates[WITHOUT_NETWORK]:
        next(row for row in rows if row["contender"] == WITHOUT_NETWORK)["share_of_decoding"] = (
            rates[WITHOUT_NETWORK] / rates[DECODING]
        )
    return rows


def earlier_rows(json_file: Path | None, described: dict) -> list[dict]:
    """Of a file that this kind of machine wrote."""
    try:
        found = json.loads(json_file.read_text()) if json_file else {}
    except ValueError:  # empty, or of something else
        return []
    same = ("cpu", "cpu_capability", "threads", "gpu")
    before = found.get("machine", {})
    return found["rows"] if all(before.get(name) == described.get(name) for name in same) and before else []


def main(
    device: command.Device = "cpu",
    json_file: command.JsonFile = None,
    seconds: command.Seconds = 30.0,
    workers: Annotated[int, typer.Option(min=0, help="Decoding threads, and the plain loop's processes.")] = 0,
    only: Annotated[
        str, typer.Option(help="Cases whose name has this in it, as in JPEG or 512; others stay in FILE as they are.")
    ] = "",
) -> None:
    """Screening end to end; fails if a logit or a pixel of ours is wrong."""
    target = command.checked_device(device)
    command.checked_json(json_file)
    console = Console(width=None if sys.stdout.isatty() else 160)
    described, rows, red = machine.describe(target), [], False
    earlier = earlier_rows(json_file, described)
    detector = random_detector()
    workers = workers or min(16, described["cores"])
    for format, size, count in CASES:
        if only not in f"{format} {size}":
            continue
        with tempfile.TemporaryDirectory() as name:
            count *= MORE_FILES[target.type]
            paths = make_files(Path(name), format, size, count)
            case = benchmark(detector, format, paths, workers, target)
            new = with_rates(run(case, described, target, seconds), count)
        console.print(table(new))
        for row in new:
            if "share_of_slower_half" in row:
                console.print(f"end to end: {row['share_of_slower_half']:.0%} of the slower of decoding and network")
            if "share_of_decoding" in row:
                console.print(f"without the network: {row['share_of_decoding']:.0%} of decoding alone")
            red |= row["parity"] == "red"
        rows += new
        if json_file:
            kept = [row for row in earlier if row["case"] not in {row["case"] for row in rows}]
            json_file.write_text(json.dumps({"machine": described, "rows": rows + kept}, indent=1) + "\n")
    if not rows:
        command.refuse(f"--only {only}: no case has that in its name")
    raise typer.Exit(1 if red else 0)


if __name__ == "__main__":
    typer.run(main)
