"""A run that was killed at a file is not killed at it again; the next run does what is missing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from npr_model import cli
from npr_model.screening.outputs import journal_file, sinks
from npr_model.screening.outputs.finished import digest
from tests.model.conftest import encoded, noise
from tests.model.screening.collections import tar
from tests.model.screening.outputs.folders import manifest, rows

# Python runs it at its start, also in the process that scores files alone.
POISON = """
import hashlib, os, signal
sha256 = hashlib.sha256
def of_a_file(*arguments, **options):
    if arguments and bytes(arguments[0][:6]) == b"poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return sha256(*arguments, **options)
hashlib.sha256 = of_a_file
"""


@pytest.fixture
def poisonous(tmp_path, monkeypatch) -> Path:
    """A folder with a file that kills the process which reads it; only in processes that are started from now on."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(POISON)
    paths = [str(tmp_path / "start"), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(encoded(noise(8, 8, seed=number)))
    (folder / "05.png").write_bytes(b"poison")
    return folder


def test_a_run_is_not_killed_twice_at_a_file(npr, poisonous, tmp_path, checkpoint):
    arguments = ["screen", str(poisonous), "--checkpoint", str(checkpoint), "--workers", "3", "-o", f"{tmp_path}/out/"]
    killed = subprocess.run([sys.executable, "-m", "npr_model.cli", *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    for retry in ([], ["--retry-failed"]):
        code, out, _ = npr(*arguments, *retry)
        by_source = {row["source"]: row for row in rows(tmp_path / "out")}
        assert code == 1 and len(by_source) == 12 == len(rows(tmp_path / "out")), retry
        failed = {source: row for source, row in by_source.items() if row["error"] is not None}
        assert failed.keys() == {f"{poisonous}/05.png"}
        row = failed[f"{poisonous}/05.png"]
        assert row["error_code"] == "killed" and "signal 9" in row["error"] and "--retry-failed" in row["error"]
        assert row["view"] == "native" and row["model"].startswith("random@")
    code, out, _ = npr(*arguments)  # without --retry-failed it is not tried again
    assert code == 1 and "0 images" in out and "12 of the inputs already had rows from earlier runs, 1 of them" in out
    assert not (tmp_path / "out" / ".journal").exists()


def test_what_killed_a_run_when_it_was_alone_is_not_tried_at_all(npr, poisonous, tmp_path, checkpoint):
    """As where the memory's guard ends all processes of a group."""
    output = tmp_path / "scores"
    output.mkdir()
    (output / journal_file.NAME).write_bytes(2 * digest(f"{poisonous}/05.png"))  # alone, and in work
    arguments = ["screen", str(poisonous), "--checkpoint", str(checkpoint), "--workers", "1", "-o", f"{output}/"]
    assert npr(*arguments)[0] == 1
    (row,) = (row for row in rows(output) if row["error"] is not None)
    assert row["error_code"] == "killed" and row["error"].startswith("a run was killed while it scored this file alone")
    assert len(rows(output)) == 12


def screen(arguments: list[str], rows_a_part: int) -> None:
    """In a process of its own."""
    import torch

    torch.set_num_threads(1)
    sinks.ROWS_A_PART = rows_a_part
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    os._exit(cli.main(["screen", *arguments]))


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, checkpoint):
    """kill -9, then the same command again: in the end the rows of a run that was never killed."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["npr_model.checkpoints", "npr_model.screening.outputs.sinks", "tests.model.screening.test_killed"]
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
