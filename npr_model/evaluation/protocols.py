"""The benchmark sets of Tan et al. (CVPR 2024, Tables 1 to 5), AIGCDetectBenchmark and GenImage.

A protocol says where the images of a set lie and with which view its published numbers were measured. The authors' test
code resizes to 256x256 without cropping, except for GANGen-Detection, which it reads unchanged. AIGCDetectBenchmark is
read image by image at its own size, odd edges trimmed. GenImage images smaller than 224 are repeated, then all are
cropped to 224.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from npr_model.datasets.folders import CLASS_FOLDERS, FAKE, REAL, DatasetError, LeftOut, Sample, list_samples
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
    classes: dict[str, int] = field(default_factory=lambda: CLASS_FOLDERS)
    part: str | None = None


@dataclass(frozen=True)
class BenchmarkSet:
    """The images of a protocol in a folder.

    Attributes:
        protocol: The protocol.
        samples: Images; their groups are the names of the sub-sets, in the protocol's order.
        missing: Sub-sets without a folder.
        unused: Folders that do not belong to the set.
        left_out: Files in the sub-sets' folders that are not used, with the reasons.
    """

    protocol: Protocol
    samples: tuple[Sample, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    left_out: LeftOut


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
    """Return a protocol by name, or all of the paper's for "paper". Raises InputError."""
    if name == PAPER:
        return [protocol for protocol in PROTOCOLS.values() if protocol.table is not None]
    if name not in PROTOCOLS:
        raise InputError(f"unknown benchmark {name!r}: use one of {', '.join((*PROTOCOLS, PAPER))}")
    return [PROTOCOLS[name]]


def find(protocol: Protocol, root: str | os.PathLike) -> BenchmarkSet:
    """Find the images of a protocol. A part named test is preferred.

    ``root`` is the folder of the set, or one that holds it. Raises DatasetError if no sub-set is there.
    """
    root = Path(root)
    benchmark = _first_in(protocol, [*_own_folders(protocol, root), root])
    if benchmark is None:
        names = ", ".join(subset.name for subset in protocol.subsets)
        raise DatasetError(f"{readable_name(root)} has no folder of {protocol.title}; its sub-sets are {names}")
    return benchmark


def find_all(protocols: Iterable[Protocol], root: str | os.PathLike) -> tuple[list[BenchmarkSet], list[Protocol]]:
    """Find several protocols, each in a folder of its own below ``root``; return those there and those absent.

    Raises DatasetError if none is there.
    """
    protocols = list(protocols)
    sets = {protocol.name: _first_in(protocol, _own_folders(protocol, Path(root))) for protocol in protocols}
    if not any(sets.values()):
        titles = ", ".join(protocol.title for protocol in protocols)
        raise DatasetError(f"{readable_name(root)} has none of the folders {titles}")
    return [one for one in sets.values() if one], [protocol for protocol in protocols if not sets[protocol.name]]


def _own_folders(protocol: Protocol, root: Path) -> list[Path]:
    """Folders named after the set. Archives often unpack to a folder inside another of the same name."""
    names = {_plain(name) for name in (protocol.name, protocol.title, *protocol.folders)}
    outer = [folder for folder in _folders(root) if _plain(folder.name) in names]
    inner = [folder for parent in outer for folder in _folders(parent) if _plain(folder.name) in names]
    return [*inner, *outer]


def _first_in(protocol: Protocol, folders: Iterable[Path]) -> BenchmarkSet | None:
    """Return the set in the first of ``folders`` that holds images of it."""
    for folder in folders:
        for candidate in (folder / "test", folder):
            benchmark = _read(protocol, candidate)
            if benchmark.samples:
                return benchmark
    return None


def _read(protocol: Protocol, root: Path) -> BenchmarkSet:
    """Return the set whose sub-sets are folders of ``root``, possibly without any image."""
    folders = {_plain(folder.name): folder for folder in reversed(_folders(root))}
    samples: list[Sample] = []
    missing, used, left_out = [], set(), LeftOut()
    for subset in protocol.subsets:
        own = [folders[name] for name in folders if name in subset.names()]
        used.update(own)
        members = [sample for folder in own for sample in _samples(protocol, folder, left_out)]
        if not members:
            missing.append(subset.name)
            continue
        if subset.reals in folders and not any(sample.label == REAL for sample in members):
            used.add(folders[subset.reals])
            neighbours = _samples(protocol, folders[subset.reals], left_out)
            members += [sample for sample in neighbours if sample.label == REAL]
        samples += [replace(sample, group=subset.name) for sample in members]
    unused = tuple(folder.name for folder in _folders(root) if folder not in used)
    return BenchmarkSet(protocol, tuple(samples), tuple(missing), unused, left_out)


def _samples(protocol: Protocol, folder: Path, left_out: LeftOut) -> list[Sample]:
    """Samples of a sub-set's folder; of its part only, if it has several."""
    parts = [protocol.part, f"*/{protocol.part}"] if protocol.part else []
    roots = [path for part in parts for path in sorted(folder.glob(part)) if path.is_dir()] or [folder]
    return [sample for root in roots for sample in list_samples(root, protocol.classes, left_out.add)]


def _folders(root: Path) -> list[Path]:
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DatasetError(f"folder {readable_name(root)} cannot be listed: {error.strerror}") from error
    return sorted(folders, key=lambda path: natural_key(path.name))


def _plain(name: str) -> str:
    """A folder's name without case and separators, which differ between copies of a set."""
    return "".join(character for character in name.casefold() if character.isalnum())
