"""Every kind of source gives the same rows for the same images, and one item for whatever is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from npr_model.files import HIDDEN, LEADS_BACK
from npr_model.scoring import items
from npr_model.screening.inputs import remote, tars, zips
from npr_model.screening.inputs.skipped import NO_IMAGE, UNREADABLE
from npr_model.screening.inputs.sources import SourceError, Sources
from tests.model.screening.collections import loaded, tar, zipped


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    for module in (items, remote, tars, zips):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    files = {"bomb.png": bytes(10**6), "good.png": b"x"}
    tar(tmp_path / "a.tar", files=files)
    zipped(tmp_path / "a.zip", files=files)
    (tmp_path / "bomb.png").write_bytes(bytes(1001))
    for path, message in {
        "a.tar::": "it is 1000000 bytes",
        "a.zip::": "unpacks to more than the limit",
        "": "1001",
    }.items():
        found = loaded(Sources([tmp_path / (path.rstrip(":") or "bomb.png")]))
        assert message in found[f"{tmp_path}/{path}bomb.png"]
        assert not path or found[f"{tmp_path}/{path}good.png"] == b"x"


def test_a_folder_is_never_held_whole(tmp_path, monkeypatch):
    from npr_model import files

    monkeypatch.setattr(files, "AT_ONCE", 4)
    for number in range(11):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    listed, scandir = [], os.scandir

    class Watching:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                listed.append(entry.name)
                yield entry

    source = Sources([tmp_path])
    monkeypatch.setattr(os, "scandir", Watching)
    items = iter(source)
    names = [next(items).source]
    assert len(listed) == 4
    names += [item.source for item in items]
    assert len(set(names)) == len(listed) == 11


def test_files_and_folders_in_natural_order(tmp_path):
    names = ["img10.png", "img2.PNG", "b/c.jpg", "b/a/x.webp", "notes.txt", ".hidden.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = Sources([tmp_path / "notes.txt", tmp_path])
    listed = [os.path.relpath(i.source, tmp_path) for i in source]
    assert listed == ["notes.txt", "img2.PNG", "img10.png", "b/c.jpg", "b/a/x.webp"]
    assert source.skipped == {NO_IMAGE: 1, HIDDEN: 1}
    assert all(i.load() == b"x" for i in source)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder / "inner", elsewhere):
        path.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    (elsewhere / "b.png").write_bytes(b"x")
    (folder / "loop").symlink_to(folder)
    (folder / "inner" / "up").symlink_to(folder)
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    source = Sources([folder])
    assert [os.path.relpath(item.source, folder) for item in source] == ["a.png", "link/b.png"]
    assert source.skipped == {LEADS_BACK: 3}
    (elsewhere / "itself").symlink_to("itself")
    (elsewhere / "nowhere").symlink_to("absent")
    assert len(list(source)) == 2 and source.skipped == {LEADS_BACK: 3, UNREADABLE: 2}


def test_folders_nested_deeper_than_the_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    for _ in range(1300):  # a longer path would be too long for the system
        os.mkdir("d")
        os.chdir("d")
    Path("a.png").write_bytes(b"x")
    try:
        sys.setrecursionlimit(1000)  # Python's own; some packages raise it
        for source in (tmp_path, f"{tmp_path}/**/*.png", f"file://{tmp_path}"):
            assert len(list(Sources([source]))) == 1
    finally:  # pytest would remove them recursively, which fails
        sys.setrecursionlimit(limit)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_paths_that_cannot_be_screened(tmp_path):
    with pytest.raises(SourceError, match="absent does not exist"):
        Sources([tmp_path / "absent"])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match="no images in folder"):
        Sources([tmp_path])


def test_what_cannot_be_read_is_an_item_that_fails(tmp_path, monkeypatch, scorer):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "closed").mkdir()
    (tmp_path / "gone.png").write_bytes(b"x")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # permissions do not bind the superuser
    items = list(Sources([tmp_path]))
    (tmp_path / "gone.png").unlink()
    errors = {os.path.basename(row.source): row.error for row in scorer().score(items)}
    assert set(errors) == {"pipe.png", "closed", "gone.png"}
    assert "not a regular file" in errors["pipe.png"]
    assert "the folder cannot be listed: Permission denied" in errors["closed"]
    assert "No such file" in errors["gone.png"]
