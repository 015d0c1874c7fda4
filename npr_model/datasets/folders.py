"""Labelled images: folders named 0_real and 1_fake, at any depth, as in the paper's data sets.

``root/car/0_real/*.png``, ``root/0_real/**`` and ``root/biggan/1_fake/...`` all work. The first folder below the root
is the group (an object class or a generator). Class folders directly below the root have the root's name as their
group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from npr_model.errors import InputError, reason
from npr_model.files import is_folder, is_hidden, leads_back, natural_key, readable_name, walk_files
from npr_model.imaging.decode import DecodedImage, decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats.suffixes import is_image_name
from npr_model.imaging.headers import header_size

REAL, FAKE = 0, 1
CLASS_NAMES = {REAL: "real", FAKE: "generated"}
CLASS_FOLDERS = {"0_real": REAL, "1_fake": FAKE}

OnOther = Callable[[Path, str], None]


class DatasetError(InputError):
    """A folder of images that cannot be used."""


@dataclass(frozen=True)
class Sample:
    """One image file. ``label``: REAL (0) or FAKE (1). ``group``: the object class or generator."""

    path: Path
    label: int
    group: str


class LeftOut(dict[str, str]):
    """The files of a data set that are not used: the reason by name.

    As text, one line that counts them and names the first with each reason; empty if there are none.
    """

    def add(self, path: Path, why: str) -> None:
        self[readable_name(path)] = why

    def __str__(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, why in self.items():
            by_reason.setdefault(why, []).append(name)
        groups = []
        for why, names in by_reason.items():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            groups.append(f"{names[0]}{others} ({why})")
        count = "1 file was" if len(self) == 1 else f"{len(self)} files were"
        return f"{count} left out: {', '.join(groups)}" if self else ""


def find_samples(
    root: str | os.PathLike,
    classes: Mapping[str, int] = CLASS_FOLDERS,
    on_other: OnOther = lambda path, reason: None,
) -> list[Sample]:
    """Return all samples below ``root`` in natural order.

    The content of a file decides whether it is an image, not its name. Links to folders are followed.

    Args:
        root: Folder that holds class folders at any depth.
        classes: Labels by the names of the class folders.
        on_other: Called with each visible file in a class folder that is not a sample, and each image outside of the
            class folders, with the reason.

    Raises:
        DatasetError: There are no class folders, or no images in them.
    """
    root = Path(root)
    if not has_class_folders(root, classes):
        raise DatasetError(f"{readable_name(root)} has no folders named {' or '.join(classes)}")
    samples = list_samples(root, classes, on_other)
    if not samples:
        raise DatasetError(f"no images in the {' and '.join(classes)} folders of {readable_name(root)}")
    return samples


def list_samples(
    root: str | os.PathLike,
    classes: Mapping[str, int] = CLASS_FOLDERS,
    on_other: OnOther = lambda path, reason: None,
) -> list[Sample]:
    """As :func:`find_samples`, but returns an empty list where there is nothing."""
    root = Path(root)
    samples = []
    for folder in _class_folders(root, classes, on_other):
        inner = folder.relative_to(root).parts[:-1]
        group = inner[0] if inner else root.resolve().name
        samples += [Sample(path, classes[folder.name], group) for path in list_images(folder, root, on_other)]
    return samples


def find_reals(root: str | os.PathLike, on_other: OnOther = lambda path, reason: None) -> list[Sample]:
    """Return the images of a plain folder, or those below 0_real if it has class folders, labelled as real."""
    return _find_class(root, REAL, on_other)


def find_fakes(root: str | os.PathLike, on_other: OnOther = lambda path, reason: None) -> list[Sample]:
    """Return the images of a plain folder, or those below 1_fake if it has class folders, labelled as generated."""
    return _find_class(root, FAKE, on_other)


def has_class_folders(root: str | os.PathLike, classes: Mapping[str, int] = CLASS_FOLDERS) -> bool:
    """Return whether there are class folders below ``root``."""
    return any(_class_folders(Path(root), classes))


def _find_class(root: str | os.PathLike, label: int, on_other: OnOther) -> list[Sample]:
    root = Path(root)
    if has_class_folders(root):
        samples = [sample for sample in find_samples(root, on_other=on_other) if sample.label == label]
    else:
        samples = [Sample(path, label, root.resolve().name) for path in list_images(root, on_other=on_other)]
    if not samples:
        raise DatasetError(f"no {CLASS_NAMES[label]} images in {readable_name(root)}")
    return samples


def list_images(folder: Path, within: Path | None = None, on_other: OnOther = lambda path, reason: None) -> list[Path]:
    """Return the images below ``folder`` in natural order.

    A file without image suffix is one if its header is an image's. ``within``: as in
    :func:`npr_model.files.walk_files`. ``on_other`` is called with each other file and the reason. Raises DatasetError.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(f"folder {readable_name(error.filename)} cannot be listed: {reason(error)}") from error

    images = []
    for path in walk_files(folder, on_error=fail, within=within):
        if why := why_no_image(path):
            on_other(path, why)
        else:
            images.append(path)
    return images


def why_no_image(path: Path) -> str | None:
    """Return why a file is not an image that this program reads.

    None for an image, also a damaged one, and for every file with an image suffix: its errors are found when it is
    decoded.
    """
    if is_image_name(path.name):
        return None
    try:
        header_size(path)
    except ImageError as error:
        if error.code in ("not_an_image", "unsupported", "empty"):
            return str(error)
    return None


def _class_folders(
    root: Path, classes: Mapping[str, int], on_other: OnOther = lambda path, reason: None
) -> Iterator[Path]:
    """Yield the class folders below ``root`` in natural order. ``on_other`` is called with each image outside them."""
    if root.name in classes:
        raise DatasetError(f"{readable_name(root)} is a class folder: use the folder that holds it")
    pending = [root]
    while pending:
        folder = pending.pop()
        if folder.name in classes:
            yield folder
            continue
        below = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if not is_folder(entry):
                        if is_image_name(entry.name):
                            on_other(Path(entry.path), f"outside of the folders {' and '.join(classes)}")
                    elif not leads_back(entry.path, root):
                        below.append(folder / entry.name)
        except OSError as error:
            raise DatasetError(f"folder {readable_name(folder)} cannot be listed: {reason(error)}") from error
        pending += sorted(below, key=lambda path: natural_key(path.name), reverse=True)


def require_both_classes(samples: Iterable[Sample], what: str) -> None:
    """Raise DatasetError if ``samples`` has only one class; ``what`` names the samples in the message."""
    labels = {sample.label for sample in samples}
    for name, label in CLASS_FOLDERS.items():
        if label not in labels:
            raise DatasetError(f"{what} has no images in {name} folders, but both classes are needed")


def read(path: str | os.PathLike) -> DecodedImage:
    """Decode a file. Raises ImageError if it cannot be read or decoded."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read ({reason(error)})") from error
    return decode(data)
