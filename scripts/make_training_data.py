"""The training set of the preview checkpoint: what `npr simulate` makes, with shares of its own.

    python scripts/make_preview_data.py --photos PHOTOS --taef2 TAEF2 --output DIR

Writes DIR/{train,validation}/<generator>/{0_real,1_fake}/*.png and DIR/manifest.csv. Validation is split off by
photograph, and the photographs of examples/ are in neither part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from npr_model.errors import InputError
from npr_model.simulation import dataset, generators
from scripts.make_examples import PHOTOGRAPHS as HELD_OUT

VALIDATION_SHARE = 0.15

# Generators and their shares of the pairs; the slowest super-resolution network is left out.
SHARES = {
    "taef2/autoencoder": 40,
    "realesrgan/x4plus-anime": 3,
    "realesr-animevideov3/x2": 6,
    "realesr-animevideov3/x4": 6,
    "span/x2-ch48": 8,
    "span/ClearReality4x": 6,
    "span/4xSPANkendata": 6,
    "waifu2x/upconv_7_photo": 8,
    "waifu2x/cunet": 6,
    "realcugan/up2x": 5,
    "styletransfer/multistyle26": 4,
    "dcgan/faces": 2,
}


def scene(photograph: Path) -> str:
    """The same photograph comes in two shapes."""
    return photograph.stem.removesuffix("-square")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of real photographs")
    parser.add_argument("--taef2", type=Path, required=True, help="folder with taef2_encoder.pth and taef2_decoder.pth")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    def report(pair: dataset.Pair) -> None:
        if pair.number % 100 == 99:
            print(f"pair {pair.number + 1} of {arguments.crops}", flush=True)

    try:
        chosen = tuple(generators.choose(list(SHARES), arguments.taef2))
        for generator in chosen:
            generators.check(generator)
        writer = dataset.DatasetWriter(
            arguments.output, generators=chosen, seed=arguments.seed, workers=arguments.workers
        )
        photographs, problems = dataset.find_photographs([arguments.photos], writer.crop_size)
        held_out = {arguments.photos / name for name in HELD_OUT}
        parts = dataset.split([p for p in photographs if p.path not in held_out], VALIDATION_SHARE, scene)
        validation = round(VALIDATION_SHARE * arguments.crops)
        counts = {dataset.TRAIN: arguments.crops - validation, dataset.VALIDATION: validation}
        shares = dict(zip(writer.kinds, (SHARES[generator.name] for generator in chosen), strict=True))
        writer.write(parts, counts, shares=shares, problems=problems, on_pair=report)
    except InputError as error:
        parser.error(str(error))
    if problems:
        print(f"{len(problems)} photographs were skipped: {dataset.write_skipped(arguments.output, problems)}")


if __name__ == "__main__":
    main()
