"""``python -m benchmarks.report``: writes the tables of README and docs/performance.md, and plots, from the results.

A document marks the place of a table with ``<!-- table FILE: CASE -->`` and ``<!-- end -->``. FILE is a JSON file in
benchmarks/results, CASE one of its cases. ``<!-- table FILE: CASE [ms, x eager] -->`` shows these columns only. A link
to ``benchmarks/results/FILE.svg`` makes a plot of all cases of FILE.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import refuse
from benchmarks.harness import OURS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
PLOT = re.compile(r"benchmarks/results/([\w.-]+)\.svg\)")
MARK = re.compile(
    r"(<!-- table (?P<file>\S+): (?P<case>.+?)(?: \[(?P<columns>.+?)\])? -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
COLUMNS = {  # title: key of the row, factor, format
    "ms": ("median_ms", 1, "{:.3g}"),
    "us an image": ("microseconds_an_image", 1, "{:.3g}"),
    "images/s": ("images_per_second", 1, "{:.3g}"),
    "x eager": ("ratio_to_reference", 1, "{:.1f}"),
    "of FMA peak": ("share_of_fma_peak", 100, "{:.0f} %"),
    "of bf16 peak": ("share_of_bf16_peak", 100, "{:.0f} %"),
    "of int8 peak": ("share_of_int8_peak", 100, "{:.0f} %"),
    "of bandwidth": ("share_of_bandwidth", 100, "{:.0f} %"),
    "most MiB": ("peak_mib", 1, "{:.0f}"),
    "waiting for data": ("waiting", 100, "{:.1f} %"),
    "rank correlation": ("rank_correlation", 1, "{:.5f}"),
    "RMS difference": ("rms_difference", 1, "{:.3f}"),
    "ROC AUC": ("roc_auc", 1, "{:.4f}"),
    "average precision": ("average_precision", 1, "{:.4f}"),
    "on paper, ms": ("predicted_ms", 1, "{:.3g}"),
    "simulated, ms": ("simulated_ms", 1, "{:.3g}"),
    "days": ("days", 1, "{:.3g}"),
}


class UnknownTable(Exception):
    """A document asks for a table that no result file has. The message says which."""


def load(name: str) -> dict[str, list[dict]]:
    """The measured rows of a result file by case, the fastest first."""
    path = RESULTS / name
    if not path.is_file():
        raise UnknownTable(f"a document has a table from benchmarks/results/{name}, which does not exist")
    cases: dict[str, list[dict]] = {}
    for row in json.loads(path.read_text())["rows"]:
        if any(_has(row, key) for key, *_ in COLUMNS.values()):
            cases.setdefault(row["case"], []).append(row)
    return {case: sorted(rows, key=lambda row: row["median_ms"] or 0) for case, rows in cases.items()}


def _has(row: dict, key: str) -> bool:
    return row.get(key) is not None


def table(rows: list[dict], titles: Collection[str] = COLUMNS) -> str:
    """A Markdown table with the columns ``titles``, without those that no row fills. Our contenders are bold."""
    columns = {
        title: column
        for title, column in COLUMNS.items()
        if title in titles and any(_has(row, column[0]) for row in rows)
    }
    lines = [["contender", *columns], ["---"] * (1 + len(columns))]
    for row in rows:
        name = f"**{row['contender']}**" if row["contender"].startswith(OURS) else row["contender"]
        cells = [form.format(row[key] * factor) if _has(row, key) else "" for key, factor, form in columns.values()]
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(text: str) -> str:
    """Return ``text`` with the current results in every marked table."""

    def replace(match: re.Match) -> str:
        cases = load(match["file"])
        if match["case"] not in cases:
            raise UnknownTable(f"benchmarks/results/{match['file']} has no case {match['case']!r}")
        titles = match["columns"].split(", ") if match["columns"] else list(COLUMNS)
        if unknown := set(titles) - set(COLUMNS):
            raise UnknownTable(f"a table of {match['file']} names the unknown column {min(unknown)!r}")
        return f"{match[1]}**{match['case']}**\n\n{table(cases[match['case']], titles)}{match['end']}"

    return MARK.sub(replace, text)


def plot(name: str) -> Path:
    """Bars of the times of every case of a result file, ours in colour: an SVG beside it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": name, "svg.fonttype": "none"}  # the same results make the same file
    cases = load(name)
    heights = [len(rows) for rows in cases.values()]
    figure, axes = pyplot.subplots(
        len(cases), 1, figsize=(8, 0.28 * sum(heights) + 0.8 * len(cases)), height_ratios=heights, squeeze=False
    )
    for axis, (case, rows) in zip(axes[:, 0], cases.items(), strict=True):
        names, times = [row["contender"] for row in rows], [row["median_ms"] for row in rows]
        colours = ["tab:orange" if contender.startswith(OURS) else "tab:gray" for contender in names]
        bars = axis.barh(names, times, color=colours)
        axis.bar_label(bars, [f" {value:.3g} ms" for value in times], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(case, loc="left", fontsize=9, fontweight="bold")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    target = (RESULTS / name).with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)
    return target


def main(
    check: Annotated[bool, typer.Option(help="Change nothing; exit code 1 if a table is not up to date.")] = False,
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
