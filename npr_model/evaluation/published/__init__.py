"""The numbers of Tan et al. (CVPR 2024), Tables 1 to 7, in percent, to show beside measured ones."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

MEAN = "Mean"  # the paper's row of averages
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Result:
    """Accuracy at a probability of 0.5 and average precision, in percent; None if the paper does not give it."""

    accuracy: float | None
    average_precision: float | None


@functools.cache
def results() -> dict[tuple[int | None, str], dict[str, Result]]:
    """Tables 1 to 5: by (table, method), the results on each generator and on MEAN."""
    tables: dict[tuple[int | None, str], dict[str, Result]] = {}
    for row in _rows("results.csv"):
        tables.setdefault((int(row["table"]), row["method"]), {})[row["generator"]] = _result(row)
    return tables


@functools.cache
def notes() -> dict[tuple[int | None, str], str]:
    """Notes on rows of :func:`results`: numbers that cannot be read, contradictions in the paper."""
    return {(int(row["table"]), row["method"]): row["note"] for row in _rows("results.csv") if row["note"]}


@functools.cache
def mean_accuracies() -> dict[str, float]:
    """Table 6: mean accuracy over all 38 sub-sets, by method."""
    return {row["method"]: float(row["mean_acc_38_subsets"]) for row in _rows("table6.csv")}


@functools.cache
def ablation() -> dict[tuple[int, str], dict[str, Result]]:
    """Table 7: by (grid size, anchor as in the paper: w_1 .. w_4, mean, max), the results on each generator."""
    tables: dict[tuple[int, str], dict[str, Result]] = {}
    for row in _rows("table7.csv"):
        tables.setdefault((int(row["grid"]), row["anchor"]), {})[row["generator"]] = _result(row)
    return tables


def methods() -> list[str]:
    """All methods of the tables, in the paper's order."""
    return list(dict.fromkeys(method for _, method in results()))


def _rows(name: str) -> list[dict[str, str]]:
    with open(_FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _result(row: dict[str, str]) -> Result:
    accuracy, precision = (float(row[name]) if row[name] else None for name in ("acc", "ap"))
    return Result(accuracy, precision)
