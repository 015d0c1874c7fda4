"""``python -m benchmarks.report``: writes the tables of README and docs/performance.md, and plots, from the results.

A document marks the place of a table with a comment, and its end with ``<!-- end -->``. FILE is a JSON file in
benchmarks/results.

- ``<!-- table FILE: CASE -->``: one case, a row per contender. ``<!-- table FILE: CASE [ms, x eager] -->`` shows these
  columns only. ``{REGEX}`` after them shows the contenders with a match only.
- ``<!-- comparison FILE [ms] -->``: all cases, a row per case and a column per contender, with the values of one column
  and in brackets the ratios to the reference. ``<!-- comparison FILE: REGEX [ms] -->``: the cases with a match only.

A link to ``benchmarks/results/FILE.png`` makes a plot of all cases of FILE.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.harness.command import refuse
from benchmarks.harness.rows import COLUMNS, OURS, REFERENCE, Column, cells, filled_columns, three_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
PLOT = re.compile(r"benchmarks/results/([\w.-]+)\.png\)")
MARK = re.compile(
    r"(?P<mark><!-- (?P<kind>table|comparison) (?P<file>[^\s:]+)(?:: (?P<case>.+?))?(?: \[(?P<columns>.+?)\])?"
    r"(?: \{(?P<contenders>.+?)\})? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
DOCUMENTED = [title for title, column in COLUMNS.items() if column.documented]


class UnknownTable(Exception):
    """A document asks for a table that no result file has. The message says which."""


def load(name: str) -> dict[str, list[dict]]:
    """Return the measured rows of a result file by case, the fastest first."""
    path = RESULTS / name
    if not path.is_file():
        raise UnknownTable(f"a document has a table from benchmarks/results/{name}, which does not exist")
    cases: dict[str, list[dict]] = {}
    for row in json.loads(path.read_text())["rows"]:
        if filled_columns([row], DOCUMENTED):
            cases.setdefault(row["case"], []).append(row)
    return {case: sorted(rows, key=lambda row: row["median_ms"] or 0) for case, rows in cases.items()}


def table(case: str, rows: Sequence[dict], titles: Sequence[str]) -> str:
    """Return a case's name and its Markdown table, without columns that no row fills. Our contenders are bold."""
    columns = filled_columns(rows, titles)
    lines = [["contender", *columns]]
    lines += [[_name(row["contender"]), *cells(row, columns)] for row in rows]
    return f"**{case}**\n\n{_markdown(lines)}"


def comparison(cases: Mapping[str, Sequence[dict]], title: str) -> str:
    """Return a Markdown table with a row per case and a column per contender, ours first and the reference last."""
    column = COLUMNS[title]
    names = dict.fromkeys(row["contender"] for rows in cases.values() for row in rows)
    names = sorted(names, key=lambda name: (not name.startswith(OURS), name == REFERENCE))
    lines = [[f"{title} (x {REFERENCE})", *map(_name, names)]]
    for case, rows in cases.items():
        values = {row["contender"]: _with_ratio(row, column) for row in rows}
        lines.append([case, *(values.get(name, "") for name in names)])
    return _markdown(lines)


def _with_ratio(row: dict, column: Column) -> str:
    value, ratio = cells(row, {"value": column, "ratio": COLUMNS["x eager"]})
    return f"{value} ({ratio})" if ratio and row["contender"] != REFERENCE else value


def _name(contender: str) -> str:
    return f"**{contender}**" if contender.startswith(OURS) else contender


def _markdown(lines: list[list[str]]) -> str:
    """Return a table whose first line is its head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(text: str) -> str:
    """Return ``text`` with the current results in every marked table."""

    def replace(match: re.Match) -> str:
        file, case, cases = match["file"], match["case"] or "", load(match["file"])
        if match["contenders"]:
            cases = {
                name: [row for row in rows if re.search(match["contenders"], row["contender"])]
                for name, rows in cases.items()
            }
            if not any(cases.values()):
                raise UnknownTable(f"benchmarks/results/{file} has no contender like {match['contenders']!r}")
        titles = match["columns"].split(", ") if match["columns"] else DOCUMENTED
        if unknown := set(titles) - set(COLUMNS):
            raise UnknownTable(f"a table of {file} names the unknown column {min(unknown)!r}")
        if match["kind"] == "comparison":
            shown = {name: rows for name, rows in cases.items() if re.search(case, name)}
            drawn = comparison(shown, titles[0])
        else:
            shown = {name: rows for name, rows in cases.items() if name == case}
            drawn = "".join(table(name, rows, titles) for name, rows in shown.items())
        if not shown:
            raise UnknownTable(f"benchmarks/results/{file} has no case {case!r}")
        return f"{match['mark']}{drawn}{match['end']}"

    return MARK.sub(replace, text)


def plot(name: str) -> Path:
    """Draw the times of every case of a result file; return the path of the picture beside it."""
    target = (RESULTS / name).with_suffix(".png")
    draw(load(name)).savefig(target, dpi=80)
    return target


def draw(cases: dict[str, list[dict]]) -> Figure:
    """Draw the times of every case as bars, ours in colour."""
    from matplotlib.figure import Figure

    heights = [len(rows) for rows in cases.values()]
    figure = Figure(figsize=(8, 0.28 * sum(heights) + 0.8 * len(cases)))
    axes = figure.subplots(len(cases), 1, height_ratios=heights, squeeze=False)
    for axis, (case, rows) in zip(axes[:, 0], cases.items(), strict=True):
        names, times = [row["contender"] for row in rows], [row["median_ms"] for row in rows]
        colours = ["tab:orange" if contender.startswith(OURS) else "tab:gray" for contender in names]
        bars = axis.barh(names, times, color=colours)
        axis.bar_label(bars, [f" {three_digits(value)} ms" for value in times], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(case, loc="left", fontsize=9, fontweight="bold")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if a table is not up to date.")
    ] = False,
) -> None:
    """Write the tables of README and docs/performance.md and the plots from the results."""
    before = {document: document.read_text() for document in DOCUMENTS}
    try:
        after = {document: filled(text) for document, text in before.items()}
    except UnknownTable as failure:
        refuse(str(failure))
    if check:
        if before != after:
            print("tables differ from benchmarks/results; run python -m benchmarks.report")
        raise typer.Exit(before != after)
    for document, text in after.items():
        document.write_text(text)
    for name in sorted({name for text in after.values() for name in PLOT.findall(text)}):
        print(plot(f"{name}.json").relative_to(ROOT))


if __name__ == "__main__":
    typer.run(main)
