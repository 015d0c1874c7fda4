"""A corpus of broken and odd files: one row each, with a score or with what is wrong, and the run never stops."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npr_model import cli
from tests.model.conftest import encoded, noise
from tests.model.imaging.files import chunk, jpeg_claiming, png16, png_claiming
from tests.model.screening.collections import tar, zipped

PICTURE = Image.fromarray(noise(24, 32))
PNG, JPEG = encoded(PICTURE), encoded(PICTURE, "JPEG", quality=90)
WEBP, GIF, TIFF, BMP = (encoded(PICTURE, name) for name in ("WEBP", "GIF", "TIFF", "BMP"))
GOOD = None


def bomb() -> bytes:
    """A PNG of a few kilobytes that unpacks to far more than its size says."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")


def damaged(data: bytes, place: int, count: int = 8) -> bytes:
    return data[:place] + bytes(byte ^ 0xFF for byte in data[place : place + count]) + data[place + count :]


def corpus() -> dict[str, tuple[bytes, str | tuple | None]]:
    """By name: the bytes, and the error code (or those that it may be), GOOD for what has a score."""
    files: dict[str, tuple[bytes, str | tuple | None]] = {
        "zero bytes.png": (b"", "empty"),
        "zero bytes.jpg": (b"", "empty"),
        "one byte.jpg": (b"\xff", "not_an_image"),
        "text.jpg": (b"hello " * 99, "not_an_image"),
        "html.png": (b"<!DOCTYPE html><html>404</html>", "not_an_image"),
        "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
        "zeros.tif": (bytes(4096), "not_an_image"),
        "random.webp": (noise(40, 40).tobytes(), "not_an_image"),
        "pdf.png": (b"%PDF-1.7\n%%EOF", "not_an_image"),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        "zip.png": (zipped(), "not_an_image"),
        "gzip.png": (gzip.compress(PNG), "not_an_image"),
        "tar.png": (tar(), "not_an_image"),
        "elf.jpg": (b"\x7fELF" + bytes(60), "not_an_image"),
        "wrong magic.png": (b"\x88" + PNG[1:], "not_an_image"),
        "crlf turned.png": (PNG.replace(b"\r\n", b"\n"), ("not_an_image", "damaged")),
        "jpeg named.png": (JPEG, GOOD),
        "png named.jpg": (PNG, GOOD),
        "webp named.gif": (WEBP, GOOD),
        "junk behind.png": (PNG + b"junk" * 99, GOOD),
        "junk behind.jpg": (JPEG + b"junk" * 99, GOOD),
        "magic only.jpg": (b"\xff\xd8\xff", ("not_an_image", "damaged")),
        "magic only.png": (b"\x89PNG\r\n\x1a\n", ("not_an_image", "damaged")),
        "magic only.gif": (b"GIF89a", ("not_an_image", "damaged")),
        "decompression bomb.png": (png_claiming(100_000, 100_000), "too_large"),
        "decompression bomb.jpg": (jpeg_claiming(65_000, 65_000), "too_large"),
        "more data than pixels.png": (bomb(), (GOOD, "damaged")),
        "wide.png": (png_claiming(2**31 - 1, 1), ("too_large", "not_an_image", "damaged")),
        "negative.bmp": (damaged(BMP, 18, 4), ("too_large", "not_an_image", "damaged")),
        "no width.png": (png_claiming(0, 5), ("not_an_image", "damaged")),
        "one pixel.png": (encoded(noise(1, 1)), "too_small"),
        "one row.jpg": (encoded(noise(1, 40), "JPEG"), "too_small"),
        "one column.webp": (encoded(noise(40, 1), "WEBP"), "too_small"),
        "one cell.png": (encoded(noise(2, 2)), GOOD),
        "odd.png": (encoded(noise(3, 5)), GOOD),
        "long.png": (encoded(noise(2, 3000)), GOOD),
        "black.png": (encoded(np.zeros((32, 32, 3), np.uint8)), GOOD),
        "white.jpg": (encoded(np.full((32, 32, 3), 255, np.uint8), "JPEG"), GOOD),
        "cmyk.jpg": (encoded(PICTURE.convert("CMYK"), "JPEG"), GOOD),
        "grey.jpg": (encoded(PICTURE.convert("L"), "JPEG"), GOOD),
        "grey.png": (encoded(PICTURE.convert("L")), GOOD),
        "bilevel.png": (encoded(PICTURE.convert("1")), GOOD),
        "palette.png": (encoded(PICTURE.convert("P")), GOOD),
        "alpha.png": (encoded(PICTURE.convert("RGBA")), GOOD),
        "grey and alpha.png": (encoded(PICTURE.convert("LA")), GOOD),
        "16 bits.png": (png16(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80), GOOD),
        "16 bits.tif": (encoded(Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)), "TIFF"), GOOD),
        "32 bits.tif": (encoded(PICTURE.convert("I"), "TIFF"), "unsupported"),
        "floats.tif": (encoded(PICTURE.convert("F"), "TIFF"), "unsupported"),
        "lab.tif": (encoded(Image.new("LAB", (24, 24)), "TIFF"), GOOD),
        "pages.tif": (encoded(PICTURE, "TIFF", save_all=True, append_images=[PICTURE]), GOOD),
        "animated.gif": (encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)]), GOOD),
        "animated.webp": (encoded(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]), GOOD),
        "progressive.jpg": (encoded(PICTURE, "JPEG", progressive=True), GOOD),
        "broken exif.jpg": (encoded(PICTURE, "JPEG", exif=b"Exif\x00\x00MM\x00*" + b"\xff" * 40), GOOD),
        "broken profile.png": (encoded(PICTURE, icc_profile=b"no profile"), GOOD),
        "new\nline.png": (PNG, GOOD),
        "-o.png": (PNG, GOOD),
        "percent %s {}.png": (PNG, GOOD),
        "[markup].png": (PNG, GOOD),
        "\x1b[31mred.png": (PNG, GOOD),
        "üñí 漢字 🙂.PNG": (PNG, GOOD),
        "not utf-8 \udcff\udcfe.png": (PNG, GOOD),
    }
    for name, data in {"jpg": JPEG, "png": PNG, "webp": WEBP, "gif": GIF, "tif": TIFF, "bmp": BMP}.items():
        files[f"half.{name}"] = (data[: len(data) // 2], ("damaged", "not_an_image"))
        files[f"almost.{name}"] = (data[:-30], ("damaged", "not_an_image", GOOD))  # a GIF's last blocks may be empty
        files[f"damaged.{name}"] = (damaged(data, len(data) // 2), ("damaged", "not_an_image", GOOD))
    return files


def write(folder: Path) -> dict[str, str | tuple | None]:
    folder.mkdir()
    files = corpus()
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    expected = {os.fsencode(name).decode("utf-8", "backslashreplace"): code for name, (_, code) in files.items()}
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("absent.png")
    (folder / "folder.png").mkdir()
    (folder / "back").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    return expected | {"loop.png": "unreadable", "nowhere.png": "unreadable", "pipe.png": "unreadable"}


@pytest.mark.parametrize("workers", [1, 4])
def test_one_row_for_every_file(tmp_path, checkpoint, workers, capsys):
    expected = write(tmp_path / "odd")
    assert len(expected) > 60
    output = tmp_path / "scores.parquet"
    arguments = ["screen", str(tmp_path / "odd"), "--checkpoint", str(checkpoint), "-o", str(output)]
    assert cli.main([*arguments, "--workers", str(workers)]) == 1
    out, err = capsys.readouterr()
    assert err == "" and "\x1b[31m" not in out
    rows = {os.path.relpath(row["source"], tmp_path / "odd"): row for row in pq.read_table(output).to_pylist()}
    assert rows.keys() == expected.keys() and pq.read_metadata(output).num_rows == len(expected)
    for name, code in expected.items():
        row = rows[name]
        assert row["error_code"] in (code if isinstance(code, tuple) else (code,)), (name, row["error"])
        assert (row["error"] is None) == (row["logit"] is not None) == (row["verdict"] is not None)
        assert row["error"] is None or "\n" not in row["error"]
        assert (row["sha256"] is None) == (row["error_code"] == "unreadable")
        assert row["milliseconds"] >= 0 and row["model"] and row["view"] == "native"


def test_a_file_without_permission_is_a_row(tmp_path, checkpoint, monkeypatch):
    """Permissions do not bind the superuser, so the refusal is made."""
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    open_file = open

    def refused(file, *arguments, **options):
        if file == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refused)
    output = tmp_path / "scores.parquet"
    assert cli.main(["screen", str(path), "--checkpoint", str(checkpoint), "-o", str(output)]) == 1
    (row,) = pq.read_table(output).to_pylist()
    assert row["error_code"] == "unreadable" and "Permission denied" in row["error"]
