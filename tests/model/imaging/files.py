"""Image files of every kind that decodes, for the tests. Pillow writes most; the rest is written here."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pillow_heif
import simplejpeg
from PIL import Image, ImageFilter, PngImagePlugin, TiffImagePlugin

from tests.model.conftest import encoded, noise


@functools.lru_cache
def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with smooth and rough parts, as in a photograph."""
    smooth = np.asarray(Image.fromarray(noise(height, width, seed)).filter(ImageFilter.GaussianBlur(3)))
    rough = noise(height, width, seed + 1) // 8
    return np.clip(smooth.astype(int) * 2 - 128 + rough, 0, 255).astype(np.uint8)


# PNG ------------------------------------------------------------------------------------------------------------------

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_KINDS = [
    (colour_type, depth)
    for colour_type, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
]
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of_rows(
    width: int,
    height: int,
    rows: bytes,
    colour_type: int = 2,
    depth: int = 8,
    interlaced: bool = False,
    extra: bytes = b"",
) -> bytes:
    """A PNG whose header and data may contradict each other."""
    return png_of_stream(width, height, zlib.compress(rows), colour_type, depth, interlaced, extra)


def png_of_stream(
    width: int,
    height: int,
    stream: bytes,
    colour_type: int = 2,
    depth: int = 8,
    interlaced: bool = False,
    extra: bytes = b"",
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    end = chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + end


def png_rows(height: int, width: int, colour_type: int, depth: int, interlaced: bool, seed: int = 0) -> bytes:
    """Filtered rows of random samples; the filters take turns."""
    random = np.random.default_rng(seed)
    channels, rows = PNG_CHANNELS[colour_type], []
    for left, top, across, down in PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, count = -(-(width - left) // across), -(-(height - top) // down)
        if columns <= 0:
            continue
        for number in range(count):
            length = (columns * channels * depth + 7) // 8
            rows.append(bytes([number % 5]) + random.integers(0, 256, length, dtype=np.uint8).tobytes())
    return b"".join(rows)


def png(
    height: int, width: int, colour_type: int = 2, depth: int = 8, interlaced: bool = False, seed: int = 0
) -> bytes:
    palette = chunk(b"PLTE", noise(1, 1 << depth, seed).tobytes()) if colour_type == 3 else b""
    rows = png_rows(height, width, colour_type, depth, interlaced, seed)
    return png_of_rows(width, height, rows, colour_type, depth, interlaced, palette)


# JPEG -----------------------------------------------------------------------------------------------------------------

SAMPLING = {  # factors of each component
    "4:4:4": ((1, 1), (1, 1), (1, 1)),
    "4:2:2": ((2, 1), (1, 1), (1, 1)),
    "4:2:0": ((2, 2), (1, 1), (1, 1)),
    "4:4:0": ((1, 2), (1, 1), (1, 1)),
    "4:1:1": ((4, 1), (1, 1), (1, 1)),
    "4:1:0": ((4, 2), (1, 1), (1, 1)),
    "4:4:1": ((1, 4), (1, 1), (1, 1)),
    "3x1,1x1,1x1": ((3, 1), (1, 1), (1, 1)),
    "2x2,2x1,1x2": ((2, 2), (2, 1), (1, 2)),
    "1x1,2x2,1x1": ((1, 1), (2, 2), (1, 1)),
}
FOUR = {
    "cmyk": ((1, 1),) * 4,
    "ycck 4:2:0": ((2, 2), (1, 1), (1, 1), (2, 2)),
    "ycck 4:1:1": ((4, 1), (1, 1), (1, 1), (4, 1)),
    "cmyk odd": ((2, 2), (1, 1), (1, 1), (1, 1)),
}


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


class _Bits:
    def __init__(self) -> None:
        self.text: list[str] = []

    def put(self, value: int, count: int) -> None:
        if count:
            self.text.append(format(value, f"0{count}b"))

    def bytes(self) -> bytes:
        text = "".join(self.text)
        text += "1" * (-len(text) % 8)
        self.text = []
        return int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\0")


def _put_block(bits: _Bits, before: int, block: np.ndarray) -> int:
    """The codes of _HUFFMAN are the symbols themselves: 4 bits for DC, 8 bits for AC."""

    def put_value(value: int, size: int) -> None:
        bits.put(value if value > 0 else value + (1 << size) - 1, size)

    difference = int(block[0]) - before
    size = abs(difference).bit_length()
    bits.put(size, 4)
    put_value(difference, size)
    places = np.flatnonzero(block[1:]) + 1
    last = 0
    for place in places.tolist():
        run = place - last - 1
        while run > 15:
            bits.put(0xF0, 8)
            run -= 16
        value = int(block[place])
        size = abs(value).bit_length()
        bits.put(run << 4 | size, 8)
        put_value(value, size)
        last = place
    if last < 63:
        bits.put(0, 8)
    return int(block[0])


_HUFFMAN = segment(0xC4, bytes([0, 0, 0, 0, 12, *[0] * 12, *range(12)])) + segment(
    0xC4, bytes([0x10, *[0] * 7, 255, *[0] * 8, *range(255)])
)


def jpeg(
    height: int,
    width: int,
    factors: Sequence[tuple[int, int]],
    *,
    extra: bytes = b"",
    restart: int = 0,
    interleaved: bool = True,
    scan: bytes = b"\0\x3f\0",
    identifiers: Sequence[int] = (1, 2, 3, 4),
    seed: int = 0,
) -> bytes:
    """A sequential JPEG of random coefficients with any sampling factors, (horizontal, vertical) for each component."""
    random = np.random.default_rng(seed)
    most = max(factor[0] for factor in factors), max(factor[1] for factor in factors)
    across, down = -(-width // (8 * most[0])), -(-height // (8 * most[1]))
    planes = []
    for horizontal, vertical in factors:
        plane = random.integers(-9, 10, (down * vertical, across * horizontal, 64))
        plane *= random.random(plane.shape) < 0.1
        plane[..., 0] = random.integers(-60, 61, plane.shape[:2])
        planes.append(plane)
    parts = [b"\xff\xd8", extra, segment(0xDB, bytes([0, *[8] * 64]))]
    frame = b"".join(bytes((i, h << 4 | v, 0)) for i, (h, v) in zip(identifiers, factors, strict=False))
    parts += (segment(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + frame), _HUFFMAN)
    if restart:
        parts.append(segment(0xDD, struct.pack(">H", restart)))
    numbers = range(len(factors))
    for group in [tuple(numbers)] if interleaved else [(number,) for number in numbers]:
        parts.append(segment(0xDA, bytes([len(group), *(b for n in group for b in (identifiers[n], 0))]) + scan))
        if len(group) > 1:
            units = [
                [
                    (n, y * factors[n][1] + v, x * factors[n][0] + h)
                    for n in group
                    for v in range(factors[n][1])
                    for h in range(factors[n][0])
                ]
                for y in range(down)
                for x in range(across)
            ]
        else:
            (n,) = group
            rows, columns = (
                -(-s * f // (8 * m)) for s, f, m in zip((height, width), factors[n][::-1], most[::-1], strict=True)
            )
            units = [[(n, y, x)] for y in range(rows) for x in range(columns)]
        bits, before = _Bits(), [0] * len(factors)
        for number, unit in enumerate(units):
            if restart and number and number % restart == 0:
                parts += (bits.bytes(), bytes((0xFF, 0xD0 + (number // restart - 1) % 8)))
                before = [0] * len(factors)
            for n, y, x in unit:
                before[n] = _put_block(bits, before[n], planes[n][y, x])
        parts.append(bits.bytes())
    return b"".join((*parts, b"\xff\xd9"))


# TIFF -----------------------------------------------------------------------------------------------------------------

TIFF_COMPRESSION = {"raw": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "packbits": 32773}


def _packbits(data: bytes) -> bytes:
    return b"".join(bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128))


def _lzw(data: bytes) -> bytes:
    """TIFF's LZW with a clear code after every 200 bytes: the codes stay at 9 bits."""
    bits = _Bits()
    for start in range(0, len(data), 200):
        bits.put(256, 9)
        for byte in data[start : start + 200]:
            bits.put(byte, 9)
    bits.put(257, 9)
    return bits.bytes().replace(b"\xff\0", b"\xff")


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda data: data,
    "lzw": _lzw,
    "deflate": zlib.compress,
    "packbits": _packbits,
}


def tiff(
    pixels: np.ndarray,
    compression: str = "raw",
    *,
    order: str = "<",
    big: bool = False,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int = 8,
    planar: bool = False,
    predictor: bool = False,
    tags: dict[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF of (H, W, 3) uint8. ``tile``: (height, width), multiples of 16. ``tags``: more, by type and values."""
    height, width = pixels.shape[:2]
    down, across = tile or (rows_per_strip, width)
    parts = []
    for plane in np.split(pixels, 3, axis=2) if planar else [pixels]:
        for top in range(0, height, down):
            for left in range(0, width, across):
                part = plane[top : top + down, left : left + across]
                if tile:
                    part = np.pad(part, ((0, down - part.shape[0]), (0, across - part.shape[1]), (0, 0)), mode="edge")
                if compression == "jpeg":
                    parts.append(encoded(np.ascontiguousarray(part), "JPEG", quality=90, subsampling="4:4:4"))
                    continue
                if predictor:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
                parts.append(_COMPRESS[compression](part.tobytes()))
    body, offsets = b"", []
    start = 16 if big else 8
    for part in parts:
        offsets.append(start + len(body))
        body += part + bytes(len(part) % 2)
    offset_format = "Q" if big else "I"
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8, 8, 8]),
        259: (3, [TIFF_COMPRESSION[compression]]),
        262: (3, [6 if compression == "jpeg" else 2]),
        277: (3, [3]),
        284: (3, [2 if planar else 1]),
        **(
            {322: (4, [across]), 323: (4, [down]), 324: (4, offsets), 325: (4, [len(part) for part in parts])}
            if tile
            else {}
        ),
        **({} if tile else {273: (4, offsets), 278: (4, [down]), 279: (4, [len(part) for part in parts])}),
        **({317: (3, [2])} if predictor else {}),
        **(tags or {}),
    }
    position = start + len(body)
    directory_size = (8 if big else 2) + len(entries) * (20 if big else 12) + (8 if big else 4)
    values, directory = b"", struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, (kind, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *numbers)
        if len(content) > struct.calcsize(offset_format):
            pointer = struct.pack(order + offset_format, position + directory_size + len(values))
            values += content + bytes(len(content) % 2)
            content = pointer
        directory += struct.pack(f"{order}HH{offset_format}", tag, kind, len(numbers))
        directory += content.ljust(struct.calcsize(offset_format), b"\0")
    directory += bytes(struct.calcsize(offset_format))
    mark = b"II" if order == "<" else b"MM"
    version = struct.pack(order + "HHHQ", 43, 8, 0, position) if big else struct.pack(order + "HI", 42, position)
    return mark + version + body + directory + values


# Camera raw -----------------------------------------------------------------------------------------------------------

RAW_DATA, LOSSY_RAW_DATA, MAKE = 32803, 34892, 271
_RAW_STARTS = {
    "Canon CR2": b"II*\0\x10\0\0\0CR\2\0",
    "Canon CRW": b"II\x1a\0\0\0HEAPCCDR\2\0\1\0",
    "Canon CR3": struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom",
    "Fujifilm RAF": b"FUJIFILMCCD-RAW 0201FF159501X-Pro2",
    "Minolta MRW": b"\0MRM\0\0\0\0",
    "Olympus ORF": b"IIRO\x08\0\0\0",
    "Panasonic RW2": b"IIU\0\x18\0\0\0",
    "Phase One IIQ": b"II*\0\x08\0\0\0IIIITwaR",
    "Sigma X3F": b"FOVb\0\0\2\0",
}
_RAW_MAKERS = {
    "Epson ERF": b"SEIKO EPSON CORP.",
    "Hasselblad 3FR": b"Hasselblad",
    "Kodak DCR": b"Kodak",
    "Leaf MOS": b"Leaf",
    "Mamiya MEF": b"Mamiya-OP Co.,Ltd.",
    "Nikon NEF": b"NIKON CORPORATION",
    "Pentax PEF": b"RICOH IMAGING COMPANY, LTD.",
    "Samsung SRW": b"SAMSUNG",
    "Sony ARW": b"SONY",
    "raw of an unknown maker": b"Somebody",
}


def camera_raw(preview: bytes, size: int = 16) -> dict[str, bytes]:
    """The beginnings of camera raw files by the names of their formats, each followed by ``preview``, a JPEG."""
    pixels, padding = picture(size, size), bytes(200)
    tiffs = {
        name: tiff(pixels, tags={262: (3, [RAW_DATA]), MAKE: (1, make + b"\0")}) for name, make in _RAW_MAKERS.items()
    }
    tiffs["DNG"] = tiff(pixels, tags={50706: (1, [1, 4, 0, 0])})
    return {name: data + padding + preview + padding for name, data in (_RAW_STARTS | tiffs).items()}


# BMP ------------------------------------------------------------------------------------------------------------------


def bmp_runs(indices: np.ndarray, *, half_bytes: bool = False, literal: bool = False) -> bytes:
    """A run-length encoded BMP of (H, W) palette indices below 16; its rows are stored from the bottom."""
    height, width = indices.shape
    body = b""
    for row in indices[::-1]:
        for start in range(0, width, 8):
            colours = row[start : start + 8].tolist()
            if literal and len(colours) >= 3:
                if half_bytes:
                    packed = bytes(a << 4 | b for a, b in zip(colours[::2], [*colours[1::2], 0], strict=False))
                else:
                    packed = bytes(colours)
                body += bytes((0, len(colours))) + packed + bytes(len(packed) % 2)
            else:
                body += b"".join(bytes((1, colour << 4 if half_bytes else colour)) for colour in colours)
        body += b"\0\0"
    body += b"\0\1"
    palette = b"".join(bytes((i * 5, 255 - i * 9, i * 16, 0)) for i in range(16))
    start = 14 + 40 + len(palette)
    kind = (4, 2) if half_bytes else (8, 1)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, *kind, len(body), 0, 0, 16, 0)
    return struct.pack("<2sIII", b"BM", start + len(body), 0, start) + header + palette + body


def top_down(data: bytes) -> bytes:
    """A BMP with its height negated: the rows are stored from the top."""
    (height,) = struct.unpack_from("<i", data, 22)
    return data[:22] + struct.pack("<i", -height) + data[26:]


# All kinds ------------------------------------------------------------------------------------------------------------


def _png_with_text(image: Image.Image) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3000, zip=True)
    return encoded(image, "PNG", pnginfo=info, icc_profile=bytes(2000))


def _strips(image: Image.Image, **options) -> bytes:
    """A TIFF by Pillow with several strips."""
    before, TiffImagePlugin.STRIP_SIZE = TiffImagePlugin.STRIP_SIZE, 1000
    try:
        return encoded(image.copy(), "TIFF", **options)
    finally:
        TiffImagePlugin.STRIP_SIZE = before


@functools.lru_cache
def every_kind(height: int = 45, width: int = 38) -> dict[str, bytes]:
    """Whole files by name. The name begins with the format."""

    def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
        return encoded(image.copy(), format, **options)  # Pillow keeps options of one format for the next

    pixels = picture(height, width)
    image, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    palette, grey = image.quantize(40), image.convert("L")
    indices = np.asarray(image.quantize(16))
    frames = {"save_all": True, "append_images": [second]}
    oriented = Image.Exif()
    oriented[0x0112] = 6
    colour = np.ascontiguousarray(pixels)
    files = {
        **{f"PNG {kind} {depth}": png(height, width, kind, depth) for kind, depth in PNG_KINDS},
        **{f"PNG {kind} {depth} interlaced": png(height, width, kind, depth, True) for kind, depth in PNG_KINDS},
        "PNG pillow": saved(image),
        "PNG stored": saved(image, compress_level=0),
        "PNG alpha": saved(alpha),
        "PNG transparent": saved(image, transparency=(1, 2, 3)),
        "PNG palette transparent": saved(palette, transparency=bytes(range(40))),
        "PNG animated": saved(image, **frames),
        "PNG animated, another default image": saved(image, **frames, default_image=True),
        "PNG text": _png_with_text(image),
        "JPEG 4:4:4": saved(image, "JPEG", quality=85, subsampling="4:4:4"),
        "JPEG 4:2:2": saved(image, "JPEG", quality=85, subsampling="4:2:2"),
        "JPEG 4:2:0": saved(image, "JPEG", quality=85, exif=oriented),
        "JPEG progressive": saved(image, "JPEG", quality=85, progressive=True),
        "JPEG progressive 4:4:4": saved(image, "JPEG", quality=95, progressive=True, subsampling="4:4:4"),
        "JPEG restart": saved(image, "JPEG", quality=85, restart_marker_blocks=2),
        "JPEG optimised": saved(image, "JPEG", quality=60, optimize=True),
        "JPEG rgb": saved(image, "JPEG", quality=85, keep_rgb=True),
        "JPEG grey": saved(grey, "JPEG", quality=85),
        "JPEG grey progressive": saved(grey, "JPEG", quality=85, progressive=True),
        "JPEG cmyk": saved(image.convert("CMYK"), "JPEG", quality=85),
        "JPEG cmyk progressive": saved(image.convert("CMYK"), "JPEG", quality=85, progressive=True),
        "JPEG icc": saved(image, "JPEG", icc_profile=bytes(1000)),
        "JPEG bad icc": saved(image, "JPEG", icc_profile=bytes(1000)).replace(
            b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\0\2"
        ),
        "MPO": saved(image, "MPO", **frames),
        **{f"JPEG turbo {name}": simplejpeg.encode_jpeg(colour, 85, colorsubsampling=name) for name in ("440", "411")},
        **{f"JPEG own {name}": jpeg(height, width, factors) for name, factors in SAMPLING.items()},
        **{
            f"JPEG own {name} scans": jpeg(height, width, factors, interleaved=False)
            for name, factors in SAMPLING.items()
        },
        **{f"JPEG own {name} restart": jpeg(height, width, factors, restart=3) for name, factors in SAMPLING.items()},
        **{f"JPEG own {name}": jpeg(height, width, factors) for name, factors in FOUR.items()},
        **{f"JPEG own {name} adobe": jpeg(height, width, factors, extra=adobe(2)) for name, factors in FOUR.items()},
        "JPEG own bad scan header": jpeg(height, width, SAMPLING["4:2:0"], scan=b"\0\0\0"),
        "JPEG own bad scan header, cmyk": jpeg(height, width, FOUR["cmyk"], scan=b"\0\0\0"),
        "JPEG own unknown transform": jpeg(height, width, SAMPLING["4:4:4"], extra=adobe(7)),
        "GIF": saved(image, "GIF"),
        "GIF interlaced": saved(palette, "GIF", interlace=True),
        "GIF grey": saved(grey, "GIF", interlace=False),
        "GIF two colours": saved(image.convert("1"), "GIF"),
        "GIF animated": saved(image, "GIF", **frames),
        "GIF transparent": saved(palette, "GIF", transparency=3),
        **{
            f"TIFF {name}": tiff(pixels, name, order=order, big=big)
            for name, order, big in (("raw", "<", False), ("raw", ">", False), ("raw", "<", True), ("raw", ">", True))
        },
        **{f"TIFF {name}": tiff(pixels, name) for name in TIFF_COMPRESSION},
        **{f"TIFF {name} big-endian": tiff(pixels, name, order=">") for name in TIFF_COMPRESSION},
        **{f"TIFF {name} big": tiff(pixels, name, big=True) for name in TIFF_COMPRESSION},
        **{f"TIFF {name} tiles": tiff(pixels, name, tile=(16, 32)) for name in TIFF_COMPRESSION},
        **{f"TIFF {name} planar": tiff(pixels, name, planar=True) for name in ("raw", "lzw", "deflate", "packbits")},
        **{f"TIFF {name} predictor": tiff(pixels, name, predictor=True) for name in ("lzw", "deflate")},
        **{f"TIFF pillow {name}": _strips(image, compression=name) for name in ("raw", "tiff_lzw", "packbits")},
        "TIFF pillow deflate": _strips(image, compression="tiff_adobe_deflate"),
        "TIFF pillow jpeg": _strips(image, compression="jpeg", quality=85),
        "TIFF palette": saved(palette, "TIFF"),
        "TIFF palette lzw": saved(palette, "TIFF", compression="tiff_lzw"),
        "TIFF ycbcr": saved(image.convert("YCbCr"), "TIFF", compression="tiff_adobe_deflate"),
        "TIFF grey jpeg": saved(grey, "TIFF", compression="jpeg"),
        "TIFF cmyk jpeg": saved(image.convert("CMYK"), "TIFF", compression="jpeg"),
        "TIFF cmyk": saved(image.convert("CMYK"), "TIFF"),
        "TIFF lab": saved(image.convert("LAB"), "TIFF"),
        "TIFF grey 16": saved(Image.fromarray(np.asarray(grey).astype(np.uint16) << 8 | 0x33), "TIFF"),
        "TIFF two colours": saved(image.convert("1"), "TIFF"),
        "TIFF alpha": saved(alpha, "TIFF", compression="tiff_lzw"),
        "TIFF pages": saved(image, "TIFF", save_all=True, append_images=[second.copy()]),
        "BMP": saved(image, "BMP"),
        "BMP alpha": saved(alpha, "BMP"),
        "BMP palette": saved(palette, "BMP"),
        "BMP two colours": saved(image.convert("1"), "BMP"),
        "BMP top-down": top_down(saved(image, "BMP")),
        **{
            f"BMP runs {4 if half else 8}{' literal' * literal}": bmp_runs(indices, half_bytes=half, literal=literal)
            for half in (False, True)
            for literal in (False, True)
        },
        "TGA": saved(image, "TGA"),
        "TGA runs": saved(image, "TGA", compression="tga_rle"),
        "TGA alpha runs": saved(alpha, "TGA", compression="tga_rle"),
        "TGA palette": saved(palette, "TGA"),
        "TGA grey runs": saved(grey, "TGA", compression="tga_rle"),
        "JPEG2000": saved(image, "JPEG2000"),
        "JPEG2000 lossy": saved(
            image, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[40, 20, 10]
        ),
        "JPEG2000 tiles": saved(image, "JPEG2000", tile_size=(16, 16), num_resolutions=3),
        "JPEG2000 stream": saved(image, "JPEG2000", no_jp2=True, progression="RPCL"),
        "JPEG2000 grey": saved(grey, "JPEG2000"),
        "WEBP": saved(image, "WEBP", exif=oriented),
        "WEBP lossless": saved(image, "WEBP", lossless=True),
        "WEBP alpha": saved(alpha, "WEBP"),
        "WEBP animated": saved(image, "WEBP", **frames),
        "WEBP animated lossless": saved(image, "WEBP", lossless=True, **frames),
        "PPM": saved(image, "PPM"),
        "PPM grey": saved(grey, "PPM"),
        "PPM two colours": saved(image.convert("1"), "PPM"),
        "PPM text": f"P3\n{width} {height}\n255\n{' '.join(map(str, pixels.ravel()))}\n".encode(),
        "PPM grey text": f"P2\n{width} {height}\n99\n{' '.join(map(str, pixels[..., 0].ravel() % 100))}\n".encode(),
        "PPM two colours text": f"P1\n{width} {height}\n{' '.join(map(str, pixels[..., 0].ravel() % 2))}\n".encode(),
        "PPM 16": f"P6\n{width} {height}\n65535\n".encode() + (pixels.astype(">u2") << 8).tobytes(),
    }
    if "AVIF" in Image.OPEN:
        files["AVIF"] = saved(image, "AVIF")
        files["AVIF 4:4:4"] = saved(alpha, "AVIF", subsampling="4:4:4", quality=95)
        files["AVIF animated"] = saved(image, "AVIF", **frames)
    return files


def stored_pixels(data: bytes) -> np.ndarray:
    """What Pillow decodes of a whole file; 16 bits keep the high byte."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16") or image.mode == "I":
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def png16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, grey (H, W) or RGB (H, W, 3), which Pillow cannot write in colour."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if samples.ndim == 3 else 0, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(noise(8, 8), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def heif(pixels: np.ndarray, monkeypatch=None, *, orientation: int = 1, tile: int = 0, **options) -> bytes:
    """Encode without loss, in tiles of ``tile`` pixels as phones do."""
    if tile:
        monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", tile)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = pillow_heif.from_pillow(Image.fromarray(pixels))
    image[0].info["exif"] = exif.tobytes()  # of a Pillow image, pillow-heif would turn the pixels first
    file = io.BytesIO()
    image.save(file, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(noise(height, width)).filter(ImageFilter.GaussianBlur(2)))
