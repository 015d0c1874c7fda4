"""The scripts that make the second opinion: what they draw, how they weigh, and what their card says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from npr_model.datasets.folders import FAKE, REAL, Sample
from npr_model.scoring.rows import Row
from npr_model.verdicts import Calibration
from scripts import make_clip_head, make_pair_card
from scripts.make_pair_card import Contender


def test_families_and_classes_count_equally():
    samples = [Sample(Path(f"{i}.png"), FAKE, "gan") for i in range(6)]
    samples += [Sample(Path("a.png"), FAKE, "diffusion"), Sample(Path("b.png"), REAL, "photographs")]
    weights = make_clip_head.balanced(samples)
    assert weights.mean() == pytest.approx(1)
    assert weights[:6].sum() == pytest.approx(weights[6]) == pytest.approx(weights[7] / 2)


def test_no_family_gives_more_than_its_share(tmp_path, monkeypatch):
    """Which images of a large family are drawn depends on their names alone."""
    monkeypatch.setattr(make_clip_head, "MOST", {REAL: (3, 2), FAKE: (4, 1)})
    for folder in ("originals", "crops", "elsewhere"):
        for group, label, count in (("photos", "0_real", 9), ("gan", "1_fake", 9), ("rare", "1_fake", 1)):
            (tmp_path / folder / group / label).mkdir(parents=True)
            for number in range(count):
                (tmp_path / folder / group / label / f"{group}{number}.png").touch()
    drawn = list(make_clip_head.chosen([tmp_path / "originals", tmp_path / "crops"]))
    counts = Counter((sample.group, sample.path.relative_to(tmp_path).parts[0]) for sample in drawn)
    assert counts == {
        ("photos", "originals"): 3, ("photos", "crops"): 2, ("gan", "originals"): 4, ("gan", "crops"): 1,
        ("rare", "originals"): 1, ("rare", "crops"): 1,
    }  # fmt: skip
    names = [sample.path.name for sample in drawn if "originals" in sample.path.parts]
    assert names == [sample.path.name for sample in make_clip_head.chosen([tmp_path / "elsewhere"])]
    assert sorted(names) != names


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ("cgi_raytracing", "renderings"),
        ("painting_adain_style", "paintings"),
        ("real_raccoon", "photographs and scans"),
    ],
)
def test_kinds_of_real_images(group, kind):
    assert make_pair_card.kind(group) == kind


def test_the_tables_measure_each_part(monkeypatch):
    def rows(label: int, npr: float, clip: float) -> list[tuple[Sample, Row]]:
        noise = np.linspace(-0.1, 0.1, 10)
        return [
            (
                Sample(Path("x"), label, "cgi_gan"),
                Row("x", logit=npr + clip + x, logit_npr=npr + x, logit_clip=clip + x),
            )
            for x in noise
        ]

    parts = {"both": lambda row: row.logit, "npr": lambda row: row.logit_npr, "clip": lambda row: row.logit_clip}
    everyone = [Contender(name, Calibration(threshold=0.5), logit) for name, logit in parts.items()]
    monkeypatch.setattr(make_pair_card, "contenders", lambda: everyone)
    scored = rows(REAL, 0, 1) + rows(FAKE, 0, 2)
    apart, wrong = make_pair_card.tables({"as they are": scored})
    assert [row[1] for row in apart.rows] == ["both", "npr", "clip"]
    assert [row[2].partition(" ")[0] for row in apart.rows] == ["100.0", "50.0", "100.0"]
    assert [cell.partition(" ")[0] for cell in wrong.rows[0]] == ["as", "renderings", "10", "100.0", "0.0", "100.0"]
