"""The scripts that make the second opinion: what they draw, how they weigh, and what their card says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from npr_model.datasets.folders import FAKE, REAL, Sample
from npr_model.detectors.encoder import FILE_VARIABLE
from npr_model.detectors.ojha import Ojha
from npr_model.imaging.views import View
from npr_model.scoring.rows import Row
from npr_model.verdicts import Calibration
from scripts.checkpoints import make_clip_probe, make_pair_card
from scripts.checkpoints.make_pair_card import Contender, Scored
from tests.model.conftest import encoded, noise
from tests.model.detectors.encoders import write


def test_families_and_classes_count_equally():
    samples = [Sample(Path(f"{i}.png"), FAKE, "gan") for i in range(6)]
    samples += [Sample(Path("a.png"), FAKE, "diffusion"), Sample(Path("b.png"), REAL, "photographs")]
    weights = make_clip_probe.balanced(samples)
    assert weights.mean() == pytest.approx(1)
    assert weights[:6].sum() == pytest.approx(weights[6]) == pytest.approx(weights[7] / 2)


@pytest.fixture
def folders(tmp_path) -> Path:
    for folder in ("originals", "crops", "elsewhere"):
        for group, label, count in (("photos", "0_real", 9), ("gan", "1_fake", 9), ("rare", "1_fake", 1)):
            (tmp_path / folder / group / label).mkdir(parents=True)
            for number in range(count):
                (tmp_path / folder / group / label / f"{group}{number}.png").write_bytes(encoded(noise(8, 8, number)))
    return tmp_path


def test_no_family_gives_more_than_its_share_of_whole_images(folders, monkeypatch):
    """Which images of a large family are drawn depends on their names alone. So do the copies of a crop."""
    monkeypatch.setattr(make_clip_probe, "MOST", {REAL: 3, FAKE: 4})
    drawn = list(make_clip_probe.drawn(folders / "originals", folders / "crops"))
    counts = Counter((one.group, one.path.relative_to(folders).parts[0], change[:4]) for one, change in drawn)
    halves = {group: counts.pop((group, "crops", "resi"), 0) for group in ("photos", "gan", "rare")}
    assert counts == {
        ("photos", "originals", ""): 3, ("gan", "originals", ""): 4, ("rare", "originals", ""): 1,
        ("photos", "crops", ""): 9, ("gan", "crops", ""): 9, ("rare", "crops", ""): 1,
        ("photos", "crops", "jpeg"): 9, ("gan", "crops", "jpeg"): 9, ("rare", "crops", "jpeg"): 1,
    }  # fmt: skip
    assert 4 < sum(halves.values()) < 15 and 0 < halves["photos"] < 9
    names = [(one.path.name, change) for one, change in drawn]
    again = make_clip_probe.drawn(folders / "elsewhere", folders / "crops")
    assert names == [(one.path.name, change) for one, change in again]
    whole = [name for name, change in names[:8]]
    assert sorted(whole) != whole
    changes = {change for _, change in names if change.startswith("jpeg")}
    assert len(changes) > 5 and changes <= {f"jpeg:{quality}" for quality in make_clip_probe.QUALITIES}


def test_an_image_is_embedded_after_its_change(folders, monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, str(write(folders / "small.onnx")))
    path, network, seen = folders / "crops" / "gan" / "1_fake" / "gan0.png", Ojha(), []
    monkeypatch.setattr(make_clip_probe, "VIEW", View("native"))
    monkeypatch.setattr(network, "features", lambda images: seen.append(images) or torch.zeros(1, 6))
    (_, first), (_, second) = (make_clip_probe.embedding(network, path, change) for change in ("", "jpeg:55"))
    assert first.startswith("pillow") and not second.startswith("pillow")
    assert torch.equal(seen[0][0].permute(1, 2, 0), torch.from_numpy(noise(8, 8, 0)))
    assert 0 < (seen[0].float() - seen[1].float()).abs().mean() < 80
    path.write_bytes(b"no image")
    assert make_clip_probe.embedding(network, path, "") is None


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
    def images(label: int, npr: float, clip: float) -> list[Scored]:
        return [
            Scored(
                Sample(Path("x"), label, "cgi_gan"),
                Row("x", model="both@1", logit=npr + clip + x, logit_npr=npr + x, logit_clip=clip + x),
                Row("x", logit=npr + x, scored_by="both@1" if x > 0 else "npr@1"),
            )
            for x in np.linspace(-0.1, 0.1, 10)
        ]

    parts = {
        "both": lambda image: image.pair.logit,
        "npr": lambda image: image.pair.logit_npr,
        "clip": lambda image: image.pair.logit_clip,
        "cascade": lambda image: image.cascade.logit,
    }
    everyone = [Contender(name, Calibration(threshold=0.5), logit) for name, logit in parts.items()]
    monkeypatch.setattr(make_pair_card, "contenders", lambda: everyone)
    scored = images(REAL, 0, 1) + images(FAKE, 0, 2)
    apart, wrong = make_pair_card.tables({"as they are": scored}, {"another family"})
    assert [row[1] for row in apart.rows] == list(parts)
    for column in (2, 3):
        assert [row[column].partition(" ")[0] for row in apart.rows] == ["100.0", "50.0", "100.0", "50.0"]
    assert [row[5].partition(" ")[0] for row in apart.rows] == ["100.0", "0.0", "100.0", "0.0"]
    assert [cell.partition(" ")[0] for cell in wrong.rows[0][:5]] == ["as", "renderings", "10", "100.0", "0.0"]
    assert apart.notes == ("Images for which `cascade+clip` asked `npr+clip`: 50.0 % (as they are).",)
