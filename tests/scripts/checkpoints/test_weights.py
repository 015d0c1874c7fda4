"""The bundled checkpoint: its card is what its results file says, and the results fit together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from npr_model import checkpoints, weights
from npr_model.detectors import encoder
from npr_model.imaging.views import View
from scripts.checkpoints import fit_last_layer, make_card
from tests.conftest import ROOT

RESULTS = ROOT / "docs" / "results" / "wild-2.csv"
CURVE = make_card.read_curve(RESULTS.with_name("learning-curve.csv"))


@pytest.fixture(scope="module")
def lines() -> list[make_card.Line]:
    return make_card.read(RESULTS)


def test_card_is_printed_from_the_results(lines):
    loaded = checkpoints.load()
    assert {line.model for line in lines} == {loaded.model_id}
    card = weights.FOLDER / f"{weights.DEFAULT}.md"
    assert card.read_text() == make_card.card(loaded.metadata, loaded.sha256, lines, CURVE)


def test_it_is_the_default_and_calibrated():
    loaded = checkpoints.load()
    assert weights.available() == ["cascade", "cascade+clip", "clip-3", "fast-1", "npr+clip", weights.DEFAULT]
    assert loaded.metadata.name == weights.DEFAULT == "wild-2"
    assert loaded.metadata.licence == "Apache-2.0" and loaded.metadata.view == View("sample", 128, 8)
    assert loaded.metadata.calibration.points


def test_the_pair_is_calibrated_and_its_card_is_of_it():
    """Nothing here needs the encoder."""
    loaded = checkpoints.load("npr+clip")
    parts = [checkpoints.load(name).model_id for name in (weights.DEFAULT, "clip-3")]
    assert [loaded.model.npr_checkpoint, loaded.model.clip_checkpoint] == parts
    probe = loaded.model.parts[1]
    assert (loaded.model.combine.weight > 0).all()
    assert probe.tokens == encoder.CLIP_TOKENS and probe.reference.isfinite().all() and probe.reference.any()
    assert loaded.metadata.view == View("sample", 128, 8) and loaded.metadata.calibration.points
    card = (weights.FOLDER / "npr+clip.md").read_text()
    assert f"`{loaded.sha256}`" in card and all(part in card for part in parts)


def test_the_fast_one_and_the_cascade_are_calibrated_and_the_card_is_of_both():
    fast, cascade = (checkpoints.load(name) for name in ("fast-1", "cascade"))
    assert fast.model.size == "fast" and fast.model.activation_steps
    parts = [fast.model_id, checkpoints.load().model_id]
    assert [cascade.model.first_checkpoint, cascade.model.second_checkpoint] == parts
    results = {}
    for loaded in (fast, cascade):
        assert loaded.metadata.view == View("sample", 128, 8) and loaded.metadata.calibration.points
        results[loaded.metadata.name] = make_card.read(RESULTS.with_name(f"{loaded.metadata.name}.csv"))
        assert {line.model for line in results[loaded.metadata.name]} == {loaded.model_id}
        fit_together(results[loaded.metadata.name])
    beside = [results["cascade"], make_card.read(RESULTS)]
    card = make_card.card(fast.metadata, fast.sha256, results["fast-1"], beside=beside)
    assert (weights.FOLDER / "fast-1.md").read_text() == card


def test_results_fit_together(lines):
    fit_together(lines)


def fit_together(lines: list[make_card.Line]) -> None:
    for condition in make_card.CONDITIONS:
        here = [line for line in lines if line.condition == condition]
        large = [line for line in here if line.kind == make_card.FAMILY and line.images >= make_card.LARGE]
        means = {line.name: line for line in here if line.kind == make_card.MEAN}
        for name, members in {make_card.ALL: large, make_card.UNSEEN: [m for m in large if not m.seen]}.items():
            assert means[name].auc == pytest.approx(sum(line.auc for line in members) / len(members), abs=1e-3)
            assert means[name].auc_low < means[name].auc < means[name].auc_high
        sources = [line for line in here if line.kind == make_card.SOURCE]
        (reals,) = (line for line in here if (line.kind, line.name) == (make_card.PHOTOGRAPHS, "all"))
        assert reals.images == sum(line.images for line in sources)
        assert reals.flagged == pytest.approx(
            sum(line.flagged * line.images for line in sources) / reals.images, abs=1e-3
        )


def test_no_number_of_the_card_is_a_constant(lines):
    loaded = checkpoints.load()
    changed = [replace(line, auc=0.12345) if line.name == "sd15" else line for line in lines]
    assert "| sd15 | 28 | yes | 12.3 (" in make_card.card(loaded.metadata, loaded.sha256, changed, CURVE)


def test_results_survive_a_file(lines, tmp_path):
    make_card.write(tmp_path / "results.csv", lines)
    assert (tmp_path / "results.csv").read_text() == RESULTS.read_text()


@pytest.mark.parametrize("command", ["measure", "print"])
def test_commands_explain_themselves(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_card.py", command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        make_card.main()
    assert stopped.value.code == 0 and "results" in capsys.readouterr().out


def test_the_last_layer_finds_the_feature_that_tells():
    """On features of which one tells the classes apart: its weight is the largest, and standardising is undone."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    values = random.normal(5, 3, (400, 6))
    values[:, 2] += 9 * labels
    features = fit_last_layer.Features(values, labels, np.array(["a", "b"] * 200), np.arange(400) // 2 % 20)
    head = fit_last_layer.fit(features)
    assert np.abs(head.weight).argmax() == 2
    assert fit_last_layer.mean_auc(features, head) > 0.8
    assert abs(head.logits(values).mean()) < 0.05
    lines = list(fit_last_layer.curve(features, features))
    assert [line["repositories"] for line in lines[::5]] == [2, 4, 8, 12, 16, 20]
    assert lines[-1]["auc_training"] > 80 and lines[-1]["auc_validation"] > 80


def test_the_cascade_with_an_encoder_is_calibrated_and_of_the_bundled_parts():
    loaded = checkpoints.load("cascade+clip")
    parts = [checkpoints.load(name).model_id for name in ("fast-1", "npr+clip")]
    assert [loaded.model.first_checkpoint, loaded.model.second_checkpoint] == parts
    assert loaded.metadata.view == View("sample", 128, 8) and loaded.metadata.calibration.points
    card = (weights.FOLDER / "npr+clip.md").read_text()
    assert f"lies in {loaded.model.low:.3f} .. {loaded.model.high:.3f}" in card
