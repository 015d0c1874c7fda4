"""``npr evaluate``: what it measures and leaves out, and the files that it writes."""

from __future__ import annotations

import json

from PIL import Image

from npr_model.commands.shared import terminal
from tests.model.conftest import encoded, noise


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
    commands = [
        ("audit", root),
        ("robustness", root, "--perturb", "png", "--checkpoint", checkpoint, "-o", tmp_path / "robustness"),
        ("compare", "--evaluate", root, "--checkpoint", checkpoint, "-o", tmp_path / "comparison"),
    ]
    for command in commands:
        code, _, err = npr(*command)
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


def test_unwritable_json_is_one_line(npr, labelled, tmp_path, checkpoint):
    root = labelled({"0_real": 1, "1_fake": 1})
    code, _, err = npr("evaluate", root, "--checkpoint", checkpoint, "-o", tmp_path / "absent" / "x.json")
    assert code == terminal.EXIT_FAILED and "No such file or directory" in err and err.count("\n") == 1
