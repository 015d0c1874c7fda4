"""Netpbm: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

from npr_model.imaging.decode import decode
from tests.model.imaging.kinds import refused


def test_text_pixels_whose_last_number_may_be_cut():
    data = b"P2\n2 2\n255\n1 2 3 255\n"
    assert decode(data).pixels[1, 1, 0] == 255
    refused(data[:-1])
    refused(data[:-2], "last number")
