"""Tells the format of a file by its first bytes. The name of the file plays no part."""

from __future__ import annotations

import re

from npr_model.imaging.errors import ImageError

LENGTH = 1024  # first bytes of a file that are enough to tell its format

_SUPPORTED = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM", "BMP"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000"),
    (rb"P[1-6]\s", "PPM"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n", "JXL"),
)
_CAMERA_RAW = (  # those that are not TIFFs, or whose first bytes tell more
    (rb"II\*\x00....CR", "Canon CR2"),
    (rb"II....HEAPCCDR", "Canon CRW"),
    (rb"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (rb"IIR[OS]|MMOR", "Olympus ORF"),
    (rb"IIU\x00", "Panasonic RW2"),
    (rb"II\*\x00....IIIITwaR|MM\x00\*....MMMMRawT", "Phase One IIQ"),
    (rb"FOVb", "Sigma X3F"),
    (rb"\x00MR[MI]", "Minolta MRW"),
)
_UNSUPPORTED = (
    (rb"II\xbc[\x00\x01]", "JPEG XR"),
    (rb"8BPS", "PSD (Photoshop)"),
    (rb"gimp xcf", "XCF (GIMP)"),
    (rb"\x00\x00\x01\x00(?!\x00\x00)", "ICO"),
    (rb"\x00\x00\x02\x00(?!\x00\x00)", "CUR"),
    (rb"icns", "ICNS"),
    (rb"qoif", "QOI"),
    (rb"DDS ", "DDS"),
    (rb"KTX |\xabKTX", "KTX"),
    (rb"\x01\xda[\x00\x01][\x01\x02]", "SGI"),
    (rb"\x0a[\x00\x02-\x05]\x01", "PCX"),
    (rb"\x59\xa6\x6a\x95", "Sun raster"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"FLIF", "FLIF"),
    (rb"BPG\xfb", "BPG"),
    (rb"\x8aMNG", "MNG"),
    (rb"\x8bJNG", "JNG"),
    (rb"SIMPLE  =", "FITS"),
    (rb"P7\n", "PAM"),
    (rb"P[Ff]\n", "PFM"),
    (rb".{128}DICM", "DICOM"),
)
_WITHOUT_PIXELS = (  # documents and drawings; for some of them Pillow would call other programs
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"AT&TFORM", "DjVu"),
    (rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", "WMF or EMF"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg).*?<svg|(\xef\xbb\xbf)?\s*<svg", "SVG"),
)
_BRANDS = (  # of files in boxes (ISO 14496-12)
    ({b"avif", b"avis"}, "AVIF"),
    ({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}, "HEIF"),
    ({b"crx "}, "Canon CR3"),
)


def _compiled(table: tuple[tuple[bytes, str], ...]) -> tuple[tuple[re.Pattern[bytes], str], ...]:
    return tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in table)


_SUPPORTED_PATTERNS, _UNSUPPORTED_PATTERNS = _compiled(_SUPPORTED), _compiled(_UNSUPPORTED)
_WITHOUT_PIXELS_PATTERNS, _CAMERA_RAW_PATTERNS = _compiled(_WITHOUT_PIXELS), _compiled(_CAMERA_RAW)


class CameraRawError(ImageError):
    """A camera raw file. ``name``: of its format, such as "Nikon NEF"."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"camera raw files ({name}) are not supported; convert the file to PNG, or score its JPEG preview with "
            "npr screen --raw-previews",
            "unsupported",
        )
        self.name = name


def format_of(data: bytes) -> str:
    """Return the format, as Pillow names it. ``data``: the file, or its first LENGTH bytes.

    TIFF files may turn out to be camera raw files later (:mod:`npr_model.imaging.formats.tiff`). TGA has no signature:
    it is the answer when nothing else fits.

    Raises:
        CameraRawError: It is a camera raw file.
        ImageError: The format is known and not supported, or has no pixels (the message names it), or the file is a Git
            LFS pointer.
    """
    head = data[:LENGTH]
    for pattern, name in _SUPPORTED_PATTERNS:
        if pattern.match(head):
            return name
    for brands, name in _BRANDS:
        if brands & _brands_of(head):
            if name in ("AVIF", "HEIF"):
                return name
            raise CameraRawError(name)
    if is_lfs_pointer(head):
        raise ImageError("a Git LFS pointer, not the image itself; fetch it with git lfs pull", "not_an_image")
    for pattern, name in _CAMERA_RAW_PATTERNS:
        if pattern.match(head):
            raise CameraRawError(name)
    for pattern, name in _UNSUPPORTED_PATTERNS:
        if pattern.match(head):
            raise unsupported(name)
    for pattern, name in _WITHOUT_PIXELS_PATTERNS:
        if pattern.match(head):
            raise ImageError(f"not an image of pixels, but {name}", "not_an_image")
    if re.match(rb"II[*+]\x00|MM\x00[*+]", head):  # after the camera raw formats that begin like it
        return "TIFF"
    return "TGA"


def is_lfs_pointer(data: bytes) -> bool:
    """Return whether a file's bytes are a Git LFS pointer: a few lines of text that stand in for the real file."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")


def _brands_of(head: bytes) -> set[bytes]:
    if head[4:8] != b"ftyp":
        return set()
    size = int.from_bytes(head[:4], "big")
    return {head[8:12], *(head[start : start + 4] for start in range(16, min(size, len(head)), 4))}


def unsupported(name: str) -> ImageError:
    """The error for a format that is known and not supported."""
    return ImageError(f"the format {name} is not supported; convert the file to PNG", "unsupported")
