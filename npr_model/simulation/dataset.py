"""Training sets made from photographs: pairs of a real image and a fake of it, in folders that training reads.

Files are ``output/<kind>/{0_real,1_fake}/NNNNNN.png``, below ``output/train`` and ``output/validation`` if a validation
part is split off. The split is by photograph, never by crop. To keep a detector from learning the wrong thing:

- Both classes come from the same crops, so scenes, cameras and scales agree. They go through the same codec at the same
  quality and size.
- Two in three crops are scaled down from a larger piece first. So JPEG traces, which photographs keep and fakes lose,
  do not mark photographs.
- One in five crops is enlarged by classical kernels before it becomes a real image or a fake. Both are sharpened,
  denoised or grained equally often at the end. So neither class is marked as resized or sharp.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npr_model.datasets.folders import CLASS_FOLDERS, FAKE, REAL
from npr_model.errors import reason
from npr_model.files import atomic_write, natural_key, readable_name
from npr_model.imaging.codecs import Codec
from npr_model.simulation import generators as packaged
from npr_model.simulation import history
from npr_model.simulation.generators import Generator
from npr_model.simulation.photographs import (
    TRAIN,
    VALIDATION,
    Photograph,
    SimulationError,
    cut,
    read,
    to_pixels,
    to_tensor,
)
from npr_model.simulation.simulator import Simulator


@dataclass(frozen=True)
class ManifestRow:
    """A row of manifest.csv: what was made from what.

    Attributes:
        number, part, kind: Identify the pair.
        real, fake: Paths below the data set.
        photograph: Source file.
        left, top, side: Piece of the photograph that was scaled to the crop size.
        family, up_sampling, scale: Of the generator; ``scale`` is the total up-sampling factor.
        strength, phase_top, phase_left: As in :class:`npr_model.simulation.simulator.Draw`.
        codec: What both images were written with.
        psnr: Between the two images before the codec, in dB.
    """

    number: int
    part: str
    kind: str
    real: str
    fake: str
    photograph: str
    left: int
    top: int
    side: int
    family: str
    up_sampling: str
    scale: int
    strength: float
    phase_top: int
    phase_left: int
    codec: str
    psnr: float


@dataclass(frozen=True)
class Task:
    """Pairs to make from one photograph, each as (number, kind)."""

    part: str
    photograph: Photograph
    pairs: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class DatasetWriter:
    """Makes pairs and writes them below ``output``.

    Attributes:
        output: The folder.
        simulator: Makes the fakes of its kinds.
        generators: Make the fakes of the kinds with their names.
        crop_size: Side of the images.
        codec: What both images are written with; a range is drawn from for each pair.
        real_variety: Whether some images of both classes are scaled, sharpened, denoised and grained.
        seed: Random seed; the result does not depend on ``workers``.
        workers: Threads.
    """

    output: Path
    simulator: Simulator | None = None
    generators: tuple[Generator, ...] = ()
    crop_size: int = 256
    codec: Codec = field(default_factory=Codec)
    real_variety: bool = True
    seed: int = 100
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.kinds:
            raise SimulationError("nothing makes fakes: there is no kind of up-sampling and no generator")
        check_sizes(self.crop_size, self.generators)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the folders: kinds of up-sampling, then generators."""
        simulated = self.simulator.kinds if self.simulator else ()
        return (*simulated, *(_folder_name(generator) for generator in self.generators))

    def write(
        self,
        parts: Mapping[str, Sequence[Photograph]],
        counts: Mapping[str, int],
        *,
        shares: Mapping[str, float] | None = None,
        problems: dict[str, str],
        on_pair: Callable[[ManifestRow], None] = lambda pair: None,
    ) -> dict[str, int]:
        """Write pairs.

        Args:
            parts: Photographs by part.
            counts: Number of pairs by part.
            shares: Share of each kind. Default: equal.
            problems: Photographs that cannot be decoded are added here, and their pairs are made from others.
            on_pair: Called after each pair.

        Returns:
            Number of pairs written by part; fewer than asked for if no photograph of a part can be decoded.

        Raises:
            SimulationError: The output is not empty, or no photograph can be decoded.

        manifest.csv gets its row as soon as a pair is on disk, so an interrupted run leaves a smaller data set.
        """
        prepare(self.output)
        written, first = dict.fromkeys(parts, 0), 0
        with (
            open(self.output / "manifest.csv", "w", encoding="utf-8", newline="") as file,
            ThreadPoolExecutor(max(1, self.workers), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            table = csv.DictWriter(file, [field.name for field in fields(ManifestRow)], lineterminator="\n")
            table.writeheader()
            try:
                for part, photographs in parts.items():
                    kinds = _allocate(self.kinds, counts[part], shares or {}, np.random.default_rng((self.seed, first)))
                    numbered = list(enumerate(kinds, first))
                    first += counts[part]
                    for pairs in self._rounds(pool, part, photographs, numbered, problems):
                        for pair in pairs:
                            table.writerow(asdict(pair))
                            written[part] += 1
                            on_pair(pair)
                        file.flush()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if not any(written.values()):
            raise SimulationError("none of the photographs can be decoded")
        return written

    def _rounds(
        self,
        pool: Executor,
        part: str,
        photographs: Sequence[Photograph],
        pairs: Sequence[tuple[int, str]],
        problems: dict[str, str],
    ) -> Iterator[list[ManifestRow]]:
        """Yield the pairs of each photograph of a part. Pairs of one that fails are given to others, in rounds."""
        pending, usable = list(pairs), list(photographs)
        while pending and usable:
            random = np.random.default_rng((self.seed, len(pending), len(usable)))
            tasks = self._assign(part, usable, pending, random)
            pending = []
            for task, made in zip(tasks, pool.map(lambda task: self._make_all(task, problems), tasks), strict=True):
                if made is None:
                    usable.remove(task.photograph)
                    pending += task.pairs
                else:
                    yield made

    def _assign(
        self,
        part: str,
        photographs: Sequence[Photograph],
        pairs: Sequence[tuple[int, str]],
        random: np.random.Generator,
    ) -> list[Task]:
        """Give each pair a photograph. Large ones get more, but at most eight times the share of a small one."""
        sides = np.array([min(photograph.width, photograph.height) for photograph in photographs], float)
        weights = np.clip(sides / self.crop_size, 1, 8)
        # Systematic sampling: each photograph gets its share to within one pair, so few pairs still use many
        # photographs.
        positions = (np.arange(len(pairs)) + random.random()) / len(pairs)
        order = random.permutation(len(photographs))
        chosen = order[np.searchsorted(np.cumsum(weights[order]) / weights.sum(), positions).clip(max=len(order) - 1)]
        tasks: dict[int, list[tuple[int, str]]] = {}
        for index, pair in zip(chosen.tolist(), pairs, strict=True):
            tasks.setdefault(index, []).append(pair)
        return [Task(part, photographs[index], tuple(own)) for index, own in tasks.items()]

    def _make_all(self, task: Task, problems: dict[str, str]) -> list[ManifestRow] | None:
        """Write the pairs of a task. None if the photograph cannot be decoded, which is added to ``problems``."""
        pixels = read(task.photograph, problems)
        if pixels is not None and min(pixels.shape[:2]) < self.crop_size:
            problems[readable_name(task.photograph.path)] = "smaller than a crop, though its header says otherwise"
            pixels = None
        if pixels is None:
            return None
        return [self._make(task, pixels, number, kind) for number, kind in task.pairs]

    @torch.no_grad()
    def _make(self, task: Task, pixels: np.ndarray, number: int, kind: str) -> ManifestRow:
        random = np.random.default_rng((self.seed, 1, number))
        draws = torch.Generator().manual_seed(int(random.integers(2**62)))
        crop, (left, top, side) = cut(pixels, self.crop_size, random, scale_down=self.real_variety)
        x = to_tensor(crop)
        if self.real_variety:
            x = history.enlarge(x, draws)
        fake, facts = self._fake(x, kind, draws, random)
        real = x
        if self.real_variety:
            real, fake = history.retouch(real, draws), history.retouch(fake, draws)
        real_pixels, fake_pixels = to_pixels(real), to_pixels(fake)
        codec = self.codec.draw(random)
        folder = Path(task.part) / kind
        paths = [
            self._write(folder / name, number, image, codec)
            for name, image in zip(CLASS_FOLDERS, (real_pixels, fake_pixels), strict=True)
        ]
        return ManifestRow(
            number=number,
            part=task.part,
            kind=kind,
            real=paths[REAL],
            fake=paths[FAKE],
            photograph=readable_name(task.photograph.path),
            left=left,
            top=top,
            side=side,
            codec=str(codec),
            psnr=_psnr(real_pixels, fake_pixels),
            **facts,
        )

    def _fake(self, x: Tensor, kind: str, draws: torch.Generator, random: np.random.Generator) -> tuple[Tensor, dict]:
        """Return a fake of (1, 3, S, S) and its facts for the manifest."""
        for generator in self.generators:
            if kind == _folder_name(generator):
                image = packaged.recreate(generator, x[0].permute(1, 2, 0).contiguous().numpy(), random)
                facts = {"family": generator.family, "up_sampling": generator.up_sampling, "scale": generator.scale}
                facts |= {"strength": 1.0, "phase_top": 0, "phase_left": 0}
                return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None], facts
        assert self.simulator is not None  # as the kind is that of a decoder
        draw = self.simulator.draw(draws, kind)
        decoder = self.simulator.decoders[draw.decoder]
        facts = {"family": "simulated", "up_sampling": kind, "scale": decoder.factor}
        facts |= {"strength": round(draw.strength, 4), "phase_top": draw.phase[0], "phase_left": draw.phase[1]}
        return self.simulator.apply(x.to(next(decoder.parameters()).device), draw).cpu(), facts

    def _write(self, folder: Path, number: int, pixels: np.ndarray, codec: Codec) -> str:
        """Write an image; returns its path below the output, with slashes."""
        path = folder / f"{number:06d}.{codec.suffix}"
        (self.output / folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output / path) as temporary:
            temporary.write_bytes(codec.encode(pixels))
        return path.as_posix()


def counts_by_part(count: int, validation_fraction: float, parts: Iterable[str]) -> dict[str, int]:
    """Divide a number of pairs among ``parts``, as :func:`npr_model.simulation.photographs.split` names them."""
    held_out = round(count * validation_fraction)
    counts = {"": count, TRAIN: count - held_out, VALIDATION: held_out}
    return {part: counts[part] for part in parts}


def check_sizes(crop_size: int, generators: Iterable[Generator]) -> None:
    """Raise SimulationError for a crop size that is too small or that a generator cannot make."""
    if crop_size < 32:
        raise SimulationError(f"the crop size must be at least 32, got {crop_size}")
    for generator in generators:
        multiple = generator.scale * generator.multiple
        if crop_size % multiple:
            raise SimulationError(
                f"generator {generator.name} needs a crop size that is a multiple of {multiple}, got {crop_size}"
            )


def require_apart(output: Path, paths: Iterable[Path]) -> None:
    """Raise SimulationError for an output inside a folder of photographs, where it would be read as photographs."""
    for path in paths:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise SimulationError(f"output folder {output} is inside the photographs' folder {path}; choose another")


def prepare(output: Path) -> None:
    """Create the output folder. Raises SimulationError if it holds anything but decoders or cannot be created."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        used = next((path for path in output.iterdir() if path.suffix != ".safetensors"), None)
    except OSError as error:
        raise SimulationError(f"output folder {output} cannot be used: {reason(error)}") from error
    if used:
        raise SimulationError(f"output folder {output} already holds {used.name}; choose another")


def _allocate(kinds: Sequence[str], count: int, shares: Mapping[str, float], random: np.random.Generator) -> list[str]:
    """Return ``count`` kinds in random order, each as close to its share as whole numbers allow."""
    weights = np.array([shares.get(kind, 0.0 if shares else 1.0) for kind in kinds])
    edges = np.round(np.cumsum(weights) / weights.sum() * count).astype(int)
    numbers = np.diff(edges, prepend=0)
    return random.permutation(np.repeat(kinds, numbers)).tolist()


def _folder_name(generator: Generator) -> str:
    return generator.name.replace("/", "-")


def _psnr(real: np.ndarray, fake: np.ndarray) -> float:
    error = np.square(real.astype(float) - fake.astype(float)).mean()
    return round(10 * math.log10(255**2 / error), 2) if error else math.inf


def write_skipped(output: Path, problems: Mapping[str, str]) -> Path:
    """Write skipped.csv: the photographs that were not used, and why."""
    path = output / "skipped.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["photograph", "reason"])
        table.writerows((name, problems[name]) for name in sorted(problems, key=natural_key))
    return path
