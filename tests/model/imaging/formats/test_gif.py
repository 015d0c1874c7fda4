"""GIF: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from npr_model.imaging.decode import decode
from tests.model.conftest import encoded
from tests.model.imaging.files import picture, stored_pixels
from tests.model.imaging.kinds import KINDS, refused


def test_gif_whose_first_frame_ends_early():
    image = Image.fromarray(picture(64, 40)).quantize(64)
    short = encoded(image.crop((0, 0, 40, 32)), "GIF")
    second = encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)])
    start = short.index(b",")
    claiming = bytearray(short)
    struct.pack_into("<H", claiming, 8, 64)
    refused(bytes(claiming), "does not cover", "unsupported")
    struct.pack_into("<H", claiming, start + 7, 64)
    refused(bytes(claiming), "1280 of 2560 pixels")
    # Pillow would read on in the next frame.
    claiming = claiming[:-1] + second[second.index(b"!", second.index(b",")) :]
    refused(bytes(claiming), "1280 of 2560 pixels")


def test_gif_whose_frame_is_larger_than_its_screen():
    data = KINDS["GIF"]
    for screen in (struct.pack("<HH", 0, 0), struct.pack("<HH", 10, 20)):
        changed = data[:6] + screen + data[10:]
        np.testing.assert_array_equal(decode(changed).pixels, stored_pixels(changed))
