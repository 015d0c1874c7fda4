"""The old place of :mod:`npr_kernels.testing`."""

from npr_kernels.testing import *  # noqa: F403
