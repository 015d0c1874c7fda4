"""Faults of a labelled set: files in both classes, classes of different formats, images that do not decode."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from npr_model.datasets.folders import CLASS_FOLDERS, FAKE, DatasetError, Sample, read
from npr_model.files import readable_name
from npr_model.imaging.errors import ImageError
from npr_model.imaging.views import check_cell

SHARES_DIFFER = 0.1  # if the classes differ by more, in format, size or quality, the accuracy can move by percents


class Contradictions:
    """Finds files with the same bytes in both classes: the label of one of them is wrong.

    As text, one line for a message; empty if there are none.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []  # names of a real and a generated file
        self._known: dict[bytes, tuple[int, str]] = {}

    def add(self, sha256: bytes, label: int, name: str) -> None:
        """Compare a file, given by the sha256 of its bytes, with all files before it."""
        known_label, known_name = self._known.setdefault(sha256, (label, name))
        if known_label != label:
            self.pairs.append((known_name, name) if label == FAKE else (name, known_name))

    def __str__(self) -> str:
        if not self.pairs:
            return ""
        real, fake = self.pairs[0]
        count = "1 file is" if len(self.pairs) == 1 else f"{len(self.pairs)} files are"
        return f"{count} in both classes, so one of the labels is wrong, e.g. {real} and {fake}"


def find_contradictions(samples: Iterable[Sample]) -> Contradictions:
    """Compare all files of ``samples``; only files of equal size in both classes are read. Unreadable ones are left."""
    sizes: dict[int, list[Sample]] = {}
    for sample in samples:
        with contextlib.suppress(OSError):
            sizes.setdefault(sample.path.stat().st_size, []).append(sample)
    contradictions = Contradictions()
    for candidates in sizes.values():
        if len({sample.label for sample in candidates}) < 2:
            continue
        for sample in candidates:
            with contextlib.suppress(OSError):
                digest = hashlib.sha256(sample.path.read_bytes()).digest()
                contradictions.add(digest, sample.label, readable_name(sample.path))
    return contradictions


@dataclass(frozen=True)
class Inspection:
    """Result of decoding every sample: the sorted names of the ``decoders``, and the file formats of each class."""

    decoders: tuple[str, ...]
    formats: dict[str, Counter[str]]

    def __str__(self) -> str:
        shares = {
            name: ", ".join(f"{count} {format}" for format, count in counts.most_common())
            for name, counts in self.formats.items()
        }
        return "; ".join(f"{name}: {share}" for name, share in shares.items())

    @property
    def classes_differ(self) -> bool:
        """Whether the classes differ in file format, see :func:`formats_differ`."""
        return formats_differ(*self.formats.values())


def formats_differ(real: Counter[str], fake: Counter[str]) -> bool:
    """Return whether a file format's share differs between the classes, given as counts, by over SHARES_DIFFER."""
    if not (real and fake):
        return False
    shares = [{format: count / counts.total() for format, count in counts.items()} for counts in (real, fake)]
    return any(abs(shares[0].get(format, 0) - shares[1].get(format, 0)) > SHARES_DIFFER for format in real | fake)


def inspect_samples(
    samples: Sequence[Sample],
    grid_size: int,
    workers: int,
    on_read: Callable[[int], None] = lambda count: None,
) -> Inspection:
    """Decode every sample once, so that bad files are found before hours of training.

    Args:
        samples: The images.
        grid_size: Images smaller than one cell of this side are bad, too.
        workers: Decoding threads.
        on_read: Called with the number of images read since the last call.

    Raises:
        DatasetError: Some images cannot be used; the message names the first ones.
    """

    def format_and_decoder(sample: Sample) -> tuple[str, str] | str:
        try:
            decoded = read(sample.path)
            check_cell(decoded.pixels, grid_size)
            return str(decoded.format), str(decoded.decoder)
        except ImageError as error:
            return f"{readable_name(sample.path)}: {error}"

    results: list[tuple[str, str]] = []
    problems: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for result in pool.map(format_and_decoder, samples):
            if isinstance(result, str):
                problems.append(result)
            else:
                results.append(result)
            on_read(1)
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise DatasetError(f"{len(problems)} of {len(samples)} images cannot be used; repair or remove them: {shown}")
    formats: dict[str, Counter[str]] = {name: Counter() for name in CLASS_FOLDERS}
    names = {label: name for name, label in CLASS_FOLDERS.items()}
    for sample, (format, _) in zip(samples, results, strict=True):
        formats[names[sample.label]][format] += 1
    return Inspection(tuple(sorted({decoder for _, decoder in results})), formats)
