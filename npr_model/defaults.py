"""Defaults that command lines show. Loads nothing."""

CHECKPOINT = "wild-2"  # the bundled checkpoint
