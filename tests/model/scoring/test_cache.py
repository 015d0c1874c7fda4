"""The cache: what one run has scored another one does not score again; whatever is wrong with it is one line."""

from __future__ import annotations

import sqlite3
import threading

import numpy as np
import pytest
import torch

from npr_model import checkpoints
from npr_model.errors import InputError
from npr_model.imaging.views import View
from npr_model.scoring import cache
from npr_model.scoring.items import in_memory as item
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration
from tests.model.conftest import encoded, noise

PICTURES = [encoded(noise(16, 20, seed=i), "JPEG", quality=83) for i in range(5)]


@pytest.fixture
def cached(checkpoint, tmp_path, monkeypatch):
    """Makes scorers with one cache; the batches that each has scored are listed in ``scorer.batches``."""

    def make(**options):
        scorer = Scorer(checkpoints.load(checkpoint), batch_size=2, cache=tmp_path / "cache.sqlite", **options)
        scorer.batches, logits = [], scorer._logits
        monkeypatch.setattr(scorer, "_logits", lambda pixels: scorer.batches.append(len(pixels)) or logits(pixels))
        return scorer

    return make


def rows_of(scorer, prefix, pictures):
    return {row.source: row for row in scorer.score(item(f"{prefix}{i}", data) for i, data in enumerate(pictures))}


def test_another_run_scores_what_is_new_alone(cached):
    first = rows_of(cached(), "a", PICTURES[:3])
    second = cached()
    found = rows_of(second, "b", PICTURES)
    assert sum(second.batches) == 2 and len(found) == 5
    for i in range(3):
        ours, theirs = found[f"b{i}"].as_dict(), first[f"a{i}"].as_dict()
        assert ours.pop("milliseconds") > 0 and theirs.pop("milliseconds") > 0
        assert ours.pop("source") == f"b{i}" and theirs.pop("source") == f"a{i}"
        assert ours == theirs


def test_an_interrupted_run_keeps_what_it_has(cached):
    rows = cached().score(item(str(i), data) for i, data in enumerate(PICTURES))
    next(rows)
    rows.close()
    second = cached()
    assert len(rows_of(second, "b", PICTURES)) == 5 and 0 < sum(second.batches) < 5


def test_verdicts_are_those_of_the_run(cached):
    logit = rows_of(cached(), "a", PICTURES[:1])["a0"].logit
    for threshold, verdict in ((logit - 1, "generated"), (logit + 1, "real")):
        scorer = cached(calibration=Calibration(threshold=threshold))
        row = rows_of(scorer, "b", PICTURES[:1])["b0"]
        assert (row.logit, row.verdict, scorer.batches) == (logit, verdict, [])


def test_other_views_are_scored(cached):
    rows_of(cached(), "a", PICTURES[:2])
    other = cached(view=View("resize", 12))
    rows_of(other, "b", PICTURES[:2])
    assert sum(other.batches) == 2


def test_other_dtypes_are_scored(cached):
    rows_of(cached(dtype=torch.float32), "a", PICTURES[:2])
    for dtype, expected in ((torch.bfloat16, 2), (torch.float32, 0)):
        other = cached(dtype=dtype)
        rows_of(other, "b", PICTURES[:2])
        assert sum(other.batches) == expected


def test_the_pixel_limit_is_that_of_the_run(cached):
    rows_of(cached(), "a", PICTURES[:1])
    assert rows_of(cached(max_pixels=100), "b", PICTURES[:1])["b0"].error_code == "too_large"


def test_failures_are_not_kept(cached):
    for _ in range(2):
        rows = rows_of(cached(), "a", [b"no image"])
        assert rows["a0"].error_code == "not_an_image"


@pytest.mark.parametrize("run_number", range(5))
def test_two_runs_at_once(checkpoint, tmp_path, monkeypatch, run_number):
    monkeypatch.setattr(cache, "ROWS_A_COMMIT", 1)
    loaded, problems = checkpoints.load(checkpoint), []

    def run(name):
        try:
            scorer = Scorer(loaded, batch_size=1, cache=tmp_path / "cache.sqlite")
            assert len(rows_of(scorer, name, PICTURES)) == 5
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (5,)


@pytest.mark.parametrize("what", ["other database", "no database", "folder", "no such folder"])
def test_what_is_no_cache_is_refused(checkpoint, tmp_path, what):
    path = tmp_path / "cache.sqlite"
    if what == "other database":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (x)")
    elif what == "no database":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif what == "folder":
        path.mkdir()
    else:
        path = tmp_path / "missing" / "cache.sqlite"
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError, match="cache") as error:
        Scorer(checkpoints.load(checkpoint), cache=path)
    assert "\n" not in str(error.value)
    assert before is None or path.read_bytes() == before
