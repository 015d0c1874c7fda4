"""The images under examples/: credited, decodable, and not told apart by anything but their pixels."""

from __future__ import annotations

import csv
from collections import Counter

from npr_model.imaging.decode import decode
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
FILES = sorted(path for name in ("real", "generated") for path in (EXAMPLES / name).iterdir())


def test_every_file_is_credited():
    with open(EXAMPLES / "CREDITS.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == {path.relative_to(EXAMPLES).as_posix() for path in FILES}
    assert all(value for row in rows.values() for value in row.values())


def test_classes_agree_in_number_format_and_size():
    descriptions = {"real": Counter(), "generated": Counter()}
    for path in FILES:
        image = decode(path.read_bytes())
        descriptions[path.parent.name][image.format, image.width, image.height] += 1
    assert descriptions["real"] == descriptions["generated"]
    assert descriptions["real"].total() >= 12


def test_they_are_small():
    assert sum(path.stat().st_size for path in FILES) < 3 * 2**20
