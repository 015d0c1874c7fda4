"""Defaults that command lines show. Loads nothing."""

CHECKPOINT = "wild-1"  # the bundled checkpoint
