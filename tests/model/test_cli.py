"""The command line: exit codes, one line for every error, and what a full disk does."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from npr_model import cli
from npr_model.commands.shared import terminal


@pytest.mark.parametrize(
    "arguments", [["--help"], *([command.__name__, "-h"] for commands in cli.PANELS.values() for command in commands)]
)
def test_help(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0 and "Usage" in result.output


def test_help_does_not_load_torch():
    code = "import sys; from npr_model import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


USAGE_ERRORS = {
    "no command": ([], "no command given"),
    "unknown command": (["scan"], "No such command 'scan'"),
    "unknown option": (["screen", "{folder}", "--fast"], "No such option: --fast"),
    "no path": (["screen"], "Missing argument 'PATH'"),
    "absent path": (["screen", "{tmp}/absent"], "absent does not exist"),
    "folder without images": (["screen", "{tmp}/nothing"], "no images in folder"),
    "output of unknown kind": (["screen", "{folder}", "-o", "{tmp}/scores.xlsx"], "must end in .parquet"),
    "output nowhere": (["screen", "{folder}", "-o", "{tmp}/absent/scores.csv"], "folder that does not exist"),
    "unknown checkpoint": (["screen", "{folder}", "--checkpoint", "nonsense"], "there is no checkpoint 'nonsense'"),
    "bad checkpoint": (["screen", "{folder}", "--checkpoint", "{folder}/notes.txt"], "neither a .safetensors nor"),
    "bad view": (["screen", "{folder}", "--view", "zoom"], "unknown view 'zoom'"),
    "bad dtype": (
        ["screen", "{folder}", "--checkpoint", "{checkpoint}", "--dtype", "int4"],
        "Invalid value for '--dtype'",
    ),
    "bad device": (["screen", "{folder}", "--checkpoint", "{checkpoint}", "--device", "tpu"], "unknown device 'tpu'"),
    "bad backend": (["screen", "{folder}", "--backend", "abacus"], "Invalid value for '--backend'"),
    "bad batch size": (["screen", "{folder}", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    "evaluate without classes": (["evaluate", "{folder}"], "has no folders named 0_real or 1_fake"),
    "evaluate absent folder": (["evaluate", "{tmp}/absent"], "cannot be listed: No such file or directory"),
    "bad codec": (["evaluate", "{folder}", "--equalise", "webp"], "unknown codec 'webp'"),
    "bad report": (["evaluate", "{folder}", "-o", "{tmp}/x.docx"], "must end in .json, .csv, .md or .tex"),
    "unknown set": (["evaluate", "{folder}", "--benchmark", "forensynth"], "Invalid value for '--benchmark'"),
    "set that is not there": (["evaluate", "{folder}", "--benchmark", "genimage"], "has no folder of GenImage"),
    "unknown method": (
        ["evaluate", "{folder}", "--benchmark", "paper", "--compare", "nrp"],
        "'nrp' is not one of 'CNNDetection', 'Frank', ",
    ),
    "numbers of no set": (["evaluate", "{folder}", "--compare", "NPR"], "--compare needs --benchmark"),
    "train without output": (["train", "{folder}"], "Missing option '--output'"),
    "train without classes": (["train", "{folder}", "-o", "{tmp}/run"], "has no folders named 0_real or 1_fake"),
    "train in a used folder": (["train", "{folder}", "-o", "{tmp}", "--resume", "{tmp}"], "leave out --output"),
    "resume nothing": (["train", "--resume", "{folder}"], "images holds no training run to resume"),
    "two configs": (
        ["train", "--resume", "{tmp}", "--preset", "wild"],
        "use only one of --preset, --config and --resume",
    ),
    "unknown preset": (["train", "{folder}", "-o", "{tmp}/run", "--preset", "tame"], "Invalid value for '--preset'"),
    "unknown field": (["train", "{folder}", "-o", "{tmp}/run", "--set", "epoch=1"], "did you mean epochs?"),
    "absent config": (["train", "-o", "{tmp}/run", "--config", "{tmp}/absent.json"], "No such file or directory"),
    "train for no epochs": (["train", "{folder}", "-o", "{tmp}/run", "--epochs", "0"], "epochs must be at least 1"),
}


@pytest.mark.parametrize("name", USAGE_ERRORS)
def test_usage_errors_are_one_line(npr, folder, tmp_path, checkpoint, name):
    (tmp_path / "nothing").mkdir()
    arguments, message = USAGE_ERRORS[name]
    code, _, err = npr(*(a.format(folder=folder, tmp=tmp_path, checkpoint=checkpoint) for a in arguments))
    assert code == terminal.EXIT_USAGE
    assert err.startswith("npr: error: ") and err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_wrong_usage(npr, folder, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    code, _, err = npr("screen", folder, "-o", tmp_path / "scores.csv", "--checkpoint", checkpoint)
    assert code == terminal.EXIT_FAILED and "scores.csv cannot be written: No space left on device" in err
    assert err.count("\n") == 1
    code, _, _ = npr("screen", tmp_path / "absent")  # the state does not carry over to the next command
    assert code == terminal.EXIT_USAGE


FULL_DISK = {
    "train": ("{data}", "-o", "{tmp}/run", "--epochs", 1, "--batch-size", 2, "--crop-size", 16, "--set", "workers=0"),
    "simulate": ("{data}", "-o", "{tmp}/fakes", "--count", 1, "--crop-size", 32, "--steps", 1, "--kind", "nearest"),
    "evaluate": ("{data}", "--checkpoint", "{checkpoint}", "-o", "{tmp}/report.json"),
    "export": ("--checkpoint", "{checkpoint}", "-o", "{tmp}/network.onnx"),
}


# The exporter of ONNX files takes long to import, as all of torch's compiler does.
SLOW_IMPORTS = {"export": pytest.mark.xdist_group("inductor")}


@pytest.mark.parametrize("command", [pytest.param(name, marks=SLOW_IMPORTS.get(name, ())) for name in FULL_DISK])
def test_a_full_disk_at_the_first_file_names_the_file(npr, labelled, tmp_path, checkpoint, monkeypatch, command):
    places = {"data": labelled({"0_real": 2, "1_fake": 2}), "tmp": tmp_path, "checkpoint": checkpoint}
    monkeypatch.setattr(os, "fsync", full_disk)
    code, _, err = npr(command, *(str(argument).format_map(places) for argument in FULL_DISK[command]))
    assert code == terminal.EXIT_FAILED
    assert re.fullmatch(rf"npr: error: {tmp_path}/\S+: No space left on device\n", err)


def test_version(npr):
    code, out, err = npr("--version")
    assert (code, err) == (0, "") and out.strip() == f"npr {importlib.metadata.version('npr-kernels')}"
