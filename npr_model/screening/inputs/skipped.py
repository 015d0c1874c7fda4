"""Why a file is not screened, and how such files are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

# Why files that lie beside images are skipped: Skip is called with the name of such a file and one of these
# reasons, or one of npr_model.files.
NO_IMAGE = "not images"
NO_IMAGE_NAME = "without an image suffix (remote files are judged by their names)"
INNER_ARCHIVE = "archives in folders or archives (name them to read them)"
UNREADABLE = "without an image suffix, and unreadable"
EMPTY_ROW = "Parquet rows with an empty list"
EMPTY_ARCHIVE = "archives without images"
EMPTY_FOLDER = "listed folders without images"

Skip = Callable[[str, str], None]


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return counts by reason as text; "" if there are none."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)
