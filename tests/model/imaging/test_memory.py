"""How much memory decoding takes for each pixel, on top of the file: docs/screening.md promises these numbers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.model.conftest import encoded
from tests.model.imaging.files import picture, png_of_rows

HEIGHT, WIDTH = 1200, 1600
MOST_BYTES = {
    "JPEG": 4,
    "JPEG progressive": 10,
    "JPEG cmyk": 16,
    "PNG": 14,
    "PNG 16": 22,
    "TIFF": 14,
    "GIF": 14,
    "WEBP": 22,
    "JPEG2000": 32,
    "JXL": 32,
}
MOST = 28  # of other formats
ANY_IMAGE = 6 * 2**20  # for any size
SCRIPT = """
import json, os, resource, sys
from PIL import Image
Image.init()
from npr_model.imaging.decode import decode

small, *names = sys.argv[1:]
decode(open(small, "rb").read())
for name in names:
    data = open(name, "rb").read()
    read, write = os.pipe()
    if not os.fork():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decoded = decode(data)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(write, json.dumps([1024 * (most - before), decoded.width * decoded.height]).encode())
        os._exit(0)
    os.wait()
    print(os.read(read, 100).decode())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_memory_per_pixel(tmp_path):
    tile = picture(300, 400)
    image = Image.fromarray(np.tile(tile, (HEIGHT // 300, WIDTH // 400, 1)))
    samples = np.asarray(image.convert("RGBA")).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    quarter = image.crop((0, 0, WIDTH // 2, HEIGHT // 2))
    files = {
        "small": encoded(image.crop((0, 0, 16, 16))),
        "JPEG": encoded(image, "JPEG"),
        "JPEG progressive": encoded(image, "JPEG", progressive=True, subsampling="4:4:4"),
        "JPEG cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "PNG": encoded(image.convert("RGBA"), compress_level=1),
        "PNG 16": png_of_rows(WIDTH, HEIGHT, rows, 6, 16),
        "GIF": encoded(image, "GIF"),
        "TIFF": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "WEBP": encoded(image, "WEBP", method=0),
        "JPEG2000": encoded(image, "JPEG2000"),
        "BMP": encoded(image, "BMP"),
        "TGA": encoded(image, "TGA", compression="tga_rle"),
        "PPM": encoded(image, "PPM"),
    }
    if "AVIF" in Image.OPEN:
        files["AVIF"] = encoded(quarter, "AVIF", speed=10)
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        files["JXL"] = imagecodecs.jpegxl_encode(samples.astype(np.uint16), lossless=True, effort=4)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in files]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True, check=True, cwd=ROOT)
    names = [name for name in files if name != "small"]
    for name, line in zip(names, run.stdout.splitlines(), strict=True):
        taken, pixels = json.loads(line)
        assert taken < ANY_IMAGE + MOST_BYTES.get(name, MOST) * pixels, f"{name}: {taken / pixels:.1f} bytes per pixel"
