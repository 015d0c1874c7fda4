"""The benchmark sets of Tan et al. (CVPR 2024, Tables 1 to 5), AIGCDetectBenchmark and GenImage.

A protocol says where the images of a set lie and with which view its published numbers were measured. The authors' test
code resizes to 256x256 without cropping, except for GANGen-Detection, which it reads unchanged. AIGCDetectBenchmark is
read image by image at its own size, odd edges trimmed. GenImage images smaller than 224 are repeated, then all are
cropped to 224.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from npr_model import datasets
from npr_model.datasets import FAKE, REAL, DatasetError, Sample
from npr_model.errors import InputError
from npr_model.files import natural_key, readable_name

GENIMAGE_CLASSES = {"nature": REAL, "ai": FAKE}


@dataclass(frozen=True)
class Subset:
    """One generator of a set.

    Attributes:
        name: As in the paper's tables.
        folders: Other names of its folder.
        reals: Neighbouring folder whose real images are used if its own folder has none.
    """

    name: str
    folders: tuple[str, ...] = ()
    reals: str | None = None

    def names(self) -> frozenset[str]:
        """Return all names of its folder, in the form of :func:`_plain`."""
        return frozenset(map(_plain, (self.name, *self.folders)))


@dataclass(frozen=True)
class Protocol:
    """A benchmark set.

    Attributes:
        name, title: For the command line, and for people.
        view: View of the published numbers.
        subsets: Its generators.
        table: Table of the paper, 1 to 5; None if the paper does not have the set.
        folders: Names of its folder besides ``title``.
        classes: Names of the two class folders, with their labels.
        part: Folder to use if a generator's folder has several parts (GenImage has train and val).
    """

    name: str
    title: str
    view: str
    subsets: tuple[Subset, ...]
    table: int | None = None
    folders: tuple[str, ...] = ()
    classes: dict[str, int] = field(default_factory=lambda: datasets.CLASS_FOLDERS)
    part: str | None = None


@dataclass(frozen=True)
class Found:
    """What a protocol finds on a disk.

    Attributes:
        protocol: The protocol.
        samples: Images; their groups are the names of the sub-sets, in the protocol's order.
        missing: Sub-sets without a folder.
        unused: Folders that do not belong to the set.
    """

    protocol: Protocol
    samples: tuple[Sample, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def _subsets(*names: str) -> tuple[Subset, ...]:
    return tuple(Subset(name) for name in names)


_DALLE_2 = Subset("DALLE 2", ("dalle2",))
_SD_1_4 = Subset("Stable Diffusion v1.4", ("stable_diffusion_v_1_4", "sdv1.4", "imagenet_ai_0419_sdv4"))
_SD_1_5 = Subset("Stable Diffusion v1.5", ("stable_diffusion_v_1_5", "sdv1.5", "imagenet_ai_0424_sdv5"))

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "forensynths",
            "ForenSynths",
            "resize:256",
            _subsets("ProGAN", "StyleGAN", "StyleGAN2", "BigGAN", "CycleGAN", "StarGAN", "GauGAN", "Deepfake"),
            table=1,
            folders=("CNN_synth_testset",),
        ),
        Protocol(
            "gangen-detection",
            "GANGen-Detection",
            "native",
            _subsets("AttGAN", "BEGAN", "CramerGAN", "InfoMaxGAN", "MMDGAN", "RelGAN", "S3GAN", "SNGAN", "STGAN"),
            table=2,
        ),
        Protocol(
            "diffusionforensics",
            "DiffusionForensics",
            "resize:256",
            (
                Subset("ADM", ("guided-diffusion", "guided")),
                Subset("DDPM"),
                Subset("IDDPM", ("improved-diffusion",)),
                Subset("LDM"),
                Subset("PNDM"),
                Subset("VQ-Diffusion", ("vqdiffusion",)),
                Subset("Stable Diffusion v1", ("sdv1", "sdv1_new", "stable-diffusion-v1")),
                Subset("Stable Diffusion v2", ("sdv2", "stable-diffusion-v2")),
            ),
            table=3,
        ),
        Protocol(
            "universalfakedetect",
            "UniversalFakeDetect",
            "resize:256",
            # The set has separate folders of real images: ImageNet's for ADM, LAION's for all others.
            (
                Subset("DALLE", ("dalle-mini",), reals="laion"),
                Subset("Glide_100_10", reals="laion"),
                Subset("Glide_100_27", reals="laion"),
                Subset("Glide_50_27", reals="laion"),
                Subset("ADM", ("guided", "guided-diffusion"), reals="imagenet"),
                Subset("LDM_100", reals="laion"),
                Subset("LDM_200", reals="laion"),
                Subset("LDM_200_cfg", reals="laion"),
            ),
            table=4,
            folders=("diffusion_datasets",),
        ),
        Protocol(
            "diffusion1kstep",
            "Diffusion1kStep",
            "resize:256",
            (
                Subset("ADM", ("guided-diffusion", "guided")),
                Subset("DDPM"),
                Subset("IDDPM", ("improved-diffusion",)),
                Subset("Midjourney"),
                Subset("DALLE"),
            ),
            table=5,
        ),
        Protocol(
            "aigcdetectbenchmark",
            "AIGCDetectBenchmark",
            "native",
            (
                *_subsets("ProGAN", "StyleGAN", "BigGAN", "CycleGAN", "StarGAN", "GauGAN", "StyleGAN2"),
                Subset("WhichFaceIsReal"),
                *_subsets("ADM", "Glide", "Midjourney"),
                _SD_1_4,
                _SD_1_5,
                Subset("VQDM"),
                Subset("Wukong"),
                _DALLE_2,
            ),
            folders=("AIGCDetect_testset", "AIGCDetect"),
        ),
        Protocol(
            "genimage",
            "GenImage",
            "tile:224",
            (
                Subset("Midjourney", ("imagenet_midjourney",)),
                _SD_1_4,
                _SD_1_5,
                Subset("ADM", ("imagenet_ai_0508_adm",)),
                Subset("GLIDE", ("imagenet_glide",)),
                Subset("Wukong", ("imagenet_ai_0424_wukong",)),
                Subset("VQDM", ("imagenet_ai_0419_vqdm",)),
                Subset("BigGAN", ("imagenet_ai_0419_biggan",)),
            ),
            classes=GENIMAGE_CLASSES,
            part="val",
        ),
    )
}
PAPER = "paper"  # the five sets of Tables 1 to 5, in one folder


def choose(name: str) -> list[Protocol]:
    """Return a protocol by name, in any case, or all of the paper's for "paper". Raises InputError."""
    if name.lower() == PAPER:
        return [protocol for protocol in PROTOCOLS.values() if protocol.table is not None]
    if name.lower() not in PROTOCOLS:
        close = difflib.get_close_matches(name.lower(), (*PROTOCOLS, PAPER), 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join((*PROTOCOLS, PAPER))}"
        raise InputError(f"unknown benchmark {name!r}: {hint}")
    return [PROTOCOLS[name.lower()]]


def find(protocol: Protocol, root: str | os.PathLike) -> Found:
    """Find the images of a protocol. A part named test is preferred.

    ``root`` is the folder of the set, or one that holds it. Raises DatasetError if no sub-set is there.
    """
    root = Path(root)
    found = _first_found(protocol, [*_own_folders(protocol, root), root])
    if found is None:
        names = ", ".join(subset.name for subset in protocol.subsets)
        raise DatasetError(f"{readable_name(root)} has no folder of {protocol.title}; its sub-sets are {names}")
    return found


def find_all(protocols: Iterable[Protocol], root: str | os.PathLike) -> tuple[list[Found], list[Protocol]]:
    """Find several protocols, each in a folder of its own below ``root``; return those found and those absent.

    Raises DatasetError if none is there.
    """
    protocols = list(protocols)
    found = {protocol.name: _first_found(protocol, _own_folders(protocol, Path(root))) for protocol in protocols}
    if not any(found.values()):
        titles = ", ".join(protocol.title for protocol in protocols)
        raise DatasetError(f"{readable_name(root)} has none of the folders {titles}")
    return [one for one in found.values() if one], [protocol for protocol in protocols if not found[protocol.name]]


def _own_folders(protocol: Protocol, root: Path) -> list[Path]:
    """Folders named after the set. Archives often unpack to a folder inside another of the same name."""
    names = {_plain(name) for name in (protocol.name, protocol.title, *protocol.folders)}
    outer = [folder for folder in _folders(root) if _plain(folder.name) in names]
    inner = [folder for parent in outer for folder in _folders(parent) if _plain(folder.name) in names]
    return [*inner, *outer]


def _first_found(protocol: Protocol, folders: Iterable[Path]) -> Found | None:
    for folder in folders:
        for candidate in (folder / "test", folder):
            found = _find(protocol, candidate)
            if found.samples:
                return found
    return None


def _find(protocol: Protocol, root: Path) -> Found:
    folders = {_plain(folder.name): folder for folder in reversed(_folders(root))}
    samples: list[Sample] = []
    missing, used = [], set()
    for subset in protocol.subsets:
        own = [folders[name] for name in folders if name in subset.names()]
        used.update(own)
        found = [sample for folder in own for sample in _samples(protocol, folder)]
        if not found:
            missing.append(subset.name)
            continue
        if subset.reals in folders and not any(sample.label == REAL for sample in found):
            used.add(folders[subset.reals])
            found += [s for s in _samples(protocol, folders[subset.reals]) if s.label == REAL]
        samples += [replace(sample, group=subset.name) for sample in found]
    unused = tuple(folder.name for folder in _folders(root) if folder not in used)
    return Found(protocol, tuple(samples), tuple(missing), unused)


def _samples(protocol: Protocol, folder: Path) -> list[Sample]:
    """Samples of a sub-set's folder; of its part only, if it has several."""
    parts = [protocol.part, f"*/{protocol.part}"] if protocol.part else []
    roots = [path for part in parts for path in sorted(folder.glob(part)) if path.is_dir()] or [folder]
    return [sample for root in roots for sample in datasets.list_samples(root, protocol.classes)]


def _folders(root: Path) -> list[Path]:
    try:
        found = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DatasetError(f"folder {readable_name(root)} cannot be listed: {error.strerror}") from error
    return sorted(found, key=lambda path: natural_key(path.name))


def _plain(name: str) -> str:
    """A folder's name without case and separators, which differ between copies of a set."""
    return "".join(character for character in name.casefold() if character.isalnum())
