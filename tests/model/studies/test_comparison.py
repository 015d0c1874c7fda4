"""The comparison of detectors: what is missing is trained, what is done is not done again, and the tables are right."""

from __future__ import annotations

import json

import pytest

from npr_model import checkpoints, cli
from npr_model.detectors.encoder import FILE_VARIABLE
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.evaluation import published
from npr_model.evaluation.evaluate import collect
from npr_model.scoring.options import ScoringOptions
from npr_model.studies import comparison
from npr_model.training.config import TrainConfig
from tests.model.detectors.encoders import write

LAYOUT = {"train/0_real": 4, "train/1_fake": 4, "test/gan/0_real": 3, "test/gan/1_fake": 3, "test/b/0_real": 2}
LAYOUT |= {"test/b/1_fake": 2, "test/only_real/0_real": 2}
SMALL = {"batch_size": 4, "crop_size": 18, "workers": 0, "device": "cpu", "epochs": 1}


def arguments(root, output, *detectors):
    chosen = [part for name in detectors for part in ("--detectors", name)]
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    folders = ["--train", str(root / "train"), "--evaluate", str(root / "test")]
    return ["compare", *folders, *chosen, *settings, "-o", str(output)]


def test_trains_what_is_missing_and_measures_once(labelled, tmp_path, capsys, monkeypatch):
    root, output = labelled(LAYOUT), tmp_path / "out"
    assert cli.main(arguments(root, output, "durall")) == 0
    first = json.loads((output / "comparison.json").read_text())
    evaluated = []
    evaluate = comparison.evaluate
    monkeypatch.setattr(comparison, "evaluate", lambda *a, **k: evaluated.append(a[0].model_id) or evaluate(*a, **k))
    assert cli.main([*arguments(root, output, "npr", "durall"), "-c", "wild-2"]) == 0
    rows = json.loads((output / "comparison.json").read_text())
    assert [row["detector"] for row in rows] == ["NPR", "NPR", "Durall"]
    assert rows[2] == first[0] and len(evaluated) == 2  # wild-2 and npr
    out, err = capsys.readouterr()
    assert err == "" and "npr, 1 of 2" in out and "durall, 2 of 2" in out
    page = (output / "comparison.md").read_text()
    assert "| b (2 real, 2 generated) | " in page and "only_real" not in page
    assert f"{published.mean_accuracies()['Durall']:.1f} |" in page
    assert rows[1]["parameters"] == sum(one.numel() for one in NPRDetector().parameters())
    assert rows[0]["rate"] > 0
    # Other images, or other changes of them, are measured anew.
    (root / "test/b/1_fake/1.png").unlink()
    assert cli.main(arguments(root, output, "durall")) == 0
    assert len(evaluated) == 3
    assert cli.main([*arguments(root, output, "durall"), "--perturb", "jpeg:90"]) == 0
    assert len(evaluated) == 4
    # What earlier calls measured is kept, though not shown.
    assert len(json.loads((output / "comparison.json").read_text())) == 5
    assert (output / "comparison.md").read_text().count("| Durall |") == 1
    assert cli.main([*arguments(root, output, "npr"), "--set", "epochs=2"]) == 0
    assert cli.main(arguments(root, output, "npr")) == 2
    assert "was trained for 2 epochs, more than epochs=1" in capsys.readouterr().err


def test_weights_of_joined_checkpoints_are_counted():
    counts = [comparison._count(checkpoints.load(name).model) for name in ("fast-1", "wild-2", "cascade")]
    assert counts[0] + counts[1] == counts[2] > counts[1] > counts[0] > 0


def test_means_are_those_of_the_generators(labelled, tmp_path):
    samples = collect([labelled(LAYOUT) / "test"])
    entry = comparison.measure(ScoringOptions(checkpoint="wild-2", device="cpu").scorer(), samples)
    assert set(entry.generators) == {"gan", "b"}
    mean = sum(row.roc_auc for row in entry.generators.values()) / 2
    assert entry.mean.roc_auc == pytest.approx(mean)
    summary, by_generator = comparison.tables([entry])
    assert summary.rows[0][-1] == "93.3" and "Means over 2 generators" in summary.notes[0]
    assert [row[1] for row in by_generator.rows] == [f"{100 * entry.generators[n].roc_auc:.1f}" for n in ("b", "gan")]
    comparison.write([entry], tmp_path)
    assert comparison.read(tmp_path) == [entry]


def test_recipes_change_what_a_method_needs_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, str(write(tmp_path / "small.onnx")))
    shared, settings = TrainConfig(epochs=3), ["weight_decay=0.5", "crop_size=128"]
    npr, frank, ojha = comparison.recipes(["npr", "frank", "ojha"], shared, settings)
    assert {one.epochs for one in (npr, frank, ojha)} == {3}
    assert (npr.weight_decay, npr.crop_size, npr.view) == (0.5, 128, "native")
    assert frank.weight_decay == 0.02
    assert (ojha.resize, ojha.crop_size, ojha.view) == (224, 224, "resize:224")
    for field in ("detector", "name", "folders"):
        with pytest.raises(InputError, match=f"--set {field} is decided by --detectors and --train"):
            comparison.recipes(["npr"], shared, [f"{field}=frank"])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--train", "{root}/train"], "--train and --detectors need each other"),
        (["--detectors", "npr"], "--train and --detectors need each other"),
        (["-c", "wild-2", "--set", "epochs=2"], "--preset, --config and --set need --train"),
        ([], "nothing to compare: give --checkpoint, or --train and --detectors"),
        (["-c", "wild-3"], "wild-3"),
        (["--train", "{root}/train", "--detectors", "nrp"], "'nrp' is not one of 'all', 'npr'"),
        (["-c", "wild-2", "--real", "{root}/nothing"], "nothing"),
    ],
)
def test_bad_usage_is_one_line(given, problem, labelled, tmp_path, capsys):
    root = labelled(LAYOUT)
    given = [text.format(root=root) for text in given]
    assert cli.main(["compare", "--evaluate", str(root / "test"), "-o", str(tmp_path / "out"), *given]) == 2
    err = capsys.readouterr().err
    assert problem in err and len(err.splitlines()) == 1


def test_results_that_cannot_be_read(tmp_path):
    for text in ("", "[{}]", "{", '{"a": 1}', '["x"]', '[{"generators": []}]'):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(InputError, match="remove it, or choose another output"):
            comparison.read(tmp_path)
