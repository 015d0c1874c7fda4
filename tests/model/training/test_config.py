"""Training configs: presets, round trips through JSON, overrides, and one-line errors."""

from __future__ import annotations

import dataclasses
import json

import pytest

from npr_model.errors import InputError
from npr_model.training import config
from npr_model.training.config import PRESETS, TrainConfig

PAPER = {
    "classes": ("car", "cat", "chair", "horse"),
    "resize": 256,
    "crop_size": 224,
    "flip_probability": 0.5,
    "learning_rate": 2e-4,
    "betas": (0.9, 0.999),
    "batch_size": 32,
    "decay": 0.9,
    "decay_epochs": 10,
    "epochs": 50,
    "seed": 100,
}


def test_paper_preset():
    paper = config.preset("paper")
    assert {name: getattr(paper, name) for name in PAPER} == PAPER
    assert not paper.match_classes and not any(
        getattr(paper, n) for n in config.FIELDS if n.endswith("_probability") and n != "flip_probability"
    )


def test_wild_preset_crops_and_draws_every_augmentation():
    wild = config.preset("wild")
    assert wild.resize is None and wild.match_classes
    assert all(0 < getattr(wild, f"{name}_probability") < 1 for name in ("rescale", "blur", "webp", "jpeg", "flip"))


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name, tmp_path):
    chosen = config.preset(name).changed(folders=["a b", "ü"], anchor="mean", jpeg_quality=[75, 90])
    path = tmp_path / "config.json"
    path.write_text(chosen.to_json(), encoding="utf-8")
    assert config.load(path) == chosen
    assert config.load_run(tmp_path) == chosen
    assert set(json.loads(path.read_text())) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_fields_that_are_left_out_have_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"epochs": 3, "learning_rate": 1}')
    assert config.load_run(tmp_path) == TrainConfig(epochs=3, learning_rate=1.0)


def test_recipe_holds_no_folder_and_no_machine_setting():
    recipe = TrainConfig(folders=("/home/me",), validation=("/home/me",), workers=9).recipe()
    assert "/home/me" not in json.dumps(recipe) and "workers" not in recipe
    trained = TrainConfig(detector="lgrad", discriminator="/home/me/d.pth")
    assert trained.recipe()["discriminator"] == "d.pth"
    assert recipe["epochs"] == 50 and recipe["betas"] == [0.9, 0.999]
    assert TrainConfig().changed(**recipe) == TrainConfig()


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("decay=1", "decay", 1.0),
        ("match_classes=true", "match_classes", True),
        ("resize=null", "resize", None),
        ("resize=300", "resize", 300),
        ("anchor=mean", "anchor", "mean"),
        ("anchor=3", "anchor", 3),
        ("jpeg_quality=75,90", "jpeg_quality", (75, 90)),
        ("blur_sigma=[0, 2.5]", "blur_sigma", (0.0, 2.5)),
        ("classes=car,cat", "classes", ("car", "cat")),
        ("classes=1", "classes", ("1",)),
        ("classes=", "classes", ()),
        ("name=7=7", "name", "7=7"),
        ("view=crop:64", "view", "crop:64"),
        ("size=fast", "size", "fast"),
    ],
)
def test_settings(setting, name, value):
    parsed = getattr(TrainConfig(match_classes=False, classes=("x",)).overridden([setting]), name)
    assert parsed == value and type(parsed) is type(value)


ERRORS = {
    "epoch=3": "no field 'epoch'; did you mean epochs?",
    "nonsense=3": "no field 'nonsense'",
    "epochs": "'epochs' is not of the form name=value",
    "epochs=many": 'epochs must be an integer, not "many"',
    "epochs=1.5": "epochs must be an integer, not 1.5",
    "epochs=true": "epochs must be an integer, not true",
    "match_classes=1": "match_classes must be true or false, not 1",
    "jpeg_quality=75": "jpeg_quality must be a list of 2 integers, not [75]",
    "classes=[1]": "classes must be a list of texts",
    "resize=x": "resize must be an integer or null",
    "epochs=0": "epochs must be at least 1, not 0",
    "workers=-1": "workers must be at least 0, not -1",
    "crop_size=4": "crop_size must be at least 8, not 4",
    "batch_size=1": "batch_size must be at least 2",
    "accumulation=0": "accumulation must be at least 1, not 0",
    "accumulation=5": "batch_size must be a multiple of accumulation",
    "accumulation=32": "batch norm needs it",
    "learning_rate=0": "learning_rate must be positive, not 0.0",
    "learning_rate=NaN": "learning_rate must be positive, not nan",
    "jpeg_probability=1.5": "jpeg_probability must be in 0 .. 1, not 1.5",
    "jpeg_quality=90,60": "the lower end of a range must come first",
    "webp_quality=0,60": "qualities must be in 1 .. 100",
    "rescale_factor=0,1": "rescale_factor must be in 0.1 .. 10",
    "blur_sigma=-1,1": "blur_sigma must be in 0 .. 100",
    "resize=100": "resize must be at least crop_size, not 100",
    "size=tiny": "size must be one of paper, fast",
    "depth=deep": "depth must be one of resnet18-layer1, resnet18-layer2, ",
    "depth=xception-block1": "the field depth works with the detector patchfor only",
    "classifier=best": "classifier must be linear or nearest, not best",
    "classifier=nearest": "the field classifier works with the detector ojha only",
    "discriminator=x.pth": "the field discriminator works with the detector lgrad only",
    "distillation=2": "distillation must be in 0 .. 1, not 2.0",
    "betas=0.9,1": "betas must be in 0 .. 1, below 1",
    "dtype=int8": "dtype must be one of float32, bfloat16, float16, not int8",
    "device=tpu": "unknown device 'tpu': use auto, cpu, cuda or cuda:N",
    "view=zoom": "unknown view 'zoom'",
}


@pytest.mark.parametrize("setting", ERRORS)
def test_errors(setting):
    with pytest.raises(InputError) as caught:
        TrainConfig().overridden([setting])
    assert ERRORS[setting] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "not a JSON object"), ("{", "Expecting"), ('{"a": 1}', "no field 'a'")]
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        config.load_run(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        config.load(tmp_path / "absent.json")


def test_unknown_preset():
    with pytest.raises(InputError, match="unknown preset 'tame': use paper or wild"):
        config.preset("tame")
