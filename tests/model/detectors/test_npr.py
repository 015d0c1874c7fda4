"""The detector against the network as its authors wrote it down, and its fast form against itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npr_kernels.testing import error
from npr_kernels.trunk import cpu_bottleneck, selection
from npr_model.detectors.base import IMAGENET_MEAN, IMAGENET_STD
from npr_model.detectors.npr import NPRDetector, blocks
from npr_model.detectors.sizes import SIZES
from npr_model.inference import fused
from npr_model.inference.freeze import freeze
from npr_model.inference.fused import InferenceDetector, default_dtype

SHAPES = fused.block_shapes(NPRDetector())


class AuthorsBottleneck(nn.Module):
    """ResNet's bottleneck with the names that the authors' checkpoints use."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = downsample

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x)))


class AuthorsNetwork(nn.Module):
    """Normalised float images only; NPR by scaling down and up again; every layer on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self.make_layer(64, 64, 3, 1)
        self.layer2 = self.make_layer(256, 128, 4, 2)
        self.fc1 = nn.Linear(512, 1)

    @staticmethod
    def make_layer(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        downsample = nn.Sequential(nn.Conv2d(inplanes, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4))
        first = AuthorsBottleneck(inplanes, planes, stride, downsample)
        return nn.Sequential(first, *(AuthorsBottleneck(planes * 4, planes) for _ in range(blocks - 1)))

    def forward(self, x):
        x = x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
        npr = x - F.interpolate(F.interpolate(x, scale_factor=0.5, mode="nearest"), scale_factor=2.0, mode="nearest")
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(npr * 2.0 / 3.0))), 3, 2, 1)
        return self.fc1(F.adaptive_avg_pool2d(self.layer2(self.layer1(x)), (1, 1)).flatten(1))


def with_lively_statistics(network: nn.Module) -> nn.Module:
    """Batch norms as after training: a fresh one changes nothing, which would hide mistakes."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw pixels and the same normalised."""
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return raw, (raw / 255 - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def authors():
    return with_lively_statistics(AuthorsNetwork())


@pytest.fixture(scope="module")
def detector(authors):
    detector = NPRDetector()
    detector.load_state_dict(authors.state_dict(), strict=True)
    return detector.eval()


@pytest.fixture(scope="module")
def fast():
    return with_lively_statistics(NPRDetector(size="fast"))


def test_sizes(fast):
    """The blocks of a size are those of its table; an unknown size is an error."""
    assert sum(p.numel() for p in fast.parameters()) == 350_273
    shapes = [(64, 64, 128, 1), (128, 64, 128, 1), (128, 64, 256, 2), (256, 64, 256, 1), (256, 64, 256, 1)]
    assert fused.block_shapes(fast) == tuple(shapes)
    assert [shape.projected for shape in fused.block_shapes(fast)] == [True, False, True, False, False]
    for size in SIZES:
        detector = NPRDetector(size=size)
        shortcuts = [block.downsample is not None for block in blocks(detector).values()]
        assert [shape.projected for shape in fused.block_shapes(detector)] == shortcuts
    assert fast.maps(images(2, 3, 256, 256)[0]).shape == (2, 256, 16, 16)
    with pytest.raises(ValueError, match="size must be paper or fast, not 'tiny'"):
        NPRDetector(size="tiny")


@pytest.mark.parametrize("engine", ["cpu", "onednn", "torch"])
@pytest.mark.parametrize("size", [(256, 256), (97, 130), (20, 18), (2, 2)])
def test_every_engine_of_the_fast_size(fast, monkeypatch, size, engine):
    if engine == "cpu" and (reason := cpu_bottleneck.unsupported_reason(torch.float32, 64)):
        pytest.skip(reason)
    monkeypatch.setattr(fused, "trunk_engine", lambda *arguments: engine)
    raw, normalised = images(3, 3, *size)
    with torch.no_grad():
        expected = fast(raw)
    frozen = InferenceDetector(fast, dtype=torch.float32)
    for x in (raw, normalised):
        assert (frozen(x) - expected).abs().max() < 1e-4
    assert torch.equal(frozen(raw)[1:], frozen(raw[1:])) or engine != "cpu"


def test_number_of_parameters(authors, detector):
    assert sum(p.numel() for p in detector.parameters()) == 1_437_761
    assert list(detector.state_dict()) == list(authors.state_dict())


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (97, 130), (33, 2), (2, 2)])
def test_logits_equal_the_authors(authors, detector, size):
    raw, normalised = images(2, 3, *size)
    with torch.no_grad():
        expected = authors(normalised)
        assert (detector(normalised) - expected).abs().max() < 1e-5
        assert (detector(raw) - expected).abs().max() < 1e-5
        assert (detector(raw.contiguous(memory_format=torch.channels_last)) - expected).abs().max() < 1e-5


def test_training_step_equals_the_authors():
    """In float64: small batches make gradients through batch norms too rough to compare in float32."""
    authors = AuthorsNetwork().double()
    detector = NPRDetector().double()
    detector.load_state_dict(authors.state_dict())
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    for network in (authors, detector):
        F.binary_cross_entropy_with_logits(network(x), torch.tensor([[0.0], [1.0], [1.0]]).double()).backward()
    for (name, expected), found in zip(authors.named_parameters(), detector.parameters(), strict=True):
        assert error(found.grad, expected.grad) < 1e-9, name
    assert error(detector.bn1.running_var, authors.bn1.running_var) < 1e-12


@pytest.mark.parametrize("size", [(256, 256), (97, 130), (2, 2)])
@pytest.mark.parametrize("batch", [1, 5])
def test_inference_in_float32(detector, size, batch):
    raw, normalised = images(batch, 3, *size)
    fast = freeze(detector, torch.float32)
    with torch.no_grad():
        expected = detector(raw)
    for x in (raw, normalised, raw.contiguous(memory_format=torch.channels_last)):
        logits = fast(x)
        assert logits.shape == (batch, 1) and logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("engine", ["cpu", "onednn", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_engine_of_the_trunk(detector, monkeypatch, engine, dtype):
    reason = cpu_bottleneck.unsupported_reason(dtype, 64)
    if engine == "cpu" and reason:
        pytest.skip(reason)
    if engine == "onednn" and not fused.onednn_serves(dtype):
        pytest.skip(f"oneDNN has no {dtype} on this processor")
    monkeypatch.setattr(fused, "trunk_engine", lambda *_: engine)
    raw, _ = images(3, 3, 50, 38)
    with torch.no_grad():
        expected = detector(raw)
    assert (freeze(detector, dtype)(raw) - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def test_a_slow_way_says_so(detector, monkeypatch, caplog):
    freeze(detector, torch.float32)
    assert bool(caplog.records) == (fused.trunk_engine(torch.device("cpu"), torch.float32, False, SHAPES) == "torch")
    caplog.clear()
    monkeypatch.setattr(fused, "onednn_serves", lambda dtype: False)
    monkeypatch.setattr(cpu_bottleneck, "unsupported_reason", lambda dtype, width: "no such products")
    freeze(detector, torch.bfloat16)
    assert caplog.messages == ["in bfloat16 the network runs on plain PyTorch, slowly (no such products)"]


def test_inference_in_bfloat16_is_as_good_as_eager_bfloat16(detector):
    raw, normalised = images(8, 3, 64, 64)
    with torch.no_grad():
        truth = detector(raw)
        eager = NPRDetector(backend="eager").eval()
        eager.load_state_dict(detector.state_dict())
        limit = 2 * (eager.bfloat16()(normalised.bfloat16()).float() - truth).abs().max()
    assert (freeze(detector, torch.bfloat16)(raw) - truth).abs().max() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_logit_depends_on_no_other_image_of_the_batch(detector, dtype):
    frozen = freeze(detector, dtype)
    if frozen.engine != "cpu":
        pytest.skip("other libraries' convolutions promise nothing of the kind")
    images = torch.randint(0, 256, (7, 3, 48, 64), dtype=torch.uint8)
    together, alone = frozen(images), torch.cat([frozen(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize("network", ["detector", "fast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_logit_depends_on_no_other_image_of_the_batch_on_a_gpu(request, network, dtype, cuda):
    model = request.getfixturevalue(network)
    frozen = freeze(model.to(cuda), dtype)
    assert frozen.engine in ("hopper", "triton")
    images = torch.randint(0, 256, (70, 3, 48, 61), dtype=torch.uint8, device=cuda)
    together, alone = frozen(images), torch.cat([frozen(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    torch.testing.assert_close(frozen(images[3:20]), together[3:20], rtol=0, atol=0)
    with torch.no_grad():
        exact = model(images)
    model.cpu()
    assert (together - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_engine_of_a_gpu(monkeypatch):
    def engine(kernels: str | None, compile: bool = False) -> str:
        monkeypatch.setattr(selection, "kernels_for", lambda *_: kernels)
        return fused.trunk_engine(torch.device("cuda"), torch.bfloat16, compile, SHAPES)

    assert (engine("hopper"), engine("triton")) == ("hopper", "triton")
    assert engine(None) == engine("hopper", compile=True) == "torch"


def test_inference_is_frozen(detector):
    fast = freeze(detector)
    assert fast.dtype == default_dtype(torch.device("cpu"))
    raw, _ = images(1, 3, 32, 32)
    before = fast(raw)
    with torch.no_grad():
        detector.fc1.bias.add_(1)
        detector.conv1.weight.mul_(2)
    after = fast(raw)
    with torch.no_grad():
        detector.fc1.bias.sub_(1)
        detector.conv1.weight.mul_(0.5)
    assert torch.equal(before, after) and not after.requires_grad


def test_inference_of_an_empty_batch(detector):
    assert InferenceDetector(detector)(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, 1)


@pytest.mark.xdist_group("inductor")
def test_compiled_inference(detector):
    """torch.compile as a choice; the real compiler on a small image."""
    raw, _ = images(2, 3, 32, 32)
    compiled = freeze(detector, torch.float32, compile=True)
    assert (compiled(raw) - freeze(detector, torch.float32)(raw)).abs().max() < 1e-4


@pytest.mark.parametrize(("grid_size", "anchor"), [(3, 4), (2, "mean"), (2, "max")])
def test_variants_of_table_7(grid_size, anchor):
    detector = with_lively_statistics(NPRDetector(grid_size=grid_size, anchor=anchor))
    raw, normalised = images(2, 3, 48, 48)
    assert (detector.grid_size, detector.anchor) == (grid_size, anchor)
    with torch.no_grad():
        expected = detector(normalised)
        assert (detector(raw) - expected).abs().max() < 1e-4
    assert (freeze(detector, torch.float32)(raw) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_pixels_never_become_a_verdict(detector, dtype):
    """The fused ReLU of the trunk turns NaN into 0; the score must be NaN all the same, and of that image alone."""
    _, normalised = images(3, 3, 64, 64)
    normalised[1, 0, 9, 9] = float("nan")
    assert freeze(detector, dtype)(normalised).isnan().flatten().tolist() == [False, True, False]


def test_float_images_lose_nothing_to_bytes_in_bfloat16(detector):
    """Differences are taken before rounding, so a normalised image scores as its bytes do, up to bfloat16."""
    raw, normalised = images(4, 3, 64, 64)
    fast = freeze(detector, torch.bfloat16)
    assert (fast(raw) - fast(normalised)).abs().max() < 0.02


@pytest.mark.parametrize("scale", [2 / 3, -1.0, 0.0])
def test_weights_for_pixels_are_rounded_once(scale):
    """What is left of the scale for the kernel is a power of two, which rounds nothing."""
    detector = with_lively_statistics(NPRDetector(scale=scale))
    frozen = freeze(detector, torch.bfloat16)
    assert math.frexp(frozen.pixel_scale)[0] == 0.5
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(3, 1, 1)
    exact = frozen.stem_weight.double() * scale / (255 * std)
    found = frozen.pixel_weight.double() * frozen.pixel_scale
    assert found.isfinite().all() and ((found - exact).abs() <= 1.001 * 2**-8 * exact.abs()).all()


def test_weights_that_give_nan_are_refused(authors):
    broken = NPRDetector()
    broken.load_state_dict(authors.state_dict())
    broken.layer1[0].bn2.running_var.fill_(-1)
    with pytest.raises(ValueError, match="NaN or infinite convolutions"):
        freeze(broken.eval())
