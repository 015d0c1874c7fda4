"""What the Content Credentials (C2PA) in a file claim: who made it, with what, and what was done to it.

The claims are only read here; :mod:`npr_model.provenance.validation` checks the signature and the hashes. The store of
manifests is a JUMBF box (ISO 19566-5) with one box per manifest. The last manifest is that of the file itself; those
before it belong to what it was made from. Inside, assertions are CBOR or JSON, in which texts stand as plain UTF-8.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MOST_BOXES = 1000
_SOURCE_TYPE = re.compile(rb"digitalsourcetype/([A-Za-z]{1,64})")
_ACTION = re.compile(rb"c2pa\.(created|opened|placed|edited|cropped|resized|color_adjustments|drawing|filtered)(?!\.)")
# A CBOR text (with its length in the first byte, or in one more byte) after the name of a field.
_GENERATOR = re.compile(rb"claim_generator(?:_info)?(?:[\x81-\x9f]?[\xa1-\xbf]dname)?([\x60-\x77]|\x78.)", re.DOTALL)
_EDITS = {"edited", "color_adjustments", "drawing", "filtered", "placed"}


@dataclass(frozen=True)
class Claims:
    """Claims of one manifest.

    Attributes:
        generator: Name of the program that wrote the manifest; "" if unknown.
        source_types: IPTC's digital source types, such as "trainedAlgorithmicMedia".
        actions: What was done, such as "created" or "edited".
    """

    generator: str
    source_types: frozenset[str]
    actions: frozenset[str]

    @property
    def is_edited(self) -> bool:
        return not self.actions.isdisjoint(_EDITS)


def read_claims(store: bytes) -> Claims | None:
    """Return the claims of the file's own manifest; None if there is none. ``store``: a JUMBF box."""
    whole = next(_superboxes(store, 0, len(store)), range(0))
    manifests = list(_superboxes(store, whole.start, whole.stop))
    if not manifests:
        return None
    own = store[manifests[-1].start : manifests[-1].stop]
    generator = ""
    if match := _GENERATOR.search(own):
        length = match[1][0] - 0x60 if len(match[1]) == 1 else match[1][1]
        generator = own[match.end() : match.end() + length].decode("utf-8", "replace")
    return Claims(
        generator,
        frozenset(found.decode() for found in _SOURCE_TYPE.findall(own)),
        frozenset(found.decode() for found in _ACTION.findall(own)),
    )


def _superboxes(data: bytes, position: int, end: int) -> Iterator[range]:
    """Yield the places of the boxes inside the superboxes (type "jumb") in data[position:end]."""
    for _ in range(_MOST_BOXES):
        if position + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, position)
        length = length or end - position
        if length < 8:
            return
        if name == b"jumb":
            yield range(position + 8, min(position + length, end))
        position += length
