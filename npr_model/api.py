"""What a program needs: load a detector, score images with it, screen a collection."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import cast, overload

import numpy as np
import torch
from PIL import Image

from npr_model.checkpoints import Metadata
from npr_model.detectors.base import DetectorNetwork
from npr_model.errors import InputError
from npr_model.files import readable_name
from npr_model.imaging.decode import DecodedImage, from_pillow
from npr_model.imaging.errors import ImageError
from npr_model.scoring.items import Item, failing, file_item, in_memory
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row, Totals
from npr_model.scoring.scorer import Scorer
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.run import Screening
from npr_model.screening.urls import is_url

ImageInput = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray
_USE = "use a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 array"


@dataclass(frozen=True, slots=True)
class Score:
    """What the detector says of one image. Where ``error`` is not None the image was not scored.

    Attributes:
        logit: float32; higher means more likely generated.
        logit_npr, logit_clip: Of a checkpoint that combines two logits, such as "npr+clip", both. None for others.
        scored_by: Of a cascade, the name and digest of the part whose logit counts. None for other checkpoints.
        probability: That the image was generated, in 0 .. 1, if real and generated images are equally frequent.
        verdict: "real", "generated" or "uncertain", by the checkpoint's calibration; "generated (declared)" where the
            file says so itself.
        source: The path, or the kind of the input for one that has none.
        width, height: Size of the image in pixels, before the view.
        format: File format as Pillow names it; None for arrays.
        flags: What limits the score: "tiny", "odd", "recompressed", "resized", "flat" (see
            :class:`npr_model.scoring.rows.Row`).
        declared, declared_by: What the file says of its origin ("generated", "edited" or "camera"), and where. None for
            arrays and for PIL images without an unread file. With invalid Content Credentials and nothing else,
            ``declared_by`` alone says so.
        error: Why the image was not scored, one line; logit, probability and verdict are then None.
    """

    logit: float | None
    probability: float | None
    verdict: str | None
    source: str = ""
    width: int | None = None
    height: int | None = None
    format: str | None = None
    flags: tuple[str, ...] = ()
    declared: str | None = None
    declared_by: str | None = None
    error: str | None = None
    logit_npr: float | None = None
    logit_clip: float | None = None
    scored_by: str | None = None

    @classmethod
    def of_row(cls, row: Row, source: str) -> Score:
        """The score in a row of a screening."""
        values = {field.name: getattr(row, field.name) for field in fields(cls)}
        return cls(**values | {"source": source, "flags": tuple((row.flags or "").split())})


class Detector:
    """A checkpoint that is ready to score images; made by :func:`load`. It can be copied, pickled and used by threads.

    Attributes:
        network: The checkpoint's ``torch.nn.Module`` in evaluation mode: (N, 3, H, W) images, raw uint8 or normalised
            float, to (N, 1) logits. Scores come from a frozen copy, so changing this network does not change them.
        info: What the checkpoint says of itself: name, view, decoder, training data, licence, calibration.
        id: Name and the first 12 digits of the file's sha256, as in the column ``model`` of ``npr screen``.
    """

    def __init__(self, scorer: Scorer, network: DetectorNetwork, info: Metadata) -> None:
        self._scorer = scorer
        self.network = network
        self.info = info
        self.id = scorer.model_id

    @property
    def verdict_caveat(self) -> str | None:
        """Why the verdicts may not hold what the calibration promises; None where they do."""
        return self._scorer.verdict_caveat

    @overload
    def score(self, images: ImageInput) -> Score: ...  # type: ignore[overload-overlap]  # str iterates over str

    @overload
    def score(self, images: Iterable[ImageInput]) -> Iterator[Score]: ...

    def score(self, images: ImageInput | Iterable[ImageInput]) -> Score | Iterator[Score]:
        """Score one image, or many of them lazily, in order and in batches.

        Args:
            images: A path, the bytes of an image file, a PIL image, or an (H, W, 3) uint8 RGB array, or an iterable of
                these, of any sizes; an (N, H, W, 3) array counts as N images. Paths name files of this machine, not
                folders, archives or URLs: :func:`screen` takes those.

        Returns:
            A :class:`Score`; of an iterable an iterator of them, one per image and in its order. Up to about a hundred
            images are read ahead. Paths are read and decoded in threads. Arrays and PIL images are copied when they are
            taken from the iterable, which may then change them.

        Raises:
            InputError: The one image cannot be read or scored. In an iterable it becomes a Score with ``error`` set, so
                that one bad file does not end a long run.
            TypeError, ValueError: An input of another type, or an array of another shape or dtype. In an iterable, the
                scores of the images before it come first. So they do if the iterable itself raises an exception.
        """
        if not _is_single(images):
            return self._scores(cast(Iterable[ImageInput], images))
        item, name = _item(cast(ImageInput, images))
        (row,) = self._scorer.score_in_order([item])
        if row.error is not None:
            raise InputError(f"{name}: {row.error}")
        return Score.of_row(row, name)

    def _scores(self, images: Iterable[ImageInput]) -> Iterator[Score]:
        names: dict[int, str] = {}
        errors: list[Exception] = []

        def items() -> Iterator[Item]:
            try:
                for number, image in enumerate(images):
                    item, names[number] = _item(image)
                    yield item
            except Exception as error:  # raised below, after the scores of the images before it
                errors.append(error)

        for number, row in enumerate(self._scorer.score_in_order(items())):
            yield Score.of_row(row, names.pop(number))
        if errors:
            raise errors[0]

    def __repr__(self) -> str:
        return (
            f"<npr_model.Detector {self.id}, view {self._scorer.view}, {self._scorer.dtype} on {self._scorer.device}>"
        )


def load(
    name_or_path: str | os.PathLike = ScoringOptions.checkpoint,
    *,
    view: str | None = ScoringOptions.view,
    device: str = ScoringOptions.device,
    dtype: str | None = ScoringOptions.dtype,
    backend: str | None = ScoringOptions.backend,
    false_positive_rate: float | None = ScoringOptions.false_positive_rate,
    batch_size: int = ScoringOptions.batch_size,
    workers: int = ScoringOptions.workers,
    max_pixels: int = ScoringOptions.max_pixels,
    raw_previews: bool = ScoringOptions.raw_previews,
) -> Detector:
    """Load a checkpoint to score images with.

    Args:
        name_or_path: Name of a bundled checkpoint, or path of a .safetensors or .pth file.
        view, device, dtype, backend, false_positive_rate, batch_size, workers, max_pixels, raw_previews: As in
            :class:`npr_model.ScoringOptions`.

    Raises:
        InputError: The checkpoint cannot be read, or an option cannot be used here.
    """
    options = ScoringOptions(
        checkpoint=name_or_path,
        view=view,
        device=device,
        dtype=dtype,
        backend=backend,
        false_positive_rate=false_positive_rate,
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels,
        raw_previews=raw_previews,
    )
    scorer = options.scorer()
    return Detector(scorer, scorer.checkpoint.model, scorer.checkpoint.metadata)


def screen(
    sources: str | os.PathLike | Iterable[str | os.PathLike],
    output: str | os.PathLike,
    *,
    files_from: str | None = None,
    null_separated: bool = False,
    column: str | None = None,
    retry_failed: bool = False,
    engine: str = "local",
    actors: int = 0,
    on_row: Callable[[Row], None] = lambda row: None,
    checkpoint: str | os.PathLike = ScoringOptions.checkpoint,
    view: str | None = ScoringOptions.view,
    device: str = ScoringOptions.device,
    dtype: str | None = ScoringOptions.dtype,
    backend: str | None = ScoringOptions.backend,
    false_positive_rate: float | None = ScoringOptions.false_positive_rate,
    batch_size: int = ScoringOptions.batch_size,
    workers: int = ScoringOptions.workers,
    max_pixels: int = ScoringOptions.max_pixels,
    raw_previews: bool = ScoringOptions.raw_previews,
    cache: str | os.PathLike | None = ScoringOptions.cache,
) -> Totals:
    """Score an image collection and write one row per image: what ``npr screen`` does.

    Args:
        sources: Files, folders, glob patterns, archives (tar, zip, Parquet) and URLs, or one of these.
        output: A file that ends in .parquet, .csv or .jsonl, or a folder that ends in "/" for Parquet parts. The same
            call continues a run into a folder that was interrupted.
        files_from: A file that lists more sources, one per line.
        null_separated: Whether NUL bytes separate the names in ``files_from``, instead of ends of lines.
        column: Parquet column that holds the encoded images. Default: the only binary column.
        retry_failed: Whether to score again what has a row with an error in the output folder.
        engine: "local", or "ray" for a Ray cluster.
        actors: Ray only: processes that run the network; 0 for one per GPU, or without GPUs one per machine.
        on_row: Called with each :class:`npr_model.Row` after it was written.
        checkpoint, view, device, dtype, backend, false_positive_rate, batch_size, workers, max_pixels, raw_previews,
            cache: As in :class:`npr_model.ScoringOptions`.

    Returns:
        Counts of this call: ``failed`` and ``scored`` rows, ``verdicts`` by name, files that were ``skipped`` by
        reason, and inputs that already had rows in the folder (``kept``, of which ``kept_failed`` have an error).

    Raises:
        InputError: A source, an option or the output cannot be used, or there is nothing to screen. An image that
            cannot be scored is a row with an error.
    """
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    options = ScoringOptions(
        checkpoint=checkpoint,
        view=view,
        device=device,
        dtype=dtype,
        backend=backend,
        false_positive_rate=false_positive_rate,
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels,
        raw_previews=raw_previews,
        cache=cache,
    )
    run = Screening(
        Sources(paths, files_from=files_from, null_separated=null_separated, column=column),
        os.fspath(output),
        options,
        retry_failed=retry_failed,
        engine=engine,
        actors=actors,
    )
    with contextlib.closing(iter(run)) as rows:
        for row in rows:
            on_row(row)
    return run.totals


def _is_single(images: object) -> bool:
    """Return whether ``images`` is one image, or one thing that is none; an iterable of images is not."""
    if isinstance(images, np.ndarray):
        if images.ndim == 4:
            _check_array(images, "(N, H, W, 3)")
        paths = images.ndim == 1 and images.dtype.kind in "OU"
        return images.ndim != 4 and not paths
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | torch.Tensor):
        return True
    return hasattr(images, "read") or not isinstance(images, Iterable)


def _item(image: ImageInput) -> tuple[Item, str]:
    """The item to score, which later changes of ``image`` do not reach, and what messages call it."""
    if isinstance(image, str | os.PathLike):
        item = file_item(image)
        if is_url(item.source):
            item = failing(item.source, "it is a URL; npr_model.screen takes those")
        return item, item.source or "''"
    if isinstance(image, bytes | bytearray | memoryview):
        return in_memory("bytes", bytes(image)), "bytes"
    if isinstance(image, Image.Image):
        name = readable_name(getattr(image, "filename", "") or "PIL image")
        return Item(name, _pixels_or_error(image)), name
    if isinstance(image, np.ndarray):
        _check_array(image, "(H, W, 3)")
        decoded = DecodedImage(np.array(image, order="C"), None, None)
        return Item("array", lambda: decoded), "array"
    if hasattr(image, "read"):
        raise TypeError(f"cannot score a {type(image).__name__}: use its bytes, .read()")
    raise TypeError(f"cannot score an object of type {type(image).__name__}: {_USE}")


def _pixels_or_error(image: Image.Image) -> Callable[[], DecodedImage]:
    """Convert an image now: later, in a thread, the caller may have changed, closed or moved it to another frame."""
    try:
        decoded = from_pillow(image)
    except ImageError as error:
        return functools.partial(_raise, str(error), error.code)
    return lambda: decoded


def _raise(message: str, code: str) -> DecodedImage:
    raise ImageError(message, code)


def _check_array(image: np.ndarray, shape: str) -> None:
    if image.ndim != shape.count(",") + 1 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an array must be {shape} uint8, got {image.shape} {image.dtype}")
