"""What the scorer tells about its work, for a run that may be killed. Here, nothing of it is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class Journal:
    """A journal that records nothing, for outputs that cannot be continued."""

    def start(self, sources: Iterable[str]) -> None:
        """Record that work on the sources begins."""

    def end(self, sources: Iterable[str]) -> None:
        """Record that work on the sources has ended."""

    @contextlib.contextmanager
    def alone(self, source: str) -> Iterator[None]:
        """Record that the source is scored alone meanwhile."""
        yield

    def suspect(self, sources: Iterable[str]) -> None:
        """Treat sources as if a run had been killed while they were in work."""

    def is_suspect(self, source: str) -> bool:
        """Return whether a run was killed while the source was in work."""
        return False

    def is_culprit(self, source: str) -> bool:
        """Return whether a run was killed while the source was scored alone."""
        return False

    def close(self) -> None:
        """End the journal: the run ends by itself."""
