"""Small checkpoints, scorers and labelled folders, made for each test."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npr_model import checkpoints, cli
from npr_model.checkpoints import Metadata
from npr_model.detectors import encoder as encoders
from npr_model.detectors.npr import NPRDetector
from npr_model.detectors.ojha import Ojha
from npr_model.detectors.pair import Pair
from npr_model.imaging.views import View
from npr_model.scoring.items import Item
from npr_model.scoring.scorer import Scorer


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 of independent samples: the hardest content for a decoder."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def make_detector(seed: int = 0, size: str = "paper") -> NPRDetector:
    """Random weights, and batch-norm statistics that are not the initial ones."""
    torch.manual_seed(seed)
    model = NPRDetector(size=size)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(autouse=True)
def one_thread():
    """The images are tiny: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def npr(capsys):
    """Runs ``npr`` in this process; gives the exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint without calibration."""
    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    checkpoints.save(path, make_detector(), checkpoints.Metadata(name="random"))
    return path


@pytest.fixture
def labelled(tmp_path):
    """Makes folders of noise ("real") and of noise up-sampled by nearest neighbour ("fake")."""

    def make(layout: dict[str, int], size: int = 32) -> Path:
        root = tmp_path / "data"
        for number, (folder, count) in enumerate(layout.items()):
            (root / folder).mkdir(parents=True)
            for i in range(count):
                pixels = noise(size, size, seed=1000 * number + i)
                if "1_fake" in folder:
                    coarse = pixels[: size // 2, : size // 2].repeat(2, 0).repeat(2, 1)
                    pixels = coarse // 2 + pixels // 16  # a trace of noise, or all fakes would have the same logit
                Image.fromarray(pixels).save(root / folder / f"{i}.png")
        return root

    return make


@pytest.fixture
def scorer(checkpoint):
    def make(**options) -> Scorer:
        return Scorer(checkpoints.load(checkpoint), dtype=torch.float32, **options)

    return make


def item(source: str, data: bytes) -> Item:
    return Item(source, lambda: data)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture
def folder(tmp_path):
    """Two good images, three bad files that look like images, and a text file."""
    path = tmp_path / "images"
    path.mkdir()
    for name, data in {
        "a.png": encoded(noise(16, 16)),
        "b.JPG": encoded(noise(20, 30), "JPEG"),
        "empty.png": b"",
        "text.jpg": b"text" * 99,
        "tiny.png": encoded(noise(1, 1)),
        "notes.txt": b"notes",
    }.items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def small_encoder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The detector ojha uses a small random encoder, which needs no package."""
    from tests.model.detectors.encoders import write  # imports onnx

    path = write(tmp_path_factory.mktemp("encoder") / "small.onnx")
    monkeypatch.setenv(encoders.FILE_VARIABLE, str(path))
    return path


@pytest.fixture
def pair(tmp_path: Path, small_encoder: Path) -> Path:
    """A pair with its parts beside it."""
    clip = Ojha()
    clip.fit(np.random.default_rng(0).normal(size=(20, clip.width)), np.arange(20) % 2)
    clip.fc.weight.mul_(1000)  # the embeddings of all images of noise are similar
    folder = tmp_path / "weights"
    folder.mkdir()
    parts = []
    for name, model in {"traces": make_detector(), "content": clip.eval()}.items():
        checkpoints.save(folder / f"{name}.safetensors", model, Metadata(name=name))
        parts.append(checkpoints.load(folder / f"{name}.safetensors"))
    pair = Pair(*(part.model for part in parts), *(part.model_id for part in parts), detail=256)
    pair.combine.weight.copy_(torch.tensor([[0.3, 2.0]]))
    pair.combine.bias.fill_(-0.5)
    checkpoints.save(folder / "both.safetensors", pair, Metadata(name="both", view=View("sample", 16, 2)))
    return folder / "both.safetensors"
