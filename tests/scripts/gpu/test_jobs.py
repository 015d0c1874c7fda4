"""The jobs for a machine with a GPU, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from scripts.gpu import jobs, plan
from scripts.gpu.plan import run_plan
from tests.conftest import ROOT
from tests.scripts.gpu.steps import python, ran


def test_counters_of_the_profiler():
    read, registers = jobs.COUNTERS["read_bytes"], jobs.COUNTERS["registers"]
    stalled = jobs.STALL + "long_scoreboard_per_issue_active.ratio"
    text = f"""==PROF== Connected to process 1
"ID","Kernel Name","{read}","{registers}","{stalled}","other"
"","","byte","register/thread","inst",""
"0","stem_kernel","12,600","96","1.5","3"
"1","other_kernel","5","n/a","0.5","3"
==PROF== Disconnected
"""
    assert jobs.counters(text) == [
        {"kernel": "stem_kernel", "read_bytes": 12600.0, "registers": 96.0, "stalled_long_scoreboard": 1.5},
        {"kernel": "other_kernel", "read_bytes": 5.0, "registers": "n/a", "stalled_long_scoreboard": 0.5},
    ]
    assert jobs.counters("==ERROR== no permission\n") == []


def test_unreadable_counters_do_not_end_a_plan(tmp_path):
    printed = '\'"ID","Other"\\n"",""\\n"0","1"\''
    code, results, _ = ran(tmp_path, python("profile", f"print({printed})", counters=jobs.counters), python("b", ""))
    assert code == 0 and results["steps"]["b"]["outcome"] == "passed"
    assert "its counters cannot be read: KeyError" in results["steps"]["profile"]["outcome"]


def test_packages_come_from_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "WHEELS", tmp_path / "wheels")
    assert jobs.packages_steps("anywhere") == []
    jobs.WHEELS.mkdir()
    info = "npr_stub-1.dist-info"
    with zipfile.ZipFile(jobs.WHEELS / "npr_stub-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("npr_stub.py", "answer = 42")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: npr-stub\nVersion: 1\nRequires-Dist: nothing\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"npr_stub.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    target = str(tmp_path / "packages")
    steps = [*jobs.packages_steps(target), python("uses", "import npr_stub; print(npr_stub.answer)")]
    code, results, log = ran(tmp_path / "output", *steps, environment={"PYTHONPATH": target})
    assert code == 0, log
    assert results["steps"]["uses"]["last_line"] == "42"


@pytest.mark.slow
@pytest.mark.xdist_group("training by a plan")  # slow: it must not be the last
def test_a_training_is_kept_and_goes_on(tmp_path, monkeypatch):
    """All steps but the build, with parts smaller than the state, from a tar to the files that are kept, and again."""
    monkeypatch.setattr(jobs, "TRAINING", str(tmp_path / "training"))
    monkeypatch.setattr(jobs, "LARGEST_FILE", "8M")
    monkeypatch.setattr(jobs, "build_steps", list)
    data, first, second = tmp_path / "data", tmp_path / "first", tmp_path / "second"
    for name in ("0_real", "1_fake"):
        (data / "images" / name).mkdir(parents=True)
        for example in sorted((ROOT / "examples" / {"0_real": "real", "1_fake": "generated"}[name]).glob("*.png"))[:2]:
            (data / "images" / name / example.name).write_bytes(example.read_bytes())
    config = {"folders": ["images"], "epochs": 2, "batch_size": 2, "crop_size": 32, "workers": 0, "device": "cpu"}
    (data / "config.json").write_text(json.dumps(config))

    def trained(output: Path) -> set[str]:
        output.mkdir()
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            for path in data.iterdir():
                tar.add(path, path.name)
        steps = jobs.train_steps(tmp_path / "data.tar", output)
        code = run_plan(steps, 3000, output, {"PYTHONPATH": str(ROOT)})
        assert code == 0, (output / plan.LOG).read_text()
        return {path.name for path in output.iterdir()}

    kept = trained(first)
    assert {"last.safetensors", "config.json", "history.jsonl", "state.pt.aa", "state.pt.ab", "state.pt.ac"} <= kept
    run = data / "run"
    run.mkdir()
    for name in ("last.safetensors", "config.json"):
        (run / name).write_bytes((first / name).read_bytes())
    (run / "state.pt").write_bytes(b"".join(part.read_bytes() for part in sorted(first.glob("state.pt.*"))))
    state = torch.load(run / "state.pt", weights_only=False)
    assert state["epoch"] == 2
    assert kept <= trained(second)
    assert (second / "history.jsonl").read_text() == (first / "history.jsonl").read_text()


@pytest.mark.parametrize("name", ["check", "rest", "train"])
def test_scripts_say_that_there_is_no_gpu(name, tmp_path, monkeypatch):
    """What each script runs is run in this process."""
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    arguments = [str(tmp_path / "empty.tar")] if name == "train" else []
    command = ["bash", ROOT / "scripts" / f"gpu_{name}.sh", *arguments, tmp_path / "output"]
    script = subprocess.run(command, env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True)
    dash_m, module, *arguments = script.stdout.split()
    assert (dash_m, module) == ("-m", "scripts.gpu.jobs")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(jobs.app, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "finds no CUDA device" in line
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("arguments", [[], ["no-such.tar"]])
def test_training_without_data_says_so(arguments, tmp_path):
    result = subprocess.run(
        ["bash", ROOT / "scripts" / "gpu_train.sh", *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert result.returncode in (1, 2)
    assert ("not a tar file" if arguments else "Usage") in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("steps", [jobs.check_steps, jobs.rest_steps])
def test_plans_name_what_exists(steps):
    steps = steps()
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for number, step in enumerate(steps):
        assert set(step.after) <= set(names[:number])
        assert step.least <= step.limit < jobs.SECONDS
        for argument in step.command:
            assert not argument.startswith(("tests/", "benchmarks/")) or (ROOT / argument).is_file()
