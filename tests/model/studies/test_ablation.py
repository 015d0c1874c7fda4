"""The ablation of Table 7: every variant is trained and evaluated once, also after interruptions."""

from __future__ import annotations

import json

import pytest

from npr_model import checkpoints, cli
from npr_model.errors import InputError
from npr_model.evaluation.evaluate import collect
from npr_model.studies import ablation
from npr_model.studies.ablation import Variant
from npr_model.training.config import TrainConfig
from npr_model.training.loop import Callbacks

LAYOUT = {"train/0_real": 4, "train/1_fake": 4, "test/gan/0_real": 3, "test/gan/1_fake": 3, "test/b/0_real": 2}
LAYOUT |= {"test/b/1_fake": 2}
SMALL = {"batch_size": 4, "crop_size": 18, "workers": 0, "device": "cpu", "epochs": 1}


def test_variants():
    assert len(ablation.variants()) == 12
    assert [Variant(2, 0).paper_name, Variant(3, 3).paper_name, Variant(3, "max").paper_name] == [
        "w_1",
        "w_4",
        "max",
    ]
    for grid_size, anchor in ((2, 4), (3, 9), (2, -1), (2, "min"), (0, 0)):
        with pytest.raises(InputError, match=f"no anchor {anchor} in cells of {grid_size}x{grid_size}"):
            ablation.variants([grid_size], [anchor])


def test_trains_evaluates_and_resumes(labelled, tmp_path):
    root = labelled(LAYOUT)
    config, samples = TrainConfig(folders=(str(root / "train"),), **SMALL), collect([root / "test"])
    chosen = ablation.variants([2, 3], [1, "mean"])
    steps = []

    def stop(variant):
        if variant == chosen[2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablation.ablate(config, chosen, samples, tmp_path, on_variant=stop, callbacks=Callbacks(on_step=steps.append))
    done = len(steps)
    outcomes = ablation.ablate(config, chosen, samples, tmp_path, callbacks=Callbacks(on_step=steps.append))
    assert done == 4 and len(steps) == 8  # two steps each, none twice
    for outcome in outcomes:
        network = checkpoints.load(tmp_path / str(outcome.variant) / "last.safetensors").model
        assert (network.grid_size, network.anchor) == (outcome.variant.grid_size, outcome.variant.anchor)
        assert outcome.mean.accuracy == pytest.approx(
            sum(row.accuracy for row in outcome.generators.values()) / len(outcome.generators)
        )
    assert len({outcome.model for outcome in outcomes}) == 4
    read = ablation.ablate(config, chosen, samples, tmp_path, callbacks=Callbacks(on_step=steps.append))
    assert len(steps) == 8 and ablation.table(read, "").rows == ablation.table(outcomes, "").rows
    before, after = (ablation.write(given, "", tmp_path / name) for given, name in ((outcomes, "."), (read, "..")))
    assert [path.read_text() for path in before] == [path.read_text() for path in after]
    with pytest.raises(InputError, match="was trained with crop_size=18, not 16"):
        ablation.ablate(config.changed(crop_size=16), chosen, samples, tmp_path)


def test_table_stands_beside_the_published_one(labelled, tmp_path):
    root = labelled(LAYOUT)
    config = TrainConfig(folders=(str(root / "train"),), **SMALL)
    outcomes = ablation.ablate(config, ablation.variants([2], [0, "max"]), collect([root / "test"]), tmp_path)
    table = ablation.table(outcomes, "note")
    assert table.columns[:4] == ("grid", "anchor", "b, accuracy", "b, AP")
    assert [row[:2] + row[-2:] for row in table.rows] == [("2", "w_1", "92.5", "96.1"), ("2", "max", "90.9", "95.6")]


def test_command(labelled, tmp_path, capsys):
    root, output = labelled(LAYOUT), tmp_path / "out"
    arguments = ["ablate", str(root / "train"), "--evaluate", str(root / "test"), "-o", str(output)]
    arguments += ["--preset", "wild", "--grid-size", "2", "--anchor", "0", "--anchor", "mean"]
    for name, value in SMALL.items():
        arguments += ["--set", f"{name}={value}"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == "" and "grid2-anchor-mean, 2 of 2" in out and "w_1" in out
    assert len(json.loads((output / "ablation.json").read_text())) == 2
    assert "| 2 | mean | " in (output / "ablation.md").read_text()
    assert cli.main([*arguments, "--anchor", "4"]) == 2
    assert "there is no anchor 4 in cells of 2x2 pixels: use 0 to 3, mean or max" in capsys.readouterr().err
