"""The documents' tables and plots are those of the committed results."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import report
from benchmarks.harness.rows import unjudged


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda document: document.name)
def test_documents_show_the_committed_results(document):
    text = document.read_text()
    assert report.MARK.search(text)
    assert report.filled(text) == text, "run python -m benchmarks.report"


def test_comparison_has_a_row_per_case(tmp_path, monkeypatch):
    times = {"case a": {"eager": 12.0, "ours": 1.5, "peer": 3.0}, "case b": {"eager": 2000.0}, "other": {"eager": 1.0}}
    rows = [
        unjudged(case, name, time / 1e3) | {"ratio_to_reference": contenders["eager"] / time}
        for case, contenders in times.items()
        for name, time in contenders.items()
    ]
    (tmp_path / "some.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    head = ["| ms (x eager) | **ours** | peer | eager |", "| --- | --- | --- | --- |"]
    lines = ["| case a | 1.5 (8.0) | 3 (4.0) | 12 |", "| case b |  |  | 2,000 |", "| other |  |  | 1 |"]
    for mark, shown in (("some.json: ^case [ms]", lines[:2]), ("some.json [ms]", lines)):
        expected = [f"<!-- comparison {mark} -->", *head, *shown, "<!-- end -->"]
        assert report.filled(f"<!-- comparison {mark} -->\n<!-- end -->") == "\n".join(expected)


def test_readme_cannot_ask_for_what_was_not_measured():
    for mark, message in (
        ("<!-- table nowhere.json: case -->\n<!-- end -->", "nowhere.json, which does not exist"),
        ("<!-- table cpu-model.json: no such case -->\n<!-- end -->", "has no case 'no such case'"),
        ("<!-- comparison cpu-model.json: no such case [ms] -->\n<!-- end -->", "has no case 'no such case'"),
        (
            "<!-- table cpu-model.json: detector, uint8 -> logits, 8x3x256x256 [ms, hours] -->\n<!-- end -->",
            "unknown column 'hours'",
        ),
        ("<!-- comparison cpu-model.json [ms] {^theirs} -->\n<!-- end -->", "no contender like '^theirs'"),
    ):
        with pytest.raises(report.UnknownTable, match=re.escape(message)):
            report.filled(mark)


def test_plot_of_a_result_file(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [
        {"case": "a case", "contender": name, "median_ms": time}
        for name, time in (("ours", 1.0), ("eager", 12.5), ("failed", None))
    ]
    (tmp_path / "some.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (axes,) = report.draw(report.load("some.json")).axes
    assert axes.get_title(loc="left") == "a case"
    assert [text.get_text() for text in axes.texts] == [" 1 ms", " 12.5 ms"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "eager"]
    assert report.plot("some.json").read_bytes().startswith(b"\x89PNG")
