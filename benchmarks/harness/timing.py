"""How long a call takes: launched from Python or, on a GPU, replayed as a CUDA graph.

A small GPU kernel takes less time than Python needs to launch it, so a loop in Python would measure Python. A graph
holds one call per set of inputs, in turn, so that no call meets its inputs or its results in the GPU's cache.
"""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], Any]

SHORTEST_BURST = 0.010  # seconds; shorter calls are repeated within a round, so that no clock or wake-up shows
LEAST_ROUNDS, MOST_ROUNDS = 5, 500
WARM_UP = 2  # launches of each call before a capture, which must meet nothing that is done only once


class Timer:
    """Times ``calls``: the same work, once per set of inputs.

    With ``captured`` only work on ``device`` is timed: on a GPU a CUDA graph of the calls is replayed. If they cannot
    be captured, they are launched from Python, and ``note`` says why. Without ``captured`` the wall clock is read.

    Attributes:
        first: Seconds per call of the first measurement.
        note: Why no graph is replayed; empty if one is, or none was wanted.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device, captured: bool = False) -> None:
        self.note = ""
        self._calls, self._device = calls, device
        self._events = captured and device.type == "cuda"
        self._launch = self._each
        if self._events:
            stream = torch.cuda.current_stream()
            try:
                self._launch = graph_of(calls)
            except RuntimeError as failure:
                recover(stream)
                reason = textwrap.shorten(str(failure), 200)
                self.note = f"launched from Python, as it cannot be captured in a CUDA graph: {reason}"
        self._burst(1)  # warm-up, and how often the calls fit into a burst
        self.first = min(self._burst(1) for _ in range(2))
        self._repeats = max(1, round(SHORTEST_BURST / (self.first * len(calls))))

    def burst(self) -> float:
        """Return the seconds per call, measured over SHORTEST_BURST or more."""
        self._launch()  # untimed: the contender before this one left its own data in the caches, and spinning threads
        return self._burst(self._repeats)

    def _burst(self, repeats: int) -> float:
        measure = by_events if self._events else by_wall_clock
        return measure(self._launch, repeats, self._device) / len(self._calls)

    def _each(self) -> None:
        for call in self._calls:
            call()


def graph_of(calls: Sequence[Call]) -> Call:
    """Capture ``calls``, one after another, in one CUDA graph; return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = [call() for call in calls]  # all are kept: each call writes to memory of its own

    def replay(results: list = results) -> None:
        graph.replay()

    return replay


def recover(stream: torch.cuda.Stream) -> None:
    """Undo what a failed capture leaves: its stream stays the current one, and the random generator refuses to draw.

    ``stream`` was the current one before. A capture that succeeds sets the generator free.
    """
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize()
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")


def by_events(launch: Call, repeats: int, device: torch.device) -> float:
    """Return the seconds per launch by the GPU's own clock, over ``repeats`` launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(repeats):
        launch()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def by_wall_clock(launch: Call, repeats: int, device: torch.device) -> float:
    """Return the seconds per launch, over ``repeats`` launches."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        launch()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def interleave(timers: Mapping[str, Timer], seconds: float) -> dict[str, list[float]]:
    """Return the seconds per call of each timer by round. A round times each once, and begins with the next one."""
    names = list(timers)
    times: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS if names else 0):
        if number >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timers[name].burst())
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
