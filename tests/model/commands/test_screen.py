"""``npr screen``: what it counts and prints, and how it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from npr_model import api, checkpoints
from npr_model.commands import screen
from npr_model.commands.shared import terminal
from npr_model.errors import InputError
from npr_model.scoring.rows import Row
from npr_model.screening.inputs.sources import Sources
from npr_model.verdicts import Calibration
from tests.model.conftest import encoded, make_detector, noise
from tests.model.screening.collections import tar, zipped

GOOD = {f"{number}.png": encoded(noise(8, 8, seed=number)) for number in range(4)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)
    return folder


def test_what_is_skipped_is_said_with_the_reason(npr, tmp_path, checkpoint):
    files = GOOD | {"photo": GOOD["0.png"], "notes.txt": b"x", ".a.png": b"x", "__MACOSX/._0.png": b"x"}
    files |= {"a.tar": tar(), "IMG.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}
    folder = write(tmp_path / "images", files)
    (folder / "back").symlink_to(folder)
    code, out, _ = npr("screen", folder, "--checkpoint", checkpoint)
    assert code == terminal.EXIT_FAILED_INPUTS
    assert "6 images: " in out and ", 1 failed;" in out and "HEIC" in out
    (line,) = (line for line in out.splitlines() if line.startswith("skipped: "))
    for count, reason in ((1, "not images"), (2, "hidden"), (1, "archives in folders"), (1, "links to folders that")):
        assert f"{count} {reason}" in line
    totals = api.screen(folder, tmp_path / "scores.csv", checkpoint=checkpoint)
    assert sum(totals.skipped.values()) == 5 and totals.count == 6


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({"list": b""}, "--files-from=list", "there is nothing to screen: the list list names no files"),
        ({"list": b"\xef\xbb\xbf\r\n\n"}, "--files-from=list", "the list list names no files"),
        ({"a.tar": tar(files={".x": b"", "b.txt": b"x"})}, "a.tar", "no images in the inputs; skipped: 1 hidden"),
        ({"a.zip": zipped(files={"b.txt": b"x"})}, "a.zip", "no images in the inputs; skipped: 1 not images"),
        ({"a.tar": bytes(10240)}, "a.tar", "there is nothing to screen: no images in the inputs"),
        ({"x/.a.png": b"x", "x/b.txt": b"x"}, "x", "no images in folder x; skipped: "),
        ({"x/a.tar": tar()}, "x", "no images in folder x; skipped: 1 archives in folders"),
        ({"list": b"a.png\0b.png\0"}, "--files-from=list", "holds NUL bytes: use --null"),
    ],
)
def test_an_empty_input_is_an_error(npr, tmp_path, checkpoint, monkeypatch, files, source, message):
    monkeypatch.chdir(write(tmp_path, files))
    Path("scores.csv").write_text("of an earlier run")
    for output in ("scores.csv", "scores/"):
        code, out, err = npr("screen", source, "--checkpoint", checkpoint, "-o", output)
        assert (code, out) == (terminal.EXIT_USAGE, "") and message in err and err.count("\n") == 1
    assert Path("scores.csv").read_text() == "of an earlier run" and not Path("scores").exists()


def test_closed_standard_input_is_an_empty_list(npr, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = npr("screen", "--files-from", "-", "--checkpoint", checkpoint)
    assert code == terminal.EXIT_USAGE and err.endswith("the list from standard input names no files\n")


def test_counts_are_those_of_the_inputs(npr, tmp_path, checkpoint):
    """Not those of the folder, which holds rows of other inputs, some of them failed."""
    first = write(tmp_path / "first", {"a.png": GOOD["0.png"], "bad.png": b"x", "also bad.png": b""})
    second = write(tmp_path / "second", GOOD)
    arguments = ("--checkpoint", checkpoint, "-o", f"{tmp_path}/scores/")
    assert npr("screen", first, *arguments)[0] == terminal.EXIT_FAILED_INPUTS
    code, out, _ = npr("screen", second, *arguments)
    assert code == 0 and "4 images: " in out and "earlier runs" not in out
    code, out, _ = npr("screen", second / "0.png", second / "1.png", *arguments)
    assert (
        code == 0 and "0 images: " in out and "2 of the inputs already had rows" in out and ", 0 of them failed" in out
    )
    code, out, _ = npr("screen", second / "0.png", first / "bad.png", *arguments)
    assert code == terminal.EXIT_FAILED_INPUTS and "2 of the inputs already had rows" in out and ", 1 of them" in out
    assert "--retry-failed" in out
    totals = api.screen([first, second], f"{tmp_path}/scores/", checkpoint=checkpoint)
    assert (totals.count, totals.kept, totals.kept_failed) == (0, 7, 2)


def test_failed_inputs_are_tried_again(npr, tmp_path, checkpoint):
    folder = write(tmp_path / "images", {"a.png": GOOD["0.png"], "b.png": b"not yet", "c.png": b"never"})
    arguments = ("screen", folder, "--checkpoint", checkpoint, "-o", f"{tmp_path}/scores/")
    assert npr(*arguments)[0] == terminal.EXIT_FAILED_INPUTS
    (folder / "b.png").write_bytes(GOOD["1.png"])
    assert npr(*arguments)[0] == terminal.EXIT_FAILED_INPUTS
    code, out, _ = npr(*arguments, "--retry-failed")
    assert code == terminal.EXIT_FAILED_INPUTS and "2 images: " in out and ", 1 failed" in out
    table = pq.read_table(tmp_path / "scores").to_pylist()
    assert {os.path.basename(row["source"]): row["error"] is None for row in table} == {
        "a.png": True,
        "b.png": True,
        "c.png": False,
    }
    (folder / "c.png").unlink()
    code, out, _ = npr(*arguments, "--retry-failed")
    assert code == 0 and "2 of the inputs already had rows from earlier runs, 0 of them failed" in out
    assert api.screen(folder, f"{tmp_path}/scores/", retry_failed=True, checkpoint=checkpoint).kept == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retry-failed"], "failed rows are retried in an output folder: name it with --output"),
        (["--retry-failed", "-o", "scores.csv"], "in an output folder (a name that ends in /), not in scores.csv"),
        (["--null"], "--null needs --files-from"),
    ],
)
def test_options_that_need_others(npr, tmp_path, checkpoint, monkeypatch, arguments, message):
    monkeypatch.chdir(write(tmp_path, GOOD))
    code, _, err = npr("screen", "0.png", "--checkpoint", checkpoint, *arguments)
    assert code == terminal.EXIT_USAGE and message in err


@pytest.mark.parametrize("option", ["-0", "--null"])
def test_names_of_find(npr, tmp_path, checkpoint, monkeypatch, option):
    monkeypatch.chdir(write(tmp_path, {"new\nline.png": GOOD["0.png"], "b c.png": GOOD["1.png"]}))
    Path("list").write_bytes(subprocess.run(["find", ".", "-name", "*.png", "-print0"], capture_output=True).stdout)
    code, out, _ = npr("screen", "--files-from", "list", option, "--checkpoint", checkpoint)
    assert code == 0 and "2 images: " in out


def test_names_in_utf16(npr, tmp_path, checkpoint, monkeypatch):
    """As PowerShell writes them."""
    monkeypatch.chdir(write(tmp_path, {"grüße.png": GOOD["0.png"]}))
    Path("list").write_bytes("grüße.png\r\n".encode("utf-16"))
    assert npr("screen", "--files-from", "list", "--checkpoint", checkpoint)[0] == 0


def test_a_pipe_gets_one_line_a_row(npr, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    folder = write(tmp_path / ("a long name " * 9), {"a.png": GOOD["0.png"], "b.png": b"x" * 99})
    _, out, _ = npr("screen", folder, "--checkpoint", checkpoint)
    header, first, second, *_ = out.splitlines()
    assert header.split() == ["file", "verdict", "probability", "size", "format"]
    assert first.startswith(f"{folder}/a.png  ") and first.split()[-1] == "PNG" and "8x8" in first
    assert second.startswith(f"{folder}/b.png  error: not an image")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_a_terminal_shows_the_whole_verdict(width):
    rows = [Row("a folder/a long name of a file.png", "00", 0.0, 0.5, "generated", 1000, 1000, "JPEG2000")]
    output = io.StringIO()
    table = screen._row_table(rows, width)
    Console(file=output, width=width, force_terminal=True, color_system=None).print(table)
    text = output.getvalue()
    assert "generated" in text and "0.500" in text and "verdict" in text and "probability" in text
    assert max(map(len, text.splitlines())) <= width


def test_an_ascii_pipe_loses_no_row(tmp_path, checkpoint):
    """Names that it cannot show are replaced, and the exit code is that of the rows."""
    write(tmp_path, {"grüße 漢.png": GOOD["0.png"]})
    command = [sys.executable, "-m", "npr_model.cli", "screen", "grüße 漢.png", "--checkpoint", str(checkpoint)]
    environment = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.getcwd(), environment.get("PYTHONPATH"))))
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert run.returncode == 0 and run.stderr == b"" and b"gr??e ?.png" in run.stdout


def test_nothing_to_screen_in_a_program(tmp_path, checkpoint):
    (tmp_path / "list").write_text("")
    with pytest.raises(InputError, match="there is nothing to screen"):
        api.screen([], tmp_path / "scores.csv", files_from=str(tmp_path / "list"), checkpoint=checkpoint)


def test_screen_mixed_folder(npr, folder, tmp_path, checkpoint, monkeypatch):
    output = tmp_path / "scores.parquet"
    monkeypatch.chdir(tmp_path)
    code, out, err = npr("screen", folder.name, "-o", output, "--checkpoint", checkpoint)
    assert code == terminal.EXIT_FAILED_INPUTS and err == ""
    rows = {os.path.basename(row["source"]): row for row in pq.read_table(output).to_pylist()}
    assert set(rows) == {"a.png", "b.JPG", "empty.png", "text.jpg", "tiny.png"}
    assert {name for name, row in rows.items() if row["error"] is None} == {"a.png", "b.JPG"}
    assert "5 images: " in out and "3 failed" in out and "not calibrated" in out
    assert "skipped: 1 not images" in out
    for name in rows:
        assert f"images/{name}" in out
    assert "error: the file is empty" in out


def test_screen_of_good_files_without_output(npr, folder, checkpoint):
    code, out, err = npr("screen", folder / "a.png", folder / "b.JPG", "--checkpoint", checkpoint, "--dtype", "float32")
    assert code == 0 and err == "" and "2 images: " in out and "rows written" not in out


def test_screen_shows_no_table_of_a_long_run(npr, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(screen, "TABLE_ROWS", 2)
    for i in range(3):
        (tmp_path / f"file{i}.png").write_bytes(encoded(noise(8, 8)))
    code, out, _ = npr("screen", tmp_path, "--checkpoint", checkpoint)
    assert code == 0 and "file0.png" not in out and "3 images: " in out


def test_screen_prints_odd_names_safely(npr, tmp_path, checkpoint):
    name = b"[red]\x1b[2J\nx\xff.png"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(encoded(noise(8, 8)))
    code, out, _ = npr("screen", tmp_path, "--checkpoint", checkpoint)
    assert code == 0 and "\x1b[2J" not in out and "[red]" in "".join(out.split())


def test_screen_says_that_a_model_is_calibrated(npr, folder, tmp_path):
    path = tmp_path / "calibrated.safetensors"
    checkpoints.save(path, make_detector(), checkpoints.Metadata(calibration=Calibration(0.0, -9.0, 9.0)))
    code, out, _ = npr("screen", folder / "a.png", "--checkpoint", path)
    assert code == 0 and "1 uncertain" in out and "not calibrated" not in out and "npr calibrate" not in out
    code, out, _ = npr("screen", folder / "a.png", "--checkpoint", path, "--view", "crop:8")
    assert code == 0 and "use the threshold of view native" in out and "npr calibrate --view crop:8" in out


def test_interruption_keeps_the_rows(npr, folder, tmp_path, checkpoint, monkeypatch):
    listed = Sources.__iter__

    def interrupted(self):
        yield from listed(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Sources, "__iter__", interrupted)
    output = tmp_path / "scores.jsonl"
    code, _, err = npr("screen", folder, "-o", output, "--checkpoint", checkpoint, "--batch-size", 1, "--workers", 1)
    assert code == terminal.EXIT_INTERRUPTED and "interrupted" in err
    assert len(output.read_text().splitlines()) >= 3


def test_interruption_while_the_network_is_loaded(npr, folder, checkpoint, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("npr_model.scoring.scorer.Scorer.__init__", interrupted)
    code, _, err = npr("screen", folder, "--checkpoint", checkpoint)
    assert (code, err) == (terminal.EXIT_INTERRUPTED, "npr: interrupted\n")


def test_termination_keeps_the_rows(tmp_path, checkpoint):
    images = tmp_path / "images"
    images.mkdir()
    data = encoded(noise(256, 256), "JPEG")
    for i in range(3000):
        (images / f"{i}.jpg").write_bytes(data)
    command = [sys.executable, "-m", "npr_model.cli", "screen", str(images), "-o", f"{tmp_path}/scores.csv"]
    process = subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (partial := list(tmp_path.glob(".scores.csv.*"))) or partial[0].stat().st_size < 1000:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == terminal.EXIT_INTERRUPTED and "interrupted" in err and "Traceback" not in err
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert 1 < len(lines) < 3001 and f"{len(lines) - 1} images: " in out
