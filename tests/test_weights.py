"""The bundled checkpoint: its card is what its results file says, and the results are this file's."""

from __future__ import annotations

import json

import pytest

from npr_model import checkpoints
from scripts import make_card
from tests.conftest import ROOT

RESULTS = json.loads((ROOT / "benchmarks" / "results" / "checkpoint.json").read_text())


def test_card_is_printed_from_the_results():
    assert (checkpoints.WEIGHTS / "preview.md").read_text() == make_card.card(RESULTS)


def test_results_are_of_the_bundled_file():
    loaded = checkpoints.load("preview")
    assert RESULTS["checkpoint"] == {"sha256": loaded.sha256} | json.loads(loaded.metadata.to_json())
    assert (loaded.model.grid_size, loaded.model.anchor, loaded.metadata.licence) == (2, 0, "Apache-2.0")
    assert loaded.metadata.calibration is not None


def test_it_is_the_default():
    default, named = checkpoints.load().model, checkpoints.load("preview").model
    for name, tensor in named.state_dict().items():
        assert (default.state_dict()[name] == tensor).all()


def test_no_number_of_the_card_is_a_constant():
    changed = json.loads(json.dumps(RESULTS))
    for section in changed["validation"]:
        section["generators"]["sd1"]["roc_auc"] = 0.12345
    assert make_card.card(changed).count("12.3 |") >= 3


@pytest.mark.parametrize("command", ["measure", "print"])
def test_commands_explain_themselves(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_card.py", command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        make_card.main()
    assert stopped.value.code == 0 and "results" in capsys.readouterr().out
