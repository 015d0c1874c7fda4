"""``npr simulate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from npr_model.commands.terminal import (
    EXIT_FAILED_INPUTS,
    Device,
    Workers,
    chosen_device,
    listed,
    out,
    printable,
    progress_bar,
    termination_interrupts,
)
from npr_model.errors import InputError

SKIPPED_SHOWN = 10  # photographs that are named on the terminal; all of them are in skipped.csv


def simulate(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTOS...", help="Real photographs: image files and folders of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the data set.")],
    count: Annotated[int, typer.Option(min=1, help="Pairs of a real image and a fake of it.")] = 2000,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Ways of up-sampling, separated by commas: nearest, bilinear, bicubic, sinc, transposed, subpixel; or "
            "none. Default: all.",
            show_default=False,
        ),
    ] = None,
    generators: Annotated[
        str | None,
        typer.Option(
            help="Packaged generators besides: realesrgan, realesr-animevideov3, span, waifu2x, realcugan, "
            "styletransfer, dcgan, taef2, or family/model.",
            show_default=False,
        ),
    ] = None,
    taef2: Annotated[
        Path | None, typer.Option(help="Folder of the weights of the generator taef2.", show_default=False)
    ] = None,
    crop_size: Annotated[int, typer.Option(help="Side of the images; smaller photographs are left out.")] = 256,
    codec: Annotated[
        str, typer.Option(help="What both classes are written as: png, jpeg:Q, or jpeg:LOW-HIGH, drawn for each pair.")
    ] = "png",
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the photographs for OUTPUT/validation; the others go to OUTPUT/train.")
    ] = 0.0,
    real_variety: Annotated[
        bool, typer.Option(help="Scale, sharpen, denoise and grain some of both classes alike.")
    ] = True,
    decoders: Annotated[
        Path | None, typer.Option(help="Use the decoders of this file instead of training some.", show_default=False)
    ] = None,
    save_decoders: Annotated[
        Path | None, typer.Option(help="Keep the trained decoders in this .safetensors file.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each of the 3 decoders of a kind.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 100,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Make a training set from photographs alone: fakes by up-sampling decoders that are trained on them, first.

    Writes OUTPUT/KIND/0_real and 1_fake, and OUTPUT/manifest.csv. Exit code 0: all photographs were used or could have
    been; 1: some could not, they are listed in OUTPUT/skipped.csv; 2: wrong usage.
    """
    from npr_model.imaging.codecs import Codec
    from npr_model.simulation import dataset, simulator
    from npr_model.simulation import generators as packaged
    from npr_model.simulation.autoencoders import KINDS

    chosen_kinds = [] if kinds == "none" else listed(kinds) or list(KINDS)
    for kind in chosen_kinds:
        if kind not in KINDS:
            raise InputError(f"no kind {kind!r} of up-sampling; give some of {', '.join(KINDS)}, or none")
    chosen_generators = packaged.choose(listed(generators), taef2)
    parsed = Codec.parse(codec, ranges=True)
    dataset.check_sizes(crop_size, chosen_generators)
    if not chosen_kinds and not chosen_generators:
        raise InputError("nothing to make fakes with: give --kinds or --generators")
    dataset.require_apart(output, photographs)
    dataset.prepare(output)
    usable, problems = dataset.find_photographs(photographs, crop_size)
    parts = dataset.split(usable, validation_fraction)
    for generator in chosen_generators:
        packaged.check(generator)
    device = chosen_device(device)
    simulated = simulator.load(decoders).select(chosen_kinds) if decoders and chosen_kinds else None

    if chosen_kinds and not decoders:
        crops = dataset.crops_to_fit(parts.get(dataset.TRAIN) or parts[""], seed, problems).to(device)
        out.print(f"training decoders on {len(crops)} crops of the photographs")
        total = len(chosen_kinds) * len(simulator.DEPTHS) * steps
        with progress_bar("training decoders", total=total, unit="steps") as advance:
            simulated = simulator.fit_simulator(
                crops,
                kinds=chosen_kinds,
                steps=steps,
                seed=seed,
                on_decoder=lambda model, psnr: out.print(f"  {model.kind} x{model.factor}: {psnr:.1f} dB"),
                on_step=lambda: advance(1),
            )
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
        out.print(f"[yellow]warning: {pairs} pairs where {count} were asked for: too few photographs can be decoded[/]")
    out.print(f"written to {escape(str(output))}; manifest.csv says what was made from what", soft_wrap=True)
    if problems:
        skipped = dataset.write_skipped(output, problems)
        out.print(f"{len(problems)} photographs were skipped, see {escape(str(skipped))}:", soft_wrap=True)
        for name, problem in list(problems.items())[:SKIPPED_SHOWN]:
            out.print(f"  {printable(name)}: {printable(problem)}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_INPUTS)
