"""Plans of steps with limits, and the scripts for a machine with a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import device, plan
from benchmarks.plan import Step, run_plan
from tests.conftest import ROOT

# Sleeps, with a child that sleeps in a session of its own, as the workers of a compiler do.
HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
WRITES_ROWS = """
import json, sys, time
rows = [{"case": "a", "contender": "ours", "parity": "green"}]
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps({"machine": {"gpu": "some"}, "rows": rows}))
print("written", flush=True)
time.sleep(float(sys.argv[1]))
"""
SHORT = 10  # seconds; a step with a shorter limit is one that hangs


@pytest.fixture
def clock(monkeypatch):
    """A plan's clock, which no busy machine moves: a step that hangs is over its limit once it has printed a line."""
    now = 0.0

    class Process(subprocess.Popen):
        def __init__(self, *arguments, stdout, **options):
            self.output, self.before = stdout, os.fstat(stdout.fileno()).st_size
            super().__init__(*arguments, stdout=stdout, **options)

        def wait(self, timeout=None):
            nonlocal now
            if timeout is None or timeout >= SHORT:
                return super().wait()
            while os.fstat(self.output.fileno()).st_size == self.before:
                time.sleep(0.01)
            now += timeout
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(plan, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Process}))
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))


def python(name: str, code: str, *arguments: str, limit: float = 600, least: float = 0, **options) -> Step:
    return Step(name, [sys.executable, "-c", code, *arguments], limit, least, **options)


def ran(folder: Path, *steps: Step, seconds: float = 600, **options) -> tuple[int, dict, str]:
    """Exit code, results and log of a plan."""
    code = run_plan(steps, seconds, folder, **options)
    assert {path.name for path in folder.iterdir()} == {plan.LOG, plan.RESULTS}
    return code, json.loads((folder / plan.RESULTS).read_text()), (folder / plan.LOG).read_text()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_outcomes_and_one_log(tmp_path, capsys):
    code, results, log = ran(
        tmp_path,
        python("works", "print('done')"),
        python("fails", "import sys; print('reason', file=sys.stderr); sys.exit(3)"),
        python("told", "import os; print(os.environ['A'], os.environ['B'])", environment={"B": "2"}),
        environment={"A": "1", "B": "1"},
    )
    steps = results["steps"]
    assert code == 1
    assert {name: step["outcome"] for name, step in steps.items()} == {
        "works": "passed",
        "fails": "failed: exit code 3",
        "told": "passed",
    }
    assert [step["last_line"] for step in steps.values()] == ["done", "reason", "1 2"]
    headers = [line for line in log.splitlines() if line.startswith("=====")]
    assert [line.split()[1] for line in headers] == [name + ":" for name in steps for _ in range(2)]
    assert log.index("done") < log.index("===== fails") < log.index("reason") < log.index("===== told: B=2")
    assert "failed: exit code 3  reason" in capsys.readouterr().out


def test_a_step_past_its_limit_ends_with_all_that_it_started(tmp_path, clock):
    code, results, _ = ran(tmp_path, python("hangs", HANGS, limit=2), python("next", "print('next')"))
    assert code == 1
    hangs, following = results["steps"].values()
    assert hangs["outcome"] == "failed: killed after 2 s" and following["outcome"] == "passed"
    assert not alive(int(hangs["last_line"]))


def test_what_a_step_leaves_behind_is_ended(tmp_path):
    code, results, _ = ran(tmp_path, python("leaves", HANGS.replace("time.sleep(600)\n", "")))
    assert code == 0
    assert not alive(int(results["steps"]["leaves"]["last_line"]))


def test_a_failing_build_skips_what_needs_it_and_nothing_else(tmp_path):
    code, results, log = ran(
        tmp_path,
        python("build", "exit(1)"),
        python("kernels", "print('ran')", after=["build"]),
        python("triton", "print('ran')"),
    )
    steps = results["steps"]
    assert code == 1
    assert steps["kernels"]["outcome"] == "skipped: it needs build, which did not pass"
    assert steps["kernels"]["outcome"] in log
    assert steps["triton"]["outcome"] == "passed"


def test_steps_without_their_program_or_time_are_skipped(tmp_path, clock):
    code, results, _ = ran(
        tmp_path,
        Step("profile", ["no-such-profiler", "--csv"], 30, 0, counters=device.counters),
        python("too_long", "print('ran')", least=100),
        python("hangs", HANGS, limit=60),
        python("nothing_left", "print('ran')", least=1),
        seconds=2,
    )
    assert code == 1
    assert {name: step["outcome"] for name, step in results["steps"].items()} == {
        "profile": "skipped: there is no no-such-profiler on the PATH",
        "too_long": "skipped: 2 s are left, and it needs 100",
        "hangs": "failed: killed after 2 s",
        "nothing_left": "skipped: 0 s are left, and it needs 1",
    }
    assert results["counters"] == []


def test_rows_of_a_killed_step_are_kept(tmp_path, capsys, clock):
    (tmp_path / "skipped.json").write_text(json.dumps({"machine": {}, "rows": [{"case": "of an earlier plan"}]}))
    code, results, _ = ran(
        tmp_path,
        python("done", WRITES_ROWS, "0", json=True),
        python("killed", WRITES_ROWS, "60", limit=3, json=True),
        python("silent", "exit(1)", json=True),
        python("skipped", "", json=True, least=1e6),
    )
    assert code == 1
    assert results["machine"] == {"gpu": "some"} and len(results["rows"]) == 2
    assert results["steps"]["killed"]["outcome"] == "failed: killed after 3 s"
    assert capsys.readouterr().out.count("ours") == 2


def test_a_plan_that_is_ended_ends_its_step(tmp_path):
    code = "import pathlib, sys\nfrom benchmarks.plan import Step, run_plan\n"
    code += f"steps = [Step('first', ['true'], 9), Step('hangs', [sys.executable, '-c', {HANGS!r}], 600)]\n"
    code += f"run_plan(steps, 600, pathlib.Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / plan.LOG, time.monotonic() + 600
    lines: list[str] = []
    while not (lines and lines[-1].isdigit()) and time.monotonic() < deadline:
        time.sleep(0.1)
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    assert not alive(int(lines[-1]))
    assert list(json.loads((tmp_path / plan.RESULTS).read_text())["steps"]) == ["first"]


def test_counters_of_the_profiler():
    read, registers = device.COUNTERS["read_bytes"], device.COUNTERS["registers"]
    stalled = device.STALL + "long_scoreboard_per_issue_active.ratio"
    text = f"""==PROF== Connected to process 1
"ID","Kernel Name","{read}","{registers}","{stalled}","other"
"","","byte","register/thread","inst",""
"0","stem_kernel","12,600","96","1.5","3"
"1","other_kernel","5","n/a","0.5","3"
==PROF== Disconnected
"""
    assert device.counters(text) == [
        {"kernel": "stem_kernel", "read_bytes": 12600.0, "registers": 96.0, "stalled_long_scoreboard": 1.5},
        {"kernel": "other_kernel", "read_bytes": 5.0, "registers": "n/a", "stalled_long_scoreboard": 0.5},
    ]
    assert device.counters("==ERROR== no permission\n") == []


def test_unreadable_counters_do_not_end_a_plan(tmp_path):
    printed = '\'"ID","Other"\\n"",""\\n"0","1"\''
    code, results, _ = ran(tmp_path, python("profile", f"print({printed})", counters=device.counters), python("b", ""))
    assert code == 0 and results["steps"]["b"]["outcome"] == "passed"
    assert "its counters cannot be read: KeyError" in results["steps"]["profile"]["outcome"]


def test_packages_come_from_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "WHEELS", tmp_path / "wheels")
    assert device.packages_steps("anywhere") == []
    device.WHEELS.mkdir()
    info = "npr_stub-1.dist-info"
    with zipfile.ZipFile(device.WHEELS / "npr_stub-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("npr_stub.py", "answer = 42")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: npr-stub\nVersion: 1\nRequires-Dist: nothing\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"npr_stub.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    target = str(tmp_path / "packages")
    steps = [*device.packages_steps(target), python("uses", "import npr_stub; print(npr_stub.answer)")]
    code, results, log = ran(tmp_path / "output", *steps, environment={"PYTHONPATH": target})
    assert code == 0, log
    assert results["steps"]["uses"]["last_line"] == "42"


@pytest.mark.xdist_group("training by a plan")  # slow: it must not be the last
def test_a_training_is_kept_and_goes_on(tmp_path, monkeypatch):
    """All steps but the build, with parts smaller than the state, from a tar to the files that are kept, and again."""
    monkeypatch.setattr(device, "TRAINING", str(tmp_path / "training"))
    monkeypatch.setattr(device, "LARGEST_FILE", "8M")
    monkeypatch.setattr(device, "build_steps", list)
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
        steps = device.train_steps(tmp_path / "data.tar", output)
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
    assert (dash_m, module) == ("-m", "benchmarks.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(device.app, arguments)
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


@pytest.mark.parametrize("steps", [device.check_steps, device.rest_steps])
def test_plans_name_what_exists(steps):
    steps = steps()
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for number, step in enumerate(steps):
        assert set(step.after) <= set(names[:number])
        assert step.least <= step.limit < device.SECONDS
        for argument in step.command:
            assert not argument.startswith(("tests/", "benchmarks/")) or (ROOT / argument).is_file()
