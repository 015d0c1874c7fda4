"""Calibration keeps its promises: order statistics against brute force, temperature against a grid; the commands."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from npr_model import checkpoints
from npr_model.checkpoints import Metadata
from npr_model.commands.shared import terminal
from npr_model.errors import InputError
from npr_model.evaluation.calibration import (
    CONFIDENCE,
    MAX_TEMPERATURE,
    CalibrationError,
    calibrate,
    fit_temperature,
    log_loss,
    needed,
    operating_point,
    rank,
)
from npr_model.verdicts import Calibration, OperatingPoint
from tests.model.conftest import encoded, make_detector, noise

RATES = (0.5, 0.2, 0.1, 0.07, 0.05)


def called_generated(values: np.ndarray, k: int) -> float:
    """The share of values that exceed the k-th of the others: each in turn is the new photograph."""
    flagged = [value > np.sort(np.delete(values, i))[k - 1] for i, value in enumerate(values)]
    return float(np.mean(flagged))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [19, 20, 33, 59])
def test_threshold_is_the_lowest_that_keeps_the_rate(rate, count):
    values = np.random.default_rng(count).normal(size=count + 1)
    k = rank(count, rate)
    assert called_generated(values, k) <= rate + 1e-12
    assert k == 1 or called_generated(values, k - 1) > rate
    assert called_generated(np.round(values), k) <= rate + 1e-12  # ties
    assert operating_point(values[:-1], rate).threshold == sorted(values[:-1])[k - 1]


@pytest.mark.parametrize("rate", [*RATES, 0.3, 0.01, 0.001])
def test_least_number_of_photographs(rate):
    least = next(count for count in range(1, 2000) if rank(count, rate) <= count)
    assert needed(rate) == least
    assert operating_point(np.arange(least), rate).threshold == least - 1  # the largest
    with pytest.raises(CalibrationError, match="too few"):
        operating_point(np.arange(least - 1), rate)


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (362, 0.05), (362, 0.01), (2000, 0.001)])
def test_upper_bound_follows_the_binomial_distribution(count, rate):
    """The rate is below u when at least n + 1 - k of n photographs lie in the distribution's top u."""
    upper, above = operating_point(np.arange(count), rate).upper, count + 1 - rank(count, rate)
    log_terms = (
        math.lgamma(count + 1)
        - math.lgamma(i + 1)
        - math.lgamma(count - i + 1)
        + i * math.log(upper)
        + (count - i) * math.log1p(-upper)
        for i in range(above, count + 1)
    )
    assert math.fsum(map(math.exp, log_terms)) == pytest.approx(CONFIDENCE, abs=1e-6)


def test_rate_on_new_photographs():
    random = np.random.default_rng(0)
    measured, kept = [], []
    for _ in range(2000):
        point = operating_point(random.exponential(size=100), 0.05)
        true = math.exp(-point.threshold)  # tail of the exponential distribution
        measured.append(true)
        kept.append(true <= point.upper)
    assert np.mean(measured) == pytest.approx(5 / 101, abs=0.002)
    assert np.mean(kept) == pytest.approx(CONFIDENCE, abs=0.02)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_temperature_against_a_grid(scale):
    random = np.random.default_rng(1)
    labels = random.random(4000) < 0.5
    logits = np.where(labels, 1, -1) + random.normal(0, math.sqrt(2), 4000)  # these logits are the log odds
    reals, fakes = scale * logits[~labels], scale * logits[labels]
    fitted = fit_temperature(reals, fakes)
    assert fitted == pytest.approx(scale, rel=0.1)
    grid = np.geomspace(scale / 4, 4 * scale, 4001)
    losses = [log_loss(reals, fakes, temperature) for temperature in grid]
    assert fitted == pytest.approx(grid[np.argmin(losses)], rel=1e-3)
    assert log_loss(reals, fakes, fitted) <= min(losses) + 1e-12


def test_temperature_weighs_the_classes_equally():
    reals, fakes = [-1.0, 0.5], [2.0, -0.2, 1.0]
    assert fit_temperature(reals, fakes * 50) == pytest.approx(fit_temperature(reals, fakes), rel=1e-3)


def test_temperature_stays_in_its_limits():
    assert fit_temperature([-1, -2], [1, 2]) == pytest.approx(1 / MAX_TEMPERATURE)
    assert fit_temperature([1, 2], [-1, -2]) == pytest.approx(MAX_TEMPERATURE)


def test_calibration_of_many_photographs():
    reals = np.random.default_rng(2).permutation(np.arange(2000) / 100)
    result = calibrate(reals, fakes=[25.0, 9.0])
    assert [point.rate for point in result.calibration.points] == [0.05, 0.01, 0.001]
    assert [point.threshold for point in result.calibration.points] == [19.0, 19.8, 19.98]
    assert result.calibration.band == (pytest.approx(16.0), 19.0)
    assert "5 % false positives on 2000" in result.calibration.note
    verdicts = [result.calibration.verdict(logit) for logit in reals]
    assert verdicts.count("generated") == 99 and verdicts.count("uncertain") == 301
    assert len(result.warnings) == 1 and "0.1 % is uncertain: with " in result.warnings[0]


def test_too_few_photographs_are_refused():
    result = calibrate(range(120))
    assert [point.rate for point in result.calibration.points] == [0.05, 0.01]
    refused, few = sorted(result.warnings)
    assert refused == "no threshold at 0.1 %: it needs 999 photographs, but there are 120"
    assert few.startswith("the threshold at 1 % is uncertain: with 120 photographs the true rate may be up to 2.5 %")
    assert result.calibration.temperature == 1.0
    with pytest.raises(CalibrationError, match="18 different photographs are too few to calibrate; at least 19"):
        calibrate(range(18))


@pytest.mark.parametrize("rates", [(0.0,), (1.0,), (0.05, -1), (float("nan"),)])
def test_bad_rates(rates):
    with pytest.raises(CalibrationError, match="must lie between 0 and 1"):
        calibrate(range(100), rates=rates)


def test_useless_logits_get_a_warning():
    random = np.random.default_rng(0)
    result = calibrate(random.normal(1, 1, 999), random.normal(-1, 1, 99))
    assert any("do not separate generated images" in warning for warning in result.warnings)


POINTS = (
    OperatingPoint(0.05, 1.0, 500, 0.07),
    OperatingPoint(0.01, 2.0, 500, 0.02),
    OperatingPoint(0.4, 0.0, 500, 0.5),
)


def test_other_operating_points():
    calibration = Calibration(1.0, 0.5, 1.0, "x", POINTS, 2.0)
    strict = calibration.at(0.01)
    assert (strict.threshold, strict.band, strict.temperature) == (2.0, (0.5, 2.0), 2.0)
    assert [strict.verdict(x) for x in (0.4, 0.5, 1.5, 2.0, 2.1)] == ["real", *["uncertain"] * 3, "generated"]
    assert "1 % false positives on 500" in strict.note
    loose = calibration.at(0.4)
    assert loose.verdict(-0.1) == "real" and loose.verdict(0.1) == "generated"
    with pytest.raises(InputError, match=r"no threshold at the false-positive rate 0\.02; it has: 0\.05, 0\.01, 0"):
        calibration.at(0.02)


def test_metadata_round_trip_and_older_files():
    metadata = Metadata(calibration=Calibration(1.0, 0.5, 1.0, "x", POINTS, 2.0))
    assert Metadata.from_json(metadata.to_json()) == metadata
    older = json.loads(metadata.to_json())
    del older["calibration"]["points"], older["calibration"]["temperature"]
    assert Metadata.from_json(json.dumps(older)).calibration == Calibration(1.0, 0.5, 1.0, "x")


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"temperature": math.inf}, {"points": (OperatingPoint(0.1, math.nan, 9, 1),)}]
)
def test_bad_values(changes):
    with pytest.raises(ValueError, match=r"temperature must be positive|must be finite"):
        dataclasses.replace(Calibration(), **changes)


@pytest.fixture
def uncalibrated(tmp_path):
    path = tmp_path / "mine.safetensors"
    checkpoints.save(path, make_detector(), Metadata(name="mine", licence="CC0-1.0"))
    return path


def test_calibrate_then_screen(npr, labelled, tmp_path, uncalibrated):
    root = labelled({"photos/0_real": 120, "gan/1_fake": 10}, size=16)
    exact = "--dtype", "float32"
    before, calibrated = uncalibrated.read_bytes(), tmp_path / "mine-calibrated.safetensors"
    code, out, err = npr("calibrate", uncalibrated, root, *exact)
    assert uncalibrated.read_bytes() == before
    assert code == 0 and "npr: warning: no threshold at 0.1 %: it needs 999 photographs" in err
    assert "fitted with 10 generated images" in out and "worst source" in out
    loaded = checkpoints.load(calibrated).metadata
    assert loaded.licence == "CC0-1.0" and [point.rate for point in loaded.calibration.points] == [0.05, 0.01]
    rows = {}
    for rate in (0.05, 0.01):
        output = tmp_path / f"{rate}.parquet"
        code, out, _ = npr(
            "screen", root, "-o", output, "--checkpoint", calibrated, "--false-positive-rate", rate, *exact
        )
        assert code == 0 and f"verdicts: {100 * rate:g} % false positives on 120 photographs" in out
        rows[rate] = pq.read_table(output).drop_columns("milliseconds").to_pylist()
        verdicts = [row["verdict"] for row in rows[rate] if "0_real" in row["source"]]
        assert verdicts.count("generated") == 121 - rank(120, rate) - 1
        assert verdicts.count("real") in (rank(120, 0.2), rank(120, 0.2) - 1)  # a logit on the edge is uncertain
    code, _, _ = npr("screen", root, "-o", tmp_path / "default.parquet", "--checkpoint", calibrated, *exact)
    default = pq.read_table(tmp_path / "default.parquet").drop_columns("milliseconds")
    assert default.to_pylist() == rows[0.05]
    for row in rows[0.05]:
        expected = 1 / (1 + math.exp(-row["logit"] / loaded.calibration.temperature))
        assert row["probability"] == pytest.approx(expected, rel=1e-4)
    code, _, err = npr("screen", root, "--checkpoint", calibrated, "--false-positive-rate", 0.001)
    assert code == terminal.EXIT_USAGE and "it has: 0.05, 0.01" in err and err.count("\n") == 1


def test_an_existing_file_is_replaced_only_when_asked(npr, labelled, uncalibrated):
    root = labelled({"photos": 30}, size=8)
    before = uncalibrated.read_bytes()
    code, _, err = npr("calibrate", uncalibrated, root, "-o", uncalibrated)
    assert code == terminal.EXIT_USAGE and "exists: use --overwrite" in err and uncalibrated.read_bytes() == before
    assert npr("calibrate", uncalibrated, root, "-o", uncalibrated, "--overwrite")[0] == 0
    assert checkpoints.load(uncalibrated).metadata.calibration is not None


def test_copies_of_a_photograph_count_once(npr, tmp_path, uncalibrated):
    """A copy is no second photograph, whatever its name, metadata or lossless format."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(30):
        (photos / f"{number}.png").write_bytes(encoded(noise(16, 16, seed=number)))
    for number in range(120):
        (photos / f"copy{number}.png").write_bytes(encoded(noise(16, 16)))
    (photos / "tagged.png").write_bytes(encoded(noise(16, 16), dpi=(300, 300)))
    (photos / "copy.bmp").write_bytes(encoded(noise(16, 16), "BMP"))
    output = tmp_path / "new.safetensors"
    code, out, _ = npr("calibrate", uncalibrated, photos, "-o", output)
    assert code == 0 and "122 copies of other images were left out" in out
    assert "5 % false positives on 30 photographs" in out
    (point,) = checkpoints.load(output).metadata.calibration.points
    assert (point.rate, point.photographs) == (0.05, 30) and point.upper == operating_point(range(30), 0.05).upper
    for number in range(1, 30):
        (photos / f"{number}.png").unlink()
    code, out, err = npr("calibrate", uncalibrated, photos, "-o", tmp_path / "other.safetensors")
    assert code != 0 and "122 copies" in out and "1 photograph is too few to calibrate" in err
    assert not (tmp_path / "other.safetensors").exists()


def test_a_photograph_that_is_also_given_as_generated(npr, labelled, uncalibrated):
    root = labelled({"photos": 20, "fakes": 3}, size=8)
    (root / "fakes/same.png").write_bytes((root / "photos/0.png").read_bytes())
    (root / "photos/notes.txt").write_text("taken in June")
    code, _, err = npr("calibrate", uncalibrated, root / "photos", "--fake", root / "fakes")
    assert code == 0 and "1 file is in both classes, so one of the labels is wrong" in err
    assert "1 file was left out: " in err and "notes.txt (not an image" in err


def test_output_view_and_separate_fakes(npr, labelled, tmp_path, uncalibrated):
    root = labelled({"photos": 30, "generated": 5}, size=20)
    (root / "photos/bad.png").write_bytes(b"")
    before, output = uncalibrated.read_bytes(), tmp_path / "new.safetensors"
    options = [
        "--fake",
        root / "generated",
        "-o",
        output,
        "--view",
        "crop:16",
        "--false-positive-rate",
        0.1,
        "--false-positive-rate",
        0.05,
    ]
    code, out, _ = npr("calibrate", uncalibrated, root / "photos", *options)
    assert code == terminal.EXIT_FAILED_INPUTS and "bad.png: the file is empty" in out
    assert uncalibrated.read_bytes() == before
    loaded = checkpoints.load(output).metadata
    assert str(loaded.view) == "crop:16" and loaded.calibration.points[0].photographs == 30
    assert loaded.calibration.threshold == loaded.calibration.points[0].threshold
    assert loaded.calibration.temperature != 1
    code, out, _ = npr(
        "calibrate", output, root / "photos", "-o", output, "--overwrite", "--false-positive-rate", "0.1"
    )  # without generated images
    assert f"the temperature stays {loaded.calibration.temperature:.3g}" in out
    assert checkpoints.load(output).metadata.calibration.temperature == loaded.calibration.temperature


ERRORS = {
    "output of another kind": (["wild-2", "{root}/photos", "-o", "x.pth"], "must end in .safetensors"),
    "too few": (["{checkpoint}", "{root}/photos"], "4 different photographs are too few to calibrate; at least 19"),
    "rates": (
        ["{checkpoint}", "{root}/photos", "--false-positive-rate", "5%"],
        "Invalid value for '--false-positive-rate'",
    ),
    "rate": (["{checkpoint}", "{root}/photos", "--false-positive-rate", "5"], "must lie between 0 and 1, got 5"),
    "no such folder": (["{checkpoint}", "{root}/absent"], "cannot be listed: No such file or directory"),
    "no reals": (["{checkpoint}", "{root}/fakes"], "no real images in"),
    "screen uncalibrated": (None, "no threshold at the false-positive rate 0.05; it has: none"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(npr, labelled, uncalibrated, name):
    root = labelled({"photos": 4, "fakes/1_fake": 2}, size=8)
    arguments, message = ERRORS[name]
    if arguments is None:
        code, _, err = npr("screen", root, "--checkpoint", uncalibrated, "--false-positive-rate", 0.05)
    else:
        code, _, err = npr("calibrate", *(a.format(root=root, checkpoint=uncalibrated) for a in arguments))
    assert code == terminal.EXIT_USAGE and err.startswith("npr: error: ") and err.count("\n") == 1 and message in err


def test_each_condition_has_its_own_threshold():
    """Logits of lossless photographs are 2 higher; five photographs are too few for a threshold of their own."""
    random = np.random.default_rng(0)
    fine, lossless, other = random.normal(0, 1, 400), random.normal(2, 1, 200), random.normal(0, 1, 5)
    conditions = {"jpeg-90-100": fine.tolist(), "lossless": lossless.tolist(), "other-lossy": other.tolist()}
    reals = [logit for logits in conditions.values() for logit in logits]
    result = calibrate(reals, conditions=conditions)
    calibration = result.calibration
    assert set(calibration.conditions) == {"jpeg-90-100", "lossless"}
    assert any("5 photographs with the condition other-lossy are too few" in warning for warning in result.warnings)
    for name, logits in conditions.items():
        own = calibration.of(name)
        flagged = np.mean([own.verdict(logit) == "generated" for logit in logits])
        assert name == "other-lossy" or 0.03 < flagged <= 0.05
    assert calibration.of(None) is calibration.of("other-lossy") is calibration
    at_one = calibration.at(0.01)
    assert at_one.of("lossless").threshold == operating_point(lossless, 0.01).threshold
    assert at_one.of("jpeg-90-100").threshold == operating_point(fine, 0.01).threshold
    at_mille = calibrate(reals + [9.0] * 500, rates=[0.05, 0.001], conditions=conditions).calibration.at(0.001)
    assert at_mille.conditions == {}  # too few of each


def test_conditions_survive_a_checkpoint(tmp_path):
    own = Calibration(2.0, 1.0, 2.0, "own", POINTS)
    metadata = Metadata(calibration=Calibration(1.0, 0.5, 1.0, "x", POINTS, 2.0, {"lossless": own}))
    assert Metadata.from_json(metadata.to_json()).calibration == metadata.calibration
    assert pickle.loads(pickle.dumps(metadata)).calibration == metadata.calibration
