"""Times of calls: rounds in turn, inputs in turn, and CUDA graphs where there is a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Timer, interleave

CPU = torch.device("cpu")


def test_rounds_are_interleaved():
    order = []

    def call(name):
        order.append(name)
        time.sleep(0.011)  # longer than a burst: one timed call a round, after one that is not

    timers = {name: Timer([lambda name=name: call(name)], CPU) for name in "abc"}
    order.clear()
    times = interleave(timers, 0)
    assert order[::2] == order[1::2]
    assert ["".join(order[::2])[i : i + 3] for i in range(0, 15, 3)] == ["abc", "bca", "cab", "abc", "bca"]
    assert all(len(found) == 5 for found in times.values())
    assert interleave({}, 0) == {}


def test_inputs_take_turns_and_a_time_is_that_of_one_call():
    order = []

    def call(number):
        order.append(number)
        time.sleep(0.02 * number)

    timer = Timer([lambda number=number: call(number) for number in (1, 2, 3)], CPU)
    order.clear()
    assert 0.04 <= timer.burst() < 0.1 and 0.04 <= timer.first < 0.1
    assert order == [1, 2, 3] * 2  # once before, untimed


def test_short_calls_are_repeated():
    count = 0

    def call():
        nonlocal count
        count += 1

    timer = Timer([call], CPU)
    count = 0
    assert timer.burst() < 1e-4
    assert count > 100


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
