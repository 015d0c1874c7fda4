"""Makes the images in examples/: crops of photographs with free licences, and fakes of such photographs.

    python -m scripts.documents.make_examples --photos PHOTOS --taef2 TAEF2 [--output examples]

Each photograph gives one real image and one generated image, cut from different places. In both classes every third
image is a JPEG and the others are PNGs, so that the format does not separate the classes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from npr_model.simulation import generators

SIZE = 320

# Photographs that no checkpoint is trained on, each with the generator that makes its fake.
PHOTOGRAPHS = {
    "npm-paper-kit-2/antoine-barres.jpg": "taef2/autoencoder",
    "npm-paper-kit-2/bruno-abatti.jpg": "waifu2x/cunet",
    "npm-paper-kit-2/daniel-olahh.jpg": "waifu2x/cunet",
    "npm-paper-kit-2/daniel-olahs.jpg": "taef2/autoencoder",
    "npm-paper-kit-2/fabio-mangione.jpg": "realesr-animevideov3/x2",
    "npm-paper-kit-2/federico-beccari.jpg": "waifu2x/upconv_7_photo",
    "npm-paper-kit-2/ilya-yakover.jpg": "taef2/autoencoder",
    "npm-paper-kit-2/joshua-stannard.jpg": "realcugan/up2x",
    "npm-paper-kit-2/login-image.jpg": "realcugan/up2x",
    "npm-paper-kit-2/soroush-karimi.jpg": "taef2/autoencoder",
    "npm-paper-kit-2/uriel-soberanes.jpg": "realesr-animevideov3/x4",
    "npm-startbootstrap-creative/bg-masthead.jpg": "realesrgan/x4plus-anime",
}


def piece(photograph: Image.Image, centre: float) -> Image.Image:
    """A square of the photograph's full height around ``centre`` (0 left, 1 right), scaled down to SIZE."""
    side = min(photograph.size)
    left = round((photograph.width - side) * centre)
    return photograph.crop((left, 0, left + side, side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--taef2", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("examples"))
    arguments = parser.parse_args()

    made_by = generators.catalogue(arguments.taef2)
    rows = []
    for number, (origin, generator) in enumerate(PHOTOGRAPHS.items()):
        photograph = Image.open(arguments.photos / origin).convert("RGB")
        image = np.asarray(piece(photograph, 0.75), np.float32) / 255
        fake = generators.recreate(made_by[generator], image, np.random.default_rng(0))
        suffix, options = (".jpg", {"quality": 95}) if number % 3 == 2 else (".png", {"optimize": True})
        package = origin.partition("/")[0].removeprefix("npm-")
        for label, image, how in (
            ("real", piece(photograph, 0.25), "left part, scaled down (Lanczos)"),
            (
                "generated",
                Image.fromarray(np.rint(255 * fake).astype(np.uint8)),
                f"right part, scaled down (Lanczos), re-created by {generator}",
            ),
        ):
            path = arguments.output / label / f"{Path(origin).stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **options)
            rows.append(
                {
                    "file": path.relative_to(arguments.output).as_posix(),
                    "photograph": Path(origin).name,
                    "source": f"npm package {package}",
                    "licence": "MIT",
                    "how": how,
                }
            )
    with open(arguments.output / "CREDITS.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: row["file"]))


if __name__ == "__main__":
    main()
