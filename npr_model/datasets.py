"""Labelled images: folders named 0_real and 1_fake, at any depth, as in the paper's data sets.

``root/car/0_real/*.png``, ``root/0_real/**`` and ``root/biggan/1_fake/...`` all work. The first folder below the root
is the group (an object class or a generator). Class folders directly below the root have the root's name as their
group.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from npr_model.errors import InputError, reason
from npr_model.files import natural_key, readable_name, walk_images
from npr_model.imaging.decode import DecodedImage, ImageError, decode
from npr_model.imaging.views import check_cell

REAL, FAKE = 0, 1
CLASS_NAMES = {REAL: "real", FAKE: "generated"}
CLASS_FOLDERS = {"0_real": REAL, "1_fake": FAKE}
FORMATS_DIFFER = 0.1  # if the shares of a format differ by this much, the accuracy can move by percents


class DatasetError(InputError):
    """A folder of images that cannot be used."""


@dataclass(frozen=True)
class Sample:
    """One image file. ``label``: REAL (0) or FAKE (1). ``group``: the object class or generator."""

    path: Path
    label: int
    group: str


def find_samples(root: str | os.PathLike, classes: Mapping[str, int] = CLASS_FOLDERS) -> list[Sample]:
    """Return all samples below ``root`` in natural order.

    Args:
        root: Folder that holds class folders at any depth.
        classes: Labels by the names of the class folders.

    Raises:
        DatasetError: There are no class folders, or no images in them.
    """
    root = Path(root)
    if not has_class_folders(root, classes):
        raise DatasetError(f"{readable_name(root)} has no folders named {' or '.join(classes)}")
    samples = list_samples(root, classes)
    if not samples:
        raise DatasetError(f"no images in the {' and '.join(classes)} folders of {readable_name(root)}")
    return samples


def list_samples(root: str | os.PathLike, classes: Mapping[str, int] = CLASS_FOLDERS) -> list[Sample]:
    """As :func:`find_samples`, but returns an empty list where there is nothing."""
    root = Path(root)
    samples = []
    for folder in _class_folders(root, root, classes):
        inner = folder.relative_to(root).parts[:-1]
        group = inner[0] if inner else root.resolve().name
        samples += [Sample(path, classes[folder.name], group) for path in _list_images(folder)]
    return samples


def find_reals(root: str | os.PathLike) -> list[Sample]:
    """Return the images of a plain folder, or those below 0_real if it has class folders, labelled as real."""
    return _find_class(root, REAL, "real")


def find_fakes(root: str | os.PathLike) -> list[Sample]:
    """Return the images of a plain folder, or those below 1_fake if it has class folders, labelled as generated."""
    return _find_class(root, FAKE, "generated")


def has_fakes(root: str | os.PathLike) -> bool:
    """Return whether there are 1_fake folders below ``root``."""
    root = Path(root)
    return any(CLASS_FOLDERS[folder.name] == FAKE for folder in _class_folders(root, root))


def has_class_folders(root: str | os.PathLike, classes: Mapping[str, int] = CLASS_FOLDERS) -> bool:
    """Return whether there are class folders below ``root``."""
    return any(_class_folders(Path(root), Path(root), classes))


def _find_class(root: str | os.PathLike, label: int, name: str) -> list[Sample]:
    root = Path(root)
    if has_class_folders(root):
        samples = [sample for sample in find_samples(root) if sample.label == label]
    else:
        samples = [Sample(path, label, root.resolve().name) for path in _list_images(root)]
    if not samples:
        raise DatasetError(f"no {name} images in {readable_name(root)}")
    return samples


def require_both_classes(samples: Iterable[Sample], what: str) -> None:
    """Raise DatasetError if ``samples`` has only one class; ``what`` names the samples in the message."""
    labels = {sample.label for sample in samples}
    for name, label in CLASS_FOLDERS.items():
        if label not in labels:
            raise DatasetError(f"{what} has no images in {name} folders, but both classes are needed")


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
    """Return whether a file format's share differs between the classes, given as counts, by over FORMATS_DIFFER."""
    if not (real and fake):
        return False
    shares = [{format: count / counts.total() for format, count in counts.items()} for counts in (real, fake)]
    return any(abs(shares[0].get(format, 0) - shares[1].get(format, 0)) > FORMATS_DIFFER for format in real | fake)


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
            return decoded.format, decoded.decoder
        except ImageError as error:
            return f"{readable_name(sample.path)}: {error}"

    results = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for result in pool.map(format_and_decoder, samples):
            results.append(result)
            on_read(1)
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise DatasetError(f"{len(problems)} of {len(samples)} images cannot be used; repair or remove them: {shown}")
    formats = {name: Counter() for name in CLASS_FOLDERS}
    names = {label: name for name, label in CLASS_FOLDERS.items()}
    for sample, (format, _) in zip(samples, results, strict=True):
        formats[names[sample.label]][format] += 1
    return Inspection(tuple(sorted({decoder for _, decoder in results})), formats)


def read(path: str | os.PathLike) -> DecodedImage:
    """Decode a file. Raises ImageError if it cannot be read or decoded."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read ({reason(error)})") from error
    return decode(data)


def _class_folders(folder: Path, root: Path, classes: Mapping[str, int] = CLASS_FOLDERS) -> Iterator[Path]:
    if folder == root and folder.name in classes:
        raise DatasetError(f"{readable_name(root)} is a class folder: use the folder that holds it")
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"folder {readable_name(folder)} cannot be listed: {reason(error)}") from error
    for name in sorted(names, key=natural_key):
        if name in classes:
            yield folder / name
        elif not (folder / name).is_symlink():
            yield from _class_folders(folder / name, root, classes)


def _list_images(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise DatasetError(f"folder {readable_name(error.filename)} cannot be listed: {reason(error)}") from error

    return list(walk_images(folder, on_error=fail))
