"""Checkpoints: safetensors files with metadata, weights-only .pth files, and the bundled ones by name.

Files from outside are not trusted: nothing in them is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from npr_model import defaults
from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.detectors.cascade import Cascade
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.ojha import Ojha
from npr_model.detectors.pair import Pair
from npr_model.errors import InputError, reason
from npr_model.files import atomic_write, natural_key
from npr_model.imaging.formats.signatures import is_lfs_pointer
from npr_model.imaging.views import View
from npr_model.verdicts import Calibration, OperatingPoint

FORMAT_VERSION = 1
DEFAULT = defaults.CHECKPOINT
WEIGHTS = Path(__file__).parent / "weights"

_HEADER_KEY = "npr_model"  # our key in the safetensors header; its value is JSON
_STEPS = "activation_steps."  # prefix of the names of these tensors
_WHOLE_RESNET = frozenset(("layer4.2.conv3.weight", "fc.weight"))  # in CNNDetection's .pth files, without metadata
_DIGEST = 12  # digits of a sha256 that name a file
_NAMED = 3  # names that an error message lists
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged or unsafe, or that does not fit its network."""


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself. A .pth file has no metadata and gets these defaults: the authors' network."""

    name: str = ""
    detector: str = "npr"
    architecture: Mapping[str, Any] = field(default_factory=dict)  # arguments of the network; {} for its defaults
    view: View = field(default_factory=lambda: View("native"))
    decoder: str = ""
    classes: tuple[str, str] = ("real", "generated")
    training_data: str = ""
    calibration: Calibration | None = None
    licence: str = ""
    training: dict[str, Any] | None = None  # the training's config, without its folders

    def to_json(self) -> str:
        """Return one JSON object: format_version, architecture, and the other fields."""
        values = vars(self) | {"view": str(self.view)}
        if self.calibration is not None:
            values["calibration"] = _as_values(self.calibration)
        architecture = {"detector": values.pop("detector"), **values.pop("architecture")}
        return json.dumps({"format_version": FORMAT_VERSION, "architecture": architecture} | values)

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Inverse of :meth:`to_json`. Ignores unknown keys. Raises ValueError, TypeError or KeyError."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        version = values["format_version"]
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(f"format version {version!r}, but this program reads up to {FORMAT_VERSION}")
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        # JSON has no tuples.
        architecture = {n: tuple(v) if isinstance(v, list) else v for n, v in values["architecture"].items()}
        known |= {"detector": architecture.pop("detector", "npr"), "architecture": architecture}
        if "view" in known:
            known["view"] = View.parse(str(known["view"]))
        if "classes" in known:
            known["classes"] = tuple(known["classes"])
        if known.get("calibration") is not None:
            known["calibration"] = _calibration(known["calibration"])
        return cls(**known)

    def network(self, backend: str | None = None) -> DetectorNetwork:
        """Return a network of this architecture with random weights. ``backend`` is for NPR only. Raises InputError."""
        kind = detector_class(self.detector)
        if unknown := sorted(self.architecture.keys() - set(kind.architecture)):
            raise InputError(f"the detector {self.detector} has no {', '.join(unknown)}")
        network = kind(**self.architecture)
        network.backend = backend
        return network


def _as_values(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON values."""
    points = [dataclasses.asdict(point) for point in calibration.points]
    conditions = {name: _as_values(own) for name, own in calibration.conditions.items()}
    return vars(calibration) | {"points": points, "conditions": conditions}


def _calibration(values: dict[str, Any]) -> Calibration:
    """Return a calibration from its JSON values."""
    points = tuple(OperatingPoint(**point) for point in values.get("points", ()))
    conditions = {name: _calibration(own) for name, own in values.get("conditions", {}).items()}
    return Calibration(**values | {"points": points, "conditions": conditions})


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory: ``model`` in evaluation mode on the CPU, and the sha256 of the file, in hex."""

    model: DetectorNetwork
    metadata: Metadata
    sha256: str
    path: Path

    @property
    def model_id(self) -> str:
        """The name in result rows: the checkpoint's (or file's) name and the first 12 digits of its sha256."""
        return f"{self.metadata.name or self.path.stem}@{self.sha256[:_DIGEST]}"


def available() -> list[str]:
    """Return the names of the bundled checkpoints."""
    return sorted((path.stem for path in WEIGHTS.glob("*.safetensors")), key=natural_key)


def find(name_or_path: str | os.PathLike) -> Path:
    """Return the file of a bundled checkpoint or of a path. Raises CheckpointError, which lists the bundled names."""
    path = Path(name_or_path)
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder, not a .safetensors or .pth file")
    if path.is_file():
        return path
    text = os.fspath(name_or_path)
    bundled = WEIGHTS / f"{text}.safetensors"
    if path.name == text and bundled.is_file():
        return bundled
    if path.name == text and not path.suffix:
        names = ", ".join(available()) or "none"
        raise CheckpointError(f"there is no checkpoint {text!r}; bundled: {names}; or give the path of a file")
    raise CheckpointError(f"checkpoint {text} does not exist")


def load(name_or_path: str | os.PathLike = DEFAULT, *, backend: str | None = None) -> LoadedCheckpoint:
    """Load a checkpoint.

    Args:
        name_or_path: Name of a bundled checkpoint, or path of a .safetensors or .pth file. A .pth file is a state dict
            in the layout of NPR's authors or of CNNDetection, bare or under the key ``model``, with or without the
            prefix ``module.``; it is read weights-only.
        backend: Backend of npr_kernels for NPR. Default: the best available.

    Raises:
        CheckpointError: The file cannot be read, or its names and shapes do not all match the network
            (``strict=True``).
    """
    path = find(name_or_path)
    data = _bytes(path)
    if not data:
        raise CheckpointError(f"checkpoint {path} is empty")
    if is_lfs_pointer(data):
        raise CheckpointError(f"checkpoint {path} is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    state, metadata = (_read_safetensors if path.suffix == ".safetensors" else _read_pickle)(path, data)
    try:
        joined = {Pair.detector: _pair, Cascade.detector: _cascade}.get(metadata.detector)
        model = joined(path, metadata, backend) if joined else metadata.network(backend)
    except CheckpointError:
        raise
    except (InputError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"checkpoint {path} has a bad architecture in its metadata: {reason(error)}") from error
    steps = {name: state.pop(name) for name in list(state) if name.startswith(_STEPS)}
    _check(path, state, model.state_dict())
    model.load_state_dict(state, strict=True)
    if steps:
        try:
            model.set_activation_steps({name.removeprefix(_STEPS): step for name, step in steps.items()})
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} does not fit this network: {error}") from error
    return LoadedCheckpoint(model.eval(), metadata, hashlib.sha256(data).hexdigest(), path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason(error)}") from error


def _pair(path: Path, metadata: Metadata, backend: str | None) -> Pair:
    """Return the pair of a checkpoint that names its parts, with new weights of its own. Raises CheckpointError."""
    npr, clip = _parts(path, metadata, backend, Pair.architecture)
    if not isinstance(npr, NPRDetector) or not isinstance(clip, Ojha):
        raise CheckpointError(f"checkpoint {path} joins {npr.detector} and {clip.detector}, not npr and ojha")
    return Pair(npr, clip, **metadata.architecture)


def _cascade(path: Path, metadata: Metadata, backend: str | None) -> Cascade:
    """Return the cascade of a checkpoint that names its parts. Raises CheckpointError."""
    first, second = _parts(path, metadata, backend, ("first_checkpoint", "second_checkpoint"))
    if not isinstance(first, NPRDetector) or not isinstance(second, NPRDetector):
        raise CheckpointError(f"checkpoint {path} joins {first.detector} and {second.detector}, not npr and npr")
    return Cascade(first, second, **metadata.architecture)


def _parts(path: Path, metadata: Metadata, backend: str | None, names: Iterable[str]) -> Iterator[DetectorNetwork]:
    """Return the networks whose checkpoints the architecture names. Raises CheckpointError."""
    return (_part(path, str(metadata.architecture.get(name, "")), backend) for name in names)


def _part(path: Path, named: str, backend: str | None) -> DetectorNetwork:
    """Return the network of name@digest: a file beside ``path``, or a bundled checkpoint. Raises CheckpointError.

    The digest is checked before the file is loaded, so that no chain of files leads back to its beginning.
    """
    name, _, digest = named.partition("@")
    if not name or Path(name).name != name or len(digest) != _DIGEST:
        raise CheckpointError(f"checkpoint {path} names {named!r} as its part; name@digest is needed")
    beside = path.with_name(f"{name}.safetensors")
    file = beside if beside.is_file() else find(name)
    if not hashlib.sha256(_bytes(file)).hexdigest().startswith(digest):
        raise CheckpointError(f"checkpoint {path} needs {named}, but {file} is another file of this name")
    return load(file, backend=backend).model


def save(path: str | os.PathLike, model: DetectorNetwork, metadata: Metadata) -> None:
    """Write a .safetensors file in one step. The architecture is taken from ``model``. Raises CheckpointError."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"checkpoints are written as .safetensors files, not {path.name}")
    architecture = {name: getattr(model, name) for name in model.architecture}
    metadata = dataclasses.replace(metadata, detector=model.detector, architecture=architecture)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    state |= {_STEPS + name: step.cpu().contiguous() for name, step in model.activation_steps.items()}
    data = safetensors.torch.save(state, metadata={_HEADER_KEY: metadata.to_json()})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be written: {reason(error)}") from error


def _read_safetensors(path: Path, data: bytes) -> tuple[dict[str, Tensor], Metadata]:
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is not a readable safetensors file: {reason(error)}") from error
    length = int.from_bytes(data[:8], "little")  # safetensors gives the metadata for paths only, not for bytes
    header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if _HEADER_KEY not in header:
        return state, Metadata()
    try:
        return state, Metadata.from_json(header[_HEADER_KEY])
    except KeyError as error:
        raise CheckpointError(f"checkpoint {path} has metadata without {error}") from error
    except (AttributeError, OverflowError, TypeError, ValueError, InputError) as error:
        raise CheckpointError(f"checkpoint {path} has bad metadata: {reason(error)}") from error


def _read_pickle(path: Path, data: bytes) -> tuple[dict[str, Tensor], Metadata]:
    if data[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # a zip archive, or a pickle
        raise CheckpointError(f"checkpoint {path} is neither a .safetensors nor a .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch itself does not write
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} is a pickle that holds more than weights, and loading it could run code: ask for a "
            "state dict or a safetensors file"
        ) from error
    except Exception as error:  # a damaged file can make torch.load raise anything
        raise CheckpointError(f"checkpoint {path} is damaged or not a .pth file ({type(error).__name__})") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"checkpoint {path} is not a state dict: {_some(strangers)} not a tensor")
    state = {key.removeprefix("module."): value for key, value in content.items()}
    return state, Metadata(detector="cnndetection") if state.keys() >= _WHOLE_RESNET else Metadata()


def _check(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
        raise CheckpointError(f"checkpoint {path} does not fit this network: {'; '.join(parts)}")
    shapes = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if state[name].shape != tensor.shape
    ]
    if shapes:
        raise CheckpointError(f"checkpoint {path} does not fit this network: {_some(shapes)}")
    kinds = [
        f"{name} is {tensor.dtype}"
        for name, tensor in state.items()
        if tensor.layout != torch.strided or (expected[name].is_floating_point() and tensor.dtype not in _WEIGHT_DTYPES)
    ]
    if kinds:
        raise CheckpointError(f"checkpoint {path} has weights of the wrong kind: {_some(kinds)}")
    negative = [name for name in state if name.endswith("running_var") and (state[name] < 0).any()]
    if negative:
        raise CheckpointError(f"checkpoint {path} has negative variances: {_some(negative)}")
    damaged = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if damaged:
        raise CheckpointError(f"checkpoint {path} has NaN or infinite weights: {_some(damaged)}")


def _some(items: list[str]) -> str:
    return ", ".join(items[:_NAMED]) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")
