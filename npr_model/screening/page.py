"""The result of a screening as one HTML file that needs no other file."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from npr_kernels import npr
from npr_model.errors import InputError
from npr_model.explanation.pictures import data_url, npr_picture
from npr_model.files import atomic_write
from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.views import View
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.summary import Summary, edges, group

THUMBNAIL = 160  # pixels: longer side of the picture, and side of the NPR map's crop
_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(path: Path, title: str, summary: Summary, on_image: Callable[[int], None] = lambda count: None) -> None:
    """Write a summary with thumbnails of its gallery. Images that no longer exist are shown without one."""
    thumbnails = {}
    for source, data in fetch({row["source"] for row in summary.gallery}).items():
        thumbnails[source] = thumbnail(data)
        on_image(1)
    gallery = [row | {"group": group(row["source"])} | thumbnails.get(row["source"], {}) for row in summary.gallery]
    values = {
        "total": summary.total,
        "verdicts": dict(summary.verdicts),
        "declared": dict(summary.declared),
        "models": [f"{model}, view {view}" for (model, view), _ in summary.models.most_common()],
        "threshold": summary.threshold,
        "edges": edges().tolist(),
        "histograms": [
            {"group": group, "format": format, "counts": counts.tolist()}
            for (group, format), counts in sorted(summary.histograms.items())
        ],
        "errors": [
            {"code": code, "count": count, "examples": examples} for code, (count, examples) in summary.errors.items()
        ],
        "gallery": gallery,
    }
    script = json.dumps(values, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")
    text = _TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title)).replace("{{data}}", script)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fetch(sources: Iterable[str]) -> dict[str, bytes]:
    """Return the encoded bytes of those ``sources`` (names in rows) that can be read. An archive is read once."""
    contents: dict[str, bytes] = {}
    inside: dict[str, set[str]] = {}
    for source in sources:
        inside.setdefault(source.partition("::")[0], set()).add(source)
    for path, wanted in inside.items():
        try:
            for item in Sources([path]):
                if item.source in wanted and isinstance(data := item.load(), bytes):
                    contents[item.source] = data
                    if wanted <= contents.keys():
                        break
        except (InputError, OSError):  # moved, or on another machine: the page works without it
            continue
    return contents


def thumbnail(data: bytes) -> dict[str, str]:
    """Return data URLs: "picture", at most THUMBNAIL pixels, and "npr", the central part of the NPR map."""
    try:
        pixels = decode(data).pixels
    except ImageError as error:
        return {"lost": str(error)}
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    crop = View("crop", THUMBNAIL).apply(pixels) if min(pixels.shape[:2]) >= 2 else pixels
    planes = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].float()
    differences = npr(planes)[0].numpy() if min(crop.shape[:2]) >= 2 else np.zeros((3, 1, 1))
    return {"picture": data_url(picture), "npr": data_url(npr_picture(differences))}
