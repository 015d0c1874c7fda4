"""Encoding without a detour: what is written can be read again."""

from __future__ import annotations

import numpy as np
import simplejpeg

from npr_model.imaging.decode import decode
from npr_model.imaging.encode import encode_jpeg, encode_png
from tests.model.conftest import noise
from tests.model.imaging.files import smooth


def test_encoders():
    pixels = noise(20, 30)
    np.testing.assert_array_equal(decode(encode_png(pixels)).pixels, pixels)
    data = encode_jpeg(smooth(20, 30), 95)
    assert simplejpeg.decode_jpeg_header(data)[3] == "420"
    assert np.abs(decode(data).pixels.astype(int) - smooth(20, 30)).mean() < 10
