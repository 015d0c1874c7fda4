"""Files of every kind by format, and how a file is refused."""

from __future__ import annotations

import pytest

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from tests.model.imaging.files import every_kind

KINDS = every_kind()


def of_format(format: str) -> list[str]:
    return [name for name in KINDS if name.split()[0] == format]


def refused(data: bytes, message: str = "", code: str = "damaged") -> None:
    with pytest.raises(ImageError, match=message or None) as caught:
        decode(data)
    assert caught.value.code == code, str(caught.value)
