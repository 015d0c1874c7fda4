"""The choice of a backend: order, reasons, and what happens without the compiled extension."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import npr_kernels
from npr_kernels import capabilities, extension, info
from npr_kernels.backends import cpu, cuda, registry, triton
from npr_kernels.backends.base import Call, Convolution
from npr_kernels.capabilities import cpu_capability
from npr_kernels.testing import Case
from tests.conftest import PLAIN_PYTEST, ROOT

needs_extension = pytest.mark.skipif(bool(extension.LOAD_ERROR), reason=str(extension.LOAD_ERROR))
CAPABILITIES = ["portable", "avx2", "avx512", "avx512bf16"]  # each includes those before it
CALL = Call("npr_conv2d", torch.device("cpu"), torch.float32, torch.float32, Convolution())


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(extension, "LOAD_ERROR", "the extension is on holiday")
    monkeypatch.setattr(registry, "_logged", set())


@needs_extension
def test_order_of_choice(monkeypatch):
    """Argument, then context manager, then environment, then automatic."""
    assert registry.select(CALL) == "cpu"
    monkeypatch.setenv("NPR_KERNELS_BACKEND", "eager")
    assert registry.select(CALL) == "eager"
    with npr_kernels.use_backend("cpu"):
        assert registry.select(CALL) == "cpu"
        with npr_kernels.use_backend("eager"):
            assert registry.select(CALL) == "eager"
        assert registry.select(CALL, "eager") == "eager"
    assert registry.select(CALL) == "eager"


def test_context_ends_with_an_exception():
    with pytest.raises(KeyError), npr_kernels.use_backend("eager"):
        raise KeyError
    assert getattr(registry._context, "name", None) is None


@needs_extension
def test_threads_choose_for_themselves():
    with npr_kernels.use_backend("eager"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(registry.select, CALL).result() == "cpu"
        assert registry.select(CALL) == "eager"


@pytest.mark.parametrize("how", ["argument", "context", "environment"])
def test_an_explicit_choice_never_falls_back(how, without_extension, monkeypatch):
    x, weight, _ = Case().tensors()
    with pytest.raises(npr_kernels.BackendError, match=r"'cpu' .* cannot serve npr_conv2d: .* on holiday"):
        if how == "argument":
            npr_kernels.npr_conv2d(x, weight, backend="cpu")
        elif how == "context":
            with npr_kernels.use_backend("cpu"):
                npr_kernels.npr_conv2d(x, weight)
        else:
            monkeypatch.setenv("NPR_KERNELS_BACKEND", "cpu")
            npr_kernels.npr_conv2d(x, weight)


def test_unknown_backend():
    x, weight, _ = Case().tensors()
    for call in (
        lambda: npr_kernels.npr_conv2d(x, weight, backend="cudnn"),
        lambda: npr_kernels.use_backend("x").__enter__(),
    ):
        with pytest.raises(npr_kernels.BackendError, match=r"no backend .*; there are cuda, triton, cpu, eager"):
            call()


def test_automatic_fallback_is_logged_once(without_extension, caplog):
    x, weight, _ = Case().tensors()
    with caplog.at_level(logging.WARNING, "npr_kernels"):
        first, second = npr_kernels.npr_conv2d(x, weight), npr_kernels.npr_conv2d(x, weight)
    assert torch.equal(first, second)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("npr_conv2d runs on plain PyTorch (cuda: ")
    assert message.endswith("; cpu: the extension is on holiday)")


def test_which_backend(without_extension):
    x, weight, _ = Case().tensors()
    explanation = npr_kernels.which_backend(x, weight)
    assert explanation.chosen == "eager" and explanation.source == "automatic choice"
    assert "cpu" in str(explanation) and "on holiday" in str(explanation)
    with npr_kernels.use_backend("eager"):
        assert npr_kernels.which_backend(x).source == "use_backend"
    for operator in ("npr_stem", "npr_batch_norm_stem"):
        reasons = npr_kernels.which_backend(x, weight, operator=operator, stride=1).reasons
        assert "on holiday" in reasons["cpu"] and operator not in reasons["cuda"]
    with pytest.raises(ValueError, match="operator must be"):
        npr_kernels.which_backend(x, weight, operator="npr")


def test_names_of_functions_hide_no_module():
    """`import npr_kernels` alone reaches the packages below it by their names."""
    assert npr_kernels.backends.registry is registry
    assert not [name for name in npr_kernels.__all__ if f"npr_kernels.{name}" in sys.modules]


def test_refusals_of_triton_name_the_reason(monkeypatch):
    monkeypatch.setattr(triton, "INSTALLED", True)
    call = Call("npr", torch.device("mps"), torch.float32, torch.float32, Convolution())
    assert "x is on mps" in triton.unsupported_reason(call)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    call = replace(call, device=torch.device(triton.DEVICE))
    assert triton.unsupported_reason(call) is None
    assert "float8" in triton.unsupported_reason(replace(call, dtype=torch.float8_e4m3fn))
    monkeypatch.setattr(triton, "INSTALLED", False)
    assert "not installed" in triton.unsupported_reason(call)


def test_refusals_of_cuda_name_the_argument(monkeypatch):
    """What it serves does not depend on there being a GPU here."""
    monkeypatch.setattr(extension, "CUDA_ERROR", None)
    monkeypatch.setattr(extension, "CUDA_ARCHITECTURES", "8.0;9.0a;10.0+PTX")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(capabilities, "gpu_capability", lambda device: (9, 0))

    def unsupported_reason(case: Case, operator: str = "npr_stem", device: str = "cuda") -> str | None:
        shape = (case.out_channels, case.channels, *case.kernel)
        types = case.dtype, case.parameter_dtype
        return cuda.unsupported_reason(Call(operator, torch.device(device), *types, case.convolution, shape))

    served = Case(out_channels=64)
    assert unsupported_reason(served) is None
    for case, what in (
        (Case(out_channels=8), "out_channels"),
        (Case(out_channels=144), "out_channels"),
        (Case(out_channels=64, channels=4), "channels"),
        (Case(out_channels=64, anchor="mean"), "'mean'"),
        (Case(out_channels=64, grid_size=3), "grid_size"),
        (Case(out_channels=64, stride=1), "stride"),
        (Case(out_channels=64, dtype=torch.float64), "float64"),
    ):
        assert what in unsupported_reason(case)
    assert "npr_conv2d" in unsupported_reason(served, "npr_conv2d")
    assert "x is on cpu" in unsupported_reason(served, device="cpu")
    monkeypatch.setattr(capabilities, "gpu_capability", lambda device: (7, 5))
    reason = "it is built for compute capability 8.0, 9.0a, 10.0+PTX, and cuda:1 has 7.5"
    assert unsupported_reason(served, device="cuda:1").startswith(reason)


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("8.0;9.0a;10.0+PTX", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)], [(7, 5), (6, 1)]),
        ("9.0a", [(9, 0)], [(8, 0), (8, 9), (10, 0), (12, 0)]),
        ("8.6 8.9", [(8, 6), (8, 9)], [(8, 0), (9, 0), (12, 0)]),
        ("8.0+PTX", [(8, 0), (8, 6), (9, 0), (12, 1)], [(7, 5)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0f;12.0f", [(10, 0), (10, 3), (12, 0), (12, 1)], [(9, 0), (11, 0)]),
        ("Ampere;9.0", [(8, 0), (9, 0), (7, 5)], []),
        ("", [(7, 5), (9, 0)], []),
    ],
)
def test_architectures_and_capabilities(architectures, runs, does_not):
    """The build's architectures, in torch's form; a name or nothing at all says too little to refuse."""
    assert all(cuda.runs_on(capability, architectures) for capability in runs)
    assert not any(cuda.runs_on(capability, architectures) for capability in does_not)


def test_automatic_choice_below_the_capability_that_cuda_is_built_for(monkeypatch):
    """A GPU of compute capability 7.5 is served by Triton, not by code that it cannot load."""
    monkeypatch.setattr(extension, "CUDA_ERROR", None)
    monkeypatch.setattr(extension, "CUDA_ARCHITECTURES", "8.0;9.0a+PTX")
    monkeypatch.setattr(triton, "INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("NPR_KERNELS_SELF_TEST", "0")  # there is no GPU to try it on
    convolution = Convolution((2, 2), (1, 1))
    call = Call("npr_stem", torch.device("cuda", 0), torch.uint8, torch.bfloat16, convolution, (64, 3, 3, 3))
    for capability, expected in (((7, 5), "triton"), ((9, 0), "cuda")):
        monkeypatch.setattr(capabilities, "gpu_capability", lambda device, found=capability: found)
        assert registry.select(call) == expected


def test_the_capability_is_asked_for_while_a_graph_is_traced(monkeypatch):
    monkeypatch.setattr(extension, "CUDA_ARCHITECTURES", "8.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, device.index))
    monkeypatch.setattr(capabilities, "_gpu_capabilities", {})

    def chosen(x, device):
        return x + 1 if cuda._unbuilt(device) is None else x

    torch._dynamo.reset()
    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    first, other = torch.device("cuda", 0), torch.device("cuda", 6)
    assert compiled(torch.zeros(()), first) == compiled(torch.zeros(()), other) == 1
    monkeypatch.setattr(extension, "CUDA_ARCHITECTURES", "8.6")
    torch._dynamo.reset()
    assert compiled(torch.zeros(()), first) == 0 and compiled(torch.zeros(()), other) == 1
    assert capabilities._gpu_capabilities == {first: (8, 0), other: (8, 6)}


@needs_extension
def test_refusals_name_the_reason():
    assert "on cuda" in cpu.unsupported_reason(replace(CALL, device=torch.device("cuda")))
    reason = cpu.unsupported_reason(replace(CALL, x_dtype=torch.float8_e4m3fn))
    assert "float8" in reason


@needs_extension
def test_a_backend_of_stems_alone(monkeypatch):
    """The gradient to the image needs the whole convolution, which then another backend serves."""
    stems = types.SimpleNamespace(
        NAME="stems",
        DIFFERENTIABLE=False,
        SELF_TEST_SIZES=(),
        npr_stem=cpu.npr_stem,
        npr_stem_argmax=cpu.npr_stem_argmax,
        npr_stem_grad_weight=cpu.npr_stem_grad_weight,
        npr_moments=cpu.npr_moments,
        unsupported_reason=lambda call: None if "stem" in call.operator else "it serves stems only",
    )
    monkeypatch.setattr(registry, "BACKENDS", {"stems": stems, **registry.BACKENDS})
    module = npr_kernels.NPRStem(3, 8)
    x, *_ = Case().tensors()
    for training in (True, False):
        module.train(training)(x.requires_grad_()).sum().backward()
        found, x.grad = x.grad, None
        module.conv.backend = "cpu"
        module(x).sum().backward()
        assert torch.equal(found, x.grad)
        module.conv.backend, x.grad = "stems", None
        with pytest.raises(npr_kernels.BackendError, match=r"'stems' .* cannot serve npr_conv2d: it serves stems only"):
            module(x)
        module(x.detach()).sum().backward()
        (grad,) = torch.autograd.grad(module(x.detach()).square().sum(), module.conv.weight, create_graph=True)
        grad.square().sum().backward()  # through a backend that serves the convolution
        module.conv.backend = None


def run(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


def test_importing_is_free_of_side_effects():
    """No GPU is touched, no compiler started, neither Triton nor torch's compilers nor the tables of tests loaded."""
    code = (
        "import sys, npr_kernels, torch; assert not torch.cuda.is_initialized();"
        "slow = {'torch._inductor', 'torch._dynamo', 'npr_kernels.testing'} & sys.modules.keys();"
        "assert not slow and not [name for name in sys.modules if name.split('.')[0] == 'triton']"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


@needs_extension
def test_an_unknown_instruction_set_is_an_error():
    """It was asked for by name, so plain PyTorch must not serve the call without a word."""
    code = """
import torch, npr_kernels
for backend in (None, "cpu"):
    try:
        npr_kernels.npr(torch.zeros(1, 3, 4, 4), backend=backend)
    except npr_kernels.BackendError as error:
        print(error)
npr_kernels.npr(torch.zeros(1, 3, 4, 4), backend="eager")
"""
    result = run(code, NPR_KERNELS_CPU_CAPABILITY="sse9")
    assert result.stdout.count("NPR_KERNELS_CPU_CAPABILITY is 'sse9'; this machine has") == 2 and result.returncode == 0


@pytest.mark.slow
@needs_extension
@pytest.mark.xdist_group("instruction sets")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_this_machine_has(capability):
    """The table of cases once more, in a process that is told to use it."""
    if capability == cpu_capability():
        pytest.skip("all other tests run on it")
    if CAPABILITIES.index(capability) > CAPABILITIES.index(cpu_capability()):
        code = "from npr_kernels import extension; print(extension.LOAD_ERROR)"
        assert f"is '{capability}'; this machine has" in run(code, NPR_KERNELS_CPU_CAPABILITY=capability).stdout
        pytest.skip(f"this machine lacks {capability}")
    names = "test_parity", "test_training_stem", "trunk/test_cpu_bottleneck", "trunk/test_cpu_bottleneck_int8"
    names += ("trunk/test_average_pool",)
    tests = [f"tests/kernels/{name}.py" for name in names]
    chosen = "(cpu or bottleneck or average_pool) and not (gradcheck or processes or opcheck or memory)"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", chosen],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **PLAIN_PYTEST, "NPR_KERNELS_CPU_CAPABILITY": capability},
    )
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-2000:]


# Imports the package from each of the folders, in a process that has torch already.
IMPORTS_FROM_FOLDERS = """
import os, sys, torch
for folder in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    sys.path.insert(0, folder)
    import npr_kernels
    npr_kernels.npr(torch.zeros(1, 3, 4, 4))
    print(npr_kernels.available_backends()["cpu"])
    break
"""


def test_a_failed_load_never_breaks_the_import(tmp_path):
    folders = tmp_path / "missing", tmp_path / "garbage"
    for folder in folders:
        ignored = shutil.ignore_patterns("*.so", "*.json", "__pycache__")
        shutil.copytree(ROOT / "npr_kernels", folder / "npr_kernels", ignore=ignored)
    (folders[1] / "npr_kernels" / "_C.abi3.so").write_bytes(b"this is no library")
    command = [sys.executable, "-c", IMPORTS_FROM_FOLDERS, *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    missing, garbage = result.stdout.splitlines()
    assert "not built" in missing and "_C.abi3.so failed to load" in garbage


def test_info_reports_everything(monkeypatch, capsys):
    result = subprocess.run(
        [sys.executable, "-m", "npr_kernels.info", "--json"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    facts = json.loads(result.stdout)
    assert facts["torch"] == torch.__version__
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert set(facts["backends"]) == {"cuda", "triton", "cpu", "eager"}
    if not extension.LOAD_ERROR:
        assert facts["build"]["torch"] and facts["build"]["compiler"] and facts["cpu_capability"]
    monkeypatch.setattr(sys, "argv", ["info"])
    info.main()
    assert "eager: available" in capsys.readouterr().out
