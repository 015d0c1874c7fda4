"""Wrong options are one line."""

from __future__ import annotations

import pytest
import torch
import typer

from benchmarks import model, ops
from benchmarks.harness import command


def refused(capsys, call) -> str:
    with pytest.raises(typer.Exit) as exit_:
        call()
    assert exit_.value.exit_code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_usage_errors_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    assert "no CUDA device" in refused(capsys, lambda: command.available("cuda"))
    assert "regular expression" in refused(capsys, lambda: ops.main(only="("))
    assert "matches none" in refused(capsys, lambda: ops.main(only="no such case"))
    assert "contenders, such as 'eager'" in refused(capsys, lambda: model.main(only="no such engine"))
    assert "file" in refused(capsys, lambda: command.writable(tmp_path / "file" / "below.json"))
    assert "does not exist" in refused(capsys, lambda: model.main(checkpoint=str(tmp_path / "none.safetensors")))
