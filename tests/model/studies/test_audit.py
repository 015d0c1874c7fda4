"""The audit reports what headers tell, and nothing where the classes agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from npr_model import cli
from npr_model.evaluation.evaluate import collect
from npr_model.imaging import jpeg_quality
from npr_model.imaging.headers import read_encoding
from npr_model.imaging.jpeg_quality import estimate_quality
from npr_model.studies import audit
from tests.model.conftest import encoded, noise


@pytest.fixture(autouse=True)
def small_forest(monkeypatch):
    """Enough trees for what these files tell."""
    monkeypatch.setattr(audit, "TREES", 20)


def make(root, reals, fakes, group="gan"):
    """Files of both classes; a function makes each from its number."""
    for folder, make_one, count in (("0_real", *reals), ("1_fake", *fakes)):
        path = root / group / folder
        path.mkdir(parents=True)
        for number in range(count):
            (path / f"{number}.img.png").write_bytes(make_one(number))
    return root


@pytest.mark.parametrize("quality", range(1, 101))
def test_quality_is_exact(tmp_path, quality):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(noise(16, 16), "JPEG", quality=quality))
    assert estimate_quality(read_encoding(path).quantization[0]) == quality


def test_quality_of_other_tables():
    standard = jpeg_quality._TABLES[79]
    assert estimate_quality(np.clip(standard + 1, 1, 255)) in range(75, 85)


def test_a_set_that_a_codec_tells_apart(tmp_path):
    root = make(
        tmp_path,
        (lambda n: encoded(noise(40, 30 + n, n), "JPEG", quality=80, subsampling="4:2:0"), 20),
        (lambda n: encoded(noise(32, 32, n)), 15),
    )
    result = audit.audit(collect([root]))
    real, fake = result.sides["real"], result.sides["generated"]
    assert real.formats == {"JPEG": 20} and fake.formats == {"PNG": 15}
    assert real.qualities == {"76 to 80": 20} and real.subsampling == {"4:2:0": 20} and real.tables == 1
    assert fake.qualities == {} and fake.tables == 0
    assert (real.widths[0], real.widths[-1]) == (30, 49) and set(real.heights) == {40} and set(fake.widths) == {32}
    total = sum(path.stat().st_size for path in root.glob("gan/1_fake/*"))
    assert fake.bits_per_pixel == pytest.approx(8 * total / (15 * 32 * 32))
    assert result.baseline["gan"] > 0.99 and result.errors == {}
    text = " ".join(result.findings)
    assert "file format differs for 100 %" in text and "median width" in text and "headers alone" in text


def test_a_fair_set(tmp_path):
    random = np.random.default_rng(0)

    def one(number):
        return encoded(noise(32, 32, random.integers(10**6)), "JPEG", quality=int(random.integers(70, 90)))

    root = make(tmp_path, (one, 60), (one, 60))
    result = audit.audit(collect([root]))
    assert [text for text in result.findings if "JPEG quality" not in text] == []
    assert 0.3 < result.baseline["gan"] < 0.7


def test_pooled_reals_and_few_files(tmp_path):
    root = make(tmp_path, (lambda n: encoded(noise(8, 8)), 0), (lambda n: encoded(noise(8, 8)), 6))
    make(tmp_path, (lambda n: encoded(noise(9, 9)), 7), (lambda n: b"", 0), group="photos")
    make(tmp_path, (lambda n: encoded(noise(9, 9)), 2), (lambda n: encoded(noise(8, 8)), 6), group="small")
    baseline = audit.audit(collect([root])).baseline
    assert baseline["gan"] > 0.99 and baseline["small"] is None


def test_command(tmp_path, capsys):
    root = make(
        tmp_path,
        (lambda n: encoded(Image.fromarray(noise(16, 16)), "JPEG"), 6),
        (lambda n: encoded(noise(16, 16)) if n else b"broken", 7),
    )
    output = tmp_path / "audit.json"
    assert cli.main(["audit", str(root), "-o", "audit.txt"]) == 2
    assert "output audit.txt must end in .json or .md" in capsys.readouterr().err
    code = cli.main(["audit", str(root), "-o", str(output), "-o", str(output.with_suffix(".md"))])
    out, err = capsys.readouterr()
    assert code == 1 and err == "" and "6 JPEG" in out and "0.img.png" in out and "Warning: file format differs" in out
    assert "| formats | 6 JPEG | 6 PNG |" in output.with_suffix(".md").read_text()
    values = json.loads(output.read_text())
    assert values["sides"]["generated"]["files"] == 6 and values["baseline"]["gan"] == 1.0 and values["findings"]
