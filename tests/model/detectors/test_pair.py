"""A pair: NPR sees its tiles, the encoder the whole image, and one logit comes out of both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import npr_model
from npr_model import checkpoints
from npr_model.checkpoints import CheckpointError
from npr_model.detectors.encoder import FILE_VARIABLE, Encoder
from tests.model.conftest import noise
from tests.model.detectors.encoders import write


@pytest.fixture
def photograph(tmp_path) -> Path:
    Image.fromarray(noise(60, 64)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_logit_joins_the_logits_of_the_parts(pair, photograph):
    score = npr_model.load(pair, device="cpu", dtype="float32").score(photograph)
    traces = npr_model.load(pair.with_name("traces.safetensors"), view="sample:2x16", device="cpu", dtype="float32")
    content = npr_model.load(pair.with_name("content.safetensors"), view="resize:32", device="cpu")
    assert score.logit_npr == traces.score(photograph).logit
    assert score.logit_clip == pytest.approx(content.score(photograph).logit, abs=1e-5)
    assert score.logit == pytest.approx(0.3 * score.logit_npr + 2 * score.logit_clip - 0.5, abs=1e-5)
    assert traces.score(photograph).logit_npr is traces.score(photograph).logit_clip is None


def test_the_encoder_also_sees_the_middle_of_a_large_image(pair, tmp_path):
    pixels, found = noise(300, 280), {}
    pixels[:20] //= 8  # outside of the middle
    for name, shown in {"large": pixels, "middle": pixels[22:278, 12:268], "small": pixels[:60, :64]}.items():
        Image.fromarray(shown).save(tmp_path / f"{name}.png")
        (content,) = npr_model.load(pair.with_name("content.safetensors"), view="resize:32").score(
            [tmp_path / f"{name}.png"]
        )
        (both,) = npr_model.load(pair, device="cpu").score([tmp_path / f"{name}.png"])
        found[name] = (content.logit, both.logit_clip)
    assert found["large"][0] != pytest.approx(found["middle"][0], abs=1e-3)
    assert found["large"][1] == pytest.approx((found["large"][0] + found["middle"][0]) / 2, abs=1e-5)
    assert found["small"][1] == pytest.approx(found["small"][0], abs=1e-5)


def test_its_network_joins_the_networks(pair):
    network = npr_model.load(pair, device="cpu").network
    pixels = torch.from_numpy(noise(40, 40)).permute(2, 0, 1)[None]
    logits = [part(pixels).item() for part in network.parts]
    assert network(pixels).item() == pytest.approx(network.combined(*logits), abs=1e-5)
    assert network.state_dict().keys() == {"combine.weight", "combine.bias"}


def test_rows_hold_both_logits_and_a_cache_keeps_them(npr, pair, photograph, tmp_path):
    tables = []
    for name in ("first", "second"):
        output = tmp_path / f"{name}.parquet"
        arguments = ("--checkpoint", pair, "--cache", tmp_path / "cache.sqlite", "-o", output)
        assert npr("screen", photograph, *arguments)[0] == 0
        tables.append(pq.read_table(output).drop_columns("milliseconds").to_pylist())
    assert tables[0] == tables[1] and tables[0][0]["model"].startswith("both@")
    row = tables[0][0]
    assert row["logit"] == pytest.approx(0.3 * row["logit_npr"] + 2 * row["logit_clip"] - 0.5, abs=1e-5)


def test_it_is_calibrated_evaluated_and_compared(npr, pair, labelled, tmp_path):
    root = labelled({"gan/0_real": 20, "gan/1_fake": 6})
    calibrated = pair.with_name("calibrated.safetensors")
    assert npr("calibrate", pair, root, "-o", calibrated)[0] == 0
    loaded = checkpoints.load(calibrated)
    assert loaded.metadata.calibration.points[0].photographs == 20
    assert npr("evaluate", root, "--checkpoint", calibrated)[0] == 0
    content, output = pair.with_name("content.safetensors"), tmp_path / "c"
    assert npr("compare", "--evaluate", root, "-c", calibrated, "-c", content, "-o", output)[0] == 0
    rows = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [row["detector"] for row in rows] == ["NPR + Ojha", "Ojha"]


def test_a_joint_logit_is_explained(npr, pair, photograph, tmp_path):
    """The row is that of a screening in float32; the maps are those of NPR."""
    pytest.importorskip("matplotlib", reason="needs matplotlib, npr-kernels[plots]")
    (score,) = npr_model.load(pair, device="cpu", dtype="float32").score([photograph])
    code, printed, _ = npr("explain", photograph, "--checkpoint", pair, "-o", tmp_path)
    assert code == 0
    assert f"logit of NPR {score.logit_npr:.3f}, of the image encoder {score.logit_clip:.3f}" in printed
    values = json.loads((tmp_path / "explanation.json").read_text())
    assert [values[name] for name in ("logit", "logit_npr", "logit_clip", "verdict")] == [
        pytest.approx(score.logit), pytest.approx(score.logit_npr), pytest.approx(score.logit_clip), score.verdict
    ]  # fmt: skip
    traces = npr("explain", photograph, "--checkpoint", pair.with_name("traces.safetensors"), "-o", tmp_path / "npr")
    assert traces[0] == 0
    alone = json.loads((tmp_path / "npr" / "explanation.json").read_text())
    assert values["activation"] == alone["activation"] and values["npr"] == alone["npr"]


def test_export_needs_one_network(npr, pair, tmp_path):
    code, _, error = npr("export", "-o", tmp_path / "x.onnx", "--checkpoint", pair)
    assert code == 2 and "pair" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"npr_checkpoint": "traces"}, "names 'traces' as its part; name@digest is needed"),
        ({"npr_checkpoint": "../traces@0123456789ab"}, "names '../traces@0123456789ab' as its part"),
        ({"npr_checkpoint": "absent@0123456789ab"}, "there is no checkpoint 'absent'"),
        (
            {"clip_checkpoint": "content@0123456789ab"},
            "needs content@0123456789ab, but .* is another file of this name",
        ),
        ({"detail": "256"}, "detail must be an integer of 2 or more, got '256'"),
        ({"clip_checkpoint": None}, "joins npr and ojha, not npr and npr"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message, pair):
    loaded = checkpoints.load(pair)
    for name, value in changes.items():
        setattr(loaded.model, name, value or loaded.model.npr_checkpoint)
    checkpoints.save(pair, loaded.model, loaded.metadata)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(pair)


def test_int8_without_scales_names_the_part(npr, pair, photograph):
    code, _, error = npr("screen", photograph, "--checkpoint", pair, "--dtype", "int8")
    assert code == 2 and f"{checkpoints.load(pair).model.npr_checkpoint} has none" in error and error.count("\n") == 1


def test_without_the_encoder_the_part_npr_still_works(npr, pair, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "absent.onnx"))
    assert npr("screen", photograph, "--checkpoint", pair.with_name("traces.safetensors"))[0] == 0
    code, _, error = npr("screen", photograph, "--checkpoint", pair)
    assert code == 2 and "which is not a file" in error and error.count("\n") == 1


def test_another_encoder_is_refused(npr, pair, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, str(write(tmp_path / "other.onnx", seed=1)))
    code, _, error = npr("screen", photograph, "--checkpoint", pair)
    assert code == 2 and "embeddings of two encoders are not interchangeable" in error


def test_an_encoder_without_memory_is_an_error_row(npr, pair, photograph, tmp_path, monkeypatch):
    detector = npr_model.load(pair, device="cpu")

    def fail(self, image):
        raise MemoryError("bad allocation")

    monkeypatch.setattr(Encoder, "_embed", fail)
    (score,) = detector.score([photograph])
    assert score.error == "the image cannot be scored (bad allocation)"
    assert {dataclasses.asdict(score)[name] for name in ("logit", "logit_npr", "logit_clip", "verdict")} == {None}
