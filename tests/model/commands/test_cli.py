"""The command line: exit codes, one line for every error, and what ends up in the files."""

from __future__ import annotations

import errno
import importlib.metadata
import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import get_args, get_origin

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.models import OptionInfo
from typer.testing import CliRunner

from npr_kernels.backends import registry
from npr_model import checkpoints, cli
from npr_model.commands import evaluate, options, screen, simulate, terminal
from npr_model.evaluation import protocols, published
from npr_model.scoring.options import DTYPES, ScoringOptions
from npr_model.screening.inputs.sources import Sources
from npr_model.simulation import autoencoders
from npr_model.training import config
from npr_model.verdicts import Calibration
from tests.model.conftest import encoded, make_detector, noise


@pytest.fixture
def folder(tmp_path):
    """Two good images, three bad files that look like images, and a text file."""
    path = tmp_path / "images"
    path.mkdir()
    for name, data in {
        "a.png": encoded(noise(16, 16)),
        "b.JPG": encoded(noise(20, 30), "JPEG"),
        "empty.png": b"",
        "text.jpg": b"text" * 99,
        "tiny.png": encoded(noise(1, 1)),
        "notes.txt": b"notes",
    }.items():
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize(
    "arguments", [["--help"], *([command.__name__, "-h"] for commands in cli.PANELS.values() for command in commands)]
)
def test_help(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0 and "Usage" in result.output


def test_help_does_not_load_torch():
    code = "import sys; from npr_model import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


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


def test_evaluate(npr, labelled, tmp_path, checkpoint):
    root = labelled({"gan/1_fake": 3, "photos/0_real": 4})
    output = tmp_path / "result.json"
    code, out, err = npr("evaluate", root, "--checkpoint", checkpoint, "-o", output, "--equalise", "jpeg:90")
    assert code == 0 and err == ""
    assert "gan" in out and "photos" in out and "all cut to 32x32 at most and written as jpeg:90" in out
    result = json.loads(output.read_text())["sets"][0]
    assert result["generators"]["gan"]["real"] == 4 and result["mean"]["average_precision"] > 0
    (root / "gan/1_fake/bad.png").write_bytes(b"")
    code, out, _ = npr("evaluate", root, "--checkpoint", checkpoint)
    assert code == terminal.EXIT_FAILED_INPUTS and "1 images could not be scored" in out and "bad.png" in out


def test_evaluate_uses_every_image_and_says_what_it_leaves_out(npr, labelled, tmp_path, checkpoint):
    root = labelled({"gan/1_fake": 3, "gan/0_real": 2})
    (root / "gan/1_fake/0.png").rename(root / "gan/1_fake/IMG_0001.HEIC")
    (root / "gan/1_fake/1.png").rename(root / "gan/1_fake/no_suffix")
    (root / "gan/0_real/notes.txt").write_text("taken in June")
    (root / "gan/0_real/more").symlink_to(labelled_elsewhere(tmp_path / "elsewhere"))
    output, page = tmp_path / "result.json", tmp_path / "result.md"
    code, out, _ = npr("evaluate", root, "--checkpoint", checkpoint, "-o", output, "-o", page)
    assert code == 0
    result = json.loads(output.read_text())["sets"][0]
    assert (result["generators"]["gan"]["real"], result["generators"]["gan"]["fake"]) == (4, 3)
    assert list(result["left_out"]) == [str(root / "gan/0_real/notes.txt")]
    for text in (out, page.read_text()):
        assert "Warning: 1 file was left out: " in text and "notes.txt (not an image" in text
    for command in ("audit", "robustness", "compare"):
        options = {"audit": [], "robustness": ["--perturb", "png", "--checkpoint", checkpoint]}.get(
            command, ["--checkpoint", checkpoint]
        )
        folder = [] if command == "audit" else ["-o", tmp_path / command]
        code, _, err = npr(command, root, *options, *folder)
        assert code == 0 and "1 file was left out: " in err and "notes.txt (not an image" in err


def labelled_elsewhere(folder):
    """A folder of two images that others link to."""
    folder.mkdir()
    for seed in (501, 502):
        (folder / f"{seed}.png").write_bytes(encoded(noise(32, 32, seed=seed)))
    return folder


def test_the_same_file_in_both_classes_is_reported(npr, labelled, tmp_path, checkpoint):
    root = labelled({"0_real": 6, "1_fake": 6})
    (root / "0_real/same.png").write_bytes((root / "1_fake/0.png").read_bytes())
    message = "1 file is in both classes, so one of the labels is wrong"
    page = tmp_path / "result.md"
    code, out, _ = npr("evaluate", root, "--checkpoint", checkpoint, "-o", page)
    assert code == 0 and message in out and message in page.read_text()
    code, out, _ = npr("audit", root)
    assert code == 0 and f"Warning: {message}" in out and "0_real/same.png" in "".join(out.split())
    small = ["--epochs", 1, "--batch-size", 4, "--crop-size", 16, "--set", "workers=0"]
    code, _, err = npr("train", root, "-o", tmp_path / "run", *small)
    assert code == terminal.EXIT_USAGE and message in err and "remove the wrong one" in err and err.count("\n") == 1


def test_evaluate_a_set(npr, tmp_path, checkpoint):
    root = tmp_path / "ForenSynths" / "test"
    for folder in ("progan/cat/0_real", "progan/cat/1_fake", "biggan/0_real", "biggan/1_fake", "crn/1_fake"):
        (root / folder).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(noise(20, 24, number + len(folder))).save(root / folder / f"{number}.png")
    outputs = [tmp_path / f"report{suffix}" for suffix in (".json", ".csv", ".md", ".tex")]
    options = [argument for output in outputs for argument in ("-o", output)]
    code, out, err = npr(
        "evaluate",
        tmp_path,
        "--benchmark",
        "ForenSynths",
        "--checkpoint",
        checkpoint,
        *options,
        "--plots",
        tmp_path / "p",
    )
    assert code == 0
    assert "is measured with its view resize:256, but the checkpoint was calibrated for native" in err
    assert "Missing sub-sets, excluded from the averages: StyleGAN, StyleGAN2, CycleGAN" in out
    assert "not part of the set: crn" in out and "99.8" in out
    result = json.loads(outputs[0].read_text())["sets"][0]
    assert result["view"] == "resize:256" and list(result["generators"]) == ["ProGAN", "BigGAN"]
    assert result["published"]["NPR"]["BigGAN"] == {"accuracy": 87.5, "average_precision": 94.5}
    assert "| BigGAN | 2 | 2 |" in outputs[2].read_text() and "87.5 (" in outputs[2].read_text()
    assert len(outputs[1].read_text().splitlines()) == 3 and "toprule" in outputs[3].read_text()
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"roc.png", "reliability.png"}
    code, _, err = npr("evaluate", tmp_path, "--benchmark", "paper", "--checkpoint", checkpoint, "--view", "native")
    assert code == 0 and "GANGen-Detection is not in" in err
    assert "published numbers of ForenSynths use the view resize:256, not native" in err


def test_train_then_screen(npr, labelled, tmp_path):
    root = labelled({"train/0_real": 4, "train/1_fake": 4, "held/0_real": 2, "held/1_fake": 2})
    small = ["--epochs", 2, "--batch-size", 4, "--crop-size", 16, "--set", "workers=0", "--name", "tiny"]
    run = tmp_path / "run"
    code, out, err = npr("train", root / "train", "-o", run, "--validation", root / "held", *small)
    assert code == 0 and err == "" and "epoch 2: loss" in out and "average precision" in out
    assert "best.safetensors" in out
    assert "0_real: 4 PNG; 1_fake: 4 PNG" in out and "waiting for data" in out and "warning" not in out
    code, out, _ = npr("screen", root / "held", "--checkpoint", run / "last.safetensors")
    assert code == 0 and "4 images: " in out and "tiny@" in out
    code, out, err = npr("train", "--resume", run, "--epochs", 3)
    assert code == 0 and err == "" and "continued after 4 of 6 steps" in out and "epoch 3: loss" in out
    code, out, err = npr("train", "--resume", run, "--set", "seed=7")
    assert code == terminal.EXIT_USAGE and "was trained with seed=100, not 7" in err and err.count("\n") == 1


def test_a_printed_config_can_be_edited_and_run(npr, labelled, tmp_path):
    root = labelled({"0_real": 4, "1_fake": 4})
    settings = ["--set", "batch_size=4", "--set", "crop_size=16", "--set", "workers=0", "--epochs", 1]
    code, printed, err = npr("train", root, "--preset", "paper", "--set", "classes=", *settings, "--print-config")
    values = json.loads(printed)
    assert code == 0 and err == "" and values["resize"] == 256 and values["epochs"] == 1
    (tmp_path / "mine.json").write_text(json.dumps(values | {"resize": 20, "name": "edited"}))
    code, out, err = npr("train", "--config", tmp_path / "mine.json", "-o", tmp_path / "run", "--dtype", "bfloat16")
    assert code == 0 and err == "" and "1 epochs of 2 steps of 4 crops" in out
    loaded = checkpoints.load(tmp_path / "run" / "last.safetensors").metadata
    assert (loaded.name, loaded.training["resize"], loaded.training["dtype"]) == ("edited", 20, "bfloat16")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["folders"] == [str(root)]


def test_train_warns_of_classes_that_differ_in_format(npr, labelled, tmp_path):
    root = labelled({"0_real": 2, "1_fake": 2})
    for path in (root / "0_real").iterdir():
        path.write_bytes(encoded(noise(16, 16), "JPEG"))
    settings = ["--batch-size", 4, "--crop-size", 16, "--set", "workers=0", "--epochs", 1]
    code, _, err = npr("train", root, "-o", tmp_path / "a", *settings, "--set", "match_classes=false")
    assert code == 0 and "npr: warning: the classes differ in file format" in err
    code, out, err = npr("train", root, "-o", tmp_path / "b", *settings)
    assert code == 0 and "0_real: 2 JPEG; 1_fake: 2 PNG" in out and err == ""


def test_an_interrupted_training_says_how_to_go_on(npr, labelled, tmp_path, monkeypatch):
    from npr_model.training.trainer import Trainer

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupt)
    root, run = labelled({"0_real": 2, "1_fake": 2}), tmp_path / "run"
    code, _, err = npr("train", root, "-o", run, "--batch-size", 4, "--crop-size", 16, "--set", "workers=0")
    assert code == terminal.EXIT_INTERRUPTED and f"npr train --resume {run}" in "".join(err.splitlines())


def test_info(npr):
    code, out, _ = npr("info", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["torch"] == torch.__version__ and set(facts["decoders"]) == {"simplejpeg", "pillow"}
    code, out, _ = npr("info")
    assert code == 0 and "backends:" in out and "eager: available" in out


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


def test_unwritable_json_is_one_line(npr, labelled, tmp_path, checkpoint):
    root = labelled({"0_real": 1, "1_fake": 1})
    code, _, err = npr("evaluate", root, "--checkpoint", checkpoint, "-o", tmp_path / "absent" / "x.json")
    assert code == terminal.EXIT_FAILED and "No such file or directory" in err and err.count("\n") == 1


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


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")]
)
def test_no_memory_is_one_line(npr, labelled, tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("npr_model.training.trainer.Trainer.step", fail)
    root = labelled({"0_real": 2, "1_fake": 2})
    options = ["--epochs", 1, "--batch-size", 2, "--crop-size", 16, "--set", "workers=0"]
    code, _, err = npr("train", root, "-o", tmp_path / "run", *options)
    assert code == terminal.EXIT_FAILED and err.count("\n") == 1
    assert err.startswith("npr: error: out of memory (") and err.endswith("); lower the batch size\n")


def options_of_commands() -> list[tuple[str, inspect.Parameter, object]]:
    """Every option of every command, as (command, parameter, typer's description)."""
    described = []
    for command in itertools.chain.from_iterable(cli.PANELS.values()):
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            described.append((command.__name__, parameter, get_args(parameter.annotation)[-1]))
    return described


def test_options_that_can_be_given_more_than_once_say_so():
    for command, parameter, option in options_of_commands():
        kinds = [
            get_origin(kind)
            for kind in (get_args(parameter.annotation)[0], *get_args(get_args(parameter.annotation)[0]))
        ]
        repeatable = list in kinds and isinstance(option, OptionInfo)
        assert repeatable == (option.help or "").endswith("Repeatable."), (command, parameter.name)


def test_an_option_means_the_same_in_every_command():
    """-o is the output, a file or a folder; -c a checkpoint. No other option has a short form, but --null."""
    short = {}
    for command, parameter, option in options_of_commands():
        for name in option.param_decls or ():
            if re.fullmatch("-[a-z0-9]", name):
                short.setdefault(name, set()).add(parameter.name)
            if parameter.name == "output":
                assert option.metavar in ("FILE", "FOLDER", "FILE|FOLDER/"), command
    assert short.pop("-0", {"null"}) == {"null"} and short == {"-o": {"output"}, "-c": {"checkpoint"}}
    for name in ("workers", "device", "preset", "view", "seed", "config"):
        helps = {option.help for command, parameter, option in options_of_commands() if parameter.name == name}
        assert len(helps) == 1 or (name, len(helps)) == ("device", 2), name  # npr train's default is its config's


def test_version(npr):
    code, out, err = npr("--version")
    assert (code, err) == (0, "") and out.strip() == f"npr {importlib.metadata.version('npr-kernels')}"


def test_closed_sets_are_those_of_the_library():
    assert get_args(options.BackendName) == tuple(registry.BACKENDS)
    assert get_args(options.Benchmark) == (*protocols.PROTOCOLS, protocols.PAPER)
    assert {kind.value for kind in simulate.Kind} == {*autoencoders.KINDS, "none"}
    assert get_args(get_args(get_args(options.Dtype)[0])[0]) == DTYPES
    assert set(get_args(get_args(get_args(options.Preset)[0])[0])) == set(config.PRESETS)
    assert [method.value for method in evaluate.Method] == published.methods()


def test_every_field_of_the_options_reaches_the_scorer():
    seen = {}

    @options.scoring_options("checkpoint", "view", "device", "max_pixels", batch_size=3, max_pixels=7)
    def command(first: int, options: ScoringOptions) -> None:
        seen.update(vars(options), first=first)

    command(first=1, checkpoint="a", view=None, device="cuda:1", max_pixels=9)
    expected = {"first": 1, "checkpoint": "a", "device": "cuda:1", "max_pixels": 9, "batch_size": 3, "workers": 0}
    assert {name: seen[name] for name in expected} == expected
    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["first", "checkpoint", "view", "device", "max_pixels"]
    assert parameters["max_pixels"].default == 7
