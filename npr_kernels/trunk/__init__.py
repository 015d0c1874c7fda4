"""Compiled residual blocks for the layers after the stem, for inference."""
