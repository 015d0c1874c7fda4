"""README: short, with links that lead somewhere, Python that runs, and numbers that were measured."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.report import RESULTS
from npr_model import weights
from scripts.checkpoints import make_card
from tests.conftest import ROOT

ACCURACY = ROOT / "docs" / "results"
TEXT = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_it_is_read_to_the_end():
    assert len(TEXT.splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", document.read_text())
    local = [target for pair in targets for target in pair if target and "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("code", re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL), ids=["detector", "kernels"])
def test_python_runs(code, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(code, names)
    if "score" in names:
        assert capsys.readouterr().out.count("antoine-barres.png") == 2
    else:
        assert names["features"].shape == (8, 64, 128, 128)


NAMES = {"as they are": "files as they are", "half size": "scaled to half their size"}


def test_accuracy_is_that_of_the_results():
    lines = make_card.read(ACCURACY / "wild-2.csv")
    for condition, *cells in make_card.summary(lines).rows:
        name = NAMES.get(condition, condition.replace("JPEG", "saved as JPEG, quality"))
        assert f"| {name} | `wild-2` | {' | '.join(cells)} |" in TEXT
    first = {line.name: line for line in reversed(lines) if line.condition == "as they are"}
    graphics, everything = (f"{100 * first[name].flagged:.0f} %" for name in ("cgi_raytracing", "all"))
    assert (
        f'{graphics} of the computer graphics get the verdict "generated", compared with {everything} of all real'
        in TEXT
    )


def test_speed_on_a_gpu_is_that_of_the_results():
    rows = {row["contender"]: row for row in json.loads((RESULTS / "gpu-model.json").read_text())["rows"]}
    ours = rows["ours bfloat16"]
    text = TEXT.replace("\n", " ")
    assert f"{round(1e6 / ours['microseconds_an_image'], -3):,.0f} images of this size per second" in text
    for contender, words in (("eager", "float32"), ("eager bfloat16", "bfloat16")):
        ratio = rows[contender]["median_ms"] / ours["median_ms"]
        assert f"{ratio:.1f} times as fast as plain PyTorch in {words}" in text


def test_speed_of_the_fast_network_is_that_of_the_results():
    rows = json.loads((RESULTS / "cpu-fast-model.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"fast detector, uint8 -> logits, 8x3x256x256"}
    of = {row["contender"]: row["median_ms"] for row in rows}
    text = TEXT.replace("\n", " ")
    assert f"[{8e3 / of['ours int8']:,.0f} images per second]" in text
    assert f"{of['OpenVINO int8'] / of['ours int8']:.1f} times as many as OpenVINO" in text
    compiled = min(ms for name, ms in of.items() if name.startswith("torch.compile"))
    assert f"{compiled / of['ours int8']:.1f} times as many as torch.compile" in text
    screened = json.loads((RESULTS / "cpu-fast-screening.json").read_text())["rows"]
    for side, words in ((256, "{:.0f} per second of 256x256 pixels"), (512, "and {:.0f} of 512x512, each {:.0f} % of")):
        case = f"JPEG files of {side}x{side}"
        rate = {row["contender"]: row["images_per_second"] for row in screened if case in row["case"]}
        share = rate["ours int8"] / rate["ours, decoding alone"]
        assert words.format(rate["ours int8"], 100 * share) in text and round(100 * share) == 18
    auc = {row[0]: row[1].partition(" ")[0] for row in make_card.summary(make_card.read(ACCURACY / "fast-1.csv")).rows}
    assert f"After JPEG 90, its mean AUC is {auc['JPEG 90']} %" in text
    rates = json.loads((RESULTS / "cpu-cascade.json").read_text())["rows"]
    found = {(row["case"].partition("@")[0], row["contender"]): row for row in rates}
    cascade = found["cascade", "ours cascade"]
    words = f"scored {cascade['images_per_second']:.0f} per second, with a mean AUC of {cascade['roc_auc']:.4f}"
    assert words in text
    for case in ("cascade", "cascade+clip"):
        fast, wild = (found[case, f"ours {name}"]["images_per_second"] for name in ("fast-1", "wild-2"))
        assert 6 < fast / wild < 8 and "`fast-1`, over six times as fast as `wild-2`" in text


def test_the_pair_is_as_good_as_its_card_says():
    rows = [line.strip("| ").split(" | ") for line in (weights.FOLDER / "npr+clip.md").read_text().splitlines()]
    rows = [row for row in rows if row[1:2] == ["npr+clip"]]
    assert [row[0] for row in rows] == [*make_card.CONDITIONS]
    for condition, _, *cells in rows:
        name = NAMES.get(condition, condition.replace("JPEG", "saved as JPEG, quality"))
        assert f"| {name} | `npr+clip` | {' | '.join(cells[:4])} |" in TEXT
