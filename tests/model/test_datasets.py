"""Labelled folders of every layout, in a stable order, with one-line errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from npr_model.datasets import checks, folders
from npr_model.datasets.folders import FAKE, REAL, DatasetError, LeftOut
from npr_model.files import natural_key
from tests.model.conftest import encoded, noise


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(4, 4)))
    return root


def listed(root: Path, left_out: LeftOut | None = None) -> list[tuple[str, int, str]]:
    """The samples as (path below the root, label, group); fills ``left_out``."""
    samples = folders.find_samples(root, on_other=(LeftOut() if left_out is None else left_out).add)
    return [(str(s.path.relative_to(root)), s.label, s.group) for s in samples]


def test_direct_and_nested_below_the_class(tmp_path):
    root = touch(tmp_path / "set", "1_fake/b/x.png", "0_real/img10.JPG", "0_real/img2.jpeg", "1_fake/a.PNG")
    assert listed(root) == [
        ("0_real/img2.jpeg", REAL, "set"),
        ("0_real/img10.JPG", REAL, "set"),
        ("1_fake/a.PNG", FAKE, "set"),
        ("1_fake/b/x.png", FAKE, "set"),
    ]


def test_groups_are_named_by_the_first_folder(tmp_path):
    root = touch(tmp_path, "gan/car/1_fake/a.png", "gan/cat/0_real/a.png", "cat/0_real/a.png", "set10/1_fake/a.png")
    touch(root, "set9/1_fake/a.png")
    assert [group for _, _, group in listed(root)] == ["cat", "gan", "gan", "set9", "set10"]


def test_the_content_decides_what_is_an_image(tmp_path):
    root = touch(tmp_path, "0_real/a.png", "0_real/without_suffix", "0_real/IMG_1.HEIC", "1_fake/b.data", "c.png")
    touch(root, "0_real/.b.png", "0_real/.trash/c.png", ".x/1_fake/d.png")  # hidden: never read
    (root / "0_real/notes.txt").write_text("taken in June")
    (root / "1_fake/empty").write_bytes(b"")
    (root / "1_fake/bad.png").write_text("named like an image: its error is reported when it is read")
    left_out = LeftOut()
    names = [name for name, _, _ in listed(root, left_out)]
    assert names == ["0_real/a.png", "0_real/IMG_1.HEIC", "0_real/without_suffix", "1_fake/b.data", "1_fake/bad.png"]
    assert {Path(name).name for name in left_out} == {"notes.txt", "empty", "c.png"}
    assert left_out[str(root / "c.png")] == "outside of the folders 0_real and 1_fake"
    left_out.add(Path("more.txt"), left_out[str(root / "0_real/notes.txt")])
    assert str(left_out).startswith(f"4 files were left out: {root}/c.png (outside of the folders 0_real and 1_fake), ")
    assert re.search(r"notes\.txt and [12] more \(not an image", str(left_out)) and "\n" not in str(left_out)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, monkeypatch):
    touch(tmp_path / "elsewhere", "deep/x.png", "gan2/1_fake/y.png")
    root = touch(tmp_path / "set", "gan/0_real/a.png", "gan/1_fake/b.png")
    (root / "gan/0_real/more").symlink_to(tmp_path / "elsewhere/deep")
    (root / "gan/0_real/back").symlink_to(root)  # would make every fake a real image
    (root / "gan2").symlink_to(tmp_path / "elsewhere/gan2")
    (root / "again").symlink_to(root)
    (root / "up").symlink_to(tmp_path)  # leads back one folder further down
    (tmp_path / "elsewhere/deep/home").symlink_to(tmp_path / "elsewhere")
    samples = listed(root)
    assert [sample for sample in samples if sample[2] != "up"] == [
        ("gan/0_real/a.png", REAL, "gan"),
        ("gan/0_real/more/x.png", REAL, "gan"),
        ("gan/0_real/more/home/gan2/1_fake/y.png", REAL, "gan"),
        ("gan/1_fake/b.png", FAKE, "gan"),
        ("gan2/1_fake/y.png", FAKE, "gan2"),
    ]
    assert [name for name, _, group in samples if group == "up"] == ["up/elsewhere/gan2/1_fake/y.png"]
    monkeypatch.chdir(root)
    assert len(listed(Path("."))) == len(samples)
    (root / "gan/0_real/itself").symlink_to("itself")  # cannot be read, which is said when it is
    assert ("gan/0_real/itself", REAL, "gan") in listed(root)


def test_folders_nested_deeper_than_the_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("0_real")
    os.chdir("0_real")
    limit = sys.getrecursionlimit()
    for _ in range(1300):  # a longer path would be too long for the system
        os.mkdir("d")
        os.chdir("d")
    Path("a.png").write_bytes(encoded(noise(4, 4)))
    try:
        sys.setrecursionlimit(1000)  # Python's own; some packages raise it
        assert len(folders.find_samples(tmp_path)) == 1
    finally:  # pytest would remove them recursively, which fails
        sys.setrecursionlimit(limit)
        subprocess.run(["rm", "-rf", tmp_path / "0_real"], check=True)


def test_files_of_both_classes(tmp_path):
    root = touch(tmp_path, "0_real/a.png", "1_fake/b.png")
    assert str(checks.find_contradictions(folders.find_samples(root))).startswith("1 file is in both classes")
    (root / "0_real/c.png").write_bytes(encoded(noise(4, 4, seed=1)))  # another image, possibly of the same size
    (root / "0_real/d.png").write_bytes((root / "1_fake/b.png").read_bytes())
    (root / "0_real/gone.png").symlink_to(root / "absent.png")
    contradictions = checks.find_contradictions(folders.find_samples(root))
    fake = str(root / "1_fake/b.png")
    assert contradictions.pairs == [(str(root / "0_real/a.png"), fake)]
    os.remove(root / "0_real/a.png")
    assert checks.find_contradictions(folders.find_samples(root)).pairs == [(str(root / "0_real/d.png"), fake)]
    os.remove(root / "0_real/d.png")
    assert str(checks.find_contradictions(folders.find_samples(root))) == ""


@pytest.mark.parametrize(
    ("names", "folder", "message"),
    [
        (["a.png"], ".", "has no folders named 0_real or 1_fake"),
        (["0_real/.a.png"], ".", "no images in the 0_real and 1_fake folders"),
        (["0_real/a.png"], "0_real", "is a class folder: use the folder that holds it"),
        (["0_real/a.png"], "absent", "cannot be listed: No such file or directory"),
    ],
)
def test_unusable_folder(tmp_path, names, folder, message):
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=message):
        folders.find_samples(tmp_path / folder)


def test_one_class(tmp_path):
    samples = folders.find_samples(touch(tmp_path, "0_real/a.png"))
    with pytest.raises(DatasetError, match="x has no images in 1_fake folders, but both classes are needed"):
        folders.require_both_classes(samples, "x")


def test_all_unreadable_images_are_told_at_once(tmp_path):
    root = touch(tmp_path, "0_real/a.png", "1_fake/a.png")
    (root / "0_real/empty.png").write_bytes(b"")
    (root / "1_fake/tiny.png").write_bytes(encoded(noise(1, 1)))
    with pytest.raises(DatasetError) as caught:
        checks.inspect_samples(folders.find_samples(root), 2, workers=2)
    message = str(caught.value)
    assert message.startswith("2 of 4 images cannot be used")
    assert "empty.png: the file is empty" in message and "tiny.png: the image is 1x1 pixels" in message


def test_reals_of_a_plain_and_of_a_labelled_folder(tmp_path):
    touch(tmp_path, "plain/a.png", "plain/b/c.png", "labelled/0_real/a.png", "labelled/1_fake/b.png")
    assert len(folders.find_reals(tmp_path / "plain")) == 2
    assert [s.path.name for s in folders.find_reals(tmp_path / "labelled")] == ["a.png"]


def test_natural_order():
    names = ["img10", "img2", "Img1", "img", "img02", "1", "a1b10", "a1b9"]
    assert sorted(names, key=natural_key) == ["1", "a1b9", "a1b10", "img", "Img1", "img02", "img2", "img10"]
    assert sorted(reversed(names), key=natural_key) == sorted(names, key=natural_key)
