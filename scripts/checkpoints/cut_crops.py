"""Cuts crops of 256x256 pixels out of whole images, without a second compression, for training.

    python -m scripts.checkpoints.cut_crops ORIGINALS OUTPUT

ORIGINALS holds <family>/{0_real,1_fake}; OUTPUT gets the same folders. Each image gives up to CROPS crops that do not
overlap. JPEGs are cut by jpegtran (of libjpeg-turbo) at whole blocks, so that they are compressed only once; the crops
of all other files are stored as PNG. A side that is shorter than a crop stays whole. Crops of nearly a
single colour and crops with a side below LEAST are left out, and so are images that cannot be decoded, which are named.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from npr_model.datasets.folders import find_samples
from npr_model.errors import InputError
from npr_model.files import atomic_write
from npr_model.imaging.decode import decode
from npr_model.imaging.encode import encode_png

SIDE, CROPS, LEAST = 256, 5, 100
BLOCK = 32  # pixels; the largest unit of a JPEG, with quartered chroma
FLAT = 3.0  # least standard deviation of a colour channel in a crop that shows something


def places(height: int, width: int, draw: random.Random) -> Iterator[tuple[slice, slice]]:
    """Yield up to CROPS squares of a grid, in random order; the grid begins at a random block."""
    starts = []
    for side in (height, width):
        rest = side % SIDE if side > SIDE else 0
        starts.append(range(draw.randrange(rest // BLOCK + 1) * BLOCK, max(1, side - SIDE + 1), SIDE))
    grid = list(itertools.product(*starts))
    for y, x in draw.sample(grid, min(CROPS, len(grid))):
        yield slice(y, min(y + SIDE, height)), slice(x, min(x + SIDE, width))


def crops(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and content of the crops of an image. Raises ImageError."""
    data = path.read_bytes()
    pixels = decode(data).pixels
    for rows, columns in places(*pixels.shape[:2], random.Random(name)):
        crop = pixels[rows, columns]
        if min(crop.shape[:2]) < LEAST or crop.std((0, 1)).max() < FLAT:
            continue
        if data.startswith(b"\xff\xd8"):
            where = f"{crop.shape[1]}x{crop.shape[0]}+{columns.start}+{rows.start}"
            command = ["jpegtran", "-copy", "none", "-crop", where]
            cut = subprocess.run(command, input=data, capture_output=True, check=True)
            yield ".jpg", cut.stdout
        else:
            yield ".png", encode_png(np.ascontiguousarray(crop))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    if shutil.which("jpegtran") is None:
        parser.error("jpegtran is missing: it comes with libjpeg-turbo (Debian: libjpeg-turbo-progs)")
    written = 0
    for sample in find_samples(arguments.originals):
        name = sample.path.relative_to(arguments.originals)
        target = arguments.output / name.with_name(name.name.replace(".", "_"))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            for number, (suffix, content) in enumerate(crops(sample.path, str(name))):
                with atomic_write(target.with_name(f"{target.name}_{number}{suffix}")) as temporary:
                    temporary.write_bytes(content)
                written += 1
        except (InputError, subprocess.CalledProcessError) as error:
            print(f"left out: {name}: {error}")
    print(f"{written} crops in {arguments.output}")


if __name__ == "__main__":
    main()
