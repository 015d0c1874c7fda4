"""Steps that run Python code, and what a plan of them leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts.gpu import plan
from scripts.gpu.plan import Step, run_plan


def python(name: str, code: str, *arguments: str, limit: float = 600, least: float = 0, **options) -> Step:
    return Step(name, [sys.executable, "-c", code, *arguments], limit, least, **options)


def ran(folder: Path, *steps: Step, seconds: float = 600, **options) -> tuple[int, dict, str]:
    """Exit code, results and log of a plan."""
    code = run_plan(steps, seconds, folder, **options)
    assert {path.name for path in folder.iterdir()} == {plan.LOG, plan.RESULTS}
    return code, json.loads((folder / plan.RESULTS).read_text()), (folder / plan.LOG).read_text()
