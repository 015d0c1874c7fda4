"""Whether a file says itself that it was generated, edited or taken by a camera.

What counts is documented in docs/screening.md. The first of these that applies wins: traces of generators, claims that
generated parts were added, names of editing programs, and the tags that cameras write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from npr_model.provenance.blocks import read_metadata
from npr_model.provenance.content_credentials import Claims, read_claims
from npr_model.provenance.exif import read_exif
from npr_model.provenance.validation import validate

GENERATED, EDITED, CAMERA = "generated", "edited", "camera"
_LONGEST_NAME = 80

# IPTC's digital source types, https://cv.iptc.org/newscodes/digitalsourcetype
_SOURCE_TYPES = {
    "trainedAlgorithmicMedia": GENERATED,
    "compositeWithTrainedAlgorithmicMedia": EDITED,
    "algorithmicallyEnhanced": EDITED,
    "humanEdits": EDITED,
    "minorHumanEdits": EDITED,
    "digitalCapture": CAMERA,
    "computationalCapture": CAMERA,
}
_GENERATORS = re.compile(
    r"\b(?:Midjourney|DALL[·\-. ]?E|GPT-4o|Stable ?Diffusion|NovelAI|InvokeAI|ComfyUI|Fooocus|SwarmUI|Draw Things|"
    r"Adobe Firefly|Bing Image Creator|Ideogram|Leonardo[. ]?AI|Google AI|Imagen \d|Black Forest Labs|FLUX\.1|"
    r"Grok)\b",
    re.IGNORECASE,
)
_EDITORS = re.compile(
    r"\b(?:Photoshop|Lightroom|Camera Raw|GIMP|Affinity|Pixelmator|Snapseed|Picasa|Paint\.NET|Canva|PicsArt|Luminar|"
    r"Capture One|darktable|RawTherapee|FaceApp|Facetune|VSCO|Photopea|Krita|Topaz)\b",
    re.IGNORECASE,
)
_XMP_SOURCE_TYPE = re.compile(r"DigitalSourceType[^<]{0,200}?[\"'>/](\w+)[\"'<]")
_XMP_PROGRAM = re.compile(r"(?:CreatorTool|softwareAgent)\s{0,9}(?:=\s{0,9}[\"']|>)([^\"'<]{1,200})")
_XMP_CREDIT = re.compile(r"photoshop:Credit\s{0,9}(?:=\s{0,9}[\"']|>)\s{0,9}Made with Google AI")
_WEB_UI = re.compile(r"\bSteps: \d+, .{0,400}?\b(?:Sampler|CFG scale): .{0,400}?\b(?:CFG scale|Seed): \d", re.DOTALL)
_MIDJOURNEY_JOB = re.compile(r" --\w+ .{0,400}?Job ID: [0-9a-f]{8}-[0-9a-f]{4}-", re.DOTALL)


class Declaration(NamedTuple):
    """``kind``: GENERATED, EDITED or CAMERA. ``evidence``: where the file says so, and in which words.

    ``kind`` is empty for a file whose Content Credentials are invalid and that declares nothing else.
    """

    kind: str
    evidence: str


class _Facts(NamedTuple):
    text: dict[str, str]
    comment: str
    exif: dict[str, str]
    xmp: str
    claims: Claims | None
    credentials: str  # what evidence calls them


def read_declaration(data: bytes, format: str) -> Declaration | None:
    """Return what an encoded image declares; None if it declares nothing.

    Args:
        data: The file.
        format: As Pillow names it. Of formats other than AVIF, HEIF, JPEG, JPEG XL, MPO, PNG, TIFF and WebP,
            nothing is read.
    """
    metadata = read_metadata(data, format)
    if not metadata:
        return None
    exif = read_exif(metadata.exif)
    xmp = metadata.xmp.decode("utf-8", "replace") or exif.get("xmp", "")
    claims, credentials = read_claims(metadata.c2pa), "Content Credentials"
    validation = validate(data, format) if claims else None
    invalid = None
    if validation and not validation.is_valid:  # what they claim was said of another file, or by nobody
        claims, invalid = None, Declaration("", f"{credentials} are invalid ({_clean(validation.remark)})")
    elif validation:
        credentials += f" ({validation.remark})"
    facts = _Facts(metadata.text, metadata.comment, exif, xmp, claims, credentials)
    for find in (_generated, _edited, _camera):
        if evidence := next(find(facts), None):
            return evidence
    return invalid


def first_declaration(files: Iterable[tuple[bytes, str]]) -> Declaration | None:
    """Return the first declaration of several files with their formats, such as an image and a JPEG inside it.

    One of invalid Content Credentials comes last.
    """
    found = [declaration for data, format in files if (declaration := read_declaration(data, format))]
    return next((declaration for declaration in found if declaration.kind), found[0] if found else None)


def _generated(facts: _Facts) -> Iterator[Declaration]:
    yield from _by_source_type(facts, GENERATED)
    for where, text in _texts(facts):
        for is_so, program in _PARAMETERS:
            if is_so(where, text):
                yield Declaration(GENERATED, f"{where}: parameters of {program}")
    for where, name in _programs(facts):
        if _GENERATORS.search(name):
            yield Declaration(GENERATED, f"{where}: {_clean(name)}")
    if _XMP_CREDIT.search(facts.xmp):
        yield Declaration(GENERATED, "XMP: Made with Google AI")


def _edited(facts: _Facts) -> Iterator[Declaration]:
    yield from _by_source_type(facts, EDITED)
    if facts.claims and facts.claims.is_edited:
        yield Declaration(EDITED, _credentials(facts, "edited"))
    for where, name in _programs(facts):
        if _EDITORS.search(name):
            yield Declaration(EDITED, f"{where}: {_clean(name)}")


def _camera(facts: _Facts) -> Iterator[Declaration]:
    yield from _by_source_type(facts, CAMERA)
    make, model = facts.exif.get("make", ""), facts.exif.get("model", "")
    if (make or model) and "exposure" in facts.exif:
        name = model if model.lower().startswith(make.lower()) else f"{make} {model}"
        yield Declaration(CAMERA, f"EXIF: {_clean(name)}")


def _by_source_type(facts: _Facts, kind: str) -> Iterator[Declaration]:
    """Yield the digital source types of this kind, in Content Credentials and in XMP."""
    if facts.claims:
        kinds = {name: _SOURCE_TYPES.get(name) for name in sorted(facts.claims.source_types)}
        if {GENERATED, CAMERA} <= set(kinds.values()):  # a generated part in a photograph
            kinds = {name: EDITED if other == GENERATED else None for name, other in kinds.items()}
        for name, other in kinds.items():
            if other == kind:
                yield Declaration(kind, _credentials(facts, name))
    for name in _XMP_SOURCE_TYPE.findall(facts.xmp):
        if _SOURCE_TYPES.get(name) == kind:
            yield Declaration(kind, f"XMP: {name}")


def _credentials(facts: _Facts, what: str) -> str:
    by = f", by {_clean(facts.claims.generator)}" if facts.claims and facts.claims.generator else ""
    return f"{facts.credentials}: {what}{by}"


def _texts(facts: _Facts) -> Iterator[tuple[str, str]]:
    """Texts in which generators store their parameters, with their places."""
    for keyword, text in facts.text.items():
        yield f"PNG text {_clean(keyword)}", text
    if facts.comment:
        yield "JPEG comment", facts.comment
    for name in ("comment", "make", "model", "description"):
        if name in facts.exif:
            yield f"EXIF {name}", facts.exif[name]
    if facts.xmp:
        yield "XMP", facts.xmp


def _programs(facts: _Facts) -> Iterator[tuple[str, str]]:
    """Names of the programs that wrote the file, with their places."""
    if facts.claims and facts.claims.generator:
        yield facts.credentials, facts.claims.generator
    for keyword in ("Software", "Source"):
        if keyword in facts.text:
            yield f"PNG text {keyword}", facts.text[keyword][:200]
    if "software" in facts.exif:
        yield "EXIF software", facts.exif["software"][:200]
    for name in _XMP_PROGRAM.findall(facts.xmp):
        yield "XMP", name


def _comfyui(where: str, text: str) -> bool:
    """ComfyUI stores its graph as JSON: PNG text "prompt" and "workflow", or EXIF make "workflow:{...}" in WebP."""
    has_prefix = text[:9].lower().startswith(("workflow:", "prompt:"))
    graph = text.partition(":")[2] if has_prefix else text
    is_workflow = (has_prefix or where == "PNG text workflow") and '"nodes"' in text and '"links"' in text
    return graph.lstrip()[:1] == "{" and (is_workflow or '"class_type"' in text)


def _keyword(*names: str) -> Callable[[str, str], bool]:
    return lambda where, text: where in {f"PNG text {name}" for name in names}


_PARAMETERS: tuple[tuple[Callable[[str, str], bool], str], ...] = (
    (_keyword("invokeai_metadata", "invokeai_graph", "invokeai_workflow", "sd-metadata", "Dream"), "InvokeAI"),
    (lambda where, text: "fooocus_scheme" in where or '"Fooocus' in text or "Version: Fooocus" in text, "Fooocus"),
    (lambda where, text: '"sui_image_params"' in text, "SwarmUI"),
    (_comfyui, "ComfyUI"),
    (lambda where, text: text[:1] == "{" and '"uc"' in text and '"sampler"' in text, "NovelAI or Draw Things"),
    (lambda where, text: bool(_WEB_UI.search(text[:20_000])), "a Stable Diffusion web UI"),
    (lambda where, text: bool(_MIDJOURNEY_JOB.search(text[:20_000])), "Midjourney"),
)


def _clean(name: str) -> str:
    """A name from a file, for one line: without control characters, and not too long."""
    printable = " ".join("".join(c if c.isprintable() else " " for c in name[: 4 * _LONGEST_NAME]).split())
    return printable[:_LONGEST_NAME]
