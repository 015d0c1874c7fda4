"""README: short, with links that lead somewhere, Python that runs, and numbers that were measured."""

from __future__ import annotations

import json
import re

import pytest
from scipy.stats import binomtest

from benchmarks.report import RESULTS
from tests.conftest import ROOT

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


@pytest.mark.parametrize("number, codec", [(0, None), (1, "jpeg:90")])
def test_accuracy_is_that_of_the_results(number, codec):
    section = json.loads((RESULTS / "checkpoint.json").read_text())["validation"][number]
    assert section["codec"] == codec

    def counted(hits: float, total: int) -> str:
        low, high = binomtest(round(hits), total).proportion_ci()
        return f"{hits:.0f} of {total} ({100 * low:.0f}-{100 * high:.0f} %)"

    generators, reals, mean = section["generators"].values(), section["reals"].values(), section["mean"]
    low, high = mean["intervals"]["roc_auc"]
    cells = (
        f"{100 * mean['roc_auc']:.1f} ({100 * low:.1f}-{100 * high:.1f})",
        counted(sum(row["accuracy_fake"] * row["fake"] for row in generators), mean["fake"]),
        counted(sum((1 - row["accuracy_real"]) * row["real"] for row in reals), sum(row["real"] for row in reals)),
    )
    assert f"| {' | '.join(cells)} |" in TEXT


def test_speed_on_a_gpu_is_that_of_the_results():
    rows = {row["contender"]: row for row in json.loads((RESULTS / "gpu-model.json").read_text())["rows"]}
    ours = rows["ours bfloat16"]
    assert f"{round(1e6 / ours['microseconds_an_image'], -3):,.0f} images of this size per second" in TEXT
    for contender, words in (("eager", "float32"), ("eager bfloat16", "bfloat16")):
        ratio = rows[contender]["median_ms"] / ours["median_ms"]
        assert f"{ratio:.1f} times as fast as plain PyTorch in {words}" in TEXT.replace("\n", " ")
