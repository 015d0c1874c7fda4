"""The other detectors: each against a direct computation of its paper's method, and all against one interface."""

from __future__ import annotations

import copy
import inspect
import json

import numpy as np
import pytest
import scipy.fft
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from npr_model import checkpoints, cli
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors import NAMES, detector_class
from npr_model.detectors.base import IMAGENET_MEAN, IMAGENET_STD, DetectorNetwork
from npr_model.detectors.bihpf import CUTOFF, BiHPF
from npr_model.detectors.durall import RINGS, Durall
from npr_model.detectors.frank import TILE, Frank
from npr_model.detectors.layers.frequency import dct_2d, inverse_dct_2d
from npr_model.errors import InputError
from npr_model.evaluation import published
from npr_model.inference.freeze import freeze
from npr_model.training import loop
from npr_model.training.config import TrainConfig
from npr_model.training.distributed import Process
from npr_model.training.trainer import Trainer
from tests.model.conftest import noise

OTHERS = [name for name in NAMES if name != "npr"]
LAYOUT = {"train/0_real": 6, "train/1_fake": 6, "held/gan/0_real": 3, "held/gan/1_fake": 3}


def images(*sizes: tuple[int, int], count: int = 2) -> list[torch.Tensor]:
    return [
        torch.stack([torch.from_numpy(noise(height, width, seed)).permute(2, 0, 1) for seed in range(count)])
        for height, width in sizes
    ]


def made(name: str) -> DetectorNetwork:
    """A detector whose weights and statistics are not the initial ones."""
    torch.manual_seed(0)
    model = detector_class(name)()
    for tensor_name, tensor in model.state_dict().items():
        if tensor_name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif tensor_name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and not tensor.any() and tensor_name != "reference":
            tensor.normal_(0, 0.01)
    return model.eval()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("narrow_resnet", "narrow_xception", "small_efficientnet")
def test_is_a_detector(name, tmp_path):
    model = made(name)
    assert model.paper_name in published.methods()
    wide = copy.deepcopy(model).double()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for pixels in images((32, 32), (2, 2), (30, 141)):
        logits = model(pixels)
        assert logits.shape == (2, 1) and logits.isfinite().all() and logits[0] != logits[1]
        torch.testing.assert_close(wide((pixels.double() / 255 - mean) / std), wide(pixels), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(freeze(model)(pixels), logits, rtol=1e-5, atol=1e-5)
        assert freeze(model, torch.bfloat16)(pixels).dtype == torch.float32
        broken = pixels.float()
        broken[0, 0, broken.shape[2] // 2, broken.shape[3] // 2] = float("nan")
        assert model(broken)[0].isnan() and model(broken)[1].isfinite()
    checkpoints.save(tmp_path / "a.safetensors", model, Metadata(name="a", training_data="none"))
    loaded = checkpoints.load(tmp_path / "a.safetensors")
    assert (loaded.metadata.detector, loaded.metadata.training_data) == (name, "none")
    torch.testing.assert_close(loaded.model(pixels), logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in OTHERS if not detector_class(name).fitted])
@pytest.mark.usefixtures("narrow_resnet", "narrow_xception", "small_efficientnet")
def test_learns(name):
    """It learns one batch by heart: noise against up-sampled noise."""
    pixels = images((32, 32), count=8)[0]
    pixels[4:] = pixels[4:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    batch = pixels, (torch.arange(8) >= 4).float()[:, None]
    trainer = Trainer(TrainConfig(detector=name, learning_rate=1e-3), Process(torch.device("cpu")))
    losses = []
    for _ in range(16):
        trainer.steps = 0  # each step draws the same random numbers
        losses.append(trainer.step(iter([batch])).item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("narrow_resnet", "narrow_xception", "small_efficientnet")
def test_trains_is_resumed_and_compared(name, labelled, tmp_path, capsys):
    """An interrupted run ends with the weights of one that was not."""
    root = labelled(LAYOUT)
    values = {"batch_size": 4, "crop_size": 24, "workers": 0, "device": "cpu", "epochs": 2, "learning_rate": 1e-3}
    values |= {"detector": name, "save_steps": 2, "accumulation": 2}
    config = TrainConfig(folders=(str(root / "train"),), validation=(str(root / "held"),), **values)
    epochs = []
    best = loop.train(config, tmp_path / "whole", callbacks=loop.Callbacks(on_epoch=epochs.append))
    assert all(0 <= epoch.accuracy <= 1 and epoch.validation.mean for epoch in epochs)

    def interrupt(step):
        if step.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "cut", callbacks=loop.Callbacks(on_step=interrupt))
    loop.train(config, tmp_path / "cut", resume=True)
    files = [(tmp_path / run / "last.safetensors").read_bytes() for run in ("whole", "cut")]
    assert files[0] == files[1]

    output = tmp_path / "comparison"
    arguments = ["compare", "--evaluate", str(root / "held"), "-c", "wild-2", "-c", str(best), "-o", str(output)]
    assert cli.main([*arguments, "--batch-size", "2"]) == 0
    rows = json.loads((output / "comparison.json").read_text())
    assert [row["detector"] for row in rows] == ["NPR", detector_class(name).paper_name]
    assert rows[1]["mean"]["average_precision"] == pytest.approx(max(epoch.score for epoch in epochs))
    table = (output / "comparison.md").read_text()
    assert table.count(f"| {rows[1]['checkpoint']} | {rows[1]['detector']} | native | ") == 1


def test_unknown_and_contradictory_settings_are_refused(labelled, tmp_path, capsys):
    with pytest.raises(InputError, match="unknown detector 'nope': use one of npr, bihpf"):
        TrainConfig(detector="nope")
    with pytest.raises(InputError, match="size, grid_size, anchor and teacher work with the detector npr only"):
        TrainConfig(detector="frank", grid_size=3)
    root = labelled(LAYOUT)
    path = tmp_path / "frank.safetensors"
    checkpoints.save(path, made("frank"), Metadata())
    config = TrainConfig(folders=(str(root / "train"),), start=str(path), device="cpu")
    with pytest.raises(InputError, match="has detector frank, not npr: set detector=frank"):
        loop.train(config, tmp_path / "run")
    assert cli.main(["explain", str(root / "train/0_real/0.png"), "--checkpoint", str(path), "-o", str(tmp_path)]) == 2
    assert "is of the detector frank; only npr has NPR maps to show" in capsys.readouterr().err
    arguments = ["ablate", str(root / "train"), "--evaluate", str(root / "held"), "-o", str(tmp_path / "ablation")]
    assert cli.main([*arguments, "--set", "detector=frank"]) == 2
    assert "the detector frank has no grid size or anchor to vary" in capsys.readouterr().err
    header = json.loads(Metadata(detector="nope").to_json())
    assert header["architecture"]["detector"] == "nope"
    with pytest.raises(InputError, match="unknown detector 'nope'"):
        Metadata.from_json(json.dumps(header)).network()


def test_a_checkpoint_without_a_detector_name_is_npr():
    values = json.loads(Metadata().to_json())
    del values["architecture"]["detector"]
    assert Metadata.from_json(json.dumps(values)).detector == "npr"


def test_cnndetection_has_the_layout_of_its_authors(tmp_path):
    """torchvision's names; the authors' files hold them under "model"."""
    model = made("cnndetection")
    state = model.state_dict()
    assert len(state) == 320 and state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert state["layer3.0.downsample.1.running_var"].shape == (1024,) and state["fc.weight"].shape == (1, 2048)
    torch.save({"model": state, "total_steps": 5}, tmp_path / "blur_jpg_prob0.5.pth")
    loaded = checkpoints.load(tmp_path / "blur_jpg_prob0.5.pth")
    assert loaded.metadata.detector == loaded.model.detector == "cnndetection"
    (pixels,) = images((40, 40))
    torch.testing.assert_close(loaded.model(pixels), model(pixels), rtol=0, atol=0)
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "imagenet.pth")
    with pytest.raises(CheckpointError, match=r"fc\.weight is \(1000, 2048\) instead of \(1, 2048\)"):
        checkpoints.load(tmp_path / "imagenet.pth")


PARAMETERS = {"bihpf": 23_510_081, "cnndetection": 23_510_081, "frepgan": 23_606_296, "lgrad": 23_582_226}
PARAMETERS |= {"f3net": 47_966_697, "gandetection": 87_752_045, "selfbland": 17_550_409}


@pytest.mark.parametrize("name", PARAMETERS)
def test_has_a_whole_resnet_50_xception_or_efficientnet_b4(name):
    with torch.device("meta"):
        model = detector_class(name)()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,} parameters" in inspect.getdoc(type(model)).replace("\n", " ")


def test_transforms_equal_scipys():
    x = torch.randn(2, 3, 12, 31, dtype=torch.float64)
    expected = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(dct_2d(x).numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(inverse_dct_2d(dct_2d(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(TILE, TILE), (2 * TILE, 3 * TILE), (TILE + 9, 2 * TILE + 4), (50, 300), (3, 2)])
def test_frank_is_linear_in_the_log_spectra_of_tiles(size):
    model = made("frank").double()
    (pixels,) = images(size, count=1)
    image = pixels[0].permute(1, 2, 0).numpy() / 255
    image = np.pad(image, [(0, max(0, TILE - n)) for n in size] + [(0, 0)], "symmetric")
    weight, mean, variance = (
        tensor.detach().numpy().reshape(3, TILE, TILE)
        for tensor in (model.fc.weight, model.standardise.running_mean, model.standardise.running_var)
    )
    logits = []
    for top in range((image.shape[0] % TILE) // 2, image.shape[0] - TILE + 1, TILE):
        for left in range((image.shape[1] % TILE) // 2, image.shape[1] - TILE + 1, TILE):
            tile = image[top : top + TILE, left : left + TILE].transpose(2, 0, 1)
            logarithms = np.log(np.abs(scipy.fft.dctn(tile, axes=(1, 2), norm="ortho")) + 1e-5)
            logits.append((weight * (logarithms - mean) / np.sqrt(variance + 1e-5)).sum() + model.fc.bias.item())
    assert len(logits) == max(1, size[0] // TILE) * max(1, size[1] // TILE)
    assert model(pixels).item() == pytest.approx(np.mean(logits), rel=1e-9)
    assert model.train()(pixels.repeat(2, 1, 1, 1)).shape == (2, len(logits))  # each tile is trained


def test_frank_scores_many_tiles_a_few_at_a_time(monkeypatch):
    model = made("frank")
    (pixels,) = images((2 * TILE, 2 * TILE))
    expected, seen, score = model(pixels), [], Frank._score
    monkeypatch.setattr("npr_model.detectors.frank._AT_ONCE", 3)
    monkeypatch.setattr(Frank, "_score", lambda self, tiles: seen.append(len(tiles)) or score(self, tiles))
    torch.testing.assert_close(model(pixels), expected)
    assert seen == [3, 3, 2]


@pytest.mark.parametrize("size", [(64, 64), (31, 50), (2, 3)])
def test_durall_averages_the_spectrum_over_rings(size):
    (pixels,) = images(size, count=1)
    luma = pixels[0].permute(1, 2, 0).numpy() / 255 @ np.array([0.299, 0.587, 0.114])
    decibels = 20 * np.log10(np.abs(np.fft.fft2(luma)) + 1e-8)
    rings = [[] for _ in range(RINGS)]
    for i, vertical in enumerate(np.fft.fftfreq(size[0])):
        for j, horizontal in enumerate(np.fft.fftfreq(size[1])):
            radius = np.hypot(vertical, horizontal) / np.sqrt(0.5)
            if radius > 0:
                rings[min(RINGS - 1, int(radius * RINGS))].append(decibels[i, j])
    present = [ring for ring in range(RINGS) if rings[ring]]
    nearest = [min(present, key=lambda other: abs(other - ring)) for ring in range(RINGS)]
    expected = np.array([np.mean(rings[ring]) for ring in nearest])
    features = Durall().double().features(pixels)[0].numpy()
    np.testing.assert_allclose(features, expected[1:] - expected[0], rtol=0, atol=1e-9)


def test_brightness_and_contrast_change_no_feature_of_durall():
    (pixels,) = images((40, 40), count=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    original, changed = ((unit - mean) / std for unit in (pixels.double() / 255, pixels.double() / 510 + 0.2))
    model = Durall().double()
    torch.testing.assert_close(model.features(changed), model.features(original), rtol=0, atol=1e-5)


def test_durall_equals_scikit_learns_fit():
    generator = np.random.default_rng(0)
    features = generator.normal(3, 5, (200, RINGS - 1))
    labels = (features[:, 5] - features[:, 7] + generator.normal(0, 2, 200) > 0).astype(float)
    model = Durall().double()
    model.fit(features, labels)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000)).fit(features, labels)
    logits = model.fc(torch.from_numpy(features)).flatten().numpy()
    np.testing.assert_allclose(logits, pipeline.decision_function(features), rtol=1e-6, atol=1e-6)


def test_a_fit_to_too_many_crops_or_in_two_processes_is_refused_at_once(labelled, tmp_path, monkeypatch):
    root = labelled(LAYOUT)
    config = TrainConfig(folders=(str(root / "train"),), detector="durall", batch_size=4, crop_size=24, device="cpu")
    monkeypatch.setattr("npr_model.training.fitter.MAX_BYTES", 1000 * (RINGS - 1))
    with pytest.raises(
        InputError, match="fitted to all crops at once; 600 are more than the limit of 250: set fewer epochs"
    ):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [(24, 20), (11, 14)])
def test_bihpf_filters_in_the_frequency_and_in_the_pixel_domain(size, narrow_resnet):
    model = BiHPF().double()
    (pixels,) = images(size, count=1)
    frequencies = np.meshgrid(*map(np.fft.fftfreq, size), indexing="ij")
    positions = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in size), indexing="ij")
    weights = [1 - np.exp(-(np.hypot(*at) ** 2) / (2 * CUTOFF**2)) for at in (frequencies, positions)]
    for channel, spectrum in zip(pixels[0].numpy() / 255, model.spectra(pixels)[0].numpy(), strict=True):
        filtered = np.fft.ifft2(np.fft.fft2(channel) * weights[0]).real * weights[1]
        logarithms = np.log(np.abs(np.fft.fftshift(np.fft.fft2(filtered, norm="ortho"))) + 1e-5)
        expected = (logarithms - logarithms.mean()) / np.sqrt(logarithms.var() + 1e-5)
        np.testing.assert_allclose(spectrum, expected, rtol=0, atol=1e-9)
