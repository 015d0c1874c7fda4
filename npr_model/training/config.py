"""What a training run does, as one value: a preset to start from, JSON to save, edit and run again.

Importing it loads no torch, so that a wrong config is refused at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npr_model import detectors
from npr_model.devices import check_device_name
from npr_model.errors import InputError, reason
from npr_model.imaging.views import View

CONFIG = "config.json"  # in the folder of a run
DTYPES = ("float32", "bfloat16", "float16")
MACHINE_FIELDS = frozenset(
    ("epochs", "workers", "device", "save_steps", "tensorboard")
)  # a resumed run may change them


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a training run; the defaults are the paper's optimisation (section 4.1) on plain random crops.

    Data: ``folders`` and ``validation`` hold 0_real and 1_fake at any depth; ``classes`` names the groups (first
    folder below the root) to train on, all of them if empty. ``name``, ``training_data`` and ``licence`` go into the
    checkpoint. Network: ``detector``, one of :data:`npr_model.detectors.NAMES`; ``grid_size`` and ``anchor`` as in
    :class:`npr_model.NPRDetector`; ``start``, a bundled checkpoint's name or a file whose weights to begin with
    (fine-tuning), random ones if empty.

    A crop, in the order of what happens to it; a range is (lowest, highest), a probability is a share of the crops of
    either class:

    - ``match_classes``: cut to no more than the size of a file drawn from the other class, and sent through that file's
      codec, so that neither size nor format tells the classes apart (:func:`npr_model.training.augmentation.match`);
    - ``resize``: the image to this side, bilinear;
    - ``rescale_probability``, ``rescale_factor``: by a factor, with bilinear, bicubic or Lanczos interpolation;
    - ``crop_size``, at any offset, odd ones too; ``flip_probability``, left to right;
    - ``blur_probability``, ``blur_sigma`` (pixels): Gaussian;
    - ``webp_probability``, ``webp_quality``, then ``jpeg_probability``, ``jpeg_quality``: re-encoded.

    Optimisation: Adam with ``learning_rate``, ``betas`` and ``weight_decay`` (an L2 penalty; the paper has none); the
    rate times ``decay`` every ``decay_epochs``. An epoch draws as many images of either class as the larger one has.
    ``batch_size``: images of one step, over all processes and all its ``accumulation`` parts (batch norm sees one part
    at a time). ``seed``: of the weights and every draw. ``dtype``: bfloat16 (autocast) or float16 (with loss scaling,
    on a GPU) for the convolutions; weights and statistics stay float32. ``view``: the one to validate with, and which
    the checkpoints name.

    The run: ``device``; ``workers``, processes that decode, for each process that trains; the state to resume from is
    saved every ``save_steps`` steps and after every epoch; ``tensorboard``: scalars for TensorBoard.
    """

    folders: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    name: str = ""
    training_data: str = ""
    licence: str = ""
    detector: str = "npr"
    grid_size: int = 2
    anchor: int | str = 0
    start: str = ""
    match_classes: bool = False
    resize: int | None = None
    rescale_probability: float = 0.0
    rescale_factor: tuple[float, float] = (0.5, 1.5)
    crop_size: int = 224
    flip_probability: float = 0.5
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 1.5)
    webp_probability: float = 0.0
    webp_quality: tuple[int, int] = (60, 100)
    jpeg_probability: float = 0.0
    jpeg_quality: tuple[int, int] = (60, 100)
    epochs: int = 50
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay: float = 0.9
    decay_epochs: int = 10
    seed: int = 100
    dtype: str = "float32"
    view: str = "native"
    device: str = "auto"
    workers: int = 2
    save_steps: int = 200
    tensorboard: bool = False

    def __post_init__(self) -> None:
        View.parse(self.view)
        check_device_name(self.device)
        detectors.require(self.detector)
        qualities = (*self.webp_quality, *self.jpeg_quality)
        ranges = (self.rescale_factor, self.blur_sigma, self.webp_quality, self.jpeg_quality)
        shares = [name for name in FIELDS if name.endswith("_probability")]
        at_least = {"epochs": 1, "accumulation": 1, "decay_epochs": 1, "save_steps": 1, "workers": 0, "seed": 0}
        at_least |= {"crop_size": 8, "grid_size": 1}
        problems = {f"{name} must be at least {least}": getattr(self, name) < least for name, least in at_least.items()}
        problems |= {f"{name} must be in 0 .. 1": not 0 <= getattr(self, name) <= 1 for name in shares}
        problems |= {
            "batch_size must be at least 2 for each part of the accumulation, batch norm needs it": self.batch_size
            < 2 * self.accumulation,
            "batch_size must be a multiple of accumulation": self.batch_size % max(1, self.accumulation) != 0,
            "resize must be at least crop_size": self.resize is not None and self.resize < self.crop_size,
            "learning_rate must be positive": not 0 < self.learning_rate < math.inf,
            "weight_decay must be at least 0": not 0 <= self.weight_decay < math.inf,
            "decay must be positive": not 0 < self.decay < math.inf,
            "betas must be in 0 .. 1, below 1": not all(0 <= beta < 1 for beta in self.betas),
            "rescale_factor must be in 0.1 .. 10": not all(0.1 <= factor <= 10 for factor in self.rescale_factor),
            "blur_sigma must be in 0 .. 100": not all(0 <= sigma <= 100 for sigma in self.blur_sigma),
            "qualities must be in 1 .. 100": not all(1 <= quality <= 100 for quality in qualities),
            "of a range the lower end must come first": any(low > high for low, high in ranges),
            "grid_size and anchor are of the detector npr alone": self.detector != "npr"
            and (self.grid_size, self.anchor) != (2, 0),
            f"dtype must be one of {', '.join(DTYPES)}": self.dtype not in DTYPES,
        }
        for problem, found in problems.items():
            if found:
                name = problem.partition(" ")[0]
                raise InputError(f"{problem}, not {getattr(self, name)}" if name in FIELDS else problem)

    def to_json(self) -> str:
        """All fields, one a line."""
        fields = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in dataclasses.asdict(self).items())
        return "{\n" + ",\n".join(fields) + "\n}\n"

    def recipe(self) -> dict[str, Any]:
        """What decides the result, as JSON values: all but MACHINE_FIELDS and paths of one machine, the file's name
        for ``start``."""
        private = (MACHINE_FIELDS - {"epochs"}) | {"folders", "validation"}
        values = json.loads(self.to_json()) | {"start": Path(self.start).name}
        return {name: value for name, value in values.items() if name not in private}

    def changed(self, **values: Any) -> TrainConfig:
        """With other values of some fields, lists as tuples. Raises InputError for unknown names and wrong types."""
        return dataclasses.replace(self, **{name: _converted(name, value) for name, value in values.items()})

    def overridden(self, settings: Sequence[str]) -> TrainConfig:
        """With the values of ``name=value`` texts, such as "jpeg_quality=75,90" or "anchor=mean"."""
        values = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise InputError(f"setting {setting!r} is not of the form name=value, as in jpeg_quality=75,90")
            values[name] = _parsed(name, text)
        return self.changed(**values)


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_TYPES = typing.get_type_hints(TrainConfig)

# "paper" is the paper's recipe on the training set of ForenSynths. "wild" is for images met in the wild: nothing is
# resized to one size, and size, format, scale, sharpness and compression tell nothing about the class.
PRESETS = {
    "paper": TrainConfig(classes=("car", "cat", "chair", "horse"), resize=256, view="resize:256"),
    "wild": TrainConfig(
        match_classes=True,
        rescale_probability=0.25,
        blur_probability=0.1,
        webp_probability=0.1,
        jpeg_probability=0.5,
    ),
}


def preset(name: str) -> TrainConfig:
    """A preset by its name. Raises InputError."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; there are {' and '.join(PRESETS)}")
    return PRESETS[name]


def load(path: Path) -> TrainConfig:
    """Read a config from JSON; fields that are left out have TrainConfig's defaults. Raises InputError, one line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping):
            raise ValueError("not a JSON object")
        return TrainConfig().changed(**values)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"config {path} cannot be used: {reason(error)}") from error


def load_run(folder: Path) -> TrainConfig:
    """The config of the training run in ``folder``. Raises InputError."""
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} holds no training to resume: it has no {CONFIG}")
    return load(folder / CONFIG)


def _kind(name: str) -> Any:
    if name not in _TYPES:
        close = difflib.get_close_matches(name, _TYPES, 1)
        raise InputError(f"a training config has no field {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
    return _TYPES[name]


def _converted(name: str, value: Any) -> Any:
    """A value that JSON can hold as one of the field's type."""
    try:
        return _as(_kind(name), value)
    except TypeError as error:
        raise InputError(f"{name} must be {_described(_kind(name))}, not {json.dumps(value, default=str)}") from error


def _as(kind: Any, value: Any) -> Any:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        kinds = (
            arguments[:1] * len(value) if arguments[-1] is Ellipsis and isinstance(value, list | tuple) else arguments
        )
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise TypeError
        return tuple(_as(kind, element) for kind, element in zip(kinds, value, strict=True))
    if isinstance(kind, types.UnionType):
        for alternative in arguments:
            try:
                return _as(alternative, value)
            except TypeError:
                continue
        raise TypeError
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def _described(kind: Any) -> str:
    """A type in words: "an int", "a list of 2 numbers"."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        kinds = {int: "integers", float: "numbers", str: "texts"}[arguments[0]]
        return f"a list of {kinds}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {kinds}"
    return " or ".join(_described(alternative) for alternative in arguments) if arguments else words[kind]


def _parsed(name: str, text: str) -> Any:
    """The value of a text: as it is for texts, else JSON; a list may be written without its brackets."""
    kind = _kind(name)
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple and not text.startswith("["):
        numbers = typing.get_args(kind)[0] is not str
        return [_json(part) if numbers else part for part in text.split(",") if part]
    return _json(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
