"""Labelled folders of every layout, in a stable order, with one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from npr_model import datasets
from npr_model.datasets import FAKE, REAL, DatasetError
from npr_model.files import natural_key
from tests.model.conftest import encoded, noise


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(4, 4)))
    return root


def found(root: Path) -> list[tuple[str, int, str]]:
    return [(str(s.path.relative_to(root)), s.label, s.group) for s in datasets.find_samples(root)]


def test_direct_and_nested_below_the_class(tmp_path):
    root = touch(tmp_path / "set", "1_fake/b/x.png", "0_real/img10.JPG", "0_real/img2.jpeg", "1_fake/a.PNG")
    assert found(root) == [
        ("0_real/img2.jpeg", REAL, "set"),
        ("0_real/img10.JPG", REAL, "set"),
        ("1_fake/a.PNG", FAKE, "set"),
        ("1_fake/b/x.png", FAKE, "set"),
    ]


def test_groups_are_named_by_the_first_folder(tmp_path):
    root = touch(tmp_path, "gan/car/1_fake/a.png", "gan/cat/0_real/a.png", "cat/0_real/a.png", "set10/1_fake/a.png")
    touch(root, "set9/1_fake/a.png")
    assert [group for _, _, group in found(root)] == ["cat", "gan", "gan", "set9", "set10"]


def test_other_and_hidden_files_are_left_out(tmp_path):
    root = touch(
        tmp_path, "0_real/a.png", "0_real/.b.png", "0_real/notes.txt", "0_real/.trash/c.png", ".x/1_fake/d.png"
    )
    assert [name for name, _, _ in found(root)] == ["0_real/a.png"]


@pytest.mark.parametrize(
    ("names", "folder", "message"),
    [
        (["a.png"], ".", "has no folders named 0_real or 1_fake"),
        (["0_real/notes.txt"], ".", "no images in the 0_real and 1_fake folders"),
        (["0_real/a.png"], "0_real", "is a class folder: use the folder that holds it"),
        (["0_real/a.png"], "absent", "cannot be listed: No such file or directory"),
    ],
)
def test_unusable_folder(tmp_path, names, folder, message):
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=message):
        datasets.find_samples(tmp_path / folder)


def test_one_class(tmp_path):
    samples = datasets.find_samples(touch(tmp_path, "0_real/a.png"))
    with pytest.raises(DatasetError, match="x has no images in 1_fake folders, but both classes are needed"):
        datasets.require_both_classes(samples, "x")


def test_all_unreadable_images_are_told_at_once(tmp_path):
    root = touch(tmp_path, "0_real/a.png", "1_fake/a.png")
    (root / "0_real/empty.png").write_bytes(b"")
    (root / "1_fake/tiny.png").write_bytes(encoded(noise(1, 1)))
    with pytest.raises(DatasetError) as caught:
        datasets.inspect_samples(datasets.find_samples(root), 2, workers=2)
    message = str(caught.value)
    assert message.startswith("2 of 4 images cannot be used")
    assert "empty.png: the file is empty" in message and "tiny.png: the image is 1x1 pixels" in message


def test_reals_of_a_plain_and_of_a_labelled_folder(tmp_path):
    touch(tmp_path, "plain/a.png", "plain/b/c.png", "labelled/0_real/a.png", "labelled/1_fake/b.png")
    assert len(datasets.find_reals(tmp_path / "plain")) == 2
    assert [s.path.name for s in datasets.find_reals(tmp_path / "labelled")] == ["a.png"]


def test_natural_order():
    names = ["img10", "img2", "Img1", "img", "img02", "1", "a1b10", "a1b9"]
    assert sorted(names, key=natural_key) == ["1", "a1b9", "a1b10", "img", "Img1", "img02", "img2", "img10"]
    assert sorted(reversed(names), key=natural_key) == sorted(names, key=natural_key)
