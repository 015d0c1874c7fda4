"""Times of calls: rounds in turn, inputs in turn, and CUDA graphs where there is a GPU."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.timing import Timer, interleave

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only calls of ``clock.sleep`` move, so that a busy machine changes nothing."""

    class Clock:
        now = 0.0

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def test_rounds_are_interleaved(clock):
    order = []

    def call(name):
        order.append(name)
        clock.sleep(0.011)  # longer than a burst: one timed call a round, after one that is not

    timers = {name: Timer([lambda name=name: call(name)], CPU) for name in "abc"}
    order.clear()
    times = interleave(timers, 0)
    assert order[::2] == order[1::2]
    assert ["".join(order[::2])[i : i + 3] for i in range(0, 15, 3)] == ["abc", "bca", "cab", "abc", "bca"]
    assert all(rounds == pytest.approx([0.011] * 5) for rounds in times.values())
    assert interleave({}, 0) == {}


def test_rounds_go_on_for_the_time_given(clock):
    timer = Timer([lambda: clock.sleep(0.02)], CPU)
    assert len(interleave({"a": timer}, 0.5)["a"]) == 13  # of 40 ms each, the last one begun before the time was up


def test_inputs_take_turns_and_a_time_is_that_of_one_call(clock):
    order = []

    def call(number):
        order.append(number)
        clock.sleep(0.02 * number)

    timer = Timer([lambda number=number: call(number) for number in (1, 2, 3)], CPU)
    order.clear()
    assert timer.burst() == pytest.approx(0.04) and timer.first == pytest.approx(0.04)
    assert order == [1, 2, 3] * 2  # once before, untimed


def test_short_calls_are_repeated(clock):
    count = 0

    def call():
        nonlocal count
        count += 1
        clock.sleep(1e-6)

    timer = Timer([call], CPU)
    count = 0
    assert timer.burst() == pytest.approx(1e-6)
    assert count == 1 + timing.SHORTEST_BURST / 1e-6


@pytest.fixture
def values(cuda):
    return [torch.full((1 << 20,), float(number), device=cuda) for number in range(3)]


def test_a_graph_computes_each_call_anew_in_memory_of_its_own(values, cuda):
    results = []

    def call(value):
        results.append(value + 1)
        return results[-1]

    calls = [lambda value=value: call(value) for value in values]
    replay = timing.graph_of(calls)
    captured = results[-3:]
    assert len({result.data_ptr() for result in captured}) == 3
    for value in values:
        value.add_(10)
    replay()
    torch.cuda.synchronize()
    assert [result[0].item() for result in captured] == [11, 12, 13]


def test_what_is_replayed_is_timed_by_the_gpu(values, cuda):
    cycles, slept = 2_000_000, 0.0  # about a millisecond

    def call(value):
        nonlocal slept
        torch.cuda._sleep(cycles)
        time.sleep(slept)
        return value + 1

    timer = Timer([lambda value=value: call(value) for value in values], cuda, captured=True)
    slept = 1.0  # would be seen if Python still launched
    assert not timer.note and 1e-4 < timer.burst() < 1e-2


def test_what_cannot_be_captured_is_launched_from_python(values, cuda):
    """And leaves everything as it was: the stream, the random generator, captures."""
    stream = torch.cuda.current_stream()
    timer = Timer([lambda value=value: value.sum().item() for value in values], cuda, captured=True)
    assert "cannot be captured" in timer.note and timer.burst() > 0
    assert torch.cuda.current_stream() == stream
    assert torch.rand(8, device=cuda).unique().numel() > 1
    other = Timer([lambda: values[0] + 1], cuda, captured=True)
    assert not other.note and other.burst() > 0
