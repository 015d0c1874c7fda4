"""WebP: a file is scored if the data of all its pixels is there; otherwise it is an error."""

from __future__ import annotations

import pytest
from PIL import Image

from npr_model.imaging.decode import decode
from npr_model.imaging.errors import ImageError
from npr_model.imaging.headers import header_size
from tests.model.conftest import encoded
from tests.model.imaging.files import picture
from tests.model.imaging.kinds import KINDS, of_format, refused


def test_webp_whose_first_frame_is_smaller_than_the_image():
    image = Image.fromarray(picture(40, 30))
    data = encoded(image, "WEBP", save_all=True, append_images=[image.rotate(180)])
    claiming = data[:24] + (59).to_bytes(3, "little") + data[27:]
    refused(claiming, "does not cover", "unsupported")


@pytest.mark.parametrize("name", of_format("WEBP"))
def test_webp_is_measured_before_pillow_takes_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr("npr_model.imaging.pillow.open_image", None)
    (tmp_path / "image").write_bytes(KINDS[name])
    assert header_size(tmp_path / "image") == (38, 45)
    with pytest.raises(ImageError, match="38x45 pixels, more than the limit of 1700") as caught:
        decode(KINDS[name], max_pixels=1700)
    assert caught.value.code == "too_large"
