"""Standard streams of every kind: pipes without UTF-8, full disks, closed streams, and readers that have gone."""

from __future__ import annotations

import io
import os
import sys

import pytest

from npr_model import cli
from npr_model.commands.shared import terminal
from npr_model.commands.shared.streams import StreamConsole
from npr_model.reporting.tables import Table


@pytest.fixture
def run(monkeypatch):
    """Runs ``npr`` in this process with a file as standard output; gives the exit code."""

    def run(output: io.TextIOBase | None, *arguments: object) -> int:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, output)
        try:
            return cli.main([str(argument) for argument in arguments])
        finally:
            monkeypatch.undo()

    return run


class Bytes(io.BytesIO):
    def close(self) -> None:
        """Stay readable."""


def pipe(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(Bytes(), encoding)


def written(output: io.TextIOWrapper) -> str:
    return output.buffer.getvalue().decode(output.encoding)


COMMANDS = [command.__name__ for commands in cli.PANELS.values() for command in commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_without_utf8(run, command):
    """The help of every command draws boxes, which ASCII does not have."""
    output = pipe("ascii")
    assert run(output, command, "--help") == 0
    assert "Usage" in written(output)


def test_what_the_encoding_lacks_is_replaced(run, monkeypatch):
    output = pipe("ascii")
    monkeypatch.setattr(cli.importlib.metadata, "version", lambda name: "0.1-größer")
    assert run(output, "--version") == 0
    assert written(output) == "npr 0.1-gr??er\n"


def test_tables_without_utf8(monkeypatch):
    """The console draws lines that the stream has, instead of question marks."""
    output = pipe("ascii")
    monkeypatch.setattr(terminal, "out", StreamConsole(file=output))
    terminal.print_table(Table("title", ("a", "b"), (("1", "2"),)))
    output.flush()
    assert "title" in written(output) and "?" not in written(output)


@pytest.mark.parametrize("columns", ["30", "80", None])
def test_a_pipe_gets_one_line_a_row(monkeypatch, columns):
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    output = io.StringIO()
    monkeypatch.setattr(terminal, "out", StreamConsole(file=output))
    name = "a folder with a long name/" * 9 + "image.png"
    terminal.print_table(Table("", ("name", "verdict"), ((name, "real"),)))
    terminal.out.print(f"{name} was read")
    lines = output.getvalue().splitlines()
    assert any(name in line and "real" in line for line in lines) and lines[-1] == f"{name} was read"


def test_a_terminal_gets_lines_of_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    output = io.StringIO()
    output.isatty = lambda: True
    monkeypatch.setattr(terminal, "out", StreamConsole(file=output))
    terminal.out.print("word " * 20)
    assert max(map(len, output.getvalue().splitlines())) <= 30


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["screen", "--help"]])
def test_a_full_disk_behind_standard_output_is_one_line(run, capsys, arguments):
    with open("/dev/full", "w") as full:
        assert run(full, *arguments) == terminal.EXIT_FAILED
    assert capsys.readouterr().err == "npr: error: standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["screen", "--help"]])
def test_nobody_reads(run, capsys, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        assert run(output, *arguments) == 0
    assert capsys.readouterr().err == ""


def test_standard_error_cannot_be_written(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        code = cli.main(["screen", "absent"])
        terminal.warn("nobody will read this")
        monkeypatch.undo()
    assert code == terminal.EXIT_USAGE


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_closed_streams(monkeypatch, closed):
    monkeypatch.setattr(sys, closed, None)
    codes = [cli.main(arguments) for arguments in (["--version"], ["screen", "absent"])]
    stream = getattr(sys, closed)
    monkeypatch.undo()
    stream.close()
    assert codes == [0, terminal.EXIT_USAGE]
