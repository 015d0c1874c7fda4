"""Patterns that the shell left alone: braces as bash expands them, and wildcards at all depths."""

from __future__ import annotations

import subprocess

import pytest

from npr_model.errors import InputError
from npr_model.screening.inputs.patterns import expand_braces
from npr_model.screening.inputs.sources import SourceError, Sources
from tests.model.screening.collections import loaded, tar


@pytest.mark.parametrize(
    "text",
    [
        "a{b,c}d",
        "{a,b}{1..3}",
        "x{01..03}",
        "{a,{b,c}d}",
        "{a}",
        "{",
        "}{a,b}",
        "{a,b",
        "{10..1..4}",
        "{c..a}",
        "{-1..1}",
        "{}",
        "x{,y}",
        "{{a,b}",
        "{1..2}{x}",
        "{008..10}",
        "{-01..1}",
        "{a,b}.{tar,zip}",
    ],
)
def test_braces_are_those_of_bash(text):
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert expand_braces(text) == shell.stdout.splitlines()


def test_too_many_alternatives():
    with pytest.raises(InputError, match="more than 100000 alternatives"):
        expand_braces("{1..99999999999}")
    with pytest.raises(InputError, match="too many braces inside braces"):
        expand_braces("{a," * 1500 + "}" * 1500)


def test_braces_on_the_command_line(tmp_path):
    for name in "ab":
        tar(tmp_path / f"{name}.tar", files={f"{name}.png": name.encode()})
    assert sorted(loaded(Sources([f"{tmp_path}/{{a,b}}.tar"])).values()) == [b"a", b"b"]
    assert sorted(loaded(Sources([f"file://{tmp_path}/{{a..b}}.t*"])).values()) == [b"a", b"b"]
    with pytest.raises(SourceError, match=r"/c\.tar does not exist"):
        Sources([f"{tmp_path}/{{a,c}}.tar"])
    (tmp_path / "{a,b}.tar").write_bytes(tar(files={"odd.png": b"odd"}))  # what exists is that file
    assert list(loaded(Sources([f"{tmp_path}/{{a,b}}.tar"])).values()) == [b"odd"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.png", ["a.png", "x/b.png", "x/y/c.png"]),
        ("x/**/*.png", ["x/b.png", "x/y/c.png"]),
        ("**/y/*", ["x/y/c.png", "x/y/d.jpg"]),
        ("*/**", ["x/b.png", "x/y/c.png", "x/y/d.jpg"]),
        ("**/[cd].*", ["x/y/c.png", "x/y/d.jpg"]),
        ("*.png", ["a.png"]),
        ("x**/b.png", ["x/b.png"]),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_patterns(tmp_path, monkeypatch, pattern, expected, relative):
    for name in ("a.png", "x/b.png", "x/y/c.png", "x/y/d.jpg", "x/.hidden/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    prefix = "" if relative else f"{tmp_path}/"
    assert [item.source for item in Sources([prefix + pattern])] == [prefix + name for name in expected]


def test_patterns_and_archives_in_folders(tmp_path):
    for number in (2, 10):
        tar(tmp_path / f"shard{number}.tar", files={f"{number}.png": b"x"})
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.png").write_bytes(b"a")
    assert len(loaded(Sources([f"{tmp_path}/*.tar"]))) == 2
    assert loaded(Sources([f"{tmp_path}/**/*.png"])) == {f"{tmp_path}/deep/er/a.png": b"a"}
    assert loaded(Sources([tmp_path])) == {f"{tmp_path}/deep/er/a.png": b"a"}
    with pytest.raises(SourceError, match=r"no file matches .*\*\.zip"):
        Sources([f"{tmp_path}/*.zip"])
    with pytest.raises(SourceError, match=r"no file matches .*/d\*"):  # only a folder does
        Sources([f"{tmp_path}/d*"])
    (tmp_path / "deep" / "er" / "a.png").unlink()
    with pytest.raises(SourceError, match=r"no images in folder .*; name its archives"):
        Sources([tmp_path])
    (tmp_path / "[odd].png").write_bytes(b"odd")  # a file that looks like a pattern is that file
    assert loaded(Sources([tmp_path / "[odd].png"])) == {f"{tmp_path}/[odd].png": b"odd"}


def test_a_pattern_does_not_run_in_circles(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [item.source for item in Sources([f"{tmp_path}/**/*.png"])] == [f"{tmp_path}/a.png"]
