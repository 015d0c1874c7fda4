"""Robustness: each result equals an evaluation of perturbed files, and is saved at once."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from npr_model import checkpoints, cli
from npr_model.errors import InputError
from npr_model.evaluation.evaluate import collect, evaluate
from npr_model.imaging.perturbations import Perturbation
from npr_model.scoring.scorer import Scorer
from npr_model.studies import robustness
from tests.model.conftest import make_detector

LAYOUT = {"a/0_real": 4, "a/1_fake": 3, "b/1_fake": 3, "photos/0_real": 4}
TEXTS = ("png", "jpeg:50", "resize:0.5")


@pytest.fixture
def scorer(checkpoint) -> Scorer:
    return Scorer(checkpoints.load(checkpoint), dtype=torch.float32)


def test_equals_an_evaluation_of_perturbed_files(labelled, scorer, tmp_path):
    root = labelled(LAYOUT)
    points = robustness.measure(scorer, collect([root]), TEXTS, tmp_path / "out")
    for point in points:
        for path in root.glob("*/*/*.png"):
            copy = tmp_path / point.perturbation.replace(":", "-") / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(Perturbation.parse(point.perturbation).apply(path.read_bytes()))
        expected = evaluate(scorer, collect([tmp_path / point.perturbation.replace(":", "-")]))
        assert point.generators == expected.generators and point.mean == expected.mean and point.errors == 0
    assert len({point.mean.roc_auc for point in points}) > 1


def test_continues_after_an_interruption(labelled, scorer, tmp_path):
    samples = collect([labelled(LAYOUT)])
    whole = robustness.measure(scorer, samples, TEXTS, tmp_path / "whole")

    def stop(point):
        if point.perturbation == "jpeg:50":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        robustness.measure(scorer, samples, TEXTS, tmp_path / "cut", on_point=stop)
    rows = []
    resumed = robustness.measure(scorer, samples, TEXTS, tmp_path / "cut", on_row=rows.append)
    assert len(rows) == len(samples)  # the last perturbation only
    assert (tmp_path / "cut/robustness.json").read_text() == (tmp_path / "whole/robustness.json").read_text()
    assert [point.mean.roc_auc for point in resumed] == [point.mean.roc_auc for point in whole]
    again = robustness.measure(scorer, samples, TEXTS[:1], tmp_path / "cut", on_row=rows.append)
    assert len(rows) == len(samples) and robustness.table(again, "").rows == robustness.table(whole[:1], "").rows


def test_results_of_another_checkpoint_or_data_set_are_refused(labelled, scorer, tmp_path):
    root = labelled(LAYOUT)
    robustness.measure(scorer, collect([root]), TEXTS[:1], tmp_path)
    Image.open(root / "a/0_real/0.png").resize((20, 20)).save(root / "a/0_real/0.png")
    with pytest.raises(InputError, match="holds results for different files: choose another folder"):
        robustness.measure(scorer, collect([root]), TEXTS[:1], tmp_path)
    other = tmp_path / "other.safetensors"
    checkpoints.save(other, make_detector(1), checkpoints.Metadata(name="other"))
    with pytest.raises(InputError, match="results for different model, files"):
        robustness.measure(Scorer(checkpoints.load(other)), collect([root]), TEXTS[:1], tmp_path)
    (tmp_path / "robustness.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        robustness.measure(scorer, collect([root]), TEXTS[:1], tmp_path)


def test_families_are_valid():
    for texts in robustness.FAMILIES.values():
        assert all(Perturbation.parse(text) for text in texts)
    assert robustness.axis_values(robustness.FAMILIES["JPEG quality"])[:2] == [100, 95]
    assert robustness.axis_values(robustness.FAMILIES["JPEG decoder"]) is None


def test_command(labelled, checkpoint, tmp_path, capsys):
    root, output = labelled({"gan/0_real": 3, "gan/1_fake": 3}), tmp_path / "out"
    arguments = ["robustness", str(root), "-o", str(output), "--checkpoint", str(checkpoint)]
    assert cli.main([*arguments, "--perturb", "jpeg:90", "--perturb", "blur:1"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "unchanged" in out and "blur:1" in out
    assert {path.name for path in output.iterdir()} == {"robustness.json", "robustness.md", "given.png"}
    assert list(json.loads((output / "robustness.json").read_text())["points"]) == ["png", "jpeg:90", "blur:1"]
    assert "| jpeg:90 | " in (output / "robustness.md").read_text()
    (root / "gan/0_real/bad.png").write_bytes(b"")
    assert cli.main([*arguments[:3], str(tmp_path / "more"), *arguments[4:], "--perturb", "png"]) == 1
    capsys.readouterr()
    assert cli.main([*arguments, "--perturb", "jpeg:0"]) == 2
    assert "unknown codec 'jpeg:0'" in capsys.readouterr().err
