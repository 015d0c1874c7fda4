"""The scripts that make the second opinion: what they draw, how they weigh, and what their card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from npr_model.datasets import FAKE, REAL, Sample
from npr_model.imaging.perturbations import Perturbation
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


def test_changes_depend_on_the_name_alone_and_can_be_applied():
    names = [Path(f"folder/{number}.png") for number in range(200)]
    drawn = [make_clip_head.change(make_clip_head.random(name)) for name in names]
    assert drawn == [make_clip_head.change(make_clip_head.random(Path(name.name))) for name in names]
    assert 0.3 < np.mean([not text for text in drawn]) < 0.5
    assert {text.partition(":")[0] for text in drawn if text} == {"jpeg", "webp", "resize"}
    assert all(Perturbation.parse(text).text == text for text in drawn if text)


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
