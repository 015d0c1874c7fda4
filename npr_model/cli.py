"""The ``npr`` command. Torch is loaded inside the commands, so that help and usage errors come at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from npr_model.errors import InputError, reason

if TYPE_CHECKING:
    import torch

    from npr_model.calibrate import Result
    from npr_model.datasets import Sample
    from npr_model.evaluate import Evaluation
    from npr_model.metrics import Metrics
    from npr_model.screening.runner import Row, Scorer, Summary
    from npr_model.train import Epoch, Plan, Step

EXIT_FAILED_INPUTS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
SKIPPED_SHOWN = 10  # photographs that are named on the terminal; all of them are in skipped.csv
TABLE_ROWS = 50  # runs of up to so many images are shown image by image

app = typer.Typer(
    name="npr",
    help="Tell photographs from AI-generated images by neighbouring pixel relationships (NPR).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

Checkpoint = Annotated[
    str, typer.Option(help="A bundled checkpoint's name, or the path of a .safetensors or .pth file.")
]
ViewOption = Annotated[
    str | None,
    typer.Option(
        "--view",
        help="Pixels the network sees: native, crop:S, resize:S or tile:S. Default: the checkpoint's.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images of one size scored together.")]
Workers = Annotated[int, typer.Option(min=0, help="Decoding threads; 0 is one a core.")]
Backend = Annotated[
    str | None, typer.Option(help="Kernels to use, see `npr info`. Default: the best there is.", show_default=False)
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32 or bfloat16. Default: bfloat16 where the hardware has it.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto takes CUDA where there is a GPU.")]


@app.command()
def screen(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Image files and folders of them.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="scores.parquet, .csv or .jsonl, or scores/ for a folder of Parquet parts, which a killed run keeps.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are an error.")] = 178_956_970,
    false_positive_rate: Annotated[
        float | None,
        typer.Option(
            help="The share of photographs that may be called generated: one that the checkpoint was calibrated at, as "
            "in 0.01. Default: the checkpoint's first.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score images: one row each, with logit, probability and verdict, or with the error of a file that is not scored.

    Exit code 0: all were scored; 1: some failed (see the error column); 2: wrong usage, nothing was scored;
    130: interrupted, the rows so far are kept.
    """
    from npr_model.screening import sinks
    from npr_model.screening.sources import Files

    if output is not None:
        sinks.check(output)
    items = Files(paths)
    scorer = _scorer(checkpoint, view, batch_size, workers, backend, dtype, device, max_pixels, false_positive_rate)

    from npr_model.screening.runner import Summary

    summary, shown = Summary(), []
    interrupted = False
    began = time.perf_counter()
    try:
        with (
            _termination_interrupts(),
            sinks.open_sink(output) if output is not None else contextlib.nullcontext(_ignore) as write,
            _progress("screening", total=None) as advance,
        ):
            for row in scorer.score(items):
                write(row)
                summary.add(row)
                if len(shown) <= TABLE_ROWS:
                    shown.append(row)
                advance(1)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - began
    if len(shown) <= TABLE_ROWS:
        out.print(_row_table(shown))
    _print_summary(summary, items.skipped, seconds, scorer, output)
    if interrupted:
        err.print(
            "npr: interrupted; the rows above are kept" if summary.scored + summary.failed else "npr: interrupted"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if summary.failed:
        raise typer.Exit(EXIT_FAILED_INPUTS)


@app.command()
def evaluate(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders with 0_real and 1_fake, at any depth.")
    ],
    real: Annotated[
        list[Path] | None,
        typer.Option(help="Real images for generators without any of their own; may be given more than once."),
    ] = None,
    equalise: Annotated[
        str | None,
        typer.Option(help="Re-encode both classes in memory: png, or jpeg:Q as in jpeg:90.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file, too.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
) -> None:
    """Accuracy, average precision and ROC AUC for every generator: the first folder below FOLDER names it.

    A generator without real images is measured against those of all folders that have only real ones.
    Exit code 0: all images were scored; 1: some could not be, they are listed; 2: wrong usage.
    """
    from npr_model.evaluate import Codec, collect

    codec = Codec.parse(equalise) if equalise else None
    samples = collect(folders, real or [])
    scorer = _scorer(checkpoint, view, batch_size, workers, backend, dtype, device)

    from npr_model.evaluate import evaluate as run
    from npr_model.files import replacing

    with _progress("scoring", total=len(samples)) as advance:
        result = run(scorer, samples, equalise=codec, on_row=lambda row: advance(1))
    _print_evaluation(result)
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    if result.errors:
        raise typer.Exit(EXIT_FAILED_INPUTS)


@app.command()
def train(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Folders with 0_real and 1_fake, at any depth.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new folder for the checkpoints.", show_default=False)
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="As FOLDER, measured after every epoch; may be given more than once.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper (its recipe, for ForenSynths) or wild (the default).", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config as --print-config prints it.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field of the config; may be given more than once."),
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the config and stop.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with the run in this folder, with its config.", show_default=False),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the larger class.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Crops in a step, over all processes.")] = None,
    crop_size: Annotated[int | None, typer.Option(help="Side of the random crops.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or (GPU) float16.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode and crop.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    name: Annotated[str | None, typer.Option(help="What the checkpoint calls itself.")] = None,
) -> None:
    """Train a detector; writes last.safetensors and, with --validation, best.safetensors after every epoch.

    Options go before fields of --config, and these before those of --preset. In several processes:
    torchrun --nproc-per-node 2 -m npr_model.cli train ...
    """
    from npr_model import config as configs

    if sum(source is not None for source in (preset, config, resume)) > 1:
        raise InputError("give one of --preset, --config and --resume, each of which brings a whole config")
    if resume is not None and output is not None:
        raise InputError("a resumed run goes on in its own folder: leave out --output")
    if resume is not None:
        chosen = configs.load_run(resume)
    else:
        chosen = configs.load(config) if config is not None else configs.preset(preset or "wild")
    given = {
        "folders": [str(path) for path in folders or []] or None,
        "validation": [str(path) for path in validation or []] or None,
        "epochs": epochs,
        "batch_size": batch_size,
        "crop_size": crop_size,
        "dtype": dtype,
        "workers": workers,
        "device": device,
        "name": name,
    }
    chosen = chosen.changed(**{name: value for name, value in given.items() if value is not None})
    chosen = chosen.overridden(settings or [])
    if print_config:
        print(chosen.to_json(), end="")
        return
    if resume is None and output is None:
        raise InputError("Missing option '--output' / '-o', a new folder for the checkpoints")

    from npr_model.train import train as run

    run_folder = resume or output
    try:
        with _TrainingProgress() as progress:
            checkpoint = run(
                chosen,
                run_folder,
                resume=resume is not None,
                on_read=progress.read,
                on_start=progress.start,
                on_step=progress.step,
                on_epoch=_print_epoch,
            )
    except KeyboardInterrupt:
        err.print(f"npr: interrupted; npr train --resume {escape(str(run_folder))} goes on from the last saved step")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if progress.started:
        out.print(f"checkpoint: {escape(str(checkpoint))}", soft_wrap=True)


@app.command()
def simulate(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTOS...", help="Real photographs: image files and folders of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the data set.")],
    count: Annotated[int, typer.Option(min=1, help="Pairs of a real image and a fake of it.")] = 2000,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Ways of up-sampling, separated by commas: nearest, bilinear, bicubic, transposed, subpixel; or none. "
            "Default: all.",
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
    from npr_model.simulation import dataset, simulator
    from npr_model.simulation import generators as packaged
    from npr_model.simulation.autoencoders import KINDS

    chosen_kinds = [] if kinds == "none" else _listed(kinds) or list(KINDS)
    for kind in chosen_kinds:
        if kind not in KINDS:
            raise InputError(f"no kind {kind!r} of up-sampling; give some of {', '.join(KINDS)}, or none")
    chosen_generators = packaged.choose(_listed(generators), taef2)
    parsed = dataset.Codec.parse(codec)
    dataset.check_sizes(crop_size, chosen_generators)
    if not chosen_kinds and not chosen_generators:
        raise InputError("nothing to make fakes with: give --kinds or --generators")
    dataset.require_apart(output, photographs)
    dataset.prepare(output)
    usable, problems = dataset.find_photographs(photographs, crop_size)
    parts = dataset.split(usable, validation_fraction)
    for generator in chosen_generators:
        packaged.check(generator)
    device = _device(device)
    simulated = simulator.load(decoders).select(chosen_kinds) if decoders and chosen_kinds else None

    if chosen_kinds and not decoders:
        crops = dataset.crops_to_fit(parts.get(dataset.TRAIN) or parts[""], seed, problems).to(device)
        out.print(f"training decoders on {len(crops)} crops of the photographs")
        total = len(chosen_kinds) * len(simulator.DEPTHS) * steps
        with _progress("training decoders", total=total, unit="steps") as advance:
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
    with _termination_interrupts(), _progress("simulating", total=count) as advance:
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
            out.print(f"  {_printable(name)}: {_printable(problem)}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_INPUTS)


@app.command()
def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors file, or with --output another checkpoint.")],
    reals: Annotated[
        list[Path],
        typer.Argument(
            metavar="REALS...",
            help="Folders of photographs that the checkpoint was not trained on; of folders with 0_real and 1_fake "
            "both classes are used.",
        ),
    ],
    fakes: Annotated[
        list[Path] | None, typer.Option(help="Folders of generated images, for the temperature.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file. Default: into the checkpoint.", show_default=False),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="False-positive rates for thresholds, separated by commas; the first is the default.")
    ] = "0.05,0.01,0.001",
    uncertain_rate: Annotated[
        float, typer.Option(help="Verdicts are uncertain from the threshold at this rate up to that of the verdict.")
    ] = 0.2,
    view: ViewOption = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    backend: Backend = None,
    dtype: DtypeOption = None,
    device: Device = "auto",
) -> None:
    """Give a checkpoint thresholds at fixed false-positive rates, an uncertain band and a temperature.

    A rate for which there are too few photographs is refused. `npr screen` uses the result for its verdicts.
    Exit code 0: all images were scored; 1: some could not be, they are listed; 2: wrong usage.
    """
    import dataclasses

    from npr_model import calibrate as calibration
    from npr_model import checkpoints, datasets
    from npr_model.screening.sources import file_item

    try:
        parsed = [float(rate) for rate in _listed(rates)]
    except ValueError:
        raise InputError(f"no false-positive rates {rates!r}; write them as in 0.05,0.01") from None
    destination = output or checkpoints.find(checkpoint)
    if destination.suffix != ".safetensors" or destination.parent == checkpoints.WEIGHTS:
        raise InputError(f"calibrating {checkpoint} needs an --output that ends in .safetensors")
    samples = [sample for root in reals for sample in datasets.find_reals(root)]
    samples += [sample for root in reals if datasets.has_fakes(root) for sample in datasets.find_fakes(root)]
    samples += [sample for root in fakes or [] for sample in datasets.find_fakes(root)]
    samples = list({sample.path.resolve(): sample for sample in samples}.values())
    by_source = {file_item(sample.path).source: sample for sample in samples}
    scorer = _scorer(checkpoint, view, batch_size, workers, backend, dtype, device)

    scored, errors = [], {}
    with _progress("scoring", total=len(samples)) as advance:
        for row in scorer.score(file_item(sample.path) for sample in samples):
            advance(1)
            if row.error is None:
                scored.append((by_source[row.source], row.logit))
            else:
                errors[row.source] = row.error
    logits = {
        label: [logit for sample, logit in scored if sample.label == label] for label in (datasets.REAL, datasets.FAKE)
    }
    result = calibration.calibrate(
        logits[datasets.REAL], logits[datasets.FAKE], rates=parsed, uncertain_rate=uncertain_rate
    )
    loaded = checkpoints.load(checkpoint)
    metadata = dataclasses.replace(loaded.metadata, calibration=result.calibration, view=scorer.view)
    checkpoints.save(destination, loaded.model, metadata)
    _print_calibration(result, scored, len(logits[datasets.FAKE]))
    out.print(f"written to {escape(str(destination))}, view {scorer.view}", soft_wrap=True)
    if errors:
        out.print(f"{len(errors)} images could not be scored and were left out:")
        for source, error in errors.items():
            out.print(f"  {_printable(source)}: {_printable(error)}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_INPUTS)


@app.command()
def info(json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Versions, kernels and why some cannot run here, decoders, and the bundled checkpoints."""
    import PIL
    import simplejpeg

    from npr_kernels.info import collect
    from npr_model import checkpoints

    facts = collect()
    facts["decoders"] = {"simplejpeg": simplejpeg.__version__, "pillow": PIL.__version__}
    facts["checkpoints"] = {}
    for name in checkpoints.available():
        loaded = checkpoints.load(name)
        facts["checkpoints"][name] = {
            "id": loaded.model_id,
            "view": str(loaded.metadata.view),
            "training data": loaded.metadata.training_data,
            "licence": loaded.metadata.licence,
        }
    if json_output:
        print(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)


def main(arguments: list[str] | None = None) -> int:
    """Run ``npr`` and return its exit code; what is the user's to mend is one line on stderr, never a traceback."""
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; pixels that are wrong are errors
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: they take turns
    usage_error = typer.BadParameter.__base__  # click's, wherever this version of typer keeps it
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.Exit as exit:
        return exit.exit_code
    except usage_error as error:
        return _fail(f"{error.format_message() or 'no command given'} (npr --help shows the usage)")
    except (KeyboardInterrupt, typer.Abort):
        err.print("npr: interrupted")
        return EXIT_INTERRUPTED
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except Exception as error:
        if not _is_backend_error(error):
            raise
        return _fail(reason(error))


def _fail(message: str) -> int:
    print(f"npr: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE


def _is_backend_error(error: Exception) -> bool:
    """Whether it is npr_kernels.BackendError, asked without importing torch."""
    kernels = sys.modules.get("npr_kernels")
    return kernels is not None and isinstance(error, kernels.BackendError)


def _scorer(
    checkpoint: str,
    view: str | None,
    batch_size: int,
    workers: int,
    backend: str | None,
    dtype: str | None,
    device: str,
    max_pixels: int | None = None,
    false_positive_rate: float | None = None,
) -> Scorer:
    """What `screen`, `evaluate` and `calibrate` score with; usage errors before the slow parts."""
    from npr_model.images import MAX_PIXELS, View

    parsed = View.parse(view) if view else None

    from npr_kernels.backends import registry
    from npr_model import checkpoints
    from npr_model.screening.runner import Scorer

    if backend is not None:
        registry.get(backend)
    loaded = checkpoints.load(checkpoint, backend=backend)
    calibration = loaded.metadata.calibration
    if false_positive_rate is not None:
        calibration = (calibration or checkpoints.Calibration()).at(false_positive_rate)
    return Scorer(
        loaded,
        view=parsed,
        calibration=calibration,
        batch_size=batch_size,
        workers=workers,
        dtype=_dtype(dtype),
        device=_device(device),
        max_pixels=max_pixels or MAX_PIXELS,
    )


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    if name not in (None, "float32", "bfloat16"):
        raise InputError(f"no dtype {name!r} to score in; give float32 or bfloat16")
    return getattr(torch, name) if name else None


def _device(name: str) -> str:
    from npr_model.distributed import choose_device

    return choose_device(name)


@contextlib.contextmanager
def _progress(what: str, total: int | None, unit: str = "images") -> Iterator[Any]:
    """A bar on stderr with ``unit``/s; gives ``advance(count)``. Shown on a terminal only."""
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn(f"{{task.fields[rate]:.1f}} {unit}/s"), TimeElapsedColumn()]
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate=0.0)
        began = time.perf_counter()

        def advance(count: int) -> None:
            done = progress.tasks[0].completed + count
            progress.update(task, advance=count, rate=done / (time.perf_counter() - began))

        yield advance


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that a scheduler's stop keeps the rows, too."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listed(text: str | None) -> list[str]:
    """The parts of an option that takes several, separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _ignore(row: Row) -> None:
    """Where rows go without an output."""


def _printable(text: str) -> str:
    """Without control characters, which a file name may hold, and without markup."""
    return escape("".join(character if character.isprintable() else repr(character)[1:-1] for character in text))


def _row_table(rows: list[Row]) -> Table:
    from npr_model.files import natural_key

    styles = {"generated": "red", "real": "green", "uncertain": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # narrow, so that names fit on 80 columns
    table.add_column("file", overflow="fold")
    for column in ("verdict", "probability", "size", "format"):
        table.add_column(column, justify="right" if column == "probability" else "left", no_wrap=column != "verdict")
    for row in sorted(rows, key=lambda row: natural_key(row.source)):
        size = f"{row.width}x{row.height}" if row.width else ""
        if row.error is None:
            verdict, probability = f"[{styles[row.verdict]}]{row.verdict}[/]", f"{row.probability:.3f}"
        else:
            verdict, probability = f"[magenta]error: {_printable(row.error)}[/]", ""
        table.add_row(_printable(row.source), verdict, probability, size, row.format or "")
    return table


def _print_summary(summary: Summary, skipped: int, seconds: float, scorer: Scorer, output: str | None) -> None:
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items())
    total = summary.scored + summary.failed
    out.print(f"{total} images: {verdicts}, {summary.failed} failed; {total / seconds:.1f} images/s", soft_wrap=True)
    if skipped:
        out.print(f"{skipped} other files in the folders were left out: their names are not those of images")
    if scorer.calibrated:
        note = f"; verdicts: {scorer.calibration.note}" if scorer.calibration.note else ""
        out.print(f"model {escape(scorer.model_id)}, view {scorer.view}{escape(note)}", soft_wrap=True)
    else:
        out.print(
            f"model {escape(scorer.model_id)}, view {scorer.view}; not calibrated: the verdicts are those of logit 0, "
            "take them as a ranking",
            soft_wrap=True,
        )
    if output is not None and total:
        out.print(f"rows written to {escape(output)}", soft_wrap=True)


def _print_evaluation(result: Evaluation) -> None:
    table = Table(title=f"{escape(result.model)}, view {result.view}, logit threshold {result.threshold:g}")
    table.add_column("generator", overflow="fold")
    for column in ("real", "gen.", "accuracy", "acc. real", "acc. gen.", "AP", "ROC AUC"):
        table.add_column(column, justify="right")
    for group, row in result.generators.items():
        table.add_row(_printable(group), *_cells(row))
    if result.mean and len(result.generators) > 1:
        table.add_section()
        table.add_row("mean", "", "", *_cells(result.mean)[2:])
    if result.reals:
        table.add_section()
        for group, row in result.reals.items():
            table.add_row(_printable(group), *_cells(row))
    out.print(table)
    for group, row in result.generators.items():
        if row.reason:
            out.print(f"{_printable(group)}: {row.reason}, so no average precision and no ROC AUC")
    out.print(result.comparison, soft_wrap=True, highlight=False)
    if result.warning:
        out.print(f"[yellow]warning: {result.warning}[/]", soft_wrap=True)
    if result.errors:
        out.print(f"{len(result.errors)} images could not be scored and are in no number above:")
        for source, error in result.errors.items():
            out.print(f"  {_printable(source)}: {_printable(error)}", soft_wrap=True)


def _cells(row: Metrics) -> list[str]:
    values = (row.accuracy, row.accuracy_real, row.accuracy_fake, row.average_precision, row.roc_auc)
    return [str(row.real), str(row.fake), *("-" if value is None else f"{100 * value:.1f}" for value in values)]


class _TrainingProgress:
    """A bar on stderr, on a terminal only, and the plan on stdout; what `train` calls back, in the first process."""

    def __init__(self) -> None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[note]}"), TimeElapsedColumn()]
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = None
        self.started = False

    def __enter__(self) -> _TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _begin(self, what: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def read(self, count: int, total: int) -> None:
        if self._task is None:
            self._begin("reading all images once", total)
        self._bar.advance(self._task, count)

    def start(self, plan: Plan) -> None:
        self.started = True
        config, steps = plan.config, plan.steps * plan.config.epochs
        shared = f" in {plan.processes} processes" if plan.processes > 1 else ""
        out.print(
            f"{len(plan.samples)} training images, {len(plan.validation)} for validation; {config.epochs} epochs of "
            f"{plan.steps} steps of {config.batch_size} crops{shared}",
            soft_wrap=True,
        )
        if plan.first_step:
            out.print(f"resumed after {plan.first_step} of {steps} steps")
        if plan.survey:
            out.print(str(plan.survey), soft_wrap=True, highlight=False)
            if plan.survey.classes_differ and not config.match_classes:
                out.print(
                    "[yellow]warning: the classes differ in file format, so the codec may be what is learned; try "
                    "--set match_classes=true[/]",
                    soft_wrap=True,
                )
        self._began = time.perf_counter(), plan.first_step
        self._begin("training", steps, plan.first_step)

    def step(self, step: Step) -> None:
        began, first_step = self._began
        rate = (step.number - first_step) * step.images / (time.perf_counter() - began)
        note = f"steps  loss {step.loss:.4f}  {rate:.1f} images/s  {step.waiting:.0%} waiting for data"
        self._bar.update(self._task, completed=step.number, note=note)


def _print_calibration(result: Result, scored: list[tuple[Sample, float]], fakes: int) -> None:
    from npr_model.datasets import REAL

    calibration = result.calibration
    sources: dict[str, list[float]] = {}
    for sample, logit in scored:
        if sample.label == REAL:
            sources.setdefault(sample.group, []).append(logit)
    table = Table()
    for column in ("false positives", "logit threshold", "photographs", "at most (95 %)", "worst source"):
        table.add_column(column, justify="right", overflow="fold")
    for point in calibration.points:
        shares = {name: sum(x > point.threshold for x in logits) / len(logits) for name, logits in sources.items()}
        worst = max(shares, key=shares.get)
        table.add_row(
            f"{100 * point.rate:g} %",
            f"{point.threshold:.3f}",
            str(point.photographs),
            f"{100 * point.upper:.2g} %",
            f"{_printable(worst)} {100 * shares[worst]:.1f} %",
        )
    out.print(table)
    low, high = calibration.band
    out.print(f"verdicts: {calibration.note}; uncertain between the logits {low:.3f} and {high:.3f}", soft_wrap=True)
    if fakes:
        out.print(f"temperature {calibration.temperature:.3g}, fitted with {fakes} generated images", soft_wrap=True)
    else:
        out.print("no generated images were given, so the temperature stays 1")
    for warning in result.warnings:
        out.print(f"[yellow]warning: {warning}[/]", soft_wrap=True)


def _print_epoch(epoch: Epoch) -> None:
    text = (
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, accuracy {100 * epoch.accuracy:.1f}, {epoch.rate:.1f} images/s, "
        f"{epoch.waiting:.0%} of the time waiting for data"
    )
    if epoch.score is not None:
        mean = epoch.validation.mean
        text += f"; validation accuracy {100 * mean.accuracy:.1f}, average precision {100 * epoch.score:.1f}"
    out.print(text, soft_wrap=True, highlight=False)


def _print_facts(facts: dict, indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:" + ("" if value else " none"))
            _print_facts(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
