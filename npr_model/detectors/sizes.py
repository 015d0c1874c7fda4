"""The sizes of an NPR detector: what follows its stem. Importing this file loads no torch."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """Residual blocks: how many, their inner width, the channels of their results, and the stride of the first one."""

    blocks: int
    width: int
    channels: int
    stride: int


class Size(NamedTuple):
    """The stem's output is averaged over ``pool`` x ``pool`` pixels, then goes through two stages."""

    pool: int
    stages: tuple[Stage, Stage]


# "paper" takes 4.5 GFLOP for 256x256 pixels (products and sums), "fast" 0.41.
SIZES = {
    "paper": Size(1, (Stage(3, 64, 256, 1), Stage(4, 128, 512, 2))),
    "fast": Size(2, (Stage(2, 64, 128, 1), Stage(3, 64, 256, 2))),
}
