"""JPEGs that were coarser ones before, made of the example photographs, which are lossless."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from npr_kernels import extension
from npr_model.imaging.decode import decode
from npr_model.imaging.headers import read_encoding
from npr_model.imaging.recompression import gaps, was_coarser
from npr_model.imaging.views import View
from npr_model.scoring.decoding import Decoder
from npr_model.scoring.items import in_memory
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    files = sorted((ROOT / "examples" / "real").glob("*.png"))
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def jpeg(pixels: np.ndarray, quality: int, subsampling: str = "4:2:0") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def again(pixels: np.ndarray, quality: int, shift: int = 0) -> np.ndarray:
    return decode(jpeg(pixels, quality)).pixels[shift:, shift:]


def marked(data: bytes) -> bool:
    return was_coarser(decode(data).pixels, read_encoding(data).quantization[0])


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95, 100])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_once_is_not_twice(photographs, quality, subsampling):
    assert len(photographs) >= 8
    assert sum(marked(jpeg(pixels, quality, subsampling)) for pixels in photographs) == 0


@pytest.mark.parametrize(("first", "second"), [(40, 75), (50, 90), (60, 85), (75, 90), (75, 95), (80, 98)])
def test_coarser_before_is_found(photographs, first, second):
    found = [marked(jpeg(again(pixels, first), second)) for pixels in photographs]
    assert np.mean(found) >= 0.8


@pytest.mark.parametrize(("first", "second", "shift"), [(95, 75, 0), (75, 75, 0), (60, 90, 4), (60, 90, 3)], ids=str)
def test_finer_before_or_on_another_grid_is_not(photographs, first, second, shift):
    assert sum(marked(jpeg(again(pixels, first, shift), second)) for pixels in photographs) == 0


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (8, 8), (9, 17), (64, 64)], ids=str)
def test_what_tells_nothing_is_not_marked(size):
    for pixels in (np.full((*size, 3), 77, np.uint8), np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)):
        assert not marked(jpeg(pixels, 90))


def test_tables_of_any_kind(photographs):
    for table in ([0] * 64, [1] * 64, [255] * 64, [2**16 - 1] * 64):
        assert np.isfinite(gaps(photographs[0], table)).all() and not was_coarser(photographs[0], table)


needs_extension = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))


@needs_extension
@pytest.mark.parametrize("size", [(0, 0), (7, 300), (8, 8), (17, 130), (160, 160), (401, 333)], ids=str)
@pytest.mark.parametrize("table", [range(1, 65), [0] * 64, [2**16 - 1] * 64], ids=["rising", "zero", "large"])
def test_the_compiled_operator_finds_the_same(monkeypatch, photographs, size, table):
    random = np.random.default_rng(0)
    large = np.tile(photographs[0], (3, 3, 1))
    for pixels in (large[: size[0], : size[1]], random.integers(0, 256, (*size, 3), np.uint8)):
        assert_finds_the_same(monkeypatch, pixels, table)


@needs_extension
@pytest.mark.parametrize(("first", "second"), [(40, 75), (60, 85), (75, 95)])
def test_the_compiled_operator_finds_the_same_gaps(monkeypatch, photographs, first, second):
    for photograph in photographs:
        data = jpeg(again(photograph, first), second)
        table = read_encoding(data).quantization[0]
        found = assert_finds_the_same(monkeypatch, decode(data).pixels, table)
        assert max(found) > 10


def assert_finds_the_same(monkeypatch, pixels: np.ndarray, table) -> list[float]:
    """But for the few coefficients that rounding puts on the other side of halfway between two steps."""
    found = gaps(pixels, table)
    with monkeypatch.context() as patched:
        patched.setattr(extension, "LOAD_ERROR", "not built")
        np.testing.assert_allclose(found, gaps(pixels, table), rtol=0.01, atol=1)
    return found


def test_without_the_compiled_operator(monkeypatch, photographs):
    monkeypatch.setattr(extension, "LOAD_ERROR", "not built")
    assert marked(jpeg(again(photographs[0], 50), 90)) and not marked(jpeg(photographs[0], 90))


@needs_extension
def test_the_compiled_operator_refuses_what_it_cannot_read():
    steps, places, shares = torch.ones(4, 4), torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8)
    find = torch.ops.npr_kernels.coefficient_gaps
    assert find(pixels, steps, places, shares, 1, 1, 5, 26) == [0]
    for wrong, message in (
        ((pixels.float(), steps, places, shares, 1, 1, 5, 26), "pixels"),
        ((pixels.transpose(0, 1)[:, ::2], steps, places, shares, 1, 1, 5, 26), "pixels"),
        ((pixels, steps * 0, places, shares, 1, 1, 5, 26), "steps"),
        ((pixels, steps, places + 416, shares, 1, 1, 5, 26), "place"),
        ((pixels, steps, places - 1, shares, 1, 1, 5, 26), "place"),
        ((pixels, steps, places, shares, 1, 0, 5, 26), "place"),
        ((pixels, steps, places, shares, 0, 1, 5, 26), "place"),
        ((pixels, steps, places, shares, -1, -1, 5, 26), "frequencies"),
        ((pixels, steps, places, shares, 1, 2**62, 5, 26), "candidates"),
        ((pixels, steps, places, shares[:0], 1, 1, 5, 26), "shares"),
        ((pixels, steps, places, shares, 1, 1, 5, 0), "bin"),
        ((pixels, steps, places, shares, 1, 1, -1, 26), "blocks"),
        ((pixels, steps, places[:0], shares[:0], 1, 1, 5, 2**60), "bin"),
    ):
        with pytest.raises(RuntimeError, match=message):
            find(*wrong)


def test_rows_say_so(photographs):
    decoder = Decoder(View("native"), "some", 2)
    for data, flags in ((jpeg(photographs[0], 90), ""), (jpeg(again(photographs[0], 50), 90), "recompressed")):
        assert decoder.decode(in_memory("a.jpg", data)).row.flags == flags
