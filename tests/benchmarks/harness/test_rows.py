"""The file of results."""

from __future__ import annotations

import json

from rich.console import Console

from benchmarks.harness.rows import Results, earlier_rows, unjudged


def test_a_file_keeps_the_cases_that_are_not_run_again(tmp_path):
    file, here = tmp_path / "screening.json", {"cpu": "some", "cpu_capability": "avx2", "threads": 2}
    assert earlier_rows(None, here) == []
    for text, expected in (
        ("", []),
        (json.dumps({"machine": here, "rows": [{"case": "a"}]}), [{"case": "a"}]),
        (json.dumps({"machine": here | {"threads": 16}, "rows": [{"case": "a"}]}), []),
        (json.dumps({"machine": here | {"gpu": "some"}, "rows": [{"case": "a"}]}), []),
    ):
        file.write_text(text)
        assert earlier_rows(file, here) == expected
    results = Results(here, file, Console(quiet=True), earlier=[unjudged("a", "ours", 1.0), unjudged("b", "ours", 1.0)])
    results.add([unjudged("b", "ours", 2.0)])
    cases = [(row["case"], row["median_ms"]) for row in json.loads(file.read_text())["rows"]]
    assert cases == [("b", 2000.0), ("a", 1000.0)]
