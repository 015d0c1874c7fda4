"""The training set of the preview checkpoint: photographs, and fakes that generators made from the same photographs.

    python scripts/make_preview_data.py --photos PHOTOS --taef2 TAEF2 --output DIR

Writes 256x256 PNG files to DIR/{train,validation}/<generator>/{0_real,1_fake}/, one real and one fake a crop, and
DIR/crops.csv with the origin of every crop. What keeps a detector from learning the wrong thing:

- both classes come from the same crops, so scenes, cameras and scales agree;
- two crops in three are scaled down from a larger piece first, by five kernels, so that a history of JPEG, which fakes
  lose and photographs keep, does not mark a photograph;
- one crop in five is enlarged by classical kernels before it becomes a real image or a fake, and both are sharpened,
  grained or smoothed equally often at the end, so that "was resized" or "is sharp" marks neither;
- validation is split off by photograph, never by crop, and the photographs of examples/ are in neither part.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts import generators
from scripts.make_examples import PHOTOGRAPHS as HELD_OUT

SIZE = 256
VALIDATION_SHARE = 0.15
KERNELS = [Image.Resampling[name] for name in ("BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")]

# Generators and their shares of the crops; the slowest super-resolution network is left out.
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
all_generators = functools.cache(generators.generators)


def find_photographs(folder: Path) -> list[Path]:
    suffixes = {".jpg", ".jpeg", ".png"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return [path for path in found if path.relative_to(folder).as_posix() not in HELD_OUT]


def is_validation(photograph: Path) -> bool:
    """Decided by the file's name alone, so that it never changes with the number of crops or the seed."""
    scene = photograph.stem.removesuffix("-square")  # the same photograph in another shape
    return int(hashlib.sha256(scene.encode()).hexdigest(), 16) % 1000 < 1000 * VALIDATION_SHARE


def base_crop(photograph: Path, rng: random.Random) -> tuple[Image.Image, float]:
    """A 256x256 piece, scaled down from up to 4x as much where the photograph allows it, and how much that was."""
    image = Image.open(photograph).convert("RGB")
    limit = min(image.size) / SIZE
    if limit < 1:
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        limit = 1
    factor = 1.0 if rng.random() < 1 / 3 else min(rng.uniform(1.15, 4), limit)
    side = round(SIZE * factor)
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    crop = image.crop((left, top, left + side, top + side))
    return (crop if side == SIZE else crop.resize((SIZE, SIZE), rng.choice(KERNELS))), factor


def retouch(image: Image.Image, rng: random.Random) -> Image.Image:
    """What photographs go through before anybody sees them: sharpening, noise reduction, grain."""
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 2), rng.randint(30, 120), 0))
    if rng.random() < 0.1:
        image = image.filter(ImageFilter.MedianFilter(3))
    if rng.random() < 0.15:
        grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 5), (SIZE, SIZE, 3))
        image = Image.fromarray((np.asarray(image, np.float64) + grain).round().clip(0, 255).astype(np.uint8))
    return image


def enlarge(image: Image.Image, rng: random.Random) -> Image.Image:
    """Scaled down and up again by a classical kernel: a photograph still, though not a sharp one."""
    side = round(SIZE / rng.uniform(1.2, 2.5))
    small = image.resize((side, side), rng.choice(KERNELS))
    return small.resize((SIZE, SIZE), rng.choice(KERNELS[1:]))


def make_pair(task: tuple[int, Path], photographs: Path, taef2: Path, output: Path, seed: int) -> dict:
    """Writes one real and one fake image; returns the row of crops.csv."""
    number, photograph = task
    rng = random.Random(f"{seed}-{number}")
    name = rng.choices(list(SHARES), list(SHARES.values()))[0]
    crop, factor = base_crop(photograph, rng)
    if rng.random() < 0.2:
        crop = enlarge(crop, rng)
    noise = np.random.default_rng(rng.getrandbits(32))
    fake = Image.fromarray(generators.recreate(all_generators(taef2)[name], np.array(crop), noise))
    real, fake = retouch(crop, rng), retouch(fake, rng)
    part = "validation" if is_validation(photograph) else "train"
    for image, label in ((real, "0_real"), (fake, "1_fake")):
        path = output / part / name.replace("/", "-") / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, compress_level=1)
    origin = photograph.relative_to(photographs).as_posix()
    return {"crop": number, "part": part, "generator": name, "photograph": origin, "scaled_down_by": round(factor, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of real photographs")
    parser.add_argument("--taef2", type=Path, required=True, help="folder with taef2_encoder.pth and taef2_decoder.pth")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    photographs = find_photographs(arguments.photos)
    if not photographs:
        parser.error(f"{arguments.photos}: there are no photographs (.jpg, .png) in this folder")
    try:  # each once, so that a missing package or weight is said now, not by a worker
        for name in SHARES:
            generators.recreate(
                all_generators(arguments.taef2)[name], np.zeros((64, 64, 3), np.uint8), np.random.default_rng()
            )
    except generators.GeneratorError as error:
        parser.error(str(error))
    # Large photographs give more crops, but no more than eight times a small one.
    weights = [min(8.0, max(1.0, min(Image.open(path).size) / SIZE)) for path in photographs]
    chosen = random.Random(arguments.seed).choices(photographs, weights, k=arguments.crops)
    work = partial(
        make_pair,
        photographs=arguments.photos,
        taef2=arguments.taef2,
        output=arguments.output,
        seed=arguments.seed,
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(arguments.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        open(arguments.output / "crops.csv", "w", newline="") as file,
    ):
        table = csv.DictWriter(file, ["crop", "part", "generator", "photograph", "scaled_down_by"])
        table.writeheader()
        for row in pool.map(work, enumerate(chosen), chunksize=4):
            table.writerow(row)
            if (row["crop"] + 1) % 100 == 0:
                file.flush()
                print(f"{row['crop'] + 1} of {arguments.crops} crops", flush=True)


if __name__ == "__main__":
    main()
