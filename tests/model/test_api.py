"""The names for programs: load, Detector.score for every kind of input, and screen."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import io
import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import npr_model
from npr_model import InputError, Score, checkpoints, weights
from npr_model.detectors.npr import NPRDetector
from npr_model.imaging.decode import decode
from npr_model.scoring import scorer as scorer_module
from npr_model.verdicts import Calibration
from tests.model.conftest import encoded, make_detector, noise

PIXELS = noise(40, 52)


def test_an_opened_image_has_the_score_of_its_file(detector, tmp_path):
    """Also what the file declares, and the flags and thresholds of its condition."""
    path, text = tmp_path / "image.png", PngInfo()
    text.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler a, CFG scale: 7")
    Image.fromarray(PIXELS).save(path, pnginfo=text)
    with Image.open(path) as image:
        opened = detector.score(image)
    assert opened == detector.score(path) and opened.verdict == "generated (declared)"


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "calibrated.safetensors"
    metadata = checkpoints.Metadata(name="mine", calibration=Calibration(0.0, temperature=2.0), licence="CC0-1.0")
    checkpoints.save(path, make_detector(), metadata)
    return path


@pytest.fixture(scope="module")
def detector(calibrated) -> npr_model.Detector:
    return npr_model.load(calibrated, device="cpu", dtype="float32", workers=2, batch_size=4)


same_network = functools.cache(make_detector)  # the weights of `calibrated`


def logit(pixels: np.ndarray) -> float:
    return same_network()(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]).item()


def inputs(folder) -> dict[str, object]:
    """PIXELS in every form that is accepted."""
    path, data = folder / "image.png", encoded(PIXELS)
    path.write_bytes(data)
    return {
        "path": path,
        "text": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "PIL image": Image.fromarray(PIXELS),
        "opened PIL image": Image.open(path),
        "array": PIXELS,
        "strided array": np.repeat(PIXELS, 2, axis=1)[:, ::2],
    }


def test_every_kind_of_input_gives_the_same_score(detector, tmp_path):
    for kind, image in inputs(tmp_path).items():
        score = detector.score(image)
        assert isinstance(score, Score) and score.error is None, kind
        assert score.logit == pytest.approx(logit(PIXELS), abs=1e-4), kind
        assert score.probability == pytest.approx(1 / (1 + np.exp(-score.logit / 2)), abs=1e-6)
        assert score.verdict == ("generated" if score.logit > 0 else "real")
        assert (score.width, score.height, score.flags) == (52, 40, ("tiny",)), kind


def test_what_a_score_says_of_its_source(detector, tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(PIXELS, "JPEG"))
    assert (detector.score(path).source, detector.score(path).format) == (str(path), "JPEG")
    assert (detector.score(Image.open(path)).source, detector.score(Image.open(path)).format) == (str(path), "JPEG")
    assert (detector.score(PIXELS).source, detector.score(PIXELS).format) == ("array", None)
    assert (detector.score(path.read_bytes()).source, detector.score(path.read_bytes()).format) == ("bytes", "JPEG")


def test_pil_images_are_converted_by_the_rules_of_files(detector):
    image = Image.fromarray(PIXELS)
    image.putalpha(Image.fromarray(noise(40, 52, seed=1)[..., 0]))
    assert detector.score(image).logit == pytest.approx(logit(decode(encoded(image)).pixels), abs=1e-4)


def test_an_iterable_is_scored_lazily_in_order_and_in_batches(detector, monkeypatch):
    images = [noise(16 + 8 * (i % 3), 24, seed=i) for i in range(120)]
    taken, batches = [], []
    score_batch = detector._scorer._logits
    monkeypatch.setattr(detector._scorer, "_logits", lambda batch: batches.append(len(batch)) or score_batch(batch))

    def watched() -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    scores = detector.score(watched())
    assert not taken
    first = next(scores)
    assert len(taken) <= scorer_module.IN_ORDER + 2 * 4 + 1
    logits = [first.logit, *(score.logit for score in scores)]
    assert logits == pytest.approx([logit(image) for image in images], abs=1e-4)
    assert max(batches) == 4 and len(batches) < 60


def test_an_endless_iterable(detector):
    scores = detector.score(noise(16, 16, seed=i % 5) for i in itertools.count())
    logits = [score.logit for score in itertools.islice(scores, 10)]
    assert logits[:5] == logits[5:] == pytest.approx([logit(noise(16, 16, seed=i)) for i in range(5)], abs=1e-4)


def test_an_iterable_of_mixed_kinds_and_an_array_of_images(detector, tmp_path):
    scores = list(detector.score(inputs(tmp_path).values()))
    assert len(scores) == 9 and len({round(score.logit, 4) for score in scores}) == 1
    stacked = np.stack([noise(16, 20, seed=i) for i in range(3)])
    logits = [score.logit for score in detector.score(stacked)]
    assert logits == pytest.approx([logit(image) for image in stacked], abs=1e-4)
    assert list(detector.score([])) == []


def test_a_bad_file_raises_alone_and_is_a_score_among_others(detector, tmp_path):
    bad, absent = tmp_path / "bad.png", tmp_path / "absent.png"
    bad.write_bytes(b"no image")
    for image, message in {
        bad: "bad.png: not an image",
        absent: "absent.png: .*No such file",
        b"no image": "bytes: not an image",
        b"": "bytes: the file is empty",
        tmp_path: "not a regular file",
        "": "^'': the file cannot be read",
        "https://example.org/a.png": "it is a URL; npr_model.screen takes those",
    }.items():
        with pytest.raises(InputError, match=message) as raised:
            detector.score(image)
        assert "\n" not in str(raised.value)
    scores = list(detector.score([PIXELS, bad, absent, PIXELS[:1], PIXELS]))
    assert [score.error is None for score in scores] == [True, False, False, False, True]
    assert "not an image" in scores[1].error and (scores[1].logit, scores[1].verdict) == (None, None)
    assert scores[2].source == str(absent) and "smaller than one cell" in scores[3].error
    assert scores[0].logit == scores[4].logit


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (PIXELS.astype(np.float32), ValueError),
        (PIXELS[..., 0], ValueError),
        (PIXELS.transpose(2, 0, 1), ValueError),
        (PIXELS[None].astype(np.float32), ValueError),
        (7, TypeError),
        (None, TypeError),
        (io.BytesIO(b"no image"), TypeError),
        (torch.from_numpy(PIXELS), TypeError),
    ],
)
def test_inputs_of_another_kind_are_refused(detector, image, error):
    """At once; among others, after the scores of those before them."""
    with pytest.raises(error) as raised:
        detector.score(image)
    assert "\n" not in str(raised.value)
    scores = detector.score([PIXELS, noise(20, 20), image, PIXELS])
    assert [next(scores).width for _ in range(2)] == [52, 20]
    with pytest.raises(error):
        next(scores)


def test_an_iterable_that_fails_gives_its_scores_first(detector):
    def failing(error: BaseException) -> Iterator[np.ndarray]:
        for seed in range(10):
            yield noise(16, 16, seed=seed)
        raise error

    scores, taken = detector.score(failing(RuntimeError("the camera is gone"))), []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        taken.extend(scores)  # a list keeps what it got
    assert len(taken) == 10
    with pytest.raises(KeyboardInterrupt):
        list(detector.score(failing(KeyboardInterrupt())))
    assert detector.score(PIXELS).error is None  # and the detector goes on


def test_images_may_change_after_they_were_taken(detector, tmp_path):
    """Cameras and video readers reuse one array, and a PIL image moves from frame to frame."""
    frames = [noise(16, 20, seed=i) for i in range(12)]
    expected = pytest.approx([logit(frame) for frame in frames], abs=1e-4)
    array = np.empty_like(frames[0])

    def arrays() -> Iterator[np.ndarray]:
        for frame in frames:
            array[:] = frame
            yield array

    def pages() -> Iterator[Image.Image]:
        first, *others = map(Image.fromarray, frames)
        first.save(tmp_path / "pages.tiff", save_all=True, append_images=others)
        with Image.open(tmp_path / "pages.tiff") as image:
            for number in range(len(frames)):
                image.seek(number)
                yield image

    assert [score.logit for score in detector.score(arrays())] == expected
    assert [score.logit for score in detector.score(pages())] == expected
    Image.fromarray(PIXELS).save(tmp_path / "once.png")
    scores = list(detector.score([Image.open(tmp_path / "once.png")] * 20))  # the file is decoded once
    assert [score.error for score in scores] == [None] * 20 and len({score.logit for score in scores}) == 1


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "La", "F"]
)
def test_pil_images_of_any_mode(detector, mode):
    image = Image.new(mode, (52, 40))
    if mode in ("La", "F"):
        with pytest.raises(InputError, match=r"not supported|no agreed range"):
            detector.score(image)
    else:
        assert detector.score(image).width == 52
    assert [score.error is None for score in detector.score([image])] == [mode not in ("La", "F")]


def test_arrays_of_paths(detector, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    paths = np.array([str(tmp_path / "a.png"), "absent.png"])
    for names in (paths, paths.astype(object)):
        assert [score.error is None for score in detector.score(names)] == [True, False]


def test_a_detector_is_used_by_threads_and_copied(detector):
    images = [noise(16 + i, 24, seed=i) for i in range(8)]
    expected = [score.logit for score in detector.score(images)]

    def scores(one: npr_model.Detector) -> list[float]:
        return [score.logit for score in one.score(images)]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(scores, [detector] * 12)) == [expected] * 12
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert scores(other) == expected and other.id == detector.id
    pairs = zip(detector.score(images), detector.score(reversed(images)), strict=True)
    assert [one.logit for one, _ in pairs] == expected


def test_larger_images_than_allowed_are_refused(calibrated):
    detector = npr_model.load(calibrated, device="cpu", max_pixels=2000)
    for image in (PIXELS, encoded(PIXELS)):
        with pytest.raises(InputError, match="more than the limit of 2000"):
            detector.score(image)


def test_what_a_detector_says_of_itself(detector, calibrated):
    assert detector.info.name == "mine" and detector.info.licence == "CC0-1.0"
    assert detector.id == checkpoints.load(calibrated).model_id and detector.verdict_caveat is None
    assert isinstance(detector.network, NPRDetector) and not detector.network.training
    assert detector.id in repr(detector)
    with pytest.raises(InputError, match="there is no checkpoint 'nope'"):
        npr_model.load("nope")
    with pytest.raises(InputError, match="unknown dtype 'int4'"):
        npr_model.load(calibrated, dtype="int4")
    for name, number in {"workers": -1, "batch_size": 0, "max_pixels": 0}.items():
        with pytest.raises(InputError, match=f"{name} must be at least {number + 1}, got {number}"):
            npr_model.load(calibrated, **{name: number})


def test_the_default_is_the_bundled_checkpoint():
    assert npr_model.load(device="cpu").info.name == weights.DEFAULT


def test_screen_writes_what_the_command_writes(calibrated, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PIXELS))
    (tmp_path / "b.png").write_bytes(b"no image")
    rows = []
    totals = npr_model.screen(
        tmp_path, tmp_path / "scores.parquet", checkpoint=calibrated, device="cpu", dtype="float32", on_row=rows.append
    )
    assert (totals.scored, totals.failed) == (1, 1)
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["source"] for row in table] == [row.source for row in rows]
    assert [row["logit"] for row in table if row["error"] is None] == pytest.approx([logit(PIXELS)], abs=1e-4)
    parts = f"{tmp_path}/scores/"
    assert npr_model.screen([tmp_path / "a.png"], parts, checkpoint=calibrated, device="cpu").scored == 1
    assert npr_model.screen([tmp_path / "a.png"], parts, checkpoint=calibrated, device="cpu").scored == 0
    with pytest.raises(InputError, match=r"must end in \.parquet"):
        npr_model.screen(tmp_path, tmp_path / "scores.xlsx")
    with pytest.raises(TypeError, match=r"^screen\(\) got an unexpected keyword argument 'colour'"):
        npr_model.screen(tmp_path, tmp_path / "scores.csv", colour="red")


@pytest.mark.parametrize(("function", "absent"), [(npr_model.load, {"checkpoint", "cache"}), (npr_model.screen, set())])
def test_the_options_of_scoring_are_the_same_everywhere(function, absent):
    parameters = inspect.signature(function).parameters
    options = {field.name: field for field in dataclasses.fields(npr_model.ScoringOptions)}
    assert options.keys() - parameters.keys() == absent
    for name in options.keys() - absent:
        assert (parameters[name].default, parameters[name].annotation) == (options[name].default, options[name].type)


def test_importing_the_package_loads_no_torch():
    code = "import sys, npr_model; dir(npr_model); npr_model.InputError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(npr_model.__all__) <= set(dir(npr_model))
    assert all(getattr(npr_model, name) is not None for name in npr_model.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = npr_model.lod
