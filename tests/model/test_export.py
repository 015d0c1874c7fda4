"""The ONNX file gives our logits in other engines, for any batch and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npr_model import checkpoints, cli
from npr_model.checkpoints import Calibration, Metadata
from npr_model.errors import InputError
from npr_model.export import PlainDetector, export_onnx
from npr_model.network import NPRDetector
from tests.model.conftest import make_detector, noise

SHAPES = ((1, 64, 64), (3, 33, 47), (2, 256, 10), (5, 8, 8))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file, and the network that is in it."""
    pytest.importorskip("onnx", reason="needs ONNX, npr-kernels[export]")
    pytest.importorskip("onnxscript", reason="needs onnxscript, npr-kernels[export]")
    folder, model = tmp_path_factory.mktemp("onnx"), make_detector()
    calibration = Calibration(threshold=0.25, temperature=1.5)
    checkpoints.save(folder / "c.safetensors", model, Metadata(name="random", calibration=calibration))
    assert cli.main(["export", "--checkpoint", str(folder / "c.safetensors"), "-o", str(folder / "c.onnx")]) == 0
    return folder / "c.onnx", model


def pictures(batch: int, height: int, width: int) -> np.ndarray:
    return np.stack([noise(height, width, seed=i).transpose(2, 0, 1) for i in range(batch)])


def expected(model: NPRDetector, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize(("grid_size", "anchor"), [(2, 0), (2, 3), (3, 4), (2, "mean"), (2, "max")])
def test_plain_operators_are_the_network(grid_size, anchor):
    torch.manual_seed(0)
    model = NPRDetector(grid_size=grid_size, anchor=anchor).eval()
    for shape in SHAPES:
        pixels = pictures(*shape)
        found = PlainDetector(model)(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(found, expected(model, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_our_logits(exported, engine):
    package = pytest.importorskip(engine, reason=f"needs {engine}, npr-kernels[benchmark]")
    file, model = exported
    if engine == "onnxruntime":
        session = package.InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(pixels):
            return session.run(["logit"], {"pixels": pixels})[0]
    else:
        compiled = package.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(pixels):
            return compiled({"pixels": pixels})["logit"]

    for shape in SHAPES:
        pixels = pictures(*shape)
        np.testing.assert_allclose(run(pixels), expected(model, pixels), rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is(exported):
    import onnx

    model = onnx.load(exported[0])
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["model"].startswith("random@")
    assert (facts["view"], facts["threshold"], facts["temperature"]) == ("native", "0.25", "1.5")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}  # nothing that an engine must be taught


@pytest.mark.parametrize("output", ["c.bin", "missing/c.onnx"])
def test_wrong_output_is_one_line(tmp_path, checkpoint, capsys, output):
    assert cli.main(["export", "--checkpoint", str(checkpoint), "-o", str(tmp_path / output)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_detectors_are_refused(tmp_path):
    from npr_model.detectors import detector_class

    checkpoints.save(tmp_path / "c.safetensors", detector_class("frank")(), Metadata(name="f", detector="frank"))
    with pytest.raises(InputError, match="only the detector npr"):
        export_onnx(checkpoints.load(tmp_path / "c.safetensors"), tmp_path / "c.onnx")
