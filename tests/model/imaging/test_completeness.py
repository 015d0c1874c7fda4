"""A file is scored if the data of all its pixels is there, and with exactly those pixels; otherwise it is an error."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, PngImagePlugin

from npr_model.imaging import headers
from npr_model.imaging.decode import decode, from_pillow
from npr_model.imaging.errors import ImageError
from npr_model.imaging.formats import jpeg
from npr_model.imaging.formats.jpeg import Header
from npr_model.imaging.headers import header_size, read_encoding
from tests.model.conftest import encoded, noise
from tests.model.imaging import files
from tests.model.imaging.files import every_kind, picture, stored_pixels

KINDS = every_kind()
SIZES = [(1, 1), (2, 9), (7, 5), (16, 64), (45, 38), (150, 203)]


def of_format(format: str) -> list[str]:
    return [name for name in KINDS if name.split()[0] == format]


def refused(data: bytes, message: str = "", code: str = "damaged") -> None:
    with pytest.raises(ImageError, match=message or None) as caught:
        decode(data)
    assert caught.value.code == code, str(caught.value)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_files_have_the_pixels_of_pillow(size):
    for name, data in every_kind(*size).items():
        decoded = decode(data)
        assert decoded.format == name.split()[0], name
        np.testing.assert_array_equal(decoded.pixels, stored_pixels(data), name)
        encoding = read_encoding(data)
        assert (encoding.height, encoding.width) == size, name


@pytest.mark.parametrize("name", KINDS)
def test_cut_files(name):
    data, whole = KINDS[name], stored_pixels(KINDS[name])
    for length in {*range(len(data) - 30, len(data)), *random.Random(0).sample(range(len(data)), 30)}:
        try:
            pixels = decode(data[:length]).pixels
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole, f"{length} of {len(data)} bytes")


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", files.PNG_KINDS, ids=str)
def test_png_whose_data_does_not_match_its_header(kind, interlaced):
    colour_type, depth = kind
    palette = files.chunk(b"PLTE", noise(1, 1 << depth).tobytes()) if colour_type == 3 else b""
    rows = files.png_rows(21, 17, *kind, interlaced)

    def png(height: int, width: int, rows: bytes) -> bytes:
        return files.png_of_rows(width, height, rows, *kind, interlaced, palette)

    assert decode(png(21, 17, rows)).pixels.shape == (21, 17, 3)
    for length in (0, 1, len(rows) // 2, len(rows) - 1):
        refused(png(21, 17, rows[:length]), "truncated")
    refused(png(42, 17, rows), "truncated")
    refused(png(21, 40, rows), "truncated")
    for more in (b"\0", rows):
        refused(png(21, 17, rows + more), "more data")
    refused(png(20, 17, rows), "more data")


def test_png_whose_stream_ends_at_any_byte():
    rows = files.png_rows(9, 8, 2, 8, False)
    stream = zlib.compress(rows)
    whole = decode(files.png_of_stream(8, 9, stream)).pixels
    for length in range(len(stream)):
        data = files.png_of_stream(8, 9, stream[:length])
        if length < len(stream) - 4:  # all rows, without the checksum
            refused(data, "truncated")
        else:
            np.testing.assert_array_equal(decode(data).pixels, whole)
    for junk in (b"\0", b"junk" * 100):
        np.testing.assert_array_equal(decode(files.png_of_stream(8, 9, stream + junk)).pixels, whole)
    for place in range(1, 5):
        changed = bytearray(stream)
        changed[-place] ^= 1
        refused(files.png_of_stream(8, 9, bytes(changed)), "incorrect data check")


@pytest.mark.parametrize("name", ["PNG pillow", "PNG stored", "PNG 3 4", "PNG 2 8 interlaced", "PNG animated"])
def test_a_flipped_bit_breaks_a_checksum(name):
    data = KINDS[name]
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    places = [*range(8, start), *random.Random(0).sample(range(start, start + 12 + length), 200)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        try:
            pixels = decode(bytes(changed)).pixels
        except ImageError:
            continue
        assert place < start  # in a chunk that no pixel depends on
        np.testing.assert_array_equal(pixels, stored_pixels(data))


def test_chunks_that_no_pixel_depends_on_may_be_damaged():
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a" * 100)
    data = bytearray(encoded(picture(20, 30), pnginfo=info))
    data[data.index(b"aaaa")] = 0
    np.testing.assert_array_equal(decode(bytes(data)).pixels, picture(20, 30))


def test_unknown_critical_chunks_are_not_supported():
    data = KINDS["PNG pillow"]
    refused(data[:8] + files.chunk(b"CgBI", bytes(4)) + data[8:], "CgBI", "unsupported")


def test_palette_without_the_colours_that_are_used():
    rows = b"".join(b"\0" + bytes(range(8)) for _ in range(4))
    colours = files.chunk(b"PLTE", noise(1, 8).tobytes())
    assert decode(files.png_of_rows(8, 4, rows, 3, 8, extra=colours)).width == 8
    refused(files.png_of_rows(8, 4, rows, 3, 8, extra=files.chunk(b"PLTE", noise(1, 7).tobytes())), "palette")
    refused(files.png_of_rows(8, 4, rows, 3, 8), "palette")
    refused(files.png_of_rows(8, 4, rows, 3, 8, extra=files.chunk(b"PLTE", bytes(22))), "palette")


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt compressed", "iCCP"])
def test_png_with_much_text_or_a_large_profile(kind):
    info, profile = PngImagePlugin.PngInfo(), None
    text = "x" * 50_000_000
    if kind == "iCCP":
        profile = bytes(50_000_000)
    elif kind.startswith("iTXt"):
        info.add_itxt("workflow", text, zip="compressed" in kind)
    else:
        info.add_text("workflow", text, zip=kind == "zTXt")
    data = encoded(picture(20, 30), pnginfo=info, icc_profile=profile)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(decode(data).pixels, picture(20, 30))
        assert read_encoding(data).width == 30
        assert tracemalloc.get_traced_memory()[1] < 2**20  # its content is never unpacked
    finally:
        tracemalloc.stop()


# JPEG


JPEGS = of_format("JPEG")


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_cut_and_closed_with_an_end_marker(name):
    data, whole = KINDS[name], stored_pixels(KINDS[name])
    start = data.index(b"\xff\xda") + 14
    for length in range(start, len(data) - 3, 7):
        for end in (b"\xff\xd9", b"\xff\xd0\xff\xd9"):
            try:
                pixels = decode(data[:length] + end).pixels
            except ImageError:
                continue
            np.testing.assert_array_equal(pixels, whole, f"{length} of {len(data)} bytes")


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_without_its_end_marker_has_all_pixels(name):
    data, whole = KINDS[name], stored_pixels(KINDS[name])
    for without in (data[:-2], data[:-1]):
        np.testing.assert_array_equal(decode(without).pixels, whole)
    refused(data[:-12])
    refused(data[:-12] + bytes(700))


def test_jpeg_without_its_end_marker_may_end_in_zeros():
    """They were reserved on the disk and never written."""
    for progressive in (False, True):
        data = encoded(picture(40, 50), "JPEG", progressive=progressive)
        np.testing.assert_array_equal(decode(data[:-2] + bytes(700)).pixels, stored_pixels(data))
        refused(data[: len(data) // 2] + bytes(len(data) // 2))


def test_progressive_jpeg_without_its_last_scans():
    data = encoded(picture(40, 50), "JPEG", progressive=True, quality=90)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    tables = [data.rindex(b"\xff\xc4", 0, start) for start in starts]
    assert len(starts) > 5
    for start, table in zip(starts[1:], tables[1:], strict=True):
        refused(data[:start] + b"\xff\xd9", "last scans are missing")
        refused(data[:table] + b"\xff\xd9", "last scans are missing")


@pytest.mark.parametrize("factors", [files.SAMPLING["4:4:4"], files.SAMPLING["4:1:0"], files.FOUR["cmyk"]], ids=str)
def test_sequential_jpeg_without_its_last_scan(factors):
    data = files.jpeg(20, 30, factors, interleaved=False)
    refused(data[: data.rindex(b"\xff\xda")] + b"\xff\xd9", "last scans are missing")


ODD_SEGMENTS = {
    "short JFIF": files.segment(0xE0, b"JFIF\0\1"),
    "empty APP0": files.segment(0xE0, b""),
    "short Adobe": files.segment(0xEE, b"Adobe"),
    "short Adobe, without the transform": files.segment(0xEE, b"Adobe\0\x64\0\0"),
    "empty APP14": files.segment(0xEE, b""),
    "JFIF 2": files.segment(0xE0, b"JFIF\0\2\1\0\0\1\0\1\0\0"),
    "broken EXIF": files.segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "empty EXIF": files.segment(0xE1, b"Exif\0\0"),
    "broken profile": files.segment(0xE2, b"ICC_PROFILE\0\0\2"),
    "short profile": files.segment(0xE2, b"ICC_PROFILE\0"),
    "broken MPF": files.segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\xff\xff"),
    "broken Photoshop": files.segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00"),
    "comment": files.segment(0xFE, b"x" * 65000),
}


@pytest.mark.parametrize("sampling", ["4:2:0", "4:1:0", "ycck 4:2:0"])
@pytest.mark.parametrize("name", ODD_SEGMENTS)
def test_jpeg_with_odd_segments(name, sampling):
    factors = {**files.SAMPLING, **files.FOUR}[sampling]
    data = files.jpeg(20, 30, factors, extra=ODD_SEGMENTS[name])
    plain = files.jpeg(20, 30, factors)
    np.testing.assert_array_equal(decode(data).pixels, stored_pixels(plain))
    encoding = read_encoding(data)
    assert encoding.subsampling == read_encoding(plain).subsampling
    assert (encoding.width, encoding.height) == (30, 20)
    refused(data[: len(data) * 9 // 10] + b"\xff\xd9")


def outcome(data: bytes, header: Header | None) -> tuple:
    """What decoding gives: the names and the pixels, or the error."""
    try:
        decoded = decode(data, header=header)
    except ImageError as error:
        return str(error), error.code
    return decoded.format, decoded.decoder, decoded.pixels.tobytes()


@pytest.mark.parametrize("name", [*of_format("JPEG"), *of_format("MPO"), *ODD_SEGMENTS])
def test_a_header_that_was_read_before_changes_nothing(name):
    data = KINDS.get(name) or files.jpeg(20, 30, files.SAMPLING["4:2:0"], extra=ODD_SEGMENTS[name])
    for length in (len(data), len(data) - 2, len(data) - 20):
        header = read_encoding(data[:length]).jpeg
        assert header is not None and outcome(data[:length], header) == outcome(data[:length], None)


LIST = files.segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")
LONGEST = files.segment(0xE1, 65533 * b"x")


@pytest.mark.parametrize(
    ("extra", "format"),
    [
        (b"", "JPEG"),
        (LIST, "MPO"),
        (4 * LONGEST + LIST, "MPO"),
        (LIST[:-10] + 10 * b"\xff", "MPO"),
        (files.segment(0xE2, b"MPF"), "JPEG"),
        (files.segment(0xE1, b"MPF\0"), "JPEG"),
        (files.segment(0xFE, LIST), "JPEG"),
    ],
    ids=["none", "list", "behind long segments", "broken", "short", "other marker", "in a comment"],
)
def test_a_jpeg_that_lists_others_is_an_mpo(extra, format):
    assert decode(files.jpeg(20, 30, files.SAMPLING["4:2:0"], extra=extra)).format == format


def test_jpeg_whose_header_claims_another_size():
    data = encoded(picture(64, 64), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    for height, width in ((32, 64), (128, 64), (64, 32), (64, 128)):
        refused(data[:start] + struct.pack(">HH", height, width) + data[start + 4 :], "truncated or damaged")


@pytest.mark.parametrize("frame, name", [(0xC3, "lossless"), (0xC9, "arithmetic"), (0xC5, "hierarchical")])
def test_kinds_of_jpeg_that_cannot_be_proved_whole(frame, name):
    data = encoded(picture(16, 16), "JPEG").replace(b"\xff\xc0", bytes((0xFF, frame)))
    refused(data, name, "unsupported")


def test_12_bit_jpeg_is_named():
    data = bytearray(encoded(picture(16, 16), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    refused(bytes(data), "12-bit JPEG", "unsupported")


SUBSAMPLING = {
    **{name: files.jpeg(16, 24, factors) for name, factors in files.SAMPLING.items()},
    "4:4:0 by factors of two": files.jpeg(16, 24, ((2, 2), (2, 1), (2, 1))),
    "4:2:2 by factors of two": files.jpeg(16, 24, ((2, 2), (1, 2), (1, 2))),
    "none: grey": encoded(Image.fromarray(noise(16, 16)).convert("L"), "JPEG"),
    "none: grey with factors": files.jpeg(16, 24, ((2, 2),)),
    "none: CMYK": encoded(Image.fromarray(noise(16, 16)).convert("CMYK"), "JPEG"),
    "none: CMYK by Adobe": files.jpeg(16, 24, files.FOUR["cmyk"], extra=files.adobe(0)),
    "none: RGB": encoded(noise(16, 16), "JPEG", keep_rgb=True),
    "none: RGB by its identifiers": files.jpeg(16, 24, files.SAMPLING["4:4:4"], identifiers=b"RGB"),
    "4:2:0 of YCCK": files.jpeg(16, 24, files.FOUR["ycck 4:2:0"], extra=files.adobe(2)),
    "4:1:1 of YCCK": files.jpeg(16, 24, files.FOUR["ycck 4:1:1"], extra=files.adobe(2)),
    "4:1:1 by simplejpeg": simplejpeg.encode_jpeg(noise(16, 32), colorsubsampling="411"),
    "4:4:0 by simplejpeg": simplejpeg.encode_jpeg(noise(16, 32), colorsubsampling="440"),
}


@pytest.mark.parametrize("name", SUBSAMPLING)
def test_chroma_subsampling_is_the_true_one(name):
    expected = None if name.startswith("none") else name.split()[0]
    assert read_encoding(SUBSAMPLING[name]).subsampling == expected


# Other formats


def test_gif_whose_first_frame_ends_early():
    image = Image.fromarray(picture(64, 40)).quantize(64)
    short = encoded(image.crop((0, 0, 40, 32)), "GIF")
    second = encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)])
    start = short.index(b",")
    claiming = bytearray(short)
    struct.pack_into("<H", claiming, 8, 64)
    refused(bytes(claiming), "does not cover", "unsupported")
    struct.pack_into("<H", claiming, start + 7, 64)
    refused(bytes(claiming), "1280 of 2560 pixels")
    # Pillow would read on in the next frame.
    claiming = claiming[:-1] + second[second.index(b"!", second.index(b",")) :]
    refused(bytes(claiming), "1280 of 2560 pixels")


def test_gif_whose_frame_is_larger_than_its_screen():
    data = KINDS["GIF"]
    for screen in (struct.pack("<HH", 0, 0), struct.pack("<HH", 10, 20)):
        changed = data[:6] + screen + data[10:]
        np.testing.assert_array_equal(decode(changed).pixels, stored_pixels(changed))


def test_tiff_strips_and_tiles_that_are_missing():
    pixels = picture(64, 48)
    for options in ({}, {"tile": (16, 16)}, {"planar": True}):
        for compression in ("raw", "lzw", "deflate", "packbits"):
            data = files.tiff(pixels, compression, **options)
            np.testing.assert_array_equal(decode(data).pixels, pixels)
            counts, offsets = (325, 324) if "tile" in options else (279, 273)
            count = len(Image.open(io.BytesIO(data)).tag_v2[counts])
            refused(files.tiff(pixels, compression, **options, tags={counts: (4, [0] * count)}), "missing")
            refused(files.tiff(pixels, compression, **options, tags={counts: (4, [5] * count)}))
            refused(files.tiff(pixels, compression, **options, tags={offsets: (4, [8] * (count - 1))}), "of")
            refused(files.tiff(pixels, compression, **options, tags={offsets: (4, [10**6] * count)}), "missing")
            refused(files.tiff(pixels, compression, **options, tags={257: (4, [128])}))


def test_tiff_jpeg_strips_closed_with_an_end_marker():
    pixels = picture(16, 48)
    data = files.tiff(pixels, "jpeg", rows_per_strip=16)
    end = data.index(b"\xff\xd9")
    for cut in (4, 50, 300):
        changed = bytearray(data)
        changed[end - cut : end + 2] = b"\xff\xd9" + bytes(cut)
        refused(bytes(changed), "truncated or damaged")


@pytest.mark.parametrize("compression", [2, 3, 4, 6, 32809, 12345])
def test_tiff_compression_that_cannot_be_proved_whole(compression):
    refused(files.tiff(picture(16, 16), tags={259: (3, [compression])}), "compression", "unsupported")


def test_bmp_runs_that_leave_pixels_out():
    indices = np.asarray(Image.fromarray(picture(12, 20)).quantize(16))
    for half_bytes in (False, True):
        data = files.bmp_runs(indices, half_bytes=half_bytes)
        start = struct.unpack_from("<I", data, 10)[0]
        for changes in ((18, 40), (22, 24)):
            claiming = bytearray(data)
            struct.pack_into("<i", claiming, *changes)
            refused(bytes(claiming), "every pixel|truncated")
        for end in (
            b"\0\1",
            b"\0\0" * 12 + b"\0\1",
            b"\0\2\5\1" * 3 + b"\0\1",
        ):  # end of image, of lines, skipped pixels
            body = data[start : start + 80] + end
            cut = data[:34] + struct.pack("<I", len(body)) + data[38:start] + body
            refused(cut, "every pixel")


def tile_parts(data: bytes) -> list[tuple[int, int]]:
    """Where the parts of a JPEG 2000 code stream begin and end."""
    position, parts = data.index(b"\xff\x90"), []
    while data[position : position + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">I", data, position + 6)
        parts.append((position, position + length))
        position += length
    return parts


def test_jpeg_2000_without_some_of_its_tiles():
    data = encoded(picture(48, 64), "JPEG2000", tile_size=(16, 16), no_jp2=True, num_resolutions=3)
    parts = tile_parts(data)
    assert len(parts) == 12
    for start, end in parts:
        refused(data[:start] + data[end:], "11 of 12 tiles")


def test_jpeg_2000_whose_last_packets_are_missing():
    image = picture(48, 64)
    data = encoded(image, "JPEG2000", no_jp2=True, irreversible=True, quality_mode="rates", quality_layers=[60, 30, 10])
    ((start, end),) = tile_parts(data)
    whole = stored_pixels(data)
    silent = 0
    for length in range(end - start - 1, 20, -1):  # the tile's length is set right
        cut = data[: start + 6] + struct.pack(">I", length) + data[start + 10 : start + length] + b"\xff\xd9"
        try:
            silent += not np.array_equal(stored_pixels(cut), whole)
        except OSError:
            continue
        refused(cut)
    assert silent > 5  # so many has Pillow decoded to other pixels


def test_jpeg_2000_whose_headers_claim_different_sizes():
    data = encoded(picture(48, 64), "JPEG2000")
    start = data.index(b"ihdr") + 4
    refused(data[:start] + struct.pack(">II", 96, 64) + data[start + 8 :], "different sizes")


def test_webp_whose_first_frame_is_smaller_than_the_image():
    image = Image.fromarray(picture(40, 30))
    data = encoded(image, "WEBP", save_all=True, append_images=[image.rotate(180)])
    claiming = data[:24] + (59).to_bytes(3, "little") + data[27:]
    refused(claiming, "does not cover", "unsupported")


@pytest.mark.parametrize("name", of_format("WEBP"))
def test_webp_is_measured_before_pillow_takes_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr("npr_model.imaging.pillow.open_image", None)
    (tmp_path / "image").write_bytes(KINDS[name])
    assert header_size(tmp_path / "image") == (38, 45)
    with pytest.raises(ImageError, match="38x45 pixels, more than the limit of 1700") as caught:
        decode(KINDS[name], max_pixels=1700)
    assert caught.value.code == "too_large"


def test_text_pixels_whose_last_number_may_be_cut():
    data = b"P2\n2 2\n255\n1 2 3 255\n"
    assert decode(data).pixels[1, 1, 0] == 255
    refused(data[:-1])
    refused(data[:-2], "last number")


# Rules that Pillow does not follow on its own


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["TIFF", "JPEG", "PNG", "WEBP", "AVIF"])
def test_stored_pixels_whatever_the_orientation(format, orientation):
    if format not in Image.OPEN:
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}}.get(format, {})
    data = encoded(picture(20, 30), format, exif=exif, **options)
    expected = stored_pixels(encoded(picture(20, 30), format, **options))
    np.testing.assert_array_equal(decode(data).pixels, expected)
    encoding = read_encoding(data)
    assert (encoding.width, encoding.height) == (30, 20)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(from_pillow(image).pixels, expected)


@pytest.mark.parametrize("compression", ["raw", "deflate", "jpeg"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_of_a_tiff_in_any_integer_and_in_xmp(kind, compression, tmp_path):
    pixels = picture(20, 30)
    expected = stored_pixels(files.tiff(pixels, compression))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for tags in ({274: (kind, [6])}, {700: (1, xmp)}):
        data = files.tiff(pixels, compression, tags=tags)
        np.testing.assert_array_equal(decode(data).pixels, expected)
        (tmp_path / "a.tif").write_bytes(data)
        assert header_size(tmp_path / "a.tif") == (30, 20)


def test_an_image_opened_by_pillow_is_decoded_by_the_same_rules():
    for name, data in KINDS.items():
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(from_pillow(image).pixels, stored_pixels(data), name)
    rows = files.png_rows(10, 8, 2, 8, False)
    with Image.open(io.BytesIO(files.png_of_rows(8, 20, rows))) as image, pytest.raises(ImageError, match="truncated"):
        from_pillow(image)


def test_images_that_pillow_decodes_in_another_way_stay_so():
    data = encoded(picture(64, 64), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (32, 32))
        assert from_pillow(image).width == 32
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 200)]
    with Image.open(io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert from_pillow(image).pixels[0, 0, 0] == 200


# Formats that are not supported


def box(*brands: bytes) -> bytes:
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(content) + 4) + content + bytes(500)


UNSUPPORTED = {
    "JPEG XR": b"II\xbc\x01\x20\0\0\0" + bytes(200),
    "PSD": b"8BPS\0\1" + bytes(200),
    "XCF": b"gimp xcf v011\0" + bytes(200),
    "ICO": encoded(noise(32, 32), "ICO"),
    "CUR": b"\0\0\2\0\1\0\x20\x20" + bytes(200),
    "QOI": encoded(noise(32, 32), "QOI"),
    "DDS": encoded(noise(32, 32), "DDS"),
    "SGI": encoded(noise(32, 32), "SGI"),
    "PCX": encoded(noise(32, 32), "PCX"),
    "OpenEXR": b"v/1\x01\2\0\0\0" + bytes(200),
    "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 4 +X 4\n" + bytes(200),
    "PAM": b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(12),
    "PFM": b"PF\n2 2\n-1.0\n" + bytes(48),
    "FITS": b"SIMPLE  =                    T" + bytes(200),
    "DICOM": bytes(128) + b"DICM" + bytes(200),
    **files.camera_raw(b""),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_formats_that_are_not_supported_are_named(name, tmp_path):
    refused(UNSUPPORTED[name], name, "unsupported")
    path = tmp_path / "image.jpg"  # the content decides
    path.write_bytes(UNSUPPORTED[name])
    for read in (read_encoding, header_size):
        with pytest.raises(ImageError, match=name) as caught:
            read(path)
        assert caught.value.code == "unsupported"


def test_raw_data_behind_a_thumbnail_is_camera_raw():
    data = files.tiff(picture(16, 16), tags={330: (4, [0]), 271: (1, b"SONY\0")})
    page = struct.pack("<HHHIII", 1, 262, 3, 1, 32803, 0)
    pointer = struct.pack("<HHI", 330, 4, 1)
    start = data.index(pointer) + len(pointer)
    refused(data[:start] + struct.pack("<I", len(data)) + data[start + 4 :] + page, "Sony ARW", "unsupported")


def test_avif_without_a_decoder_is_named(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    refused(box(b"avif", b"mif1", b"avif"), "AVIF", "unsupported")


@pytest.mark.parametrize("name", ["a.heic", "photo.jpg?w=100", "noextension", "a.txt"])
def test_the_name_plays_no_part(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(encoded(noise(10, 12), "JPEG"))
    assert header_size(path) == (12, 10)
    assert read_encoding(path).format == "JPEG"


def test_git_lfs_pointer_is_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    refused(pointer, "Git LFS pointer", "not_an_image")


def test_messages_have_no_memory_addresses():
    for data in (
        b"\xff\xd8\xff\xe0",
        b"BM" + bytes(90),
        b"P6 x",
        b"II*\0\x08\0\0\0",
        b"RIFF\4\0\0\0WEBPVP8 ",
        b"GIF89a",
    ):
        for read in (decode, read_encoding):
            with pytest.raises(ImageError) as caught:
                read(data)
            assert "0x" not in str(caught.value)


def test_headers_with_many_tables_are_not_kept():
    """A segment may have 64 KB, and nothing limits their number."""
    data = encoded(noise(16, 16), "JPEG")
    (length,) = struct.unpack(">H", data[data.index(b"\xff\xdb") + 2 :][:2])
    table = data[data.index(b"\xff\xdb") :][: length + 2]
    many = data[:2] + 60 * table + data[2:]
    jpeg._header.cache_clear(), headers._jpeg_encoding.cache_clear()
    assert read_encoding(many).quantization == read_encoding(many).quantization
    assert jpeg._header.cache_info().currsize == headers._jpeg_encoding.cache_info().currsize == 0
    read_encoding(data)
    assert jpeg._header.cache_info().currsize == headers._jpeg_encoding.cache_info().currsize == 1
