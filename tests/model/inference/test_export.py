"""The ONNX file gives our logits in other engines, and so does the compiled package, for any batch and size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from npr_model import checkpoints, cli
from npr_model.checkpoints import Metadata
from npr_model.detectors.npr import NPRDetector
from npr_model.errors import InputError
from npr_model.inference.export import PlainDetector, export_onnx, export_package, load_package
from npr_model.inference.freeze import freeze
from npr_model.verdicts import Calibration
from tests.model.conftest import make_detector, noise

# Most use the same package. Inductor is loaded once and compiles its common header once for all of this group.
pytestmark = pytest.mark.xdist_group("inductor")

SHAPES = ((1, 64, 64), (3, 33, 47), (2, 256, 10), (5, 8, 8))


@pytest.fixture(scope="module", params=["paper", "fast"])
def exported(tmp_path_factory, request):
    """An ONNX file and its network."""
    pytest.importorskip("onnx", reason="needs ONNX, npr-kernels[export]")
    pytest.importorskip("onnxscript", reason="needs onnxscript, npr-kernels[export]")
    folder, model = tmp_path_factory.mktemp("onnx"), make_detector(size=request.param)
    calibration = Calibration(threshold=0.25, temperature=1.5)
    checkpoints.save(folder / "c.safetensors", model, Metadata(name="random", calibration=calibration))
    assert cli.main(["export", "--checkpoint", str(folder / "c.safetensors"), "-o", str(folder / "c.onnx")]) == 0
    return folder / "c.onnx", model


def pictures(batch: int, height: int, width: int) -> np.ndarray:
    return np.stack([noise(height, width, seed=i).transpose(2, 0, 1) for i in range(batch)])


def expected(model: NPRDetector, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize(
    ("size", "grid_size", "anchor"),
    [("paper", 2, 0), ("paper", 2, 3), ("paper", 3, 4), ("paper", 2, "mean"), ("paper", 2, "max"), ("fast", 2, 0)],
)
def test_plain_operators_are_the_network(size, grid_size, anchor):
    torch.manual_seed(0)
    model = NPRDetector(size=size, grid_size=grid_size, anchor=anchor).eval()
    for shape in SHAPES:
        pixels = pictures(*shape)
        logits = PlainDetector(model)(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(logits, expected(model, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_our_logits(exported, engine):
    package = pytest.importorskip(engine, reason=f"needs {engine}, of the dependency group benchmark")
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
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}  # only standard operators


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A compiled package and its network."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    folder, model = tmp_path_factory.mktemp("package"), make_detector()
    checkpoints.save(folder / "c.safetensors", model, Metadata(name="random"))
    assert cli.main(["export", "--checkpoint", str(folder / "c.safetensors"), "-o", str(folder / "c.pt2")]) == 0
    return folder / "c.pt2", model


def test_a_package_that_cannot_be_loaded_is_not_written(monkeypatch, tmp_path, capsys):
    def broken(program, package_path, **options):
        Path(package_path).write_bytes(b"")
        return package_path

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", broken)
    checkpoints.save(tmp_path / "c.safetensors", make_detector(), Metadata(name="random"))
    assert cli.main(["export", "--checkpoint", str(tmp_path / "c.safetensors"), "-o", str(tmp_path / "c.pt2")]) == 3
    assert "the network could not be compiled" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.slow
def test_package_gives_our_logits(package):
    file, model = package
    run, frozen = load_package(file), freeze(model)
    for shape in ((1, 64, 64), (3, 33, 47), (2, 256, 16), (5, 16, 16)):
        pixels = torch.from_numpy(pictures(*shape))
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(
                run(pixels.contiguous(memory_format=layout)), frozen(pixels), rtol=1e-5, atol=1e-5
            )


@pytest.mark.slow
def test_package_runs_without_this_project(package):
    """Only the library of kernels is loaded, as in a server in C++."""
    file, model = package
    program = f"""
import sys, torch, npr_kernels
run = torch._inductor.aoti_load_package({str(file)!r})
print(run(torch.full((1, 3, 64, 64), 7, dtype=torch.uint8)).item(), "npr_model" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = freeze(model)(torch.full((1, 3, 64, 64), 7, dtype=torch.uint8)).item()
    logit, loaded = done.stdout.split()
    assert float(logit) == pytest.approx(expected, abs=1e-5) and loaded == "False"


@pytest.mark.slow
def test_package_for_another_processor_is_refused(package, monkeypatch):
    monkeypatch.setattr("npr_model.inference.export.cpu_capability", lambda: "another")
    with pytest.raises(InputError, match="export it again here"):
        load_package(package[0])


@pytest.mark.parametrize(
    "arguments",
    [["-o", "c.bin"], ["-o", "missing/c.onnx"], ["-o", "c.onnx", "--dtype", "int8"], ["-o", "c.pt2", "--dtype", "x"]],
)
def test_wrong_arguments_are_one_line(tmp_path, checkpoint, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "--checkpoint", str(checkpoint), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_detectors_are_refused(tmp_path):
    from npr_model.detectors import detector_class

    checkpoints.save(tmp_path / "c.safetensors", detector_class("frank")(), Metadata(name="f", detector="frank"))
    for export, name in ((export_onnx, "c.onnx"), (export_package, "c.pt2")):
        with pytest.raises(InputError, match="only npr detectors"):
            export(checkpoints.load(tmp_path / "c.safetensors"), tmp_path / name)
