"""JPEGs decoded by nvImageCodec on a GPU, to measure what its pixels do to the scores.

Screening does not use it: for a JPEG that is damaged, or truncated with an end marker, its CPU backend makes up the
missing pixels and reports no error (version 0.9).
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from npr_model.errors import InputError
from npr_model.imaging.errors import ImageError

INSTALL = "pip install nvidia-nvimgcodec-cu13, and nvidia-nvjpeg-cu13 for GPUs; -cu12 with CUDA 12"
_decoders = threading.local()  # one per thread


def check_available() -> None:
    """Raise InputError if the package or a GPU is missing (on a CPU it would decode as libjpeg-turbo does)."""
    try:
        import nvidia.nvimgcodec  # noqa: F401
    except ImportError as error:
        raise InputError(f"decoder:nvimagecodec needs nvImageCodec ({INSTALL})") from error
    if not torch.cuda.is_available():
        raise InputError("decoder:nvimagecodec needs a GPU, and torch finds none")


def decode(data: bytes) -> np.ndarray:
    """Decode a JPEG to (H, W, 3) uint8: chroma is interpolated ("fancy up-sampling"), EXIF orientation is not applied.

    With a GPU, nothing falls back to the CPU; without one, the CPU decodes. Raises ImageError.
    """
    from nvidia import nvimgcodec

    if not hasattr(_decoders, "decoder"):
        kinds, device = [nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU], {}
        if not torch.cuda.is_available():
            kinds, device = [nvimgcodec.CPU_ONLY], {"device_id": nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY}
        _decoders.decoder = nvimgcodec.Decoder(
            backends=[nvimgcodec.Backend(kind) for kind in kinds],
            max_num_cpu_threads=1,
            options=":fancy_upsampling=1",
            **device,
        )
    parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
    image = _decoders.decoder.decode(data, params=parameters)
    if image is None:
        raise ImageError("nvImageCodec cannot decode the image")
    return np.array(image.cpu())
