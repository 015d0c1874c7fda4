"""Fused kernels for Neighbouring Pixel Relationships (NPR) and the convolution that follows.

Importing this package uses no GPU, no compiler and no Triton. Without the compiled extension, everything runs on plain
PyTorch.
"""

from npr_kernels.backends.registry import BackendChoice, BackendError, available_backends, use_backend
from npr_kernels.functional import fold_batch_norm, npr, npr_batch_norm_stem, npr_conv2d, npr_stem, which_backend
from npr_kernels.modules import NPRConv2d, NPRStem, replace_first_conv, stem_forward

__all__ = [
    "BackendChoice",
    "BackendError",
    "NPRConv2d",
    "NPRStem",
    "available_backends",
    "fold_batch_norm",
    "npr",
    "npr_batch_norm_stem",
    "npr_conv2d",
    "npr_stem",
    "replace_first_conv",
    "stem_forward",
    "use_backend",
    "which_backend",
]
__version__ = "0.1.0"
