"""A folder of parts is gone on with after any end of a run: no row lost, none doubled, all of one kind."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from npr_model import cli
from npr_model.scoring import known
from npr_model.scoring import scorer as scorer_module
from npr_model.scoring.rows import Row
from npr_model.screening.outputs import finished, parts, sinks
from npr_model.screening.outputs.finished import Finished
from npr_model.screening.outputs.parts import SinkError
from npr_model.screening.outputs.sinks import open_sink
from tests.model.conftest import encoded, noise
from tests.model.scoring.test_scorer import item
from tests.model.screening.test_sources import tar

ONE = {"model": "m@1", "view": "native", "threshold": "0"}


def row(source: str) -> Row:
    return Row(source, "00", 0.5, 0.6, "generated", 8, 8, "PNG", view="native", model="m@1")


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "_manifest.json").read_text())


def scored(*sources: str) -> Finished:
    """Sources that have rows without error."""
    return Finished((source, False) for source in sources)


def remaining(there: Finished, sources) -> list[str]:
    has_row = there.matcher()
    return [source for source in sources if not has_row(source)]


def test_only_sources_without_rows_remain():
    """Of a source that is listed several times, as many as have no row."""
    sources = [f"{i}.png" for i in range(1000)] + ["0.png", "0.png", "grüße\n.png"]
    there = scored(*sources[:500], "0.png", "grüße\n.png")
    assert there.count == 502
    assert remaining(there, sources) == [*sources[500:1000], "0.png"]
    assert remaining(Finished(), "ab") == ["a", "b"]


def test_rows_of_the_inputs_are_counted():
    """Not those of other inputs in the same folder; of the rows of one source the failed ones come last."""
    there = Finished([("a", False), ("b", True), ("c", True), ("c", False), ("other", True), ("other", False)])
    assert (there.count, there.failed) == (6, 3)
    has_row = there.matcher()
    assert [has_row(source) for source in "abcd"] == [True, True, True, False]
    assert (has_row.kept, has_row.kept_failed) == (3, 1)
    assert has_row("c") and not has_row("c") and (has_row.kept, has_row.kept_failed) == (4, 2)


def test_digests_that_begin_alike_are_told_apart(monkeypatch):
    monkeypatch.setattr(finished, "digest", lambda source: bytes(8) + source.encode().ljust(8))
    assert remaining(scored("a", "b"), "cbadb") == ["c", "d", "b"]


def test_goes_on_where_a_run_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 2)
    output = f"{tmp_path}/scores/"
    with pytest.raises(KeyboardInterrupt), open_sink(output, ONE) as sink:
        for source in "abc":
            sink.write(row(source))
        raise KeyboardInterrupt
    assert manifest(tmp_path / "scores")["complete"] is False
    (tmp_path / "scores" / ".part-00002.parquet.1.partial").write_bytes(b"half a part")
    with open_sink(output, ONE) as sink:
        assert sink.finished.count == 3
        for source in remaining(sink.finished, "abcde"):
            sink.write(row(source))
    assert [found["source"] for found in rows(tmp_path / "scores")] == list("abcde")
    state = manifest(tmp_path / "scores")
    assert state["complete"] and state["rows"] == 5 and state["identity"] == ONE
    assert state["parts"] == {f"part-0000{i}.parquet": count for i, count in enumerate((2, 1, 2))}
    with open_sink(output, ONE) as sink:  # nothing is left to do, and nothing is added
        assert remaining(sink.finished, "abcde") == []
    assert len(os.listdir(tmp_path / "scores")) == 5 and manifest(tmp_path / "scores")["complete"]


def test_a_part_that_the_manifest_does_not_know_counts(tmp_path):
    """A run may be killed between the two."""
    output = f"{tmp_path}/scores/"
    with open_sink(output, ONE) as sink:
        sink.write(row("a"))
    state = manifest(tmp_path / "scores") | {"rows": 0, "parts": {}, "complete": False}
    (tmp_path / "scores" / "_manifest.json").write_text(json.dumps(state))
    with open_sink(output, ONE) as sink:
        assert sink.finished.count == 1
        sink.write(row("b"))
    assert [found["source"] for found in rows(tmp_path / "scores")] == ["a", "b"]


@pytest.mark.parametrize("moment", ["before the part has its name", "after it", "manifest"])
def test_no_row_is_written_twice_when_a_part_is_interrupted(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 3)
    output, interrupted = f"{tmp_path}/scores/", []

    def once() -> None:
        if not interrupted:
            interrupted.append(moment)
            raise KeyboardInterrupt

    replace, write_manifest = os.replace, parts.Parts._write_manifest

    def replacing(source, target):
        if Path(target).name.startswith("part-") and moment.startswith("before"):
            once()
        replace(source, target)
        if Path(target).name.startswith("part-") and moment.startswith("after"):
            once()

    def writing(self, complete):
        if self.count and moment == "manifest":
            once()
        write_manifest(self, complete)

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(parts.Parts, "_write_manifest", writing)
    with pytest.raises(KeyboardInterrupt), open_sink(output, ONE) as sink:
        for source in "abcdef":
            sink.write(row(source))
    assert interrupted and [found["source"] for found in rows(tmp_path / "scores")] == list("abc")
    assert manifest(tmp_path / "scores")["rows"] == 3


def test_goes_on_after_a_kill_before_the_first_manifest(tmp_path):
    (tmp_path / "scores").mkdir()
    for name in (".lock", "._manifest.json.0a1b2c3d.partial"):
        (tmp_path / "scores" / name).write_text("{")
    with open_sink(f"{tmp_path}/scores/", ONE) as sink:
        sink.write(row("a"))
    assert [found["source"] for found in rows(tmp_path / "scores")] == ["a"]


def test_refuses_what_is_not_its_own(tmp_path):
    output = f"{tmp_path}/scores/"
    with open_sink(output, ONE) as sink:
        sink.write(row("a"))
        with pytest.raises(SinkError, match="is being written by another run"), open_sink(output, ONE):
            pass
    other = ONE | {"model": "m@2", "threshold": "1"}
    with (
        pytest.raises(SinkError, match=r"holds rows of another run \(model m@1, threshold 0\): choose another folder"),
        open_sink(output, other),
    ):
        pass
    (tmp_path / "scores" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(SinkError, match=r"part-00000\.parquet cannot be read"), open_sink(output, ONE):
        pass
    for text in ("", "{}", "[]", '{"version": 99}'):
        (tmp_path / "scores" / "_manifest.json").write_text(text)
        with pytest.raises(SinkError, match=r"_manifest\.json cannot be read"):
            sinks.check(output)


def test_a_full_disk_keeps_the_parts_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS_A_PART", 2)
    output, written = f"{tmp_path}/scores/", []
    write_table = pq.write_table

    def full(table, path, **options):
        written.append(path)
        if len(written) >= 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        write_table(table, path, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(SinkError, match="cannot be written: No space left"), open_sink(output, ONE) as sink:
        for source in "abcdef":
            sink.write(row(source))
    assert [found["source"] for found in rows(tmp_path / "scores")] == ["a", "b"]
    monkeypatch.setattr(pq, "write_table", write_table)
    with open_sink(output, ONE) as sink:
        for source in remaining(sink.finished, "abcdef"):
            sink.write(row(source))
    assert [found["source"] for found in rows(tmp_path / "scores")] == list("abcdef")


def screen(arguments: list[str], rows_a_part: int) -> None:
    """In a process of its own."""
    import torch

    torch.set_num_threads(1)
    sinks.ROWS_A_PART = rows_a_part
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    os._exit(cli.main(["screen", *arguments]))


def test_killed_at_twenty_random_moments(tmp_path, checkpoint):
    """kill -9, then the same command again: in the end the rows of a run that was never killed."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["npr_model.checkpoints", "npr_model.screening.outputs.sinks", "tests.model.screening.test_restart"]
    )
    pictures = {f"{i}.png": encoded(noise(16 + 8 * (i % 3), 16, seed=i)) for i in range(150)}
    pictures |= {"broken.png": b"x", "empty.png": b""}
    tar(tmp_path / "a.tar", files=pictures)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    command = [str(folder), str(tmp_path / "a.tar"), "--checkpoint", str(checkpoint), "--batch-size", "4", "-o"]

    def run(output: Path, kill_after: float | None = None) -> bool:
        """Whether it ended by itself."""
        process = processes.Process(target=screen, args=([*command, f"{output}/"], 5))
        process.start()
        process.join(kill_after)
        if killed := process.is_alive():
            process.kill()
            process.join()
        assert killed or process.exitcode == 1  # of the two that are no images
        return not killed

    def scores(output: Path) -> dict[str, tuple]:
        found = rows(output)
        assert len(found) == len({row["source"] for row in found})
        names = ("sha256", "logit", "verdict", "error_code", "width")
        return {row["source"]: tuple(row[name] for name in names) for row in found}

    assert run(tmp_path / "unbroken")
    expected = scores(tmp_path / "unbroken")
    assert len(expected) == 2 * len(pictures)
    generator, kills, outputs = random.Random(0), 0, Counter()
    output = tmp_path / "broken0"
    while kills < 20:
        if run(output, kill_after=generator.uniform(0.1, 1.2)):
            assert scores(output) == expected and manifest(output)["complete"]
            output = tmp_path / f"broken{len(outputs) + 1}"
            outputs[output] = 0
            continue
        kills += 1
        outputs[output] += 1
        if output.exists():
            partial = scores(output)  # what is written already is readable, and right
            assert partial.items() <= expected.items()
    while not run(output):
        pass
    assert scores(output) == expected


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


def test_what_a_row_says_of_its_file(checkpoint):
    from npr_model import checkpoints
    from npr_model.imaging.views import View

    scorer = scorer_module.Scorer(checkpoints.load(checkpoint), view=View("resize", 64))
    files = {
        "jpeg": encoded(noise(80, 71), "JPEG", quality=83, subsampling="4:2:2"),
        "png": encoded(noise(64, 64)),
        "small": encoded(noise(40, 64)),
    }
    found = {row.source: row for row in scorer.score(item(name, data) for name, data in files.items())}
    jpeg = found["jpeg"]
    assert (jpeg.jpeg_quality, jpeg.subsampling, jpeg.flags) == (83, "4:2:2", "odd resized")
    assert (found["png"].jpeg_quality, found["png"].subsampling, found["png"].flags) == (None, None, "")
    assert found["small"].flags == "tiny"
    assert scorer.rates.decoded == scorer.rates.scored == 3
    assert scorer.rates.text.startswith("decoding ") and scorer.rates.scoring > 0
