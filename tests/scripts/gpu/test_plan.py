"""Plans of steps with limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.gpu import jobs, plan
from scripts.gpu.plan import Step
from tests.conftest import ROOT
from tests.scripts.gpu.steps import python, ran

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
        Step("profile", ["no-such-profiler", "--csv"], 30, 0, counters=jobs.counters),
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
    code = "import pathlib, sys\nfrom scripts.gpu.plan import Step, run_plan\n"
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
