"""``npr simulate``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from npr_model.commands.shared.options import Device, Workers, choice, folder_option
from npr_model.commands.shared.terminal import (
    EXIT_FAILED_INPUTS,
    out,
    printable,
    progress_bar,
    termination_interrupts,
    warn,
    warn_of_data,
)
from npr_model.devices import choose_device
from npr_model.errors import InputError

if TYPE_CHECKING:
    from npr_model.simulation.photographs import Photograph
    from npr_model.simulation.simulator import Simulator

SKIPPED_SHOWN = 10  # photographs that are named on the terminal; skipped.csv has all of them
Kind = choice("Kind", ("nearest", "bilinear", "bicubic", "sinc", "transposed", "subpixel", "none"))


def simulate(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTOS", help="Real photographs: image files and folders of them.")
    ],
    output: Annotated[Path, folder_option("Write the data set to this new folder.")],
    count: Annotated[int, typer.Option(min=1, help="Number of pairs, each with a real image and a fake of it.")] = 2000,
    kind: Annotated[
        list[Kind] | None,  # type: ignore[valid-type]  # choice() makes the class
        typer.Option(
            help="Way of up-sampling in the simulated decoders (default: all); none: no such decoders. Repeatable.",
            show_default=False,
        ),
    ] = None,
    generator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also use a packaged generator: realesrgan, realesr-animevideov3, span, waifu2x, realcugan, "
            "styletransfer, dcgan, taef2, or FAMILY/MODEL. Repeatable.",
            show_default=False,
        ),
    ] = None,
    taef2: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder with the weights of the generator taef2.", show_default=False),
    ] = None,
    crop_size: Annotated[
        int, typer.Option(help="Side of the images, in pixels; smaller photographs are skipped.")
    ] = 256,
    codec: Annotated[
        str,
        typer.Option(
            help="Codec of both classes: png, jpeg:Q, webp:Q, or jpeg:LOW-HIGH for a random quality of each pair."
        ),
    ] = "png",
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the photographs for FOLDER/validation; the others go to FOLDER/train.")
    ] = 0.0,
    real_variety: Annotated[
        bool, typer.Option(help="Scale, sharpen, denoise or grain some images, equally often in both classes.")
    ] = True,
    decoders: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Use the decoders in this file instead of training them.", show_default=False
        ),
    ] = None,
    save_decoders: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save the trained decoders to a .safetensors file.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps per decoder; each kind has three decoders.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 100,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Make a training set from photographs alone. Small networks with up-sampling turn photographs into fakes.

    NPR detects traces of up-sampling, so no image generator is needed. The command writes the folders
    FOLDER/KIND/0_real and FOLDER/KIND/1_fake. FOLDER/manifest.csv lists the pairs; FOLDER/skipped.csv lists the
    photographs that cannot be used.
    """
    from npr_model.imaging.codecs import Codec
    from npr_model.simulation import dataset
    from npr_model.simulation import generators as packaged

    kinds, generators = _kinds(kind), packaged.choose(generator or [], taef2)
    parsed_codec = Codec.parse(codec, ranges=True)
    dataset.check_sizes(crop_size, generators)
    if not kinds and not generators:
        raise InputError("nothing makes fakes: use --kind or --generator")
    dataset.require_apart(output, photographs)
    dataset.prepare(output)
    parts, problems = _parts(photographs, crop_size, validation_fraction)
    for one in generators:
        packaged.check(one)
    simulator = None
    if kinds:
        training = _DecoderTraining(kinds, steps, seed, choose_device(device))
        simulator = training.load(decoders) if decoders else training.run(parts, problems, save_decoders)
    writer = dataset.DatasetWriter(
        output,
        simulator,
        tuple(generators),
        crop_size=crop_size,
        codec=parsed_codec,
        real_variety=real_variety,
        seed=seed,
        workers=workers or min(16, os.cpu_count() or 1),
    )
    counts = dataset.counts_by_part(count, validation_fraction, parts)
    with termination_interrupts(), progress_bar("simulating", total=count) as advance:
        written = writer.write(parts, counts, problems=problems, on_pair=lambda pair: advance(1))
    sizes = " and ".join(f"{len(members)} {part}".rstrip() for part, members in parts.items())
    pairs = sum(written.values())
    out.print(f"{pairs} pairs of {', '.join(writer.kinds)} from {sizes} photographs", soft_wrap=True)
    if written != counts:
        warn(f"only {pairs} of {count} pairs were made: too few photographs can be decoded")
    out.print(f"written to {escape(str(output))}; manifest.csv lists what was made from what", soft_wrap=True)
    if problems:
        _print_skipped(output, problems)
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _kinds(kind: list[Enum] | None) -> list[str]:
    """The chosen ways of up-sampling; empty for "none"."""
    from npr_model.simulation.autoencoders import KINDS

    chosen = [one.value for one in kind] if kind else list(KINDS)
    if "none" not in chosen:
        return chosen
    if len(chosen) > 1:
        raise InputError("--kind none excludes all other kinds")
    return []


def _parts(
    paths: list[Path], crop_size: int, validation_fraction: float
) -> tuple[dict[str, list[Photograph]], dict[str, str]]:
    """The usable photographs by part, and why others cannot be used, by name."""
    from npr_model.datasets.folders import LeftOut
    from npr_model.simulation import photographs

    left_out = LeftOut()
    usable, problems = photographs.find_photographs(paths, crop_size, left_out.add)
    warn_of_data(left_out)
    return photographs.split(usable, validation_fraction), problems


@dataclass(frozen=True)
class _DecoderTraining:
    """How decoders are trained, or loaded instead."""

    kinds: list[str]
    steps: int
    seed: int
    device: str

    def load(self, path: Path) -> Simulator:
        from npr_model.simulation import simulator

        return simulator.load(path).select(self.kinds).to(self.device)

    def run(self, parts: dict[str, list[Photograph]], problems: dict[str, str], save_to: Path | None) -> Simulator:
        """Train decoders of each kind on the photographs of the first part, with a progress bar."""
        from npr_model.simulation import photographs, simulator

        crops = photographs.crops_to_fit(next(iter(parts.values())), self.seed, problems).to(self.device)
        out.print(f"training decoders on {len(crops)} crops of the photographs")
        total = len(self.kinds) * len(simulator.DEPTHS) * self.steps
        with progress_bar("training decoders", total=total, unit="steps") as advance:
            trained = simulator.fit_simulator(
                crops,
                kinds=self.kinds,
                steps=self.steps,
                seed=self.seed,
                on_decoder=lambda model, psnr: out.print(f"  {model.kind} x{model.factor}: {psnr:.1f} dB"),
                on_step=lambda: advance(1),
            )
        if save_to is not None:
            simulator.save(save_to, trained)
        return trained.to(self.device)


def _print_skipped(output: Path, problems: dict[str, str]) -> None:
    from npr_model.simulation import dataset

    skipped = dataset.write_skipped(output, problems)
    out.print(f"{len(problems)} photographs were skipped, see {escape(str(skipped))}:", soft_wrap=True)
    for name, problem in list(problems.items())[:SKIPPED_SHOWN]:
        out.print(f"  {printable(name)}: {printable(problem)}", soft_wrap=True)
