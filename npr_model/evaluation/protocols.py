"""The benchmark sets of Tan et al. (CVPR 2024, Tables 1 to 5), AIGCDetectBenchmark and GenImage: where their images lie
and which pixels of them a published number was measured on.

The view is part of a protocol. The authors' test code resizes to 256x256 without cropping, but for GANGen-Detection,
which it reads as it is; AIGCDetectBenchmark is read image by image at its own size, odd edges trimmed, and GenImage
repeated where it is smaller than 224 and cropped to that.
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
    """One generator: ``name`` as the paper's tables have it, ``folders`` the names it goes by on disks.

    ``reals``: a folder beside it whose real images serve where its own folder has none.
    """

    name: str
    folders: tuple[str, ...] = ()
    reals: str | None = None

    def names(self) -> frozenset[str]:
        """All its folder names, as :func:`_plain` writes them."""
        return frozenset(map(_plain, (self.name, *self.folders)))


@dataclass(frozen=True)
class Protocol:
    """A benchmark set. ``table``: the paper's, 1 to 5, None where the paper does not have the set.

    ``folders``: names of the set's own folder, beside ``title``. ``classes``: folder names of the two classes.
    ``part``: the folder to stay in where a generator's folder holds several parts (GenImage has train and val).
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
    """What a protocol finds on a disk: ``samples`` whose groups are sub-sets' names, in the protocol's order;
    ``missing``: sub-sets without a folder; ``unused``: folders that the protocol does not have."""

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
            # The set's authors ship the real images apart: ImageNet's for ADM, LAION's for all others.
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
PAPER = "paper"  # the five sets of Tables 1 to 5 in one folder


def choose(name: str) -> list[Protocol]:
    """A protocol by its name, in any case; all of the paper's by "paper". Raises InputError."""
    if name.lower() == PAPER:
        return [protocol for protocol in PROTOCOLS.values() if protocol.table is not None]
    if name.lower() not in PROTOCOLS:
        close = difflib.get_close_matches(name.lower(), (*PROTOCOLS, PAPER), 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join((*PROTOCOLS, PAPER))}"
        raise InputError(f"there is no preset {name!r}; {hint}")
    return [PROTOCOLS[name.lower()]]


def find(protocol: Protocol, root: str | os.PathLike) -> Found:
    """The protocol's images: ``root`` is the set's own folder, or one that holds it; its part named test comes first.

    Raises DatasetError where no sub-set is there.
    """
    root = Path(root)
    found = _first_found(protocol, [*_own_folders(protocol, root), root])
    if found is None:
        names = ", ".join(subset.name for subset in protocol.subsets)
        raise DatasetError(f"{readable_name(root)} has no folder of {protocol.title}; its sub-sets are {names}")
    return found


def find_all(protocols: Iterable[Protocol], root: str | os.PathLike) -> tuple[list[Found], list[Protocol]]:
    """Of several protocols, whose sets lie in folders of their own below ``root``: those found, and those that are not.

    Raises DatasetError where none is there.
    """
    protocols = list(protocols)
    found = {protocol.name: _first_found(protocol, _own_folders(protocol, Path(root))) for protocol in protocols}
    if not any(found.values()):
        titles = ", ".join(protocol.title for protocol in protocols)
        raise DatasetError(f"{readable_name(root)} has none of the folders {titles}")
    return [one for one in found.values() if one], [protocol for protocol in protocols if not found[protocol.name]]


def _own_folders(protocol: Protocol, root: Path) -> list[Path]:
    """Folders named after the set; an archive often unpacks to one inside another of the same name."""
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
    """Of a sub-set's folder; of its part alone where there are several."""
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
    """A folder's name without what differs between copies of a set: case, and the characters between words."""
    return "".join(character for character in name.casefold() if character.isalnum())
