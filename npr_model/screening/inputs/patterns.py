"""Patterns on the command line that the shell left alone: {a,b} and {1..9} as in bash, and *, ?, [...] and **."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator

import fsspec.utils

from npr_model.errors import InputError

MOST_ALTERNATIVES = 100_000
_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.(-?[0-9]+))?|([a-zA-Z])\.\.([a-zA-Z])")

Walk = Callable[[str], Iterator[str | os.PathLike]]


def expand_braces(text: str) -> list[str]:
    """Return the alternatives of a text with braces, in bash's order; the text itself if it has none.

    Raises:
        InputError: There are more than MOST_ALTERNATIVES, or the braces are nested too deeply.
    """
    try:
        alternatives = list(itertools.islice(_expanded(text), MOST_ALTERNATIVES + 1))
    except RecursionError as error:
        raise InputError(f"{text[:40]}... has too many braces inside braces") from error
    if len(alternatives) > MOST_ALTERNATIVES:
        raise InputError(f"{text} has more than {MOST_ALTERNATIVES} alternatives: use --files-from with a list instead")
    return alternatives


def _expanded(text: str) -> Iterator[str]:
    for start, end, commas in _braces(text):
        inner = text[start + 1 : end]
        if commas:
            places = [start, *commas, end]
            inside: Iterator[str] = (part for a, b in itertools.pairwise(places) for part in _expanded(text[a + 1 : b]))
        elif ends := _RANGE.fullmatch(inner):
            inside = _range(ends)
        else:
            continue  # as in bash: no alternatives
        for middle in inside:
            yield from (text[:start] + middle + tail for tail in _expanded(text[end + 1 :]))
        return
    yield text


def _braces(text: str) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the places of each opening brace, of its closing one and of the commas between them, from left to right."""
    for start in (place for place, character in enumerate(text) if character == "{"):
        depth, commas = 0, []
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if text[place] == "," and depth == 1:
                commas.append(place)
            if not depth:
                yield start, place, commas
                break


def _range(ends: re.Match) -> Iterator[str]:
    first, last, step, first_letter, last_letter = ends.groups()
    if first_letter:
        a, b = ord(first_letter), ord(last_letter)
        return map(chr, range(a, b + 1) if a <= b else range(a, b - 1, -1))
    padded = any(re.match("-?0[0-9]", text) for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    a, b, step = int(first), int(last), abs(int(step or 1)) or 1
    numbers = range(a, b + 1, step) if a <= b else range(a, b - 1, -step)
    return (f"{number:0{width}}" for number in numbers)


def is_pattern(path: str) -> bool:
    """Return whether a path is a pattern, and not the name of something that exists."""
    return glob.has_magic(path) and not os.path.lexists(path)


def matches(pattern: str, walk: Walk) -> Iterator[str]:
    """Yield the files that match a pattern.

    ``walk`` yields the files below a folder, for "**": unlike glob's own way down it must not run in circles.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        yield from (path for path in glob.iglob(pattern) if not os.path.isdir(path))
        return
    stars = parts.index("**")
    root = "/".join(parts[:stars]) or ("/" if pattern.startswith("/") else ".")
    rest = "/".join(part if part == "**" else part.replace("**", "*") for part in parts[stars:])
    fits = re.compile(fsspec.utils.glob_translate(rest)).match
    for folder in filter(os.path.isdir, glob.iglob(root) if glob.has_magic(root) else [root]):
        above = "" if folder == "." else f"{folder.rstrip('/')}/"
        yield from (path for path in map(str, walk(folder)) if fits(path.removeprefix(above)))
