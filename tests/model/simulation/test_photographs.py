"""Photographs: those of a scene stay in one part, and bad ones are listed and replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from npr_model.datasets.folders import LeftOut
from npr_model.simulation import dataset
from npr_model.simulation.dataset import DatasetWriter
from npr_model.simulation.photographs import Photograph, SimulationError, find_photographs, split
from tests.model.conftest import noise
from tests.model.simulation.photos import rows_of

pytestmark = pytest.mark.xdist_group("simulation")  # most use the same decoders, which take long to train


def test_split_is_by_scene_and_does_not_depend_on_the_order(photographs, tmp_path):
    other = [Photograph(tmp_path / "copies" / p.path.name, p.width, p.height) for p in photographs]
    parts = split([*photographs, *other], 0.5)
    names = {part: {p.path.name for p in members} for part, members in parts.items()}
    assert len(names["train"]) == len(names["validation"]) == 3 and not names["train"] & names["validation"]
    again = split(list(reversed(photographs)), 0.5)
    assert {p.path.name for p in again["validation"]} == names["validation"]
    assert {part: len(members) for part, members in split(photographs, 0.001).items()} == {
        "train": 5,
        "validation": 1,
    }
    assert split(photographs, 0) == {"": photographs}
    with pytest.raises(SimulationError, match="at least two photographs"):
        split(photographs[:1], 0.5)
    with pytest.raises(SimulationError, match=r"fraction must be at least 0 and less than 1"):
        split(photographs, 1.0)


def test_bad_photographs_are_listed_and_replaced(simulator, photographs, tmp_path):
    folder = photographs[0].path.parent
    data = photographs[0].path.read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_bytes(b"text")
    (folder / "small.png").write_bytes(b"")
    Image.fromarray(noise(47, 300)).save(folder / "small.png")
    (folder / "notes.txt").write_text("taken in June")
    left_out = LeftOut()
    usable, problems = find_photographs([folder], 48, left_out.add)
    assert list(left_out) == [str(folder / "notes.txt")]
    assert len(usable) == 7 and set(problems) == {str(folder / "text.jpg"), str(folder / "small.png")}
    writer = DatasetWriter(tmp_path / "out", simulator, crop_size=48)
    assert writer.write({"": usable}, {"": 30}, problems=problems) == {"": 30}
    assert "truncated" in problems[str(folder / "cut.png")]
    rows = rows_of(writer.output)
    assert sorted(int(row["number"]) for row in rows) == list(range(30))
    assert "cut.png" not in {Path(row["photograph"]).name for row in rows}
    skipped = dataset.write_skipped(writer.output, problems).read_text()
    assert "small.png,300x47 pixels" in skipped.replace('"', "") and skipped.count("\n") == 4
