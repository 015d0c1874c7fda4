"""What is known of files that were scored before: a copy is not scored again, and memory is bounded."""

from __future__ import annotations

from npr_model.scoring import known
from npr_model.scoring import scorer as scorer_module
from tests.model.conftest import encoded, item, noise


def test_identical_files_are_scored_once(checkpoint, monkeypatch):
    from npr_model import checkpoints

    scorer = scorer_module.Scorer(checkpoints.load(checkpoint), batch_size=4)
    scored, logits = [], scorer._logits
    monkeypatch.setattr(scorer, "_logits", lambda pixels: scored.append(len(pixels)) or logits(pixels))
    pictures = [encoded(noise(16, 16, seed=i)) for i in range(3)]
    items = [item(f"{i}", pictures[i % 3]) for i in range(30)] + [item("bad", b"x"), item("also bad", b"x")]
    found = {row.source: row for row in scorer.score(items)}
    assert sum(scored) == 3 and len(found) == 32
    for i in range(30):
        assert found[f"{i}"].logit == found[f"{i % 3}"].logit and found[f"{i}"].error is None
        assert found[f"{i}"].sha256 == found[f"{i % 3}"].sha256 and found[f"{i}"].milliseconds > 0
    assert found["bad"].error_code == found["also bad"].error_code == "not_an_image"


def test_what_is_known_of_files_is_bounded(checkpoint, monkeypatch):
    from npr_model import checkpoints

    monkeypatch.setattr(known, "KNOWN_ROWS", 2)
    scorer = scorer_module.Scorer(checkpoints.load(checkpoint), batch_size=1, workers=1)
    scored, logits = [], scorer._logits
    monkeypatch.setattr(scorer, "_logits", lambda pixels: scored.append(len(pixels)) or logits(pixels))
    pictures = [encoded(noise(16, 16, seed=i)) for i in range(4)]
    assert len(list(scorer.score([item(str(i), pictures[i % 4]) for i in range(8)]))) == 8
    assert sum(scored) == 8
