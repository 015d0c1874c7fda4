"""JPEGs decoded by nvImageCodec, on a GPU where there is one, to see what its pixels do to the scores.

It is not what screening decodes with: of a JPEG that is damaged, or cut off and given an end marker, it makes up the
rest and says nothing (version 0.9), while here pixels that a decoder made up are never scored.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from npr_model.errors import InputError
from npr_model.images import ImageError

INSTALL = "pip install nvidia-nvimgcodec-cu13, and nvidia-nvjpeg-cu13 for GPUs; -cu12 with CUDA 12"
_decoders = threading.local()  # one a thread


def check_installed() -> None:
    """Raises InputError where the package is missing."""
    try:
        import nvidia.nvimgcodec  # noqa: F401
    except ImportError as error:
        raise InputError(f"decoder:nvimagecodec needs nvImageCodec ({INSTALL})") from error


def decode(data: bytes) -> np.ndarray:
    """A JPEG's pixels, (H, W, 3) uint8, chroma interpolated ("fancy up-sampling"), EXIF orientation not applied.

    Raises ImageError for what it cannot decode, InputError where it is not installed.
    """
    check_installed()
    from nvidia import nvimgcodec

    if not hasattr(_decoders, "decoder"):
        options: dict = {"options": ":fancy_upsampling=1", "max_num_cpu_threads": 1}
        if not torch.cuda.is_available():
            options["device_id"] = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
            options["backends"] = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
        _decoders.decoder = nvimgcodec.Decoder(**options)
    parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
    image = _decoders.decoder.decode(data, params=parameters)
    if image is None:
        raise ImageError("nvImageCodec cannot decode it")
    return np.array(image.cpu())
