"""Screening: one row an item, whatever the files are."""

from __future__ import annotations

import functools
import gc
import io
import itertools
import math
import random
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from npr_kernels import BackendError
from npr_model import checkpoints
from npr_model.errors import InputError
from npr_model.imaging.decode import DecodedImage
from npr_model.imaging.views import View
from npr_model.scoring import batches, decoding
from npr_model.scoring import scorer as scorer_module
from npr_model.scoring.items import Item
from npr_model.scoring.scorer import Scorer
from npr_model.verdicts import Calibration
from tests.model.conftest import encoded, item, make_detector, noise
from tests.model.imaging.files import png_claiming


def reference_logit(pixels: np.ndarray) -> float:
    with torch.no_grad():
        return make_detector()(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)).item()


def mixed_items() -> tuple[list[Item], dict[str, np.ndarray], dict[str, str]]:
    """Items, the pixels of the good ones, and parts of the errors of the bad ones."""
    sizes = [(2, 2), (3, 2), (16, 16), (17, 16), (16, 24), (40, 30)]
    good = {f"good {i}": noise(*sizes[i % len(sizes)], seed=i) for i in range(30)}
    bad = {
        "empty": (b"", "empty"),
        "text": (b"text" * 50, "not an image"),
        "truncated": (encoded(noise(40, 40), "JPEG")[:900], "truncated"),
        "1x1": (encoded(noise(1, 1)), "the image is 1x1 pixels, smaller than one cell of 2x2"),
        "enormous": (png_claiming(100_000, 100_000), "has 100000x100000"),
    }
    items = [item(name, encoded(pixels)) for name, pixels in good.items()]
    items += [item(name, data) for name, (data, _) in bad.items()]
    random.Random(0).shuffle(items)
    return items, good, {name: message for name, (_, message) in bad.items()}


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2), (64, 3)])
def test_one_row_an_item_with_the_networks_logit(scorer, batch_size, workers):
    items, good, bad = mixed_items()
    rows = list(scorer(batch_size=batch_size, workers=workers).score(items))
    assert sorted(row.source for row in rows) == sorted(i.source for i in items)
    for row in rows:
        assert row.view == "native" and row.model.startswith("random@")
        if row.source in bad:
            assert bad[row.source] in row.error
            assert row.logit is row.probability is row.verdict is None
        else:
            pixels = good[row.source]
            assert row.error is None
            assert row.logit == pytest.approx(reference_logit(pixels), abs=1e-4)
            assert row.probability == pytest.approx(1 / (1 + math.exp(-row.logit)))
            assert row.verdict == ("generated" if row.logit > 0 else "real")
            assert (row.height, row.width) == pixels.shape[:2]
            assert row.format == "PNG" and row.decoder.startswith("pillow ")


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_a_sampled_image_has_the_mean_of_its_tiles_logits(scorer, batch_size):
    view = View.parse("sample:4x16")
    images = [
        noise(*size, seed=i) for i, size in enumerate([(60, 50), (16, 16), (33, 32), (61, 40), (9, 90), (60, 50)])
    ]
    made = scorer(view=view, batch_size=batch_size)
    rows = {row.source: row for row in made.score(item(str(i), encoded(pixels)) for i, pixels in enumerate(images))}
    for number, pixels in enumerate(images):
        row = rows[str(number)]
        expected = np.mean([reference_logit(part) for part in view.parts(pixels)])
        assert row.logit == pytest.approx(expected, abs=1e-4) and row.view == "sample:4x16"
        assert (row.height, row.width) == pixels.shape[:2]


def test_what_a_file_declares_is_in_its_row_and_does_not_change_the_logit(scorer):
    text = PngInfo()
    text.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler a, CFG scale: 7")
    file, pixels = io.BytesIO(), noise(20, 30)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=text)
    plain, declared = scorer().score([item("plain", encoded(pixels)), item("declared", file.getvalue())])
    assert (plain.declared, plain.declared_by) == (None, None) and plain.verdict in ("real", "generated")
    assert (declared.declared, declared.verdict) == ("generated", "generated (declared)")
    assert declared.declared_by == "PNG text parameters: parameters of a Stable Diffusion web UI"
    assert declared.logit == plain.logit


@pytest.mark.parametrize("view", ["native", "sample:2x16"])
def test_where_there_is_nothing_to_see_the_verdict_is_uncertain(scorer, view):
    black, dotted = np.zeros((80, 90, 3), np.uint8), np.full((80, 90, 3), 200, np.uint8)
    dotted[::16, ::16] = 0
    images = {"black": black, "dotted": dotted, "noise": noise(80, 90)}
    made = scorer(view=View.parse(view), calibration=Calibration(-1e6))
    for row in made.score(item(name, encoded(pixels)) for name, pixels in images.items()):
        is_flat = row.source != "noise"
        assert ("flat" in row.flags.split()) == is_flat
        assert row.verdict == ("uncertain" if is_flat else "generated")


def test_size_of_a_decoded_image_is_kept_with_its_error(scorer):
    (row,) = scorer().score([item("thin", encoded(noise(1, 9)))])
    assert (row.width, row.height, row.format) == (9, 1, "PNG")
    assert "smaller than one cell" in row.error


def test_order_depends_on_the_items_alone(scorer):
    items, _, _ = mixed_items()
    orders = [[row.source for row in scorer(batch_size=4, workers=n).score(items)] for n in (1, 4)]
    assert orders[0] == orders[1]


def test_listing_and_decoding_go_ahead_a_little_only(scorer, monkeypatch):
    monkeypatch.setattr(batches, "PENDING_PIXELS", 2000)  # seven images of 16x16
    monkeypatch.setattr(decoding, "AHEAD_PIXELS", 2000)
    listed = loaded = 0

    def endless():
        nonlocal listed
        while True:
            listed += 1
            yield Item(str(listed), functools.partial(load, listed))

    def load(number):
        nonlocal loaded
        loaded += 1
        return encoded(noise(16, 16, seed=number))

    rows = scorer(batch_size=100, workers=2).score(endless())
    next(rows)
    time.sleep(0.2)
    assert 7 < listed <= 8 + 2 * 100
    assert 8 <= loaded <= 8 + 8 + 2
    seen = 1 + len(list(itertools.islice(rows, 500)))
    time.sleep(0.2)
    assert seen == 501 and loaded <= 501 + 8 + 8 + 2
    rows.close()


def test_batches_are_bounded_in_pixels(scorer, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_PIXELS", 600)
    made = scorer(batch_size=1000)
    sizes = []
    inner = made._logits
    monkeypatch.setattr(made, "_logits", lambda pixels: sizes.append(len(pixels)) or inner(pixels))
    assert len(list(made.score([item(str(i), encoded(noise(16, 16, seed=i))) for i in range(8)]))) == 8
    assert sizes == [3, 3, 2]


@pytest.fixture(params=[0, 1, 2])
def ahead(request, scorer):
    """As ``scorer``, with so many batches launched before the rows of one are made: on a GPU it is 1."""

    def make(**options) -> Scorer:
        made = scorer(**options)
        made._launched_ahead = make.ahead
        return made

    make.ahead = request.param
    return make


def test_batches_are_launched_before_the_rows_of_others_are_made(scorer, ahead, monkeypatch):
    """The rows are the same; a copy waits for those of what it is a copy of."""
    pictures = [encoded(noise(16, 16, seed=i)) for i in range(7)]
    items = [item(str(i), pictures[number]) for i, number in enumerate((0, 1, 2, 3, 4, 5, 2, 6, 6, 0))]
    expected = {row.source: row.logit for row in scorer(batch_size=2).score(items)}
    made = ahead(batch_size=2)
    inner, events = made._logits, []

    def logits(pixels):
        events.append(1)
        wait = inner(pixels)
        return lambda: events.append(-1) or wait()

    monkeypatch.setattr(made, "_logits", logits)
    found = list(made.score(items))
    assert {row.source: row.logit for row in found} == expected and len(found) == 10
    assert sum(events) == 0 and max(itertools.accumulate(events)) == ahead.ahead + 1
    assert made.rates.scored == 7


@pytest.mark.parametrize("width", [16, 17, 22])
def test_rows_begin_at_multiples_of_some_bytes_and_logits_stay(scorer, monkeypatch, width):
    """As on a GPU, whose kernels load 16 bytes at once."""
    items = [item(str(i), encoded(noise(18, width, seed=i))) for i in range(3)]
    expected = {row.source: row.logit for row in scorer(batch_size=3).score(items)}
    made = scorer(batch_size=3)
    made._row_bytes = scorer_module.GPU_ROW_BYTES
    inner, seen = made._first, []
    monkeypatch.setattr(made, "_first", lambda x: seen.append(x) or inner(x))
    assert {row.source: row.logit for row in made.score(items)} == expected
    (x,) = seen
    assert x.shape == (3, 3, 18, width) and x.stride()[1] == 1 and x.stride()[3] == 3
    assert x.data_ptr() % 16 == x.stride(0) % 16 == x.stride(2) % 16 == 0 and x.stride(2) < 3 * width + 16


def test_rows_of_a_gpu_are_those_of_the_cpu(scorer, cuda):
    """Batches on their way while others are launched, of sizes that come in turns, with copies among them."""
    items = [item(str(i), encoded(noise(16 + 8 * (i % 3), 24, seed=i % 50))) for i in range(120)]
    expected = {row.source: row.logit for row in scorer(batch_size=4).score(items)}
    found = {row.source: row for row in scorer(batch_size=4, device=cuda).score(items)}
    assert found.keys() == expected.keys() and len(found) == 120
    for source, row in found.items():
        assert row.error is None and abs(row.logit - expected[source]) < 0.01  # TF32


@pytest.mark.parametrize("when", ["launched", "waited for"])
def test_what_fails_alone_is_an_error_row(ahead, monkeypatch, when):
    made = ahead(batch_size=4)
    inner = made._logits

    def short_of_memory(pixels):
        def fail():
            raise RuntimeError("[enforce fail at alloc_cpu.cpp]\nDefaultCPUAllocator: can't allocate memory")

        if any((one == 255).all() for one in pixels):
            return fail if when == "waited for" else fail()
        return inner(pixels)

    monkeypatch.setattr(made, "_logits", short_of_memory)
    pictures = [noise(8, 8, seed=i) for i in range(11)]
    pictures[3] = np.full((8, 8, 3), 255, np.uint8)
    rows = {row.source: row for row in made.score(item(str(i), encoded(p)) for i, p in enumerate(pictures))}
    assert [name for name, row in rows.items() if row.error is not None] == ["3"] and len(rows) == 11
    assert "can't allocate memory" in rows["3"].error and "\n" not in rows["3"].error


def test_a_failed_batch_keeps_no_memory(ahead, monkeypatch):
    """Where memory was short, the next batch would fail for what the one before still holds."""
    made = ahead(batch_size=2)
    held: list[weakref.ref] = []

    def fail(pixels):
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        assert not any(one() is not None for one in held[:-1])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(made, "_logits", fail)
    gc.disable()
    try:
        rows = list(made.score([item(str(i), encoded(noise(8, 8, seed=i))) for i in range(6)]))
    finally:
        gc.enable()
    assert len(rows) == 6 and len(held) == 9
    assert {row.error for row in rows} == {"the image cannot be scored (out of memory)"}


def test_rows_that_are_computed_are_not_lost_where_the_source_fails(ahead):
    def items():
        for i in range(5):
            yield item(str(i), encoded(noise(8, 8, seed=i)))
        raise InputError("the list ends here")

    rows = []
    with pytest.raises(InputError, match="the list ends here"):
        for row in ahead(batch_size=2, workers=1).score(items()):
            rows.append(row.source)
    assert rows == ["0", "1"]  # the others were only on their way to the network


def test_backend_that_cannot_serve_stops_the_run(ahead, monkeypatch):
    made = ahead(batch_size=1)
    inner, calls = made._logits, []

    def refuse(pixels):
        calls.append(pixels)
        if len(calls) == 3:
            raise BackendError("no")
        return inner(pixels)

    monkeypatch.setattr(made, "_logits", refuse)
    rows = []
    with pytest.raises(BackendError):
        for row in made.score([item(str(i), encoded(noise(8, 8, seed=i))) for i in range(5)]):
            rows.append(row.source)
    assert rows == ["0", "1"]


@pytest.mark.parametrize("cost", ["decoding", "rows"])
def test_rates_tell_the_network_from_the_rest(ahead, cost, monkeypatch):
    monkeypatch.setattr(
        scorer_module, "time", SimpleNamespace(perf_counter=time.thread_time)
    )  # other processes cost it none
    made = ahead(batch_size=2, workers=1)
    slow = time.sleep if cost == "decoding" else lambda seconds: None
    items = [Item(str(i), lambda i=i: slow(0.1) or encoded(noise(8, 8, seed=i))) for i in range(6)]
    for _ in made.score(items):
        time.sleep(0 if cost == "decoding" else 0.1)
    assert made.rates.scoring > 20  # with the rest it would be 10 at most
    assert cost == "rows" or made.rates.decoding < 10


def test_non_finite_logit_is_an_error(scorer, monkeypatch):
    made = scorer()
    monkeypatch.setattr(made, "_logits", lambda pixels: lambda: ([math.nan] * len(pixels), 1.0))
    (row,) = made.score([item("a", encoded(noise(8, 8)))])
    assert row.logit is None and row.error == "the network gave a logit of nan"


def test_view_and_calibration_of_the_checkpoint(tmp_path):
    path = tmp_path / "calibrated.safetensors"
    metadata = checkpoints.Metadata(view=View("crop", 16), calibration=Calibration(0.0, -100.0, 100.0))
    checkpoints.save(path, make_detector(), metadata)
    pixels = noise(24, 26)
    items = [item("a", encoded(pixels))]
    made = Scorer(checkpoints.load(path), dtype=torch.float32)
    (row,) = made.score(items)
    assert made.calibrated and row.verdict == "uncertain" and row.view == "crop:16"
    assert row.logit == pytest.approx(reference_logit(pixels[4:20, 4:20]), abs=1e-4)
    (row,) = Scorer(checkpoints.load(path), view=View("native"), dtype=torch.float32).score(items)
    assert row.logit == pytest.approx(reference_logit(pixels), abs=1e-4) and row.view == "native"


def test_the_condition_of_a_file_chooses_its_threshold(tmp_path):
    path, pixels = tmp_path / "calibrated.safetensors", noise(24, 26)
    never, always = Calibration(1e6), Calibration(-1e6)
    conditions = {"lossless": never, "jpeg-90-100": always, "jpeg-recompressed": never}
    checkpoints.save(path, make_detector(), checkpoints.Metadata(calibration=Calibration(1e6, conditions=conditions)))
    files = {
        "lossless": encoded(pixels),
        "jpeg-90-100": encoded(pixels, "JPEG", quality=95),
        "jpeg-below-90": encoded(pixels, "JPEG", quality=70),
        "other-lossy": encoded(pixels, "WEBP"),
    }
    files["lossless "] = encoded(pixels, "WEBP", lossless=True)
    made = Scorer(checkpoints.load(path))
    for row in made.score(item(name, data) for name, data in files.items()):
        assert row.condition == row.source.strip()
        assert row.verdict == ("generated" if row.condition == "jpeg-90-100" else "real")
    assert made.identity["threshold"].startswith("1e+06 jpeg-90-100:-1e+06 ")
    (row,) = made.score([Item("pixels", lambda: DecodedImage(pixels, None, None))])
    assert row.condition is None and row.verdict == "real"


def test_what_a_row_says_of_its_file(checkpoint):
    from npr_model import checkpoints
    from npr_model.imaging.views import View

    scorer = scorer_module.Scorer(checkpoints.load(checkpoint), view=View("resize", 64))
    files = {
        "jpeg": encoded(noise(80, 71), "JPEG", quality=83, subsampling="4:2:2"),
        "png": encoded(noise(64, 64)),
        "small": encoded(noise(40, 64)),
    }
    found = {row.source: row for row in scorer.score(item(name, data) for name, data in files.items())}
    jpeg = found["jpeg"]
    assert (jpeg.jpeg_quality, jpeg.subsampling, jpeg.flags) == (83, "4:2:2", "odd resized")
    assert (found["png"].jpeg_quality, found["png"].subsampling, found["png"].flags) == (None, None, "")
    assert found["small"].flags == "tiny"
    assert scorer.rates.decoded == scorer.rates.scored == 3
    assert scorer.rates.text.startswith("decoding ") and scorer.rates.scoring > 0
