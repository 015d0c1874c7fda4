"""The config of a training run: presets to start from, JSON to save, edit and run again.

Importing it loads no torch, so that a wrong config is refused at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npr_model import detectors
from npr_model.detectors.depths import DEFAULT_DEPTH, DEPTHS
from npr_model.detectors.sizes import SIZES
from npr_model.devices import check_device_name
from npr_model.errors import InputError, reason
from npr_model.imaging.views import View

CONFIG = "config.json"  # file name in the folder of a run
DTYPES = ("float32", "bfloat16", "float16")
MACHINE_FIELDS = frozenset(
    ("epochs", "workers", "device", "save_steps", "tensorboard")
)  # a resumed run may change them
OWNERS = {"depth": "patchfor", "classifier": "ojha", "discriminator": "lgrad"}  # fields that one detector has


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a training run. The defaults are the paper's optimisation (section 4.1) on plain random crops.

    A range is (lowest, highest). A probability is the share of crops, of both classes alike. The changes to a crop are
    listed in the order in which they are applied.

    Data:
        folders, validation: Folders with 0_real and 1_fake at any depth.
        classes: Groups (first folder below the root) to train on; empty for all.
        balance_groups: 0 draws every image of a class equally often, 1 every group equally often; with 0.5 a group of
            100 images is drawn twice as often as one of 25.
        name, training_data, licence: Stored in the checkpoint.
    Network:
        detector: One of :data:`npr_model.detectors.NAMES`.
        size, grid_size, anchor: As in :class:`npr_model.NPRDetector`.
        depth: As in :class:`npr_model.detectors.patchfor.Patchfor`.
        classifier: Of the detector ojha, as in :class:`npr_model.detectors.ojha.Ojha`.
        discriminator: File with the discriminator of a StyleGAN, for the detector lgrad
            (:class:`npr_model.detectors.lgrad.LGrad`); empty to train a small one.
        start: Bundled checkpoint or file whose weights to start from (fine-tuning); empty for random weights.
        teacher: Bundled checkpoint or file of an NPR detector that the network learns to agree with; empty for none.
            Without ``start``, training begins with its stem.
        distillation: With a teacher, the share of the loss against it; the rest is the loss against the labels.
    Crops:
        match_classes: Cut to at most the size of a random file of the other class and re-encode with that file's codec,
            so that size and format do not tell the classes apart (:func:`npr_model.training.augmentation.match`).
        resize: Resize the image to this side, bilinear.
        rescale_probability, rescale_factor: Rescale with bilinear, bicubic or Lanczos interpolation.
        crop_size: Side of the crops, at any offset.
        flip_probability: Flip left to right.
        blur_probability, blur_sigma: Gaussian blur, sigma in pixels.
        webp_probability, webp_quality, jpeg_probability, jpeg_quality: Re-encode.
    Optimisation:
        epochs: Each draws as many images of each class as the larger class has.
        batch_size: Images per optimizer step, over all processes and all parts.
        accumulation: Parts of a step; batch norm sees one part at a time.
        learning_rate, betas, weight_decay: Of Adam; weight_decay is an L2 penalty, which the paper does not use.
        average_decay: The checkpoint holds a running average of the weights: after each step, average_decay times the
            average plus (1 - average_decay) times the weights. 0 stores the weights themselves.
        decay, decay_epochs: The learning rate is multiplied by ``decay`` every ``decay_epochs``.
        seed: Random seed of the weights and the crops.
        dtype: float32, bfloat16 (autocast) or float16 (with loss scaling, on a GPU); weights stay float32.
        view: View for validation, stored in the checkpoint.
    Run:
        device: auto, cpu, cuda or cuda:N.
        workers: Decoding processes per training process; 0 decodes in the training process.
        save_steps: Save the state to resume from every so many steps, and after every epoch.
        tensorboard: Write scalars for TensorBoard.
    """

    folders: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    balance_groups: float = 0.0
    name: str = ""
    training_data: str = ""
    licence: str = ""
    detector: str = "npr"
    size: str = "paper"
    grid_size: int = 2
    anchor: int | str = 0
    depth: str = DEFAULT_DEPTH
    classifier: str = "linear"
    discriminator: str = ""
    start: str = ""
    teacher: str = ""
    distillation: float = 0.8
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
    average_decay: float = 0.0
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
            "batch_size must be at least 2 for each part of the accumulation, as batch norm needs it": self.batch_size
            < 2 * self.accumulation,
            "batch_size must be a multiple of accumulation": self.batch_size % max(1, self.accumulation) != 0,
            "resize must be at least crop_size": self.resize is not None and self.resize < self.crop_size,
            "learning_rate must be positive": not 0 < self.learning_rate < math.inf,
            "weight_decay must be at least 0": not 0 <= self.weight_decay < math.inf,
            "balance_groups must be in 0 .. 1": not 0 <= self.balance_groups <= 1,
            "average_decay must be in 0 .. 1, below 1": not 0 <= self.average_decay < 1,
            "decay must be positive": not 0 < self.decay < math.inf,
            "betas must be in 0 .. 1, below 1": not all(0 <= beta < 1 for beta in self.betas),
            "rescale_factor must be in 0.1 .. 10": not all(0.1 <= factor <= 10 for factor in self.rescale_factor),
            "blur_sigma must be in 0 .. 100": not all(0 <= sigma <= 100 for sigma in self.blur_sigma),
            "qualities must be in 1 .. 100": not all(1 <= quality <= 100 for quality in qualities),
            "the lower end of a range must come first": any(low > high for low, high in ranges),
            "size, grid_size, anchor and teacher work with the detector npr only": self.detector != "npr"
            and (self.size, self.grid_size, self.anchor, self.teacher) != ("paper", 2, 0, ""),
            f"depth must be one of {', '.join(DEPTHS)}": self.depth not in DEPTHS,
            f"size must be one of {', '.join(SIZES)}": self.size not in SIZES,
            "classifier must be linear or nearest": self.classifier not in ("linear", "nearest"),
            "distillation must be in 0 .. 1": not 0 <= self.distillation <= 1,
            f"dtype must be one of {', '.join(DTYPES)}": self.dtype not in DTYPES,
        }
        problems |= {
            f"the field {name} works with the detector {owner} only": self.detector != owner
            and getattr(self, name) != FIELDS[name].default
            for name, owner in OWNERS.items()
        }
        for problem, applies in problems.items():
            if applies:
                name = problem.partition(" ")[0]
                raise InputError(f"{problem}, not {getattr(self, name)}" if name in FIELDS else problem)

    def to_json(self) -> str:
        """Return all fields as JSON, one per line."""
        fields = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in dataclasses.asdict(self).items())
        return "{\n" + ",\n".join(fields) + "\n}\n"

    def recipe(self) -> dict[str, Any]:
        """Return the fields that determine the result, as JSON values.

        Without MACHINE_FIELDS and paths; ``start``, ``teacher`` and ``discriminator`` are reduced to the files' names.
        """
        private = (MACHINE_FIELDS - {"epochs"}) | {"folders", "validation"}
        files = ("start", "teacher", "discriminator")
        values = json.loads(self.to_json()) | {name: Path(getattr(self, name)).name for name in files}
        if not self.teacher:
            private |= {"teacher", "distillation"}
        private |= {name for name, owner in OWNERS.items() if self.detector != owner}
        return {name: value for name, value in values.items() if name not in private}

    def architecture(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the constructor arguments of a network, among ``names``, that the config determines."""
        values = {name: getattr(self, name) for name in FIELDS} | {"pretrained": self.discriminator != ""}
        return {name: values[name] for name in names if name in values}

    def changed(self, **values: Any) -> TrainConfig:
        """Return a copy with other values; lists become tuples. Raises InputError for unknown names and wrong types."""
        return dataclasses.replace(self, **{name: _converted(name, value) for name, value in values.items()})

    def overridden(self, settings: Sequence[str]) -> TrainConfig:
        """Return a copy with the values of ``name=value`` texts, such as "jpeg_quality=75,90" or "anchor=mean"."""
        values = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise InputError(f"setting {setting!r} is not of the form name=value, as in jpeg_quality=75,90")
            values[name] = _parsed(name, text)
        return self.changed(**values)


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_TYPES = typing.get_type_hints(TrainConfig)

# "paper" is the paper's recipe on the training set of ForenSynths. "wild" is for images met in the wild: images are not
# resized, and size, format, scale, sharpness and compression do not depend on the class.
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
    """Return a preset by name. Raises InputError."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: use {' or '.join(PRESETS)}")
    return PRESETS[name]


def one_of(preset_name: str | None, path: Path | None, default: str) -> TrainConfig:
    """Return a preset, or the config in the file ``path``; with neither, the preset ``default``.

    Raises InputError, also if both are given.
    """
    if preset_name and path:
        raise InputError("use only one of --preset and --config: each is a whole config")
    return load(path) if path else preset(preset_name or default)


def load(path: Path) -> TrainConfig:
    """Read a config from JSON. Missing fields get their defaults. Raises InputError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping):
            raise ValueError("not a JSON object")
        return TrainConfig().changed(**values)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"config {path} cannot be used: {reason(error)}") from error


def load_run(folder: Path) -> TrainConfig:
    """Return the config of the training run in ``folder``. Raises InputError."""
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} holds no training run to resume: it has no {CONFIG}")
    return load(folder / CONFIG)


def _kind(name: str) -> Any:
    if name not in _TYPES:
        close = difflib.get_close_matches(name, _TYPES, 1)
        raise InputError(f"a training config has no field {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
    return _TYPES[name]


def _converted(name: str, value: Any) -> Any:
    """Convert a JSON value to the field's type."""
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
    """Describe a type in words: "an integer", "a list of 2 numbers"."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        kinds = {int: "integers", float: "numbers", str: "texts"}[arguments[0]]
        return f"a list of {kinds}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {kinds}"
    return " or ".join(_described(alternative) for alternative in arguments) if arguments else words[kind]


def _parsed(name: str, text: str) -> Any:
    """Parse the text of a value: plain text for text fields, else JSON; lists may omit their brackets."""
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
