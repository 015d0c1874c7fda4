"""Which names are URLs."""

from __future__ import annotations


def is_url(path: str) -> bool:
    """Return whether a source is a URL. One of a local file counts as its path, see :func:`as_path`."""
    return "://" in path


def as_path(source: str) -> str:
    """Return the path in a URL such as file:///photos; any other source as it is."""
    scheme, _, path = source.partition("://")
    return path if scheme.lower() in ("file", "local") and "::" not in path else source
