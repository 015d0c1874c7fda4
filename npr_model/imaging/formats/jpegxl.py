"""JPEG XL: decoded by libjxl (package imagecodecs, the extra jxl), as stored.

imagecodecs was chosen for its free licence, for refusing every truncated file, and because it can leave the pixels
unturned. It decodes before it tells the size. So the size is read here, from the first bits of the code stream
(ISO 18181-1), which also tell what cannot be decoded by our rules.

Many JPEG XL files hold a JPEG in fewer bytes. Its pixels are those of the JPEG, which comes back bit for bit:
:func:`original_jpeg`.

What libjxl draws counts as stored: layers, patches and noise are part of the code stream. Where the layers of an image
leave a gap, libjxl's pixels are black.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np

from npr_model.errors import reason
from npr_model.imaging.errors import ImageError, check_size
from npr_model.imaging.formats import boxes
from npr_model.imaging.formats.signatures import unsupported

_STREAM = b"\xff\x0a"
_HEADER = 4096  # bytes of the code stream that are searched for the header: names of channels can make it longer
_MOST_CHANNELS = 4  # besides colour; libjxl decodes all of them, though only colour is scored
_LONGER, _EXTRA = 4, 2**16  # a JPEG has at most so many times the bytes of its JPEG XL file, and so many more
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
_ALPHA, _SPOT_COLOUR, _BLACK, _FILTER_ARRAY = 0, 2, 4, 5  # kinds of extra channels


class Header(NamedTuple):
    """What the header of a code stream tells.

    Attributes:
        width, height: As stored, without the orientation that the header asks a viewer for.
        bits: Bits per sample.
        is_float: Whether samples are floating point numbers.
        is_lossy: Whether colours are stored in XYB, libjxl's choice for lossy compression, or the file was made from a
            JPEG. Other lossy images in RGB cannot be told from lossless ones here.
        channels: Kinds of the channels besides colour, one for each.
    """

    width: int
    height: int
    bits: int
    is_float: bool
    is_lossy: bool
    channels: tuple[int, ...]


def read_header(data: bytes) -> Header:
    """Read the header of a file, of a bare code stream or in boxes. Raises ImageError."""
    stream = data[:_HEADER] if data.startswith(_STREAM) else _code_stream(data)
    if not stream.startswith(_STREAM):
        raise ImageError("the JPEG XL file is truncated or damaged: its code stream does not begin")
    bits = _Bits(stream[len(_STREAM) :])
    width, height = _size(bits)
    if bits.take(1):  # all else has its default
        return Header(width, height, 8, False, True, ())
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):  # the size to be shown at
            _size(bits)
        if bits.take(1):
            _preview(bits)
        if bits.take(1):
            _animation(bits)
    depth, is_float = _depth(bits)
    bits.take(1)
    channels = [_channel(bits) for _ in range(bits.number((0, 0), (1, 0), (2, 4), (1, 12)))]
    is_lossy = bool(bits.take(1)) or _is_from_jpeg(data)
    return Header(width, height, depth, is_float, is_lossy, tuple(channels))


def decode(data: bytes, max_pixels: int) -> np.ndarray:
    """Return the first frame as (H, W, 3) uint8; more than 8 bits keep their high byte. Raises ImageError."""
    header = read_header(data)
    check_size(header.width, header.height, max_pixels)
    if header.is_float or header.bits > 16:
        raise ImageError(
            "floating point and 32-bit pixels have no agreed range; convert the file to 8 bits", "unsupported"
        )
    for kind, name in ((_BLACK, "CMYK"), (_SPOT_COLOUR, "spot colours"), (_FILTER_ARRAY, "camera raw data")):
        if kind in header.channels:
            raise unsupported(f"JPEG XL with {name}")
    if len(header.channels) > _MOST_CHANNELS:
        raise unsupported(f"JPEG XL with {len(header.channels)} channels besides colour")
    _check_available()
    import imagecodecs

    try:
        samples = imagecodecs.jpegxl_decode(data, index=0, keeporientation=True, numthreads=1)
    except MemoryError:
        raise
    except Exception as error:  # its errors come as several types
        raise ImageError(f"the JPEG XL file is truncated, damaged or not supported ({reason(error)})") from error
    if samples.shape[:2] != (header.height, header.width) or samples.dtype not in (np.uint8, np.uint16):
        raise ImageError("the JPEG XL file is damaged, or of a kind that is not supported")
    samples = samples.reshape(header.height, header.width, -1)
    samples = samples[..., :3] if samples.shape[2] >= 3 else samples[..., :1]  # without alpha
    if header.bits > 8:
        samples >>= header.bits - 8  # in place: 16 bits take memory enough
        samples = samples.astype(np.uint8)
    elif header.bits < 8:
        most = 2**header.bits - 1
        samples = np.rint(np.arange(256).clip(max=most) * (255 / most)).astype(np.uint8)[samples]
    return np.ascontiguousarray(np.broadcast_to(samples, (header.height, header.width, 3)))


def original_jpeg(data: bytes) -> bytes | None:
    """Return the JPEG that the file was made from; None if it was not, or if it cannot be had.

    It is given up if it would be far longer than the file: comments of zeros need hardly any bytes in JPEG XL. Raises
    ImageError without imagecodecs.
    """
    if not _is_from_jpeg(data):
        return None
    _check_available()
    import imagecodecs

    try:
        return bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1, out=_LONGER * len(data) + _EXTRA))
    except MemoryError:
        raise
    except Exception:  # such as for a file whose EXIF was taken out later: libjxl can still decode the pixels
        return None


def _is_from_jpeg(data: bytes) -> bool:
    return not data.startswith(_STREAM) and any(name == b"jbrd" for name, _ in boxes.boxes(data))


def uncompressed(content: bytes, most: int) -> bytes:
    """Return the content of a box that is compressed by Brotli. Empty: damaged, above ``most`` bytes, or no library."""
    if importlib.util.find_spec("imagecodecs") is None:
        return b""
    import imagecodecs

    try:
        return bytes(imagecodecs.brotli_decode(content, out=most))
    except Exception:  # its errors come as several types
        return b""


def decoder() -> str:
    """Name and version of the library. Raises ImageError without it."""
    _check_available()
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__}"


def _check_available() -> None:
    if importlib.util.find_spec("imagecodecs") is None:
        raise ImageError("the format JPEG XL needs imagecodecs: pip install 'npr-kernels[jxl]'", "unsupported")


def _code_stream(data: bytes) -> bytes:
    """The first bytes of the code stream of a file in boxes: in one box, or in parts that begin with their number."""
    parts, length = [], 0
    for name, place in boxes.boxes(data):
        if name == b"jxlc":
            return data[place.start : min(place.stop, place.start + _HEADER)]
        if name == b"jxlp":
            parts.append(data[place.start + 4 : min(place.stop, place.start + 4 + _HEADER)])
            length += len(parts[-1])
        if length >= _HEADER:
            break
    return b"".join(parts)


class _Bits:
    """Reads numbers from a code stream, lowest bit first. Raises ImageError where it ends."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ImageError("the JPEG XL file is truncated in its header")
        number = self._value & (1 << count) - 1
        self._value >>= count
        self._left -= count
        return number

    def number(self, *choices: tuple[int, int]) -> int:
        """Return a number that is stored as one of four ``choices``: (base, how many bits follow to be added)."""
        least, count = choices[self.take(2)]
        return least + self.take(count)


def _size(bits: _Bits) -> tuple[int, int]:
    """Return (width, height)."""
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if is_small else bits.number((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.take(3)
    if ratio == 0:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _preview(bits: _Bits) -> None:
    choices = ((16, 0), (32, 0), (1, 5), (33, 9)) if bits.take(1) else ((1, 6), (65, 8), (321, 10), (1345, 12))
    bits.number(*choices)
    if bits.take(3) == 0:
        bits.number(*choices)


def _animation(bits: _Bits) -> None:
    bits.number((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.number((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.number((0, 0), (0, 3), (0, 16), (0, 32))
    bits.take(1)


def _depth(bits: _Bits) -> tuple[int, bool]:
    """Return the bits of a sample, and whether it is a floating point number."""
    if bits.take(1):
        depth = bits.number((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
        return depth, True
    return bits.number((8, 0), (10, 0), (12, 0), (1, 6)), False


def _channel(bits: _Bits) -> int:
    """Return the kind of an extra channel."""
    if bits.take(1):
        return _ALPHA
    kind = bits.number((0, 0), (1, 0), (2, 4), (18, 6))
    _depth(bits)
    bits.number((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.number((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
    if kind == _ALPHA:
        bits.take(1)
    elif kind == _SPOT_COLOUR:
        bits.take(64)
    elif kind == _FILTER_ARRAY:
        bits.number((1, 0), (0, 2), (3, 4), (19, 8))
    return kind
