"""Options that several commands share, written once: their names, help texts and closed sets of values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer

from npr_model.errors import InputError
from npr_model.scoring.options import ScoringOptions

if TYPE_CHECKING:
    from npr_model.imaging.perturbations import Perturbation

BackendName = Literal["cuda", "triton", "cpu", "eager"]
Benchmark = Literal[
    "forensynths",
    "gangen-detection",
    "diffusionforensics",
    "universalfakedetect",
    "diffusion1kstep",
    "aigcdetectbenchmark",
    "genimage",
    "paper",
]


def choice(name: str, values: tuple[str, ...]) -> type[Enum]:
    """Return the allowed values of a repeatable option. ``--help`` lists them, and other values are usage errors."""
    make: Any = Enum  # a type checker wants the values spelled out
    return make(name, [(value, value) for value in values], type=str)


def report_option(*suffixes: str) -> Any:
    """The option --output of a command that writes its tables in several formats."""
    help = f"Write the tables to a {_one_of(suffixes)} file. Repeatable."
    return typer.Option("--output", "-o", metavar="FILE", help=help, show_default=False)


def folder_option(help: str) -> Any:
    """The option --output of a command that writes a folder."""
    return typer.Option("--output", "-o", metavar="FOLDER", help=help)


def require_suffix(output: Iterable[Path] | None, suffixes: Collection[str]) -> None:
    """Raise InputError for an output with another suffix."""
    for path in output or ():
        if path.suffix.lower() not in suffixes:
            raise InputError(f"output {path} must end in {_one_of(suffixes)}")


def _one_of(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


class Changes(TypedDict):
    """What is done to images before they are scored."""

    equalise: Perturbation | None
    perturbation: Perturbation | None


def parsed_changes(equalise: str | None, perturb: str | None) -> Changes:
    """--equalise and --perturb as the arguments of :func:`npr_model.evaluation.evaluate.evaluate`."""
    from npr_model.imaging import perturbations

    return {
        "equalise": perturbations.codec(equalise) if equalise else None,
        "perturbation": perturbations.Perturbation.parse(perturb) if perturb else None,
    }


LABELLED = "Folders that hold folders named 0_real and 1_fake, directly or deeper."
CHECKPOINT = "Trained network: a name that npr info lists, or a .safetensors or .pth file."

Folders = Annotated[list[Path], typer.Argument(metavar="FOLDER", help=LABELLED)]
Real = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder of real images, for generators without real images of their own. Repeatable.", show_default=False
    ),
]
Equalise = Annotated[
    str | None,
    typer.Option(
        metavar="CODEC",
        help="Cut all images to one size and re-encode them in memory as png, jpeg:Q or webp:Q (Q: quality).",
        show_default=False,
    ),
]
Perturb = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS", help="Change every image before it is scored, e.g. resize:0.5+jpeg:90.", show_default=False
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Device to compute on.")]
Workers = Annotated[int, typer.Option(min=0, help="Number of decoding threads (0: one per core, but at most 16).")]
Checkpoint = Annotated[str, typer.Option(help=CHECKPOINT)]
View = Annotated[
    str | None,
    typer.Option(
        help="What the network sees: native (all pixels), sample:KxS (K tiles of S x S, and small images whole), "
        "crop:S (the central S x S), resize:S (scaled to S x S) or tile:S (crop:S, but small images are repeated). "
        "Default: the checkpoint's view.",
        show_default=False,
    ),
]
Backend = Annotated[
    BackendName | None,
    typer.Option(
        help="Implementation of the kernels (default: the first that can run; npr info shows which can).",
        show_default=False,
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "int8"] | None,
    typer.Option(
        help="Precision of the network (default: bfloat16 where the hardware supports it, else float32). int8 needs a "
        "calibrated checkpoint and a CPU.",
        show_default=False,
    ),
]
Preset = Annotated[
    Literal["paper", "wild"] | None,
    typer.Option(help="Training config: the paper's, or one for images from the internet (wild).", show_default=False),
]
Config = Annotated[
    Path | None,
    typer.Option(help="Training config in a JSON file, as npr train --print-config prints it.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Set any field of the training config. Repeatable.", show_default=False
    ),
]

_SCORING = {
    "checkpoint": Checkpoint,
    "view": View,
    "batch_size": Annotated[
        int,
        typer.Option(
            min=1, help="Number of images, or tiles, to score at once. All those in a batch have the same size."
        ),
    ],
    "workers": Workers,
    "backend": Backend,
    "dtype": Dtype,
    "device": Device,
    "max_pixels": Annotated[
        int, typer.Option(min=1, help="Largest number of pixels of an image; a larger image is an error.")
    ],
    "raw_previews": Annotated[
        bool,
        typer.Option(
            "--raw-previews",
            help="Score the largest JPEG preview in each camera raw file (DNG, NEF, CR2 and others). Without it, such "
            "files are errors.",
        ),
    ],
    "false_positive_rate": Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="False-positive rate of the verdicts, e.g. 0.01. The checkpoint must be calibrated for it (default: "
            "the first rate that it was calibrated for).",
            show_default=False,
        ),
    ],
    "cache": Annotated[
        Path | None,
        typer.Option(
            help="Keep scores in this SQLite file, so that later runs do not score the same images again.",
            show_default=False,
        ),
    ],
}
EVALUATION = ("view", "batch_size", "workers", "backend", "dtype", "device")


def scoring_options(*names: str, **defaults: Any) -> Callable[[Callable], Callable]:
    """Add the options ``names`` of ScoringOptions to a command. The command receives them as one argument, ``options``.

    ``defaults`` replace those of ScoringOptions, also for fields that are not options of the command.
    """
    standard: dict[str, Any] = {field.name: field.default for field in fields(ScoringOptions)} | defaults

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=standard[name], annotation=_SCORING[name])
            for name in names
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            chosen = standard | {name: values.pop(name) for name in names}
            return command(**values, options=ScoringOptions(**chosen))

        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__
        return run

    return decorate
