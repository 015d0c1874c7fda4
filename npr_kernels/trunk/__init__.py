"""Residual blocks behind a stem, in evaluation mode, as compiled kernels."""
