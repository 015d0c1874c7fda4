"""Codecs as options name them."""

from __future__ import annotations

import pytest

from npr_model.errors import InputError
from npr_model.imaging.codecs import Codec


@pytest.mark.parametrize(
    "text", ["", "jpeg", "jpeg:0", "jpeg:90-80", "jpeg:a-b", "jpeg:90-", "webp", "png:3", "jpeg:-5"]
)
def test_bad_codec(text):
    with pytest.raises(InputError, match="unknown codec"):
        Codec.parse(text, ranges=True)
