"""Weights and metadata from the bytes of a file. Files from outside are not trusted: nothing in them is executed."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from npr_model.checkpoints.metadata import Metadata
from npr_model.errors import InputError, reason

HEADER_KEY = "npr_model"  # our key in the safetensors header; its value is JSON

_WHOLE_RESNET = frozenset(("layer4.2.conv3.weight", "fc.weight"))  # in CNNDetection's .pth files, without metadata
_NAMED = 3  # names that an error message lists
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged or unsafe, or that does not fit its network."""


def read(path: Path, data: bytes) -> tuple[dict[str, Tensor], Metadata]:
    """Return the weights and the metadata in ``data``, the content of ``path``. Raises CheckpointError."""
    return (_read_safetensors if path.suffix == ".safetensors" else _read_pickle)(path, data)


def _read_safetensors(path: Path, data: bytes) -> tuple[dict[str, Tensor], Metadata]:
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is not a readable safetensors file: {reason(error)}") from error
    length = int.from_bytes(data[:8], "little")  # safetensors gives the metadata for paths only, not for bytes
    header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if HEADER_KEY not in header:
        return state, Metadata()
    try:
        return state, Metadata.from_json(header[HEADER_KEY])
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


def check(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if ``state`` has not the names, shapes and kinds of ``expected``, or damaged values."""
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
