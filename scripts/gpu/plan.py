"""Plans of steps for a machine rented for minutes. Each step has a time limit, and no process of it outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.rows import unfinished, write_json

ROOT = Path(__file__).resolve().parent.parent.parent
LOG, RESULTS = "log.txt", "results.json"
MARK = "NPR_KERNELS_STEP"  # in the environment of a step, and so of all that it starts
KILLING = 10.0  # seconds at most until all processes of a step are gone


@dataclass(frozen=True)
class Step:
    """A program with its arguments, run in the repository's root.

    Attributes:
        limit: Seconds that it may take.
        least: Seconds that must be left of the plan, or the step is skipped.
        after: Names of steps that must have passed, or the step is skipped.
        environment: Variables, added to the plan's.
        json: Whether it takes ``--json FILE`` and writes {"machine", "rows"} there after every row. What it has written
            counts, however it ends.
        counters: Reads a profiler's counters from its output.
    """

    name: str
    command: Sequence[str]
    limit: float
    least: float = 10.0
    after: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    json: bool = False
    counters: Callable[[str], list[dict]] | None = None


def run_plan(steps: Sequence[Step], seconds: float, folder: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run ``steps`` one after another, in ``seconds`` altogether; return 1 if one failed, else 0.

    SIGTERM ends the running step, and then this process with exit code 143.

    Args:
        folder: Gets LOG, with all output, and RESULTS, which is written anew after every step: {"machine", "steps":
            {name: {"outcome", "seconds", "last_line"}}, "rows", "counters"}. An outcome begins with "passed", "failed"
            or "skipped".
        environment: Variables, added to those of this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    log.write_text("")
    deadline = time.monotonic() + seconds
    result: dict = {"machine": {}, "steps": {}, "rows": [], "counters": []}
    with _ended_by_sigterm():
        for step in steps:
            begin, part = time.monotonic(), folder / f"{step.name}.json"
            part.unlink(missing_ok=True)
            outcome, output = _run(step, deadline - begin, result["steps"], environment or {}, log, part)
            if part.exists() and (text := part.read_text()):
                written = json.loads(text)
                result["machine"] = written["machine"]
                result["rows"] += written["rows"]
                print("\n".join(map(_line, written["rows"])))
            for file in (part, unfinished(part)):
                file.unlink(missing_ok=True)
            if step.counters:
                try:
                    result["counters"] += step.counters(output)
                except Exception as failure:  # what another program prints must not end the plan
                    outcome += f"; its counters cannot be read: {type(failure).__name__}: {failure}"
            seconds, last = round(time.monotonic() - begin, 1), _last_line(output)
            result["steps"][step.name] = {"outcome": outcome, "seconds": seconds, "last_line": last}
            write_json(folder / RESULTS, result)
            print(f"{step.name:16} {seconds:6.1f} s  {outcome}  {last[:100]}", flush=True)
    return int(any(step["outcome"].startswith("failed") for step in result["steps"].values()))


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else ""


def _line(row: Mapping) -> str:
    """Return a row of a benchmark as one line of text."""
    numbers = (("median_ms", "{:.4f} ms"), ("ratio_to_reference", "{:.2f} x"), ("share_of_bandwidth", "{:.0%}"))
    cells = (form.format(row[key]) if row.get(key) is not None else "" for key, form in numbers)
    return f"  {row['case']:48} {row['contender']:16} {' '.join(f'{c:>12}' for c in cells)}  {row.get('parity', '')}"


def _reason_to_skip(step: Step, left: float, done: Mapping[str, dict]) -> str | None:
    """Return why ``step`` is skipped, None if it is run."""
    for name in step.after:
        if not done[name]["outcome"].startswith("passed"):
            return f"it needs {name}, which did not pass"
    if shutil.which(step.command[0]) is None:
        return f"there is no {step.command[0]} on the PATH"
    if left < step.least:
        return f"{max(left, 0):.0f} s are left, and it needs {step.least:.0f}"
    return None


def _run(
    step: Step, left: float, done: Mapping[str, dict], environment: Mapping[str, str], log: Path, part: Path
) -> tuple[str, str]:
    """Run a step with so many seconds ``left``; return its outcome and output. ``done``: results of earlier steps."""
    mark, limit = uuid.uuid4().hex, min(step.limit, left)
    command = [*step.command, "--json", str(part)] if step.json else list(step.command)
    variables = "".join(f"{name}={value} " for name, value in step.environment.items())
    with log.open("a+b") as output:
        output.write(f"\n===== {step.name}: {variables}{' '.join(command)}\n\n".encode())
        output.flush()
        begin = output.tell()
        reason = _reason_to_skip(step, left, done)
        if reason:
            outcome = f"skipped: {reason}"
        else:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, **step.environment, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                outcome = "passed" if code == 0 else f"failed: exit code {code}"
            except subprocess.TimeoutExpired:
                outcome = f"failed: killed after {limit:.0f} s"
            finally:  # also where the plan itself is ended
                survivors = _end(process, mark)
            if survivors:
                outcome += f"; could not kill {', '.join(map(str, survivors))}"
        output.seek(begin)
        text = output.read().decode(errors="replace")
        output.write(f"\n===== {step.name}: {outcome}\n".encode())
    return outcome, text


def _end(process: subprocess.Popen, mark: str) -> list[int]:
    """Kill a step's process group and every process with its mark; return the ids of those that did not die."""
    deadline = time.monotonic() + KILLING
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while alive := list(_marked(mark)):  # again: a process may start another before it is killed
        if time.monotonic() > deadline:
            return alive
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return []


def _marked(mark: str) -> Iterator[int]:
    """Return the processes with ``mark`` in their environment, which is empty for a process that has ended."""
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)
