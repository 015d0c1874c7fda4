"""Inputs that a run may have died of, scored in a process of their own: that process dies, not the run."""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

from npr_model.scoring.items import Item
from npr_model.scoring.journal import Journal
from npr_model.scoring.options import ScoringOptions
from npr_model.scoring.rows import KILLED, Row


def score_alone(items: Iterable[Item], options: ScoringOptions, blank: Row, journal: Journal) -> Iterator[Row]:
    """Yield the row of each item, scored one after another in another process.

    If that process is killed, for example because the memory is full, the item's row has the error code KILLED, and the
    next item gets a new process. Items that killed a whole run when they were scored alone are not tried again.

    Args:
        items: What to score.
        options: What to score with.
        blank: A row with the view and the model.
        journal: Records which item is in work.
    """
    options = replace(options, batch_size=1, workers=1, cache=None)
    process: _Process | None = None
    try:
        for item in items:
            if journal.is_culprit(item.source):
                yield _killed(blank, item, "a run was killed while it scored this file alone")
                continue
            if process is None:
                process = _Process(options)
            with journal.alone(item.source):
                row = process.score(item)
            if row is None:
                yield _killed(blank, item, f"the process that scored it alone was ended {process.how_it_ended()}")
                process = None
            else:
                yield row
    finally:
        if process is not None:
            process.kill()


def _killed(blank: Row, item: Item, why: str) -> Row:
    return replace(
        blank,
        source=item.source,
        error=f"{why}, after a run had been killed at it; --retry-failed tries it again",
        error_code=KILLED,
    )


class _Process:
    """A Python process that scores items. It is ready when the constructor returns."""

    def __init__(self, options: ScoringOptions) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # as they are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._send(options)
        self._receive()

    def score(self, item: Item) -> Row | None:
        """Return the row of an item; None if the process died."""
        self._send(item)
        return self._receive()

    def how_it_ended(self) -> str:
        """Wait for a process that died, and return why."""
        code = self._process.wait()
        self.kill()
        return f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # it may hold what the process did not read
                pipe.close()

    def _send(self, value: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead, as its missing answer will show
            pickle.dump(value, self._stdin)
            self._stdin.flush()

    def _receive(self) -> Row | None:
        try:
            return pickle.load(self._stdout)
        except (EOFError, pickle.UnpicklingError):
            return None


def main() -> None:
    """Score the items that come through standard input; their rows go to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run, and the run this process
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # libraries may print
    scorer = pickle.load(requests).scorer()
    answer: Row | None = None
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            item = pickle.load(requests)
        except EOFError:
            return
        (answer,) = scorer.score([item])


if __name__ == "__main__":
    main()
