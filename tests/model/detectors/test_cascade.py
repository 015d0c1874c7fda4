"""A cascade: a fast network, a better one where the fast one is in doubt, and rows that say whose logit counts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import npr_model
from npr_model import checkpoints
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors.cascade import Cascade
from npr_model.detectors.encoder import Encoder
from npr_model.detectors.ojha import Ojha
from npr_model.imaging.views import View
from npr_model.scoring.scorer import Scorer
from tests.model.conftest import make_detector, noise

COUNT = 12


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """More and more noise, in two sizes, so that a batch has some images in doubt and some not."""
    (tmp_path / "images").mkdir()
    paths = []
    for number in range(COUNT):
        pixels = noise(40 + 8 * (number % 2), 48, seed=number) // (1 + 4 * number) + 20 * number
        paths.append(tmp_path / "images" / f"{number:02}.png")
        Image.fromarray(pixels.astype("uint8")).save(paths[-1])
    return paths


@pytest.fixture
def cascade(tmp_path, pictures) -> Path:
    """A cascade with its parts beside it, in doubt about the middle third of the pictures."""
    folder = tmp_path / "weights"
    folder.mkdir()
    parts = []
    for name, size in {"quick": "fast", "sure": "paper"}.items():
        checkpoints.save(folder / f"{name}.safetensors", make_detector(size=size), Metadata(name=name))
        parts.append(checkpoints.load(folder / f"{name}.safetensors"))
    low, high = middle_third(folder / "quick.safetensors", pictures)
    joined = Cascade(*(part.model for part in parts), *(part.model_id for part in parts), low=low, high=high)
    checkpoints.save(folder / "both.safetensors", joined, Metadata(name="both"))
    return folder / "both.safetensors"


def middle_third(checkpoint: Path, pictures: list[Path], view: str | None = None) -> tuple[float, float]:
    """The lowest and the highest logit of the middle third."""
    logits = sorted(score.logit for score in npr_model.load(checkpoint, view=view).score(pictures))
    return logits[COUNT // 3], logits[2 * COUNT // 3 - 1]


@pytest.mark.parametrize("view", ["native", "sample:2x16"])
def test_the_second_network_is_asked_in_doubt_only(cascade, pictures, view):
    """Each logit is that of the part alone, to the bit, whatever is in the batch."""
    alone = {
        name: {
            score.source: score.logit
            for score in npr_model.load(cascade.with_name(f"{name}.safetensors"), view=view).score(pictures)
        }
        for name in ("quick", "sure")
    }
    loaded, asked = checkpoints.load(cascade), 0
    loaded.model.low, loaded.model.high = middle_third(cascade.with_name("quick.safetensors"), pictures, view)
    checkpoints.save(cascade, loaded.model, loaded.metadata)
    for score in npr_model.load(cascade, view=view).score(pictures):
        first = alone["quick"][score.source]
        in_doubt = loaded.model.low <= first <= loaded.model.high
        assert score.logit == (alone["sure"][score.source] if in_doubt else first)
        assert score.scored_by == (loaded.model.second_checkpoint if in_doubt else loaded.model.first_checkpoint)
        asked += in_doubt
    assert asked == COUNT // 3


def test_the_network_decides_image_by_image(cascade, pictures):
    model = checkpoints.load(cascade).model
    images = torch.stack([torch.from_numpy(noise(40, 48, seed) // (1 + seed)).permute(2, 0, 1) for seed in range(6)])
    first, second = (part(images).flatten() for part in model.parts)
    model.low, model.high = sorted(first.tolist())[2:4]
    expected = [b if model.is_in_doubt(a) else a for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert model(images).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    model.low = model.high = 1e9
    assert torch.equal(model(images).flatten(), first)


def test_a_screening_counts_who_spoke(npr, cascade, pictures, tmp_path):
    """A cache keeps it, too."""
    tables = []
    for name in ("first", "second"):
        output = tmp_path / f"{name}.parquet"
        arguments = ("--checkpoint", cascade, "--cache", tmp_path / "cache.sqlite", "-o", output)
        code, printed, _ = npr("screen", pictures[0].parent, *arguments)
        assert code == 0
        model = checkpoints.load(cascade).model
        parts = f"66.7 % (8) by {model.first_checkpoint}, 33.3 % (4) by {model.second_checkpoint}"
        assert f"scored {parts}" in printed
        tables.append(pq.read_table(output).drop_columns("milliseconds").sort_by("source").to_pylist())
    assert tables[0] == tables[1]


def test_it_is_calibrated_and_evaluated(npr, cascade, labelled):
    root = labelled({"gan/0_real": 20, "gan/1_fake": 6})
    calibrated = cascade.with_name("calibrated.safetensors")
    assert npr("calibrate", cascade, root, "-o", calibrated)[0] == 0
    assert checkpoints.load(calibrated).metadata.calibration.points[0].photographs == 20
    assert npr("evaluate", root, "--checkpoint", calibrated)[0] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_second_detector_may_have_an_encoder(pair, pictures, workers):
    """It is asked about the images in doubt only."""
    folder = pair.parent
    checkpoints.save(folder / "quick.safetensors", make_detector(size="fast"), Metadata(name="quick"))
    first, second = (checkpoints.load(path) for path in (folder / "quick.safetensors", pair))
    view = str(second.metadata.view)
    low, high = middle_third(folder / "quick.safetensors", pictures, view)
    joined = Cascade(first.model, second.model, first.model_id, second.model_id, low, high)
    checkpoints.save(folder / "asked.safetensors", joined, Metadata(name="asked", view=second.metadata.view))
    alone = {
        name: {
            score.source: score for score in npr_model.load(folder / f"{name}.safetensors", view=view).score(pictures)
        }
        for name in ("quick", "both")
    }
    asked = 0
    for score in npr_model.load(folder / "asked.safetensors", workers=workers).score(pictures):
        by_first, by_second = (alone[name][score.source] for name in ("quick", "both"))
        if low <= by_first.logit <= high:
            columns = ("logit", "logit_npr", "logit_clip")
            assert [getattr(score, name) for name in columns] == [getattr(by_second, name) for name in columns]
            assert score.scored_by == second.model_id
            asked += 1
        else:
            assert score.logit == by_first.logit
            assert score.scored_by == first.model_id and score.logit_clip is score.logit_npr is None
    assert asked == COUNT // 3


def test_an_encoder_that_fails_later_is_an_error_of_its_images(pair, pictures, monkeypatch):
    folder = pair.parent
    checkpoints.save(folder / "quick.safetensors", make_detector(size="fast"), Metadata(name="quick"))
    first, second = (checkpoints.load(path) for path in (folder / "quick.safetensors", pair))
    low, high = middle_third(folder / "quick.safetensors", pictures, str(second.metadata.view))
    joined = Cascade(first.model, second.model, first.model_id, second.model_id, low, high)
    checkpoints.save(folder / "asked.safetensors", joined, Metadata(name="asked", view=second.metadata.view))
    detector = npr_model.load(folder / "asked.safetensors")

    def fail(self, image):
        raise MemoryError("bad allocation")

    monkeypatch.setattr(Encoder, "_embed", fail)
    failed = [score for score in detector.score(pictures) if score.error is not None]
    assert [score.error for score in failed] == ["the image cannot be scored (bad allocation)"] * (COUNT // 3)
    assert {score.logit_npr for score in failed} == {score.scored_by for score in failed} == {None}


def test_the_part_that_spoke_is_explained(npr, cascade, pictures, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, npr-kernels[plots]")
    parts = {}
    for score in npr_model.load(cascade, dtype="float32").score(pictures):
        parts.setdefault(score.scored_by, score)
    assert len(parts) == 2
    for number, (part, score) in enumerate(parts.items()):
        code, printed, _ = npr("explain", score.source, "--checkpoint", cascade, "-o", tmp_path / str(number))
        assert code == 0 and f"scored by {part}" in printed
        alone = cascade.with_name(f"{part.partition('@')[0]}.safetensors")
        assert npr("explain", score.source, "--checkpoint", alone, "-o", tmp_path / "alone")[0] == 0
        both = [json.loads((tmp_path / name / "explanation.json").read_text()) for name in (str(number), "alone")]
        assert both[0]["activation"] == both[1]["activation"] and both[0]["logit"] == pytest.approx(score.logit)


def test_export_needs_one_network(npr, cascade, tmp_path):
    code, _, error = npr("export", "-o", tmp_path / "x.onnx", "--checkpoint", cascade)
    assert code == 2 and "cascade" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "low at most high, got 2.0 and 1.0"),
        ({"low": "0", "high": "1"}, "low and high must be numbers"),
        ({"low": False, "high": True}, "low and high must be numbers"),
        ({"first_checkpoint": "absent@0123456789ab"}, "there is no checkpoint 'absent'"),
        ({"second_checkpoint": "other@"}, "joins npr and npr or pair, not npr and ojha"),
        ({"second_checkpoint": "three@"}, "have cells of 2 and 3 pixels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message, cascade):
    others = {"other": Ojha().eval(), "three": make_detector().__class__(grid_size=3).eval()}
    loaded = checkpoints.load(cascade)
    for name, value in changes.items():
        if isinstance(value, str) and value.endswith("@"):
            path = cascade.with_name(f"{value[:-1]}.safetensors")
            checkpoints.save(path, others[value[:-1]], Metadata(name=value[:-1], view=View("native")))
            value = checkpoints.load(path).model_id
        setattr(loaded.model, name, value)
    checkpoints.save(cascade, loaded.model, loaded.metadata)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(cascade)


def test_int8_without_scales_names_the_part(npr, cascade, pictures):
    code, _, error = npr("screen", pictures[0], "--checkpoint", cascade, "--dtype", "int8")
    assert code == 2 and f"{checkpoints.load(cascade).model.first_checkpoint} has none" in error


def test_a_failure_of_the_second_network_is_an_error_of_its_images(cascade, pictures, monkeypatch):
    scorer = Scorer(checkpoints.load(cascade))

    def fail(images):
        raise MemoryError("no memory")

    monkeypatch.setattr(scorer, "_second", fail)
    rows = list(npr_model.api.Detector(scorer, None, None).score(pictures))
    failed = [row for row in rows if row.error is not None]
    assert len(failed) == COUNT // 3 and all("no memory" in row.error for row in failed)
    assert all(row.scored_by is None for row in failed)
