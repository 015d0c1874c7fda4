"""Files that are scored alone, in a process that may be killed."""

from __future__ import annotations

from npr_model.scoring.items import in_memory
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import Row
from npr_model.screening.engines import isolated
from npr_model.screening.outputs.journal_file import Journal
from tests.model.conftest import encoded, noise


def test_innocent_files_get_the_row_that_they_would_have(checkpoint, tmp_path):
    """Also from the process that scores them alone; a file that is damaged is only that."""
    options = ScoringOptions(checkpoint, batch_size=8, workers=3)
    items = [in_memory(str(i), encoded(noise(8 + i, 8, seed=i))) for i in range(3)] + [in_memory("bad", b"x")]
    scorer = options.scorer()
    expected = {row.source: row.as_dict() | {"milliseconds": 0} for row in scorer.score(items)}
    blank = Row("", view=str(scorer.view), model=scorer.model_id)
    found = [row.as_dict() | {"milliseconds": 0} for row in isolated.score_alone(items, options, blank, Journal())]
    assert [row["source"] for row in found] == ["0", "1", "2", "bad"]
    assert all(row == expected[row["source"]] for row in found)


def test_the_process_that_scores_alone_may_fail_to_start(checkpoint):
    items = [in_memory("a", b"x")]
    (row,) = isolated.score_alone(items, ScoringOptions("no such checkpoint"), Row(""), Journal())
    assert row.error_code == "killed" and "was ended with exit code 1" in row.error
