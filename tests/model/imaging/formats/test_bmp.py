"""BMP: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from tests.model.imaging import files
from tests.model.imaging.files import picture
from tests.model.imaging.kinds import refused


def test_bmp_runs_that_leave_pixels_out():
    indices = np.asarray(Image.fromarray(picture(12, 20)).quantize(16))
    for half_bytes in (False, True):
        data = files.bmp_runs(indices, half_bytes=half_bytes)
        start = struct.unpack_from("<I", data, 10)[0]
        for changes in ((18, 40), (22, 24)):
            claiming = bytearray(data)
            struct.pack_into("<i", claiming, *changes)
            refused(bytes(claiming), "every pixel|truncated")
        for end in (
            b"\0\1",
            b"\0\0" * 12 + b"\0\1",
            b"\0\2\5\1" * 3 + b"\0\1",
        ):  # end of image, of lines, skipped pixels
            body = data[start : start + 80] + end
            cut = data[:34] + struct.pack("<I", len(body)) + data[38:start] + body
            refused(cut, "every pixel")
