"""``npr simulate``: pairs of photographs and fakes, from decoders that are trained or kept."""

from __future__ import annotations

import pytest

from npr_model.commands.shared import terminal
from npr_model.datasets.folders import find_samples
from tests.model.simulation.photos import write_photographs


@pytest.fixture
def photographs(tmp_path):
    return write_photographs(tmp_path / "photos")


def test_command(npr, photographs, tmp_path):
    folder, kept = photographs, tmp_path / "decoders.safetensors"
    options = ["--count", 8, "--crop-size", 48, "--workers", 1, "--seed", 3]
    first = ["-o", tmp_path / "a", "--kind", "nearest", "--kind", "subpixel", "--steps", 3, "--save-decoders", kept]
    code, out, err = npr("simulate", folder, *first, "--validation-fraction", 0.4, *options)
    assert code == 0 and err == "" and "8 pairs of nearest, subpixel from 4 train and 2 validation photographs" in out
    assert "nearest x2: " in out and " dB" in out
    (folder / "photo5.png").rename(folder / "photo5")  # still a photograph
    (folder / "bad.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("taken in June")
    second = ["-o", tmp_path / "b", "--kind", "subpixel", "--decoders", kept, "--codec", "jpeg:90"]
    code, out, err = npr("simulate", folder, *second, "--no-real-variety", *options)
    assert code == terminal.EXIT_FAILED_INPUTS and "training" not in out and "bad.jpg: " in out
    assert "from 6 photographs" in out and "1 photographs were skipped" in out
    assert err.count("\n") == 1 and "npr: warning: 1 file was left out: " in err
    assert {sample.group for sample in find_samples(tmp_path / "b")} == {"subpixel"}
    assert "bad.jpg" in (tmp_path / "b" / "skipped.csv").read_text()
    code, _, err = npr("simulate", folder, *second, *options)
    assert code == terminal.EXIT_USAGE and "b already holds " in err and err.count("\n") == 1


ERRORS = {
    "kind": (["{photos}", "-o", "{tmp}/out", "--kind", "cubic"], "Invalid value for '--kind'"),
    "generator": (["{photos}", "-o", "{tmp}/out", "--generator", "gan"], "unknown generator 'gan'"),
    "nothing": (["{photos}", "-o", "{tmp}/out", "--kind", "none"], "nothing makes fakes"),
    "codec": (["{photos}", "-o", "{tmp}/out", "--codec", "gif"], "unknown codec 'gif'"),
    "crop size": (["{photos}", "-o", "{tmp}/out", "--crop-size", "16"], "crop size must be at least 32, got 16"),
    "absent": (["{tmp}/absent", "-o", "{tmp}/out"], "absent does not exist"),
    "large crops": (["{photos}", "-o", "{tmp}/out", "--crop-size", "512"], "none of 6 photographs can be used"),
    "inside": (["{photos}", "-o", "{photos}/out"], "is inside the photographs' folder"),
    "decoders": (["{photos}", "-o", "{tmp}/out", "--crop-size", "48", "--decoders", "{tmp}/no"], "cannot be read"),
    "fraction": (["{photos}", "-o", "{tmp}/out", "--crop-size", "48", "--validation-fraction", "1"], "less than 1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(npr, photographs, tmp_path, name):
    arguments, message = ERRORS[name]
    code, _, err = npr("simulate", *(a.format(photos=photographs, tmp=tmp_path) for a in arguments))
    assert code == terminal.EXIT_USAGE and err.startswith("npr: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out" / "manifest.csv").exists()
