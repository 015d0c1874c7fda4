"""Checkpoints: safetensors files with metadata, weights-only .pth files, and the bundled ones by name.

Files from outside are not trusted: nothing in them is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

from npr_model import weights
from npr_model.checkpoints.metadata import FORMAT_VERSION, Metadata
from npr_model.checkpoints.state_dicts import HEADER_KEY, CheckpointError, check, read
from npr_model.detectors import detector_class
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError, reason
from npr_model.files import atomic_write
from npr_model.imaging.formats.signatures import is_lfs_pointer

__all__ = ["FORMAT_VERSION", "CheckpointError", "LoadedCheckpoint", "Metadata", "find", "load", "load_part", "save"]

_STEPS = "activation_steps."  # prefix of the names of these tensors
_DIGEST = 12  # digits of a sha256 that name a file


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


def find(name_or_path: str | os.PathLike) -> Path:
    """Return the file of a bundled checkpoint or of a path. Raises CheckpointError, which lists the bundled names."""
    path = Path(name_or_path)
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder, not a .safetensors or .pth file")
    if path.is_file():
        return path
    text = os.fspath(name_or_path)
    if path.name == text and text in weights.available():
        return weights.path(text)
    if path.name == text and not path.suffix:
        names = ", ".join(weights.available()) or "none"
        raise CheckpointError(f"there is no checkpoint {text!r}; bundled: {names}; or give the path of a file")
    raise CheckpointError(f"checkpoint {text} does not exist")


def load(name_or_path: str | os.PathLike = weights.DEFAULT, *, backend: str | None = None) -> LoadedCheckpoint:
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
    data = _content(path)
    state, metadata = read(path, data)
    try:
        joins = detector_class(metadata.detector).joins
        parts = [part(path, str(metadata.architecture.get(name, "")), backend=backend).model for name in joins]
        model = metadata.network(backend, parts)
    except CheckpointError:
        raise
    except (InputError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"checkpoint {path} has a bad architecture in its metadata: {reason(error)}") from error
    steps = {name: state.pop(name) for name in list(state) if name.startswith(_STEPS)}
    check(path, state, model.state_dict())
    model.load_state_dict(state, strict=True)
    if steps:
        try:
            model.set_activation_steps({name.removeprefix(_STEPS): step for name, step in steps.items()})
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} does not fit this network: {error}") from error
    return LoadedCheckpoint(model.eval(), metadata, hashlib.sha256(data).hexdigest(), path)


def load_part(path: str | os.PathLike, part: nn.Module) -> None:
    """Load the weights of a part of a network from a .safetensors or .pth file, which is read weights-only.

    Raises CheckpointError as :func:`load` does.
    """
    path = find(path)
    state, _ = read(path, _content(path))
    check(path, state, part.state_dict())
    part.load_state_dict(state, strict=True)


def _content(path: Path) -> bytes:
    """Return the bytes of a file. Raises CheckpointError if it holds none, or stands for the real one."""
    data = _bytes(path)
    if not data:
        raise CheckpointError(f"checkpoint {path} is empty")
    if is_lfs_pointer(data):
        raise CheckpointError(f"checkpoint {path} is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason(error)}") from error


def part(path: Path, named: str, *, backend: str | None = None) -> LoadedCheckpoint:
    """Load the part ``named``, name@digest, of the checkpoint in ``path``: a file beside it, or a bundled checkpoint.

    Raises CheckpointError. The digest is checked before the file is loaded, so that no chain of files leads back to its
    beginning.
    """
    name, _, digest = named.partition("@")
    if not name or Path(name).name != name or len(digest) != _DIGEST:
        raise CheckpointError(f"checkpoint {path} names {named!r} as its part; name@digest is needed")
    beside = path.with_name(f"{name}.safetensors")
    file = beside if beside.is_file() else find(name)
    if not hashlib.sha256(_bytes(file)).hexdigest().startswith(digest):
        raise CheckpointError(f"checkpoint {path} needs {named}, but {file} is another file of this name")
    return load(file, backend=backend)


def save(path: str | os.PathLike, model: DetectorNetwork, metadata: Metadata) -> None:
    """Write a .safetensors file in one step. The architecture is taken from ``model``. Raises CheckpointError."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"checkpoints are written as .safetensors files, not {path.name}")
    architecture = {name: getattr(model, name) for name in model.architecture}
    metadata = dataclasses.replace(metadata, detector=model.detector, architecture=architecture)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    state |= {_STEPS + name: step.cpu().contiguous() for name, step in model.activation_steps.items()}
    data = safetensors.torch.save(state, metadata={HEADER_KEY: metadata.to_json()})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be written: {reason(error)}") from error
