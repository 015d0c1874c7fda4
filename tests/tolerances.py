"""The old place of :mod:`npr_kernels.testing`."""

from npr_kernels.testing import allowed, assert_close, error  # noqa: F401
