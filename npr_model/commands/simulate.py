"""``npr simulate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from npr_model.commands.options import Device, Workers, choice
from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    out,
    printable,
    progress_bar,
    termination_interrupts,
)
from npr_model.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from npr_model.simulation.simulator import Simulator

SKIPPED_SHOWN = 10  # photographs that are named on the terminal; skipped.csv has all of them
Kind = choice("Kind", ("nearest", "bilinear", "bicubic", "sinc", "transposed", "subpixel", "none"))


def simulate(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTOS...", help="Real photographs: image files and folders of them.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Write the data set to this new folder.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of pairs of a real image and a fake of it.")] = 2000,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            help="Up-sampling of the simulated decoders (default: all but none). Repeatable.", show_default=False
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
            help="Codec of both classes: png, jpeg:Q, webp:Q, or jpeg:LOW-HIGH to draw a quality for each pair."
        ),
    ] = "png",
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the photographs for FOLDER/validation; the others go to FOLDER/train.")
    ] = 0.0,
    real_variety: Annotated[
        bool, typer.Option(help="Scale, sharpen, denoise and grain some images of both classes alike.")
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
    steps: Annotated[int, typer.Option(min=1, help="Training steps per decoder; each kind has three.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 100,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Make a training set from photographs alone: small up-sampling decoders, trained on them first, make the fakes.

    NPR detects up-sampling artefacts, so no generator is needed. Writes FOLDER/KIND/0_real, FOLDER/KIND/1_fake and
    FOLDER/manifest.csv. Photographs that cannot be used are listed in FOLDER/skipped.csv.
    """
    from npr_model.devices import choose_device
    from npr_model.imaging.codecs import Codec
    from npr_model.simulation import dataset, simulator
    from npr_model.simulation import generators as packaged
    from npr_model.simulation.autoencoders import KINDS

    chosen_kinds = [one.value for one in kind] if kind else list(KINDS)
    if "none" in chosen_kinds:
        if len(chosen_kinds) > 1:
            raise InputError("--kind none excludes all other kinds")
        chosen_kinds = []
    chosen_generators = packaged.choose(generator or [], taef2)
    parsed = Codec.parse(codec, ranges=True)
    dataset.check_sizes(crop_size, chosen_generators)
    if not chosen_kinds and not chosen_generators:
        raise InputError("nothing makes fakes: use --kind or --generator")
    dataset.require_apart(output, photographs)
    dataset.prepare(output)
    usable, problems = dataset.find_photographs(photographs, crop_size)
    parts = dataset.split(usable, validation_fraction)
    for one in chosen_generators:
        packaged.check(one)
    device = choose_device(device)
    simulated = None
    if chosen_kinds and decoders:
        simulated = simulator.load(decoders).select(chosen_kinds)
    elif chosen_kinds:
        crops = dataset.crops_to_fit(parts.get(dataset.TRAIN) or parts[""], seed, problems).to(device)
        simulated = _trained(crops, chosen_kinds, steps, seed)
        if save_decoders is not None:
            simulator.save(save_decoders, simulated)
    writer = dataset.DatasetWriter(
        output,
        simulated.to(device) if simulated else None,
        tuple(chosen_generators),
        crop_size=crop_size,
        codec=parsed,
        real_variety=real_variety,
        seed=seed,
        workers=workers or min(16, os.cpu_count() or 1),
    )
    held_out = round(count * validation_fraction)
    counts = {"": count, dataset.TRAIN: count - held_out, dataset.VALIDATION: held_out}
    counts = {part: counts[part] for part in parts}
    with termination_interrupts(), progress_bar("simulating", total=count) as advance:
        written = writer.write(parts, counts, problems=problems, on_pair=lambda pair: advance(1))
    sizes = " and ".join(f"{len(members)} {part}".rstrip() for part, members in parts.items())
    pairs = sum(written.values())
    out.print(f"{pairs} pairs of {', '.join(writer.kinds)} from {sizes} photographs", soft_wrap=True)
    if written != counts:
        out.print(f"[yellow]warning: only {pairs} of {count} pairs were made: too few photographs can be decoded[/]")
    out.print(f"written to {escape(str(output))}; manifest.csv lists what was made from what", soft_wrap=True)
    if problems:
        skipped = dataset.write_skipped(output, problems)
        out.print(f"{len(problems)} photographs were skipped, see {escape(str(skipped))}:", soft_wrap=True)
        for name, problem in list(problems.items())[:SKIPPED_SHOWN]:
            out.print(f"  {printable(name)}: {printable(problem)}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_INPUTS)


def _trained(crops: Tensor, kinds: list[str], steps: int, seed: int) -> Simulator:
    """Decoders of each kind, trained on ``crops`` with a progress bar."""
    from npr_model.simulation import simulator

    out.print(f"training decoders on {len(crops)} crops of the photographs")
    total = len(kinds) * len(simulator.DEPTHS) * steps
    with progress_bar("training decoders", total=total, unit="steps") as advance:
        return simulator.fit_simulator(
            crops,
            kinds=kinds,
            steps=steps,
            seed=seed,
            on_decoder=lambda model, psnr: out.print(f"  {model.kind} x{model.factor}: {psnr:.1f} dB"),
            on_step=lambda: advance(1),
        )
