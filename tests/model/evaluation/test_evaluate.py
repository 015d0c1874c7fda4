"""Evaluation gives what a plain loop with scikit-learn gives, and says when the comparison is not fair."""

from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from npr_model import checkpoints
from npr_model.datasets.folders import DatasetError
from npr_model.evaluation.evaluate import collect, common_size, evaluate
from npr_model.imaging.perturbations import Perturbation, codec
from npr_model.scoring.rows import Row
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration
from tests.model.conftest import encoded, make_detector, noise


@pytest.fixture
def scorer(checkpoint) -> Scorer:
    return Scorer(checkpoints.load(checkpoint), dtype=torch.float32, batch_size=4)


def plain_scores(root, folders) -> tuple[list[int], list[float]]:
    model = make_detector()
    labels, logits = [], []
    for folder in folders:
        for path in sorted((root / folder).iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
            with torch.no_grad():
                logits.append(model(pixels[None].permute(0, 3, 1, 2)).item())
            labels.append(int("1_fake" in folder))
    return labels, logits


def test_equals_a_plain_loop(labelled, scorer):
    layout = {"a/0_real": 5, "a/1_fake": 4, "b/1_fake": 3, "c/1_fake": 6, "photos/0_real": 7, "more/0_real": 2}
    root = labelled(layout)
    result = evaluate(scorer, collect([root]))
    pooled = ["more/0_real", "photos/0_real"]
    expected = {
        "a": ["a/0_real", "a/1_fake"],
        "b": ["b/1_fake", *pooled],
        "c": ["c/1_fake", *pooled],
    }
    assert list(result.generators) == list(expected)
    for group, folders in expected.items():
        labels, logits = plain_scores(root, folders)
        measured = result.generators[group]
        assert measured.accuracy == pytest.approx(accuracy_score(labels, np.array(logits) > 0))
        assert measured.average_precision == pytest.approx(average_precision_score(labels, logits))
        assert measured.roc_auc == pytest.approx(roc_auc_score(labels, logits))
    assert result.mean.accuracy == pytest.approx(np.mean([m.accuracy for m in result.generators.values()]))
    assert {group: measured.real for group, measured in result.reals.items()} == {"more": 2, "photos": 7}
    assert result.errors == {} and result.warning is None
    json.dumps(result.as_dict())


def test_reals_from_elsewhere_and_overlapping_roots(labelled):
    root = labelled({"set/gan/1_fake": 3, "photos": 4})
    samples = collect([root / "set", root / "set" / "gan"], reals=[root / "photos"])
    assert len(samples) == 7
    with pytest.raises(DatasetError, match="no real images to evaluate on; give a folder of real images with --real"):
        collect([root / "set"])


def test_generator_with_neither_own_nor_pooled_reals(labelled, scorer):
    root = labelled({"a/0_real": 2, "a/1_fake": 2, "b/1_fake": 3})
    result = evaluate(scorer, collect([root]))
    assert result.generators["b"].reason == "no real images"
    assert result.generators["b"].average_precision is None
    assert result.mean.accuracy == result.generators["a"].accuracy


def test_unreadable_images_are_listed(labelled, scorer):
    root = labelled({"a/0_real": 2, "a/1_fake": 2})
    (root / "a/1_fake/bad.png").write_bytes(b"")
    result = evaluate(scorer, collect([root]))
    assert result.errors == {str(root / "a/1_fake/bad.png"): "the file is empty"}
    assert result.generators["a"].fake == 2


def test_nothing_could_be_scored(labelled, scorer):
    root = labelled({"a/0_real": 1, "a/1_fake": 1})
    for path in root.glob("*/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="none of 2 images could be scored"):
        evaluate(scorer, collect([root]))


def test_classes_in_different_formats(labelled, scorer):
    root = labelled({"a/0_real": 3, "a/1_fake": 3})
    for path in (root / "a/0_real").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    result = evaluate(scorer, collect([root]))
    assert "the classes differ in file format" in result.warning
    assert result.comparison == "real: 3 JPEG, median size 32x32; generated: 3 PNG, median size 32x32"
    plain = {}
    for text in ("jpeg:90", "png"):
        rows = []
        equal = evaluate(scorer, collect([root]), equalise=codec(text), on_row=rows.append)
        assert equal.warning is None and f"all cut to 32x32 at most and written as {text}" in equal.comparison
        assert {row.format for row in rows} == {text.partition(":")[0].upper()}
        plain[text] = [row.logit for row in sorted(rows, key=lambda row: row.source)]
    assert plain["png"] != plain["jpeg:90"]
    _, logits = plain_scores(root, ["a/0_real", "a/1_fake"])
    np.testing.assert_allclose(plain["png"], logits, atol=1e-4)


def test_equalise_matches_sizes(labelled, scorer):
    root = labelled({"a/0_real": 20})
    for number in range(20):
        (root / "a/1_fake").mkdir(exist_ok=True)
        Image.fromarray(noise(41, 50, number)).save(root / f"a/1_fake/{number}.png")
    samples, rows = collect([root]), []
    assert common_size(samples) == 32
    evaluate(scorer, samples, equalise=codec("png"), on_row=rows.append)
    assert {(row.width, row.height) for row in rows} == {(32, 32)}
    rows.clear()
    result = evaluate(scorer, samples, perturbation=Perturbation.parse("resize:0.5"), on_row=rows.append)
    assert {(row.width, row.height) for row in rows} == {
        (16, 16),
        (25, 20),
    } and "(after resize:0.5)" in result.comparison


class Coin:
    """A scorer that gives random logits at once."""

    view, model_id, calibration = "native", "coin", Calibration()

    def score(self, items):
        random = np.random.default_rng(0)
        for item in items:
            assert item.load()
            yield Row(item.source, logit=float(np.float32(random.normal())), width=8, height=8, format="PNG")


def test_intervals_hold_the_values(labelled):
    root = labelled({"a/0_real": 90, "a/1_fake": 80, "b/0_real": 70, "b/1_fake": 60}, size=4)
    result = evaluate(Coin(), collect([root]))
    for row in (*result.generators.values(), result.mean):
        assert set(row.intervals) == {"accuracy", "average_precision", "roc_auc"}
        for name, (low, high) in row.intervals.items():
            assert 0 <= low <= getattr(row, name) <= high <= 1
    means = [generator.intervals["roc_auc"] for generator in result.generators.values()]
    low, high = result.mean.intervals["roc_auc"]
    assert high - low < max(high - low for low, high in means)  # a mean varies less than its parts


def test_many_images_in_constant_memory(tmp_path):
    """Memory holds the names and logits of 4,000 images, but not their files of 50 MB."""
    data = encoded(noise(64, 64))
    for number in range(4000):
        folder = tmp_path / f"gan{number % 10}" / ("0_real", "1_fake")[number % 20 // 10]
        folder.mkdir(parents=True, exist_ok=True)
        if number < 20:
            (folder / "0.png").write_bytes(data)
        else:
            os.link(folder / "0.png", folder / f"{number}.png")
    samples = collect([tmp_path])
    assert len(samples) == 4000
    tracemalloc.start()
    result = evaluate(Coin(), samples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert result.mean.real == 2000 and 0.4 < result.mean.roc_auc < 0.6
