"""JPEGs decoded by nvImageCodec on a GPU, to see what its pixels do to the scores.

It is not what screening decodes with: of a JPEG that is damaged, or cut off and given an end marker, its CPU backend
makes up the rest and gives no error (version 0.9), while here pixels that a decoder made up are never scored.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from npr_model.errors import InputError
from npr_model.imaging.decode import ImageError

INSTALL = "pip install nvidia-nvimgcodec-cu13, and nvidia-nvjpeg-cu13 for GPUs; -cu12 with CUDA 12"
_decoders = threading.local()  # one a thread


def check_available() -> None:
    """Raises InputError where the package or a GPU is missing: on a CPU it would decode as libjpeg-turbo does."""
    try:
        import nvidia.nvimgcodec  # noqa: F401
    except ImportError as error:
        raise InputError(f"decoder:nvimagecodec needs nvImageCodec ({INSTALL})") from error
    if not torch.cuda.is_available():
        raise InputError("decoder:nvimagecodec needs a GPU, and torch finds none")


def decode(data: bytes) -> np.ndarray:
    """A JPEG's pixels, (H, W, 3) uint8, chroma interpolated ("fancy up-sampling"), EXIF orientation not applied.

    On a GPU nothing is left to the CPU in silence; where there is none, all is. Raises ImageError for what it cannot
    decode.
    """
    from nvidia import nvimgcodec

    if not hasattr(_decoders, "decoder"):
        kinds, device = (nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU), {}
        if not torch.cuda.is_available():
            kinds, device = (nvimgcodec.CPU_ONLY,), {"device_id": nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY}
        _decoders.decoder = nvimgcodec.Decoder(
            backends=[nvimgcodec.Backend(kind) for kind in kinds],
            max_num_cpu_threads=1,
            options=":fancy_upsampling=1",
            **device,
        )
    parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
    image = _decoders.decoder.decode(data, params=parameters)
    if image is None:
        raise ImageError("nvImageCodec cannot decode it")
    return np.array(image.cpu())
