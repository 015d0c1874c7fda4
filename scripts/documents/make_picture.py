"""The picture at the top of README: a photograph, a generated image, their NPR maps and their verdicts.

    python -m scripts.documents.make_picture [--output docs/npr.png]

Both images are in examples/. The same checkpoint makes the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import npr_model
from npr_model.explanation.explain import explain
from npr_model.explanation.pictures import npr_picture
from npr_model.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "fabio-mangione.png"
TITLES = {"real": "photograph", "generated": "generated image"}  # by folder of examples/
GAP = 8  # pixels between two panels
LINE = 26  # height in pixels of a line of a caption


def picture(detector: npr_model.Detector, paths: dict[str, Path]) -> Image.Image:
    """Draw each image and its NPR map side by side, with captions below; ``paths`` has the files by title."""
    panels: list[tuple[str, Image.Image]] = []
    for title, path in paths.items():
        image, score = Image.open(path).convert("RGB"), detector.score(path)
        npr_map = npr_picture(explain(detector.network, np.array(image)).npr)
        verdict = f"verdict: {score.verdict} (probability {score.probability:.3f})"
        panels += [(title, image), (f"its NPR map\n{verdict}", npr_map)]
    width, height = panels[0][1].size
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + GAP + 2 * LINE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=17)
    for number, (caption, panel) in enumerate(panels):
        left = number * (width + GAP)
        canvas.paste(panel, (left, 0))
        for line, text in enumerate(caption.splitlines()):
            draw.text((left + width / 2, height + GAP + LINE * (line + 0.5)), text, "black", font, anchor="mm")
    return canvas.quantize(256, Image.Quantize.MEDIANCUT)  # a palette makes the file a quarter of the size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "npr.png")
    arguments = parser.parse_args()
    detector = npr_model.load(device="cpu", dtype="float32")
    paths = {title: ROOT / "examples" / folder / NAME for folder, title in TITLES.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(arguments.output) as temporary:
        picture(detector, paths).save(temporary, "PNG", optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
