"""CUDA graphs for each size of batch: which sizes are captured, and, on a GPU, that nothing changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from npr_model.inference import cuda_graphs
from npr_model.inference.cuda_graphs import Captured, CudaGraphs
from npr_model.inference.freeze import freeze
from tests.model.conftest import make_detector


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def mean(x: Tensor) -> Tensor:
    return x.double().mean((1, 2, 3))


class Recorded(CudaGraphs):
    """Captures like a GPU: a replay computes from the memory of the captured images."""

    def __init__(self) -> None:
        super().__init__(mean)
        self.captures: list[tuple[int, ...]] = []

    def _capture(self, images: Tensor) -> Captured:
        self.captures.append(tuple(images.shape))
        memory, result = torch.zeros_like(images), torch.zeros(len(images), dtype=torch.float64)
        return Captured(memory, lambda: result.copy_(mean(memory)), result)


@pytest.fixture
def soon(monkeypatch):
    """A size is captured when it comes for the second time."""
    monkeypatch.setattr(cuda_graphs, "UNCAPTURED", 1)


def test_a_size_is_captured_when_it_comes_again(soon):
    graphs = Recorded()
    results = []
    for seed, shape in enumerate([(2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]):
        x = images(*shape, seed=seed)
        results.append((graphs(x), mean(x)))
    assert graphs.captures == [(2, 3, 8, 8), (1, 3, 8, 8)]
    for result, expected in results:  # no replay may have overwritten an earlier result
        assert torch.equal(result, expected)


def test_a_copy_captures_its_own_graphs():
    """A copied detector must not replay graphs that read the original's memory."""
    model = freeze(make_detector(), torch.float32)
    model.graphs = CudaGraphs(model.score)
    model.graphs._captured["a size"] = Captured(torch.empty(0), lambda: None, torch.empty(0))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(copy.deepcopy(model)))):
        assert other.graphs._captured == {} and other.graphs._network.__self__ is other


def test_another_layout_is_another_graph(soon):
    graphs, x = Recorded(), images(2, 3, 8, 8)
    for _ in range(2):
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.equal(graphs(x.contiguous(memory_format=layout)), mean(x))
    assert len(graphs.captures) == 2


@pytest.mark.parametrize("seen", [1, 1000])
def test_the_number_of_graphs_is_limited(monkeypatch, seen):
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(cuda_graphs, "UNCAPTURED", 2)
    monkeypatch.setattr(cuda_graphs, "MOST_SEEN", seen)
    graphs = Recorded()
    for width in (2, 4, 6, 2, 4, 6, 6, 4, 2, 6, 4, 2):
        x = images(1, 3, 8, width)
        assert torch.equal(graphs(x), mean(x))
    assert [shape[3] for shape in graphs.captures] == ([6, 4] if seen > 1 else [])
    assert len(graphs._seen) <= seen


def test_large_and_empty_batches_are_not_captured(soon, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST_PIXELS", 2 * 8 * 8)
    graphs = Recorded()
    for _ in range(3):
        for batch in (0, 2, 3):
            assert len(graphs(images(batch, 3, 8, 8))) == batch
    assert graphs.captures == [(2, 3, 8, 8)]


def test_after_a_failed_capture_there_are_no_more_graphs(soon, caplog, monkeypatch):
    graphs, x = Recorded(), images(2, 3, 8, 8)

    def fail(images: Tensor) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_capture", fail)
    for _ in range(4):
        assert torch.equal(graphs(x), mean(x))
    assert caplog.messages == ["no CUDA graphs from here on (operation not permitted when stream is capturing)"]


def test_a_copy_keeps_the_padding_of_rows():
    """The kernels' widest loads need padded rows. Images whose elements share memory get memory of their own."""
    padded = images(2, 5, 16)[:, :, :15].unflatten(2, (5, 3)).permute(0, 3, 1, 2)
    assert padded.shape == (2, 3, 5, 5) and padded.stride() == (80, 1, 16, 3)
    for x in (padded, padded[1:], images(2, 3, 4, 6), images(2, 4, 6, 3).permute(0, 3, 1, 2)):
        copied = cuda_graphs._with_its_strides(x)
        assert copied.stride() == x.stride() and torch.equal(copied, x) and copied.data_ptr() != x.data_ptr()
    expanded = images(1, 3, 4, 6).expand(3, 3, 4, 6)
    copied = cuda_graphs._with_its_strides(expanded)
    assert torch.equal(copied, expanded) and 0 not in copied.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_on_a_gpu(cuda, soon, dtype):
    """The detector with graphs, on alternating sizes, equals the network run layer by layer in float64."""
    detector = make_detector()
    frozen = freeze(detector.to(cuda), dtype)
    exact = make_detector().double()
    kept = []
    for seed, shape in enumerate([(3, 3, 48, 64), (1, 3, 33, 35), (3, 3, 48, 64), (1, 3, 33, 35), (3, 3, 48, 64)]):
        x = images(*shape, seed=seed)
        with torch.no_grad():
            truth = exact(x)
        for layout in (torch.contiguous_format, torch.channels_last):
            kept.append((frozen(x.contiguous(memory_format=layout).to(cuda)), truth))
    assert len(frozen.graphs._captured) == 4
    for logits, truth in kept:
        assert (logits.cpu() - truth).abs().max() < (
            0.01 if dtype == torch.float32 else 0.1
        )  # convolutions may use TF32


def test_nan_stays_with_its_image_on_a_gpu(cuda, soon):
    frozen = freeze(make_detector().to(cuda))
    x = torch.rand(3, 3, 32, 32)
    x[1, 0, 5, 5] = float("nan")
    for _ in range(3):  # run directly, captured, replayed
        assert frozen(x.to(cuda)).isnan().flatten().tolist() == [False, True, False]
    assert len(frozen.graphs._captured) == 1
