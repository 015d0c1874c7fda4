"""A folder of 200 files as people have them: photographs, generated images, odd formats and broken files, in one run.

Each file has its expected row: the columns that are named here, and their values.
"""

from __future__ import annotations

import importlib.util
import io
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npr_model.commands.shared import terminal
from tests.conftest import ROOT
from tests.model.conftest import encoded, noise
from tests.model.imaging.files import camera_raw, every_kind, heif, jpeg_claiming, picture, png16, png_claiming
from tests.model.provenance import declaring

COUNT = 200
HAS_C2PA, HAS_JXL = (importlib.util.find_spec(name) is not None for name in ("c2pa", "imagecodecs"))
VERDICT = re.compile("^(real|generated|uncertain)$")
UNNAMED = re.compile("^(simplejpeg|pillow) ")  # the decoder of a JPEG depends on its kind


class File(NamedTuple):
    """The bytes of a file, and columns of its row: values, or patterns of them. None: it has no row."""

    data: bytes
    row: dict[str, Any] | None


def scored(data: bytes, format: str, width: int = 96, height: int = 64, **columns: Any) -> File:
    decoders = {"HEIF": "^pillow-heif ", "JPEG": UNNAMED, "JXL": "^imagecodecs ", "MPO": UNNAMED}
    row = {
        "error": None,
        "error_code": None,
        "verdict": VERDICT,
        "format": format,
        "width": width,
        "height": height,
        "decoder": re.compile(decoders.get(format, "^pillow ")),
        "declared": None,
    }
    return File(data, row | columns)


def failed(data: bytes, code: str, words: str = "") -> File:
    row = {"error_code": code, "error": re.compile(re.escape(words)), "verdict": None, "logit": None, "declared": None}
    return File(data, row)


def declared(data: bytes, format: str, kind: str, by: str, **columns: Any) -> File:
    verdict = "generated (declared)" if kind == "generated" else VERDICT
    columns = {"verdict": verdict, "declared": kind, "declared_by": re.compile(re.escape(by))} | columns
    return scored(data, format, **({"width": 24, "height": 24} | columns))


PIXELS = picture(64, 96)
PHOTO = Image.fromarray(PIXELS)
EXIF = {declaring.MAKE: "Canon", declaring.MODEL: "Canon EOS R5", declaring.EXPOSURE: 0.01}


def exif(tags: dict[int, Any]) -> bytes:
    made = Image.Exif()
    made[declaring.MAKE], made[declaring.MODEL] = tags[declaring.MAKE], tags[declaring.MODEL]
    made[declaring.EXIF_IFD] = {declaring.EXPOSURE: tags[declaring.EXPOSURE]}
    return made.tobytes()


def examples() -> dict[str, File]:
    """The repository's own images."""
    found = {}
    for path in sorted((ROOT / "examples").glob("*/*.*")):
        with Image.open(path) as image:
            found[f"examples/{path.parent.name} {path.name}"] = scored(path.read_bytes(), image.format, *image.size)
    return found


def photographs() -> dict[str, File]:
    """As cameras, phones and scanners write them; three have 12 megapixels."""
    large = Image.fromarray(np.tile(picture(500, 500), (6, 8, 1)))
    size = {"width": 4000, "height": 3000}
    fine, coarse = {"condition": "jpeg-90-100"}, {"condition": "jpeg-below-90"}
    recompressed = Image.open(io.BytesIO(encoded(picture(256, 256), "JPEG", quality=40)))
    mpo = encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "DCIM/DSC_0001.JPG": scored(encoded(large, "JPEG", quality=92), "JPEG", **size, **fine, jpeg_quality=92),
        "DCIM/DSC_0002.JPG": scored(encoded(large, "JPEG", quality=80, progressive=True), "JPEG", **size, **coarse),
        "DCIM/DSC_0003.JPG": declared(
            encoded(large, "JPEG", quality=95, exif=exif(EXIF)), "JPEG", "camera", "EXIF: Canon EOS R5", **size
        ),
        "DCIM/turned.jpg": scored(encoded(PHOTO, "JPEG", exif=turned), "JPEG", subsampling="4:2:0"),
        "DCIM/grey.jpg": scored(encoded(PHOTO.convert("L"), "JPEG", quality=90), "JPEG", subsampling=None, **fine),
        "DCIM/print.jpg": scored(encoded(PHOTO.convert("CMYK"), "JPEG"), "JPEG", decoder=re.compile("^pillow ")),
        "DCIM/saved twice.jpg": scored(
            encoded(recompressed, "JPEG", quality=95), "JPEG", 256, 256, condition="jpeg-recompressed"
        ),
        "DCIM/stereo.mpo": scored(mpo, "MPO"),
        "DCIM/stereo.jpg": scored(mpo, "MPO"),
        "phone/IMG_0001.HEIC": scored(heif(PIXELS), "HEIF", condition="other-lossy"),
        "phone/IMG_0002.heic": scored(heif(PIXELS, orientation=6), "HEIF"),
        "phone/IMG_0003.hif": scored(heif(noise(64, 96)), "HEIF"),
        "scans/page 16 bits.png": scored(png16(np.full((64, 96, 3), PIXELS.astype(int) << 8)), "PNG"),
        "scans/page.tif": scored(encoded(PHOTO, "TIFF", compression="tiff_lzw"), "TIFF", condition="lossless"),
        "scans/page.jp2": scored(encoded(PHOTO, "JPEG2000"), "JPEG2000", condition="other-lossy"),
        "scans/page.bmp": scored(encoded(PHOTO, "BMP"), "BMP"),
        "scans/page.tga": scored(encoded(PHOTO, "TGA"), "TGA"),
        "scans/blank.png": scored(encoded(Image.new("RGB", (96, 64))), "PNG", verdict="uncertain", flags="flat"),
    }


def generated() -> dict[str, File]:
    """With what generators, editors and cameras write into their files, signed and not."""
    ai, by = "trainedAlgorithmicMedia", "Content Credentials"
    files = {
        "ai/ComfyUI_00001_.png": declared(
            declaring.png(prompt=declaring.GRAPH, workflow=declaring.WORKFLOW), "PNG", "generated", "of ComfyUI"
        ),
        "ai/00001-1.png": declared(
            declaring.png(parameters=declaring.WEB_UI),
            "PNG",
            "generated",
            "PNG text parameters: parameters of a Stable",
        ),
        "ai/00002-2.jpg": declared(
            declaring.encoded("JPEG", {declaring.COMMENT: b"UNICODE\0" + declaring.WEB_UI.encode("utf-16-be")}),
            *("JPEG", "generated", "EXIF comment: parameters of a Stable"),
        ),
        "ai/00003-3.webp": declared(
            declaring.encoded("WEBP", {declaring.COMMENT: b"UNICODE\0" + declaring.WEB_UI.encode("utf-16-le")}),
            *("WEBP", "generated", "EXIF comment: parameters of a Stable"),
        ),
        "ai/xmp.jpg": declared(
            declaring.encoded("JPEG", xmp=declaring.attribute(ai)), "JPEG", "generated", f"XMP: {ai}"
        ),
        "ai/edited.jpg": declared(
            declaring.encoded("JPEG", {declaring.SOFTWARE: "Adobe Photoshop 25.1"}), "JPEG", "edited", "EXIF software"
        ),
        "ai/a caption.png": scored(declaring.png(Title="Made without Midjourney"), "PNG", 24, 24),
    }
    unsigned = declaring.in_jpeg(declaring.encoded("JPEG"), declaring.AI)
    if not HAS_C2PA:
        return files | {"ai/unsigned.jpg": declared(unsigned, "JPEG", "generated", f"{by}: {ai}, by OpenAI-API")}
    from tests.model.provenance.signed import signed

    invalid = {"declared_by": re.compile(f"^{by} are invalid")}
    made, behind = signed(encoded(PHOTO), "PNG", ai), b"added later"
    size, valid = {"width": 96, "height": 64}, f"{by} (valid, untrusted signer): "
    return files | {
        "ai/unsigned.jpg": scored(unsigned, "JPEG", 24, 24, **invalid),
        "ai/signed.png": declared(made, "PNG", "generated", f"{valid}{ai}, by OpenAI-API", **size),
        "ai/signed.jpg": declared(
            signed(encoded(PHOTO, "JPEG"), "JPEG", ai), "JPEG", "generated", f"{valid}{ai}, by OpenAI-API", **size
        ),
        "ai/signed by a camera.jpg": declared(
            signed(encoded(PHOTO, "JPEG"), "JPEG", "digitalCapture", generator="Leica M11-P"),
            *("JPEG", "camera", f"{valid}digitalCapture, by Leica M11-P"),
            **size,
        ),
        "ai/changed after signing.png": scored(made + behind, "PNG", **invalid),
    }


def jpegxl() -> dict[str, File]:
    """Without the extra, errors that name it; their files are the beginnings of real ones."""
    if not HAS_JXL:
        needs = "pip install 'npr-kernels[jxl]'"
        return {
            f"new/{number}.jxl": failed(b"\xff\x0a\x7f" + bytes(number + 9), "unsupported", needs)
            for number in range(2)
        }
    import imagecodecs

    lossless = imagecodecs.jpegxl_encode(PIXELS, lossless=True)
    lossy = imagecodecs.jpegxl_encode(PIXELS, distance=1.0, usecontainer=True)
    jpeg = encoded(PHOTO, "JPEG", quality=85, exif=exif(EXIF))
    frames = imagecodecs.jpegxl_encode(np.stack([PIXELS, 255 - PIXELS]), lossless=True)
    return {
        "new/lossless.jxl": scored(lossless, "JXL", condition="lossless"),
        "new/lossy.jxl": scored(lossy, "JXL", condition="other-lossy"),
        "new/frames.jxl": scored(frames, "JXL"),
        "new/16 bits.jxl": scored(imagecodecs.jpegxl_encode(PIXELS.astype(np.uint16) << 8, lossless=True), "JXL"),
        "new/named.png": scored(lossless, "JXL"),
        "new/without a suffix": scored(lossy, "JXL"),
        "new/from a JPEG.jxl": declared(
            imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True),
            *("JXL", "camera", "EXIF: Canon EOS R5"),
            **{"width": 96, "height": 64, "jpeg_quality": 85, "condition": "jpeg-below-90"},
            decoder=re.compile(r"^simplejpeg .* \(JPEG by imagecodecs "),
        ),
        "new/cut.jxl": failed(lossy[: len(lossy) // 2], "damaged", "JPEG XL"),
        "new/huge.jxl": failed(b"\xff\x0a" + (0x3FFFFFFF << 3 | 3 << 1 | 1 << 33).to_bytes(9, "little"), "too_large"),
    }


def raw_files() -> dict[str, File]:
    preview = encoded(PHOTO, "JPEG", quality=92, exif=exif(EXIF))
    suffixes = {"Nikon NEF": "NEF", "Sony ARW": "ARW", "Canon CR2": "CR2", "Canon CR3": "CR3", "Fujifilm RAF": "RAF"}
    suffixes |= {"DNG": "dng", "Olympus ORF": "ORF", "Panasonic RW2": "RW2", "Pentax PEF": "PEF"}
    with_preview, without, cut = (camera_raw(data) for data in (preview, b"", preview[: len(preview) // 2]))
    files = {
        f"raw/IMG.{suffix}": declared(
            with_preview[name],
            *(name, "camera", "EXIF: Canon EOS R5"),
            **{"width": 96, "height": 64, "jpeg_quality": 92, "condition": "jpeg-90-100"},
            decoder=re.compile(rf"^simplejpeg \S+ \(preview in {name}\)$"),
        )
        for name, suffix in suffixes.items()
    }
    return files | {
        "raw/no preview.NEF": failed(without["Nikon NEF"], "unsupported", "no JPEG preview"),
        "raw/cut.CR2": failed(cut["Canon CR2"], "damaged", "truncated"),
    }


def broken() -> dict[str, File]:
    """Truncated, damaged, empty, not images, too large, and formats that are not supported."""
    png, jpeg, progressive = encoded(PHOTO), encoded(PHOTO, "JPEG"), encoded(PHOTO, "JPEG", progressive=True)
    whole = {
        "png": png,
        "jpg": jpeg,
        "progressive.jpg": progressive,
        "gif": encoded(PHOTO, "GIF"),
        "webp": encoded(PHOTO, "WEBP"),
        "tif": encoded(PHOTO, "TIFF"),
        "bmp": encoded(PHOTO, "BMP"),
        "jp2": encoded(PHOTO, "JPEG2000"),
        "heic": heif(noise(64, 96)),
        "ppm": encoded(PHOTO, "PPM"),
    }
    lines, pointer = (
        b"no image, but text\n" * 9,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
    )
    return {
        **{f"broken/cut in half.{name}": failed(data[: len(data) // 2], "damaged") for name, data in whole.items()},
        **{f"broken/empty.{name}": failed(b"", "empty", "the file is empty") for name in ("jpg", "png", "heic", "jxl")},
        "broken/end marker after half.jpg": failed(jpeg[: len(jpeg) // 2] + b"\xff\xd9", "damaged"),
        "broken/wrong checksum.png": failed(png[:60] + bytes([png[60] ^ 1]) + png[61:], "damaged", "checksum"),
        "broken/text.jpg": failed(lines, "not_an_image"),
        "broken/page.png": failed(b"<!DOCTYPE html><html>404</html>", "not_an_image"),
        "broken/drawing.png": failed(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image", "SVG"),
        "broken/document.jpg": failed(b"%PDF-1.7\n%%EOF", "not_an_image", "PDF"),
        "broken/pointer.png": failed(pointer, "not_an_image", "git lfs pull"),
        "broken/bomb.png": failed(png_claiming(100_000, 100_000), "too_large"),
        "broken/bomb.jpg": failed(jpeg_claiming(65_000, 65_000), "too_large"),
        "broken/one pixel.png": failed(encoded(noise(1, 1)), "too_small"),
        "broken/icon.ico": failed(encoded(PHOTO, "ICO"), "unsupported", "ICO"),
        "broken/layers.psd": failed(b"8BPS\0\1" + bytes(99), "unsupported", "Photoshop"),
        "broken/float.tif": failed(encoded(Image.new("F", (8, 8)), "TIFF"), "unsupported", "no agreed range"),
        "broken/PNG named.jpg": scored(png, "PNG"),
        "broken/JPEG without a suffix": scored(jpeg, "JPEG"),
        "broken/the same again.PNG": scored(png, "PNG"),
        "broken/tail cut.jpg": scored(jpeg.removesuffix(b"\xff\xd9"), "JPEG"),
        "notes.txt": File(lines, None),
        "unknown data": File(bytes(999), None),
        ".hidden.png": File(png, None),
    }


def kinds(count: int) -> dict[str, File]:
    """Of all the kinds that decode, ``count``: the animations, then others as they come."""
    whole = every_kind(46, 38)
    names = sorted(whole)
    random.Random(0).shuffle(names)
    names.sort(key=lambda name: "animated" not in name)
    return {
        f"kinds/{name.replace(':', '')}.{'tga' if name.startswith('TGA') else 'x'}": scored(
            whole[name], name.split()[0], 38, 46
        )
        for name in names[:count]
    }


@pytest.fixture(scope="module")
def files() -> dict[str, File]:
    found = examples() | photographs() | generated() | jpegxl() | raw_files() | broken()
    return found | kinds(COUNT - len(found))


def problems(row: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    found = []
    for column, value in expected.items():
        is_right = value.search(str(row[column])) if isinstance(value, re.Pattern) else row[column] == value
        if not is_right:
            found.append(f"{column} is {row[column]!r}, not {value!r} ({row['error']})")
    return found


def test_every_row_is_right(files, npr, tmp_path, checkpoint):
    folder = tmp_path / "mixed"
    assert len(files) == COUNT
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
    options = ("--checkpoint", checkpoint, "--view", "sample:4x64", "--raw-previews")
    code, out, _ = npr("screen", folder, *options, "-o", tmp_path / "scores.parquet")
    rows = {
        str(Path(row["source"]).relative_to(folder)): row
        for row in pq.read_table(tmp_path / "scores.parquet").to_pylist()
    }
    expected = {name: file.row for name, file in files.items() if file.row is not None}
    assert set(rows) == set(expected)
    wrong = {name: found for name, columns in expected.items() if (found := problems(rows[name], columns))}
    assert not wrong, "\n".join(f"{name}: {'; '.join(found)}" for name, found in wrong.items())
    failures = sum(row["error"] is not None for row in rows.values())
    assert code == terminal.EXIT_FAILED_INPUTS and f"{len(rows)} images: " in out and f", {failures} failed" in out
    assert "2 not images" in out and "1 hidden" in out
    assert rows["broken/the same again.PNG"]["logit"] == rows["broken/PNG named.jpg"]["logit"]
    for row in rows.values():
        assert (row["error"] is None) == (row["logit"] is not None) and "\n" not in (row["error"] or "")
