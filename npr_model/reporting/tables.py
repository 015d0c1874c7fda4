"""Tables of text, as Markdown and LaTeX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text cells. The first column is left-aligned; rows in ``emphasised`` sum up the others."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    emphasised: frozenset[int] = frozenset()

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""] if self.title else []
        lines += ["| " + " | ".join(self.columns) + " |", "|---" + "|--:" * (len(self.columns) - 1) + "|"]
        for number, row in enumerate(self.rows):
            cells = [cell.replace("|", "\\|") for cell in row]
            if number in self.emphasised:
                cells = [f"**{cell}**" if cell else "" for cell in cells]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def latex(self) -> str:
        """Return a LaTeX ``table`` environment in the style of booktabs."""
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_latex, self.columns)) + r" \\", r"\midrule"]
        for number, row in enumerate(self.rows):
            if number in self.emphasised:
                lines.append(r"\midrule")
            lines.append(" & ".join(map(_latex, row)) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join([*(f"% {note}" for note in self.notes), *lines]) + "\n"


def percent(value: float | None) -> str:
    """Format a share as a percentage with one decimal; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


_LATEX = str.maketrans({"\\": r"\textbackslash{}", **{character: f"\\{character}" for character in "&%$#_{}"}})


def _latex(text: str) -> str:
    return text.translate(_LATEX)
