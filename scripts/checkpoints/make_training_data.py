"""Makes the training set of the first bundled checkpoint, as `npr simulate` does, with fixed shares for the generators.

    python -m scripts.checkpoints.make_training_data --photos PHOTOS --taef2 TAEF2 --output DIR

Writes DIR/{packaged,simulated}/{train,validation}/<generator>/{0_real,1_fake}/*.png, and manifest.csv in DIR/packaged
and in DIR/simulated. No photograph is in both train and validation, and no photograph of examples/ is in either.
That checkpoint was trained on DIR/packaged and DIR/simulated; its weights are averaged into the present one
(scripts/checkpoints/make_wild.sh).
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from npr_model import simulation
from npr_model.errors import InputError
from npr_model.simulation import dataset, generators
from npr_model.simulation.photographs import crops_to_fit, find_photographs, split
from scripts.documents.make_examples import PHOTOGRAPHS as HELD_OUT

CROP_SIZE = 256
VALIDATION_SHARE = 0.15
FIT_STEPS = 450

# Relative shares of the generators among the pairs.
SHARES = {
    "taef2/autoencoder": 30,
    "realesrgan/x4plus": 3,
    "realesrgan/x4plus-anime": 4,
    "realesr-animevideov3/x2": 6,
    "realesr-animevideov3/x4": 6,
    "span/x2-ch48": 8,
    "span/ClearReality4x": 6,
    "span/4xSPANkendata": 6,
    "waifu2x/upconv_7_photo": 7,
    "waifu2x/upconv_7_photo-noise1": 3,
    "waifu2x/cunet": 6,
    "realcugan/up2x": 5,
    "styletransfer/multistyle26": 6,
    "dcgan/faces": 3,
}


def scene(photograph: Path) -> str:
    """Return one name for the two shapes in which the same photograph may exist."""
    return photograph.stem.removesuffix("-square")


def simulator(crops: Tensor, workers: int, seed: int) -> simulation.Simulator:
    """Train up-sampling decoders of every kind and depth, in ``workers`` processes with one core each."""
    fit = functools.partial(simulation.fit_simulator, crops, steps=FIT_STEPS)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        fitted = [pool.submit(fit, kinds=(kind,), seed=seed + i) for i, kind in enumerate(simulation.KINDS)]
        return simulation.Simulator([decoder for future in fitted for decoder in future.result().decoders])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of real photographs")
    parser.add_argument("--taef2", type=Path, required=True, help="folder with taef2_encoder.pth and taef2_decoder.pth")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--packaged", type=int, default=5400, help="pairs from the generators that packages ship")
    parser.add_argument("--simulated", type=int, default=3600, help="pairs from simulated decoders")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    problems: dict[str, str] = {}
    try:
        photographs, problems = find_photographs([arguments.photos], CROP_SIZE)
        held_out = {arguments.photos / name for name in HELD_OUT}
        parts = split([p for p in photographs if p.path not in held_out], VALIDATION_SHARE, scene)

        def write(writer: dataset.DatasetWriter, pairs: int, shares: dict[str, float] | None = None) -> None:
            validation = round(VALIDATION_SHARE * pairs)
            counts = {dataset.TRAIN: pairs - validation, dataset.VALIDATION: validation}
            with Progress() as progress:
                task = progress.add_task(writer.output.name, total=pairs)
                advance = functools.partial(progress.advance, task)
                writer.write(parts, counts, shares=shares, problems=problems, on_pair=lambda pair: advance())

        common = {"crop_size": CROP_SIZE, "workers": arguments.workers}
        if arguments.packaged:
            chosen = tuple(generators.choose(list(SHARES), arguments.taef2))
            for generator in chosen:
                generators.check(generator)
            writer = dataset.DatasetWriter(
                arguments.output / "packaged", generators=chosen, seed=arguments.seed, **common
            )
            write(writer, arguments.packaged, dict(zip(writer.kinds, SHARES.values(), strict=True)))
        if arguments.simulated:
            seed = arguments.seed + 1  # other crops than those of the packaged generators
            crops = crops_to_fit(parts[dataset.TRAIN], seed, problems)
            fitted = simulator(crops, arguments.workers, seed)
            write(
                dataset.DatasetWriter(arguments.output / "simulated", simulator=fitted, seed=seed, **common),
                arguments.simulated,
            )
            simulation.save(arguments.output / "simulated" / "decoders.safetensors", fitted)
    except InputError as error:
        parser.error(str(error))
    if problems:
        print(f"{len(problems)} photographs were skipped: {dataset.write_skipped(arguments.output, problems)}")


if __name__ == "__main__":
    main()
