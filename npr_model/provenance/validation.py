"""Whether Content Credentials (C2PA) are valid: their signature, and the hashes of the claims and of the file.

The package c2pa-python (the extra c2pa) checks it. It fetches nothing: no manifests, no lists of revoked certificates,
no trust lists. So a signer is trusted only if one of the authorities in the PEM file that NPR_TRUST_ANCHORS names
vouches for it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npr_model.errors import InputError, reason

if TYPE_CHECKING:
    import c2pa

TRUST_ANCHORS = "NPR_TRUST_ANCHORS"
_MEDIA_TYPES = {
    "AVIF": "image/avif",
    "HEIF": "image/heif",
    "JPEG": "image/jpeg",
    "JXL": "image/jxl",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
}
_UNREADABLE = "asset could not be parsed"  # the file, not its credentials
_UNTRUSTED = "signingCredential.untrusted"


class Validation(NamedTuple):
    """``remark``: whether the signer is trusted, if the credentials are valid; else the code of what is wrong."""

    is_valid: bool
    remark: str


def validate(data: bytes, format: str) -> Validation | None:
    """Check the Content Credentials in a file. ``format``: as Pillow names it.

    Returns:
        None where nothing can be checked: without the package, or in a file that it cannot read.

    Raises:
        InputError: The file with trusted certificates cannot be read, or holds none.
    """
    if format not in _MEDIA_TYPES or importlib.util.find_spec("c2pa") is None:
        return None
    import c2pa

    try:
        with _context() as context, c2pa.Reader(_MEDIA_TYPES[format], io.BytesIO(data), context=context) as reader:
            report = json.loads(reader.json())
    except c2pa.C2paError as error:
        if isinstance(error, c2pa.C2paError.NotSupported | c2pa.C2paError.Io) or _UNREADABLE in str(error):
            return None
        return Validation(False, str(error).partition(":")[0])
    if report.get("validation_state") == "Invalid":
        codes = (status["code"] for status in report.get("validation_status", ()))
        return Validation(False, next((code for code in codes if code != _UNTRUSTED), "unknown reason"))
    return Validation(True, "valid" if report.get("validation_state") == "Trusted" else "valid, untrusted signer")


def _context() -> c2pa.Context:
    """A context without network. Raises InputError."""
    import c2pa

    settings: dict = {
        "core": {"allowed_network_hosts": []},
        # Without lists of trusted time stamps, files would become invalid when the signer's certificate expires.
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_timestamp_trust": False},
    }
    if trust_anchors := os.environ.get(TRUST_ANCHORS):
        try:
            settings["trust"] = {"trust_anchors": Path(trust_anchors).read_text(encoding="utf-8")}
            return c2pa.Context(c2pa.Settings.from_dict(settings))
        except (OSError, UnicodeError, c2pa.C2paError) as error:
            raise InputError(f"{TRUST_ANCHORS}={trust_anchors} is no readable PEM file: {reason(error)}") from error
    return c2pa.Context(c2pa.Settings.from_dict(settings))


def check_trust_anchors() -> None:
    """Raise InputError if the file with trusted certificates cannot be read, so that no run ends at its first use."""
    if os.environ.get(TRUST_ANCHORS) and importlib.util.find_spec("c2pa") is not None:
        with _context():
            pass
