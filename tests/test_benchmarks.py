"""The benchmarks' own promises: exact peers, a gate that shuts, reports of the documented shape."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
import typer
from rich.console import Console

from benchmarks import command, harness, inputs, kernels, machine, model, ops, peers, scaling, screening, train, trunk
from benchmarks import report as readme
from benchmarks.harness import Benchmark, Contender, Unavailable
from benchmarks.operator_cases import OperatorCase
from benchmarks.parity import Parity
from benchmarks.rows import OURS, REFERENCE, Results, earlier_rows, is_peer, unjudged
from benchmarks.training_stem_cases import TrainingStemCase
from npr_kernels import available_backends, reference
from npr_kernels.testing import error
from npr_model.detectors.npr import NPRDetector
from npr_model.imaging.views import View
from tests.conftest import ROOT
from tests.model.conftest import encoded, noise

CPU = torch.device("cpu")
NOT_COMPILED = available_backends()["cpu"]  # why there is no backend cpu; None if there is one
PEAKS = {"fma_peak": {"gflops": 1.0}, "bf16_peak": {"gflops": 1.0}, "copy_bandwidth_gb_s": 1.0}


@pytest.mark.parametrize("anchor", [0, 1, 2, 3, "mean"])
@pytest.mark.parametrize("size", [(2, 2), (8, 8), (7, 9), (13, 18), (6, 31)])
def test_composed_convolution_is_exact(anchor, size):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    pixels = torch.randint(0, 256, image.shape, generator=generator, dtype=torch.uint8)
    weight = torch.randn(8, 3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)
    for x, scale in ((image, (2 / 3,)), (pixels, (0.1, 0.2, 0.3))):
        expected = reference.npr_conv2d(x, weight, bias, anchor=anchor, scale=scale)
        composed = peers.composed_conv2d(x, peers.compose(weight, anchor, scale), bias)
        assert error(composed, expected) < 1e-13
        grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        gradients = [torch.autograd.grad(y, weight, grad)[0] for y in (composed, expected)]
        assert error(*gradients) < 1e-13


def test_authors_layers_are_the_detector():
    detector, pixels = inputs.random_detector(), inputs.random_pixels(2, 33)
    with torch.no_grad():
        truth = NPRDetector().double().eval()
        truth.load_state_dict(detector.state_dict())
        assert error(peers.AuthorsDetector(detector, torch.float64)(pixels), truth(pixels)) < 1e-12
        assert error(peers.AuthorsDetector(detector)(pixels), truth(pixels)) < 1e-5


def test_residual_blocks_are_judged_each_and_together():
    """Their inputs follow from one another; what needs a GPU says so."""
    made = trunk.cases(inputs.random_detector(), 2, 32, torch.bfloat16, CPU, "trunk|layer1.2|layer2.[01]")
    names = []
    for name, maker in made:
        rows = harness.run(maker(), PEAKS, CPU, seconds=0)
        names.append(rows[0]["case"])
        assert [row["parity"] for row in rows] == ["green", *["unavailable"] * (len(rows) - 1)], name
    assert names == [
        "trunk, 2x64x8x8 bfloat16",
        "layer1.2, 2x256x8x8 bfloat16",
        "layer2.0, 2x256x8x8 bfloat16",
        "layer2.1, 2x512x4x4 bfloat16",
    ]


@pytest.mark.parametrize(
    ("format", "view"), [("JPEG", "native"), ("PNG", "native"), ("WEBP", "native"), ("JPEG", "sample:3x16")]
)
def test_screening_judges_logits_and_pixels(format, view, tmp_path):
    paths = inputs.make_files(tmp_path, format, 32, 10)
    case = screening.benchmark(inputs.random_detector(), format, paths, View.parse(view), 1, CPU)
    for contender in case.contenders:
        parity = case.judge(contender.build()(), contender.dtype)
        assert parity.green, contender.name
        assert contender.name != screening.DECODING or parity.error == 0
    pixels = next(c for c in case.contenders if c.name == screening.DECODING).build()()
    pixels[3][4, 5, 1] ^= 1
    assert not case.judge(pixels, torch.float32).green
    times = {
        OURS: 20,
        screening.OURS_INT8: 10,
        screening.DECODING: 5,
        screening.WITHOUT_NETWORK: 8,
        screening.NETWORK: 16,
    }
    rows = [{"contender": c.name, "median_ms": times.get(c.name, 100)} for c in case.contenders]
    rows = {row["contender"]: row for row in screening.with_rates(rows, 10)}
    assert rows[OURS]["images_per_second"] == 500 and rows[OURS]["share_of_slower_half"] == pytest.approx(0.8)
    assert rows[screening.WITHOUT_NETWORK]["share_of_decoding"] == pytest.approx(5 / 8)
    assert screening.OURS_INT8 not in rows or rows[screening.OURS_INT8]["share_of_decoding"] == pytest.approx(0.5)


def test_a_file_keeps_the_cases_that_are_not_run_again(tmp_path):
    file, here = tmp_path / "screening.json", {"cpu": "some", "cpu_capability": "avx2", "threads": 2}
    assert earlier_rows(None, here) == []
    for text, expected in (
        ("", []),
        (json.dumps({"machine": here, "rows": [{"case": "a"}]}), [{"case": "a"}]),
        (json.dumps({"machine": here | {"threads": 16}, "rows": [{"case": "a"}]}), []),
        (json.dumps({"machine": here | {"gpu": "some"}, "rows": [{"case": "a"}]}), []),
    ):
        file.write_text(text)
        assert earlier_rows(file, here) == expected
    results = Results(here, file, Console(quiet=True), earlier=[unjudged("a", "ours", 1.0), unjudged("b", "ours", 1.0)])
    results.add([unjudged("b", "ours", 2.0)])
    cases = [(row["case"], row["median_ms"]) for row in json.loads(file.read_text())["rows"]]
    assert cases == [("b", 2000.0), ("a", 1000.0)]


def test_training_step_judges_losses_and_gradients():
    case = train.benchmark(4, 32, CPU)
    contenders = {contender.name: contender for contender in case.contenders}
    for name in ("eager", "ours float32", "ours bfloat16"):
        assert case.judge(contenders[name].build()(), contenders[name].dtype).green, name
    right, details = contenders["ours float32"].build()()
    for wrong in ({"losses": right.losses * 1.001}, {"gradients": right.gradients * 1.2}):
        assert not case.judge((dataclasses.replace(right, **wrong), details), torch.float32).green


def test_training_from_files_measures_the_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FILES", 8)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(20, 30, number)))
    for photos in (None, tmp_path):
        rows = list(train.loading(4, 16, 1, CPU, photos, 0))
        assert [row["contender"] for row in rows] == ["loader alone", "ours float32", "ours bfloat16"]
        assert all(row["median_ms"] > 0 and row["images_per_second"] > 0 for row in rows)
        assert all(0 <= row["waiting"] < 1 for row in rows[1:])


def benchmark_of(**contenders) -> Benchmark:
    """A case whose right answer is 1; names are written with _ for a blank."""
    listed = [Contender(name.replace("_", " "), lambda call=call: call) for name, call in contenders.items()]
    return Benchmark("case", listed, lambda result, dtype: Parity(abs(result - 1), 0.1), flops=1e9, bytes=1e9)


def reported(benchmark: Benchmark, tmp_path) -> tuple[int, dict[str, dict], str]:
    """Exit code, the JSON's rows by contender, and what was printed."""
    file, console = tmp_path / "report.json", Console(record=True, width=200)
    results = Results(PEAKS, file, console)
    harness.measure(benchmark, results, CPU, 0)
    code = results.exit_code()
    return code, {row["contender"]: row for row in json.loads(file.read_text())["rows"]}, console.export_text()


def test_right_contenders_get_times_and_ratios(tmp_path):
    code, rows, printed = reported(benchmark_of(eager=lambda: 1.05, ours_fast=lambda: 1.0), tmp_path)
    assert code == 0
    assert rows["eager"]["ratio_to_reference"] == 1
    ours = rows["ours fast"]
    assert ours["parity"] == "green" and ours["median_ms"] > 0
    assert ours["ratio_to_reference"] == pytest.approx(rows["eager"]["median_ms"] / ours["median_ms"])
    assert f"{ours['ratio_to_reference']:.1f}" in printed


@pytest.mark.parametrize("wrong", [1.2, float("nan"), float("inf")])
def test_wrong_result_of_ours_gets_no_time(tmp_path, wrong):
    code, rows, printed = reported(benchmark_of(eager=lambda: 1.0, ours=lambda: wrong), tmp_path)
    assert code == 1
    assert rows["ours"]["parity"] == "red"
    assert rows["ours"]["median_ms"] is None and rows["ours"]["ratio_to_reference"] is None
    assert "gflops" not in rows["ours"]
    assert "parity is red: ours (case)" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("│ ours")]
    numbers = [cell.strip() for cell in line.split("│")[2:-2]]
    assert len(numbers) >= 5 and not any(numbers)


def test_failure_of_ours_is_red(tmp_path):
    code, rows, _ = reported(benchmark_of(eager=lambda: 1.0, ours=lambda: 1 / 0), tmp_path)
    assert code == 1
    assert rows["ours"]["parity"] == "red" and "ZeroDivisionError" in rows["ours"]["note"]


def test_wrong_reference_gives_no_ratios(tmp_path):
    code, rows, _ = reported(benchmark_of(eager=lambda: 2.0, ours=lambda: 1.0), tmp_path)
    assert code == 1
    assert rows["ours"]["median_ms"] and rows["ours"]["ratio_to_reference"] is None


def test_peers_never_fail_the_run(tmp_path):
    def missing():
        raise Unavailable("not installed: pip install it")

    contenders = {"eager": lambda: 1.0, "wrong": lambda: 2.0, "broken": lambda: 1 / 0, "missing": missing}
    code, rows, printed = reported(benchmark_of(**contenders), tmp_path)
    assert code == 0
    assert {name: row["parity"] for name, row in rows.items()} == {
        "eager": "green",
        "wrong": "red",
        "broken": "failed",
        "missing": "unavailable",
    }
    assert rows["wrong"]["median_ms"] and rows["wrong"]["ratio_to_reference"] is None
    assert "not installed: pip install it" in printed


def test_missing_engines_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unavailable, match="pip install --group benchmark"):
        peers.openvino(b"", torch.zeros(1), "f32")


@pytest.mark.parametrize(
    "case",
    [
        OperatorCase("stem", torch.uint8, torch.float32, batch=1, size=16),
        OperatorCase("stem", torch.uint8, torch.bfloat16, batch=1, size=16),
        OperatorCase("conv", torch.float32, torch.float32, batch=1, size=16, gradients="wbx"),
        OperatorCase("conv", torch.bfloat16, torch.bfloat16, batch=2, size=16, channels_last=False, gradients="wb"),
        TrainingStemCase(torch.uint8, torch.float32, batch=2, size=32),
        TrainingStemCase(torch.uint8, torch.bfloat16, batch=2, size=32),
        TrainingStemCase(torch.float32, torch.float32, batch=2, size=32),
    ],
    ids=str,
)
def test_report_of_a_small_case(tmp_path, case):
    benchmark = case.benchmark(CPU)
    quick = [contender for contender in benchmark.contenders if "compile" not in contender.name]
    code, rows, _ = reported(dataclasses.replace(benchmark, contenders=quick), tmp_path)
    assert code == 0
    ours = {f"{OURS} {name}" for name in ("cpu",) if not NOT_COMPILED}
    assert {REFERENCE, "composed 4x4"} | ours <= set(rows)
    for name, row in rows.items():
        assert {"case", "contender", "median_ms", "ratio_to_reference", "parity"} <= set(row)
        assert row["case"] == str(case) and row["median_ms"] > 0
        if not is_peer(name):
            assert row["parity"] == "green" and row["ratio_to_reference"] > 0


@pytest.mark.parametrize("case", kernels.TABLE, ids=str)
def test_kernels_are_judged_and_timed_on_inputs_in_turn(tmp_path, case):
    case = dataclasses.replace(case, batch=3, size=32)
    benchmark = case.benchmark(CPU)
    code, rows, _ = reported(benchmark, tmp_path)
    assert code == 0 and REFERENCE in rows
    assert NOT_COMPILED or f"{OURS} cpu" in rows
    for row in rows.values():
        assert row["parity"] == "green" and row["median_ms"] > 0 and row["bytes"] == case.bytes
        assert row["microseconds_an_image"] == pytest.approx(row["median_ms"] * 1e3 / 3)
    for contender in benchmark.contenders:
        first, second = (call() for call in contender.build())
        assert not any(map(torch.equal, first, second)), "the same input twice"


@pytest.mark.skipif(bool(NOT_COMPILED), reason=str(NOT_COMPILED))
@pytest.mark.parametrize("operator", kernels.TITLES)
def test_kernels_that_are_wrong_are_red(operator, monkeypatch):
    monkeypatch.setattr(kernels, "PIECE", 2)  # so that the last image is judged in a piece of its own
    case = next(case for case in kernels.TABLE if case.operator == operator)
    benchmark = dataclasses.replace(case, batch=3, size=32).benchmark(CPU)
    ours = next(contender for contender in benchmark.contenders if contender.name.startswith(OURS))
    results = ours.build()[0]()
    assert benchmark.judge(results, ours.dtype).green
    for place, result in enumerate(results):
        if result.dtype == torch.uint8:  # another position in the window, and none
            values = [(result + 1) % 9, torch.full_like(result, 9), torch.zeros_like(result)]
        else:
            last = result.flatten().clone()
            last[-1] += 0.1 * result.abs().max()
            values = [last.view_as(result), torch.full_like(result, float("nan"))]
        for value in values:
            changed = [*results[:place], value, *results[place + 1 :]]
            assert not benchmark.judge(tuple(changed), ours.dtype).green


def test_rows_are_written_one_by_one(tmp_path):
    """A run that is killed leaves what it had: here, at the second contender."""
    seen = []

    def second():
        seen.append(json.loads((tmp_path / "report.json").read_text())["rows"])
        return 1.0

    code, rows, _ = reported(benchmark_of(eager=lambda: 1.0, ours=second), tmp_path)
    (row,) = seen[0]
    assert row["contender"] == "eager" and row["median_ms"] > 0 and row["parity"] == "green"
    assert code == 0 and rows["ours"]["ratio_to_reference"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_machine_description(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(machine, "MATRIX_SIZES", {"cpu": (64,)})
    described = machine.describe(CPU)
    results = Results(described, tmp_path / "report.json", Console(quiet=True))
    harness.measure(benchmark_of(eager=lambda: 1.0), results, CPU, 0)
    assert json.loads((tmp_path / "report.json").read_text())["machine"] == described
    assert described["threads"] == torch.get_num_threads() and described["torch"] == torch.__version__
    assert described["copy_bandwidth_gb_s"] > 0
    for peak in (described[name] for name in ("fma_peak", "bf16_peak", "int8_peak") if name in described):
        assert peak["gflops"] == max(peak["all"].values()) == peak["all"][peak["method"]] > 0


@pytest.mark.skipif(bool(NOT_COMPILED), reason=str(NOT_COMPILED))
def test_gate_sees_a_wrong_kernel(tmp_path, monkeypatch):
    """One weight wrong by 1 % is red, with the tolerance of a real case."""
    right, ours = OperatorCase._ours, f"{OURS} cpu"

    def wrong(self, x, weight, bias, backend):
        weight = weight.clone()
        weight[5, 1, 2, 2] *= 1.01
        return right(self, x, weight, bias, backend)

    monkeypatch.setattr(OperatorCase, "_ours", wrong)
    benchmark = OperatorCase("stem", torch.uint8, torch.float32, batch=1, size=32).benchmark(CPU)
    chosen = [contender for contender in benchmark.contenders if contender.name in (REFERENCE, ours)]
    code, rows, _ = reported(dataclasses.replace(benchmark, contenders=chosen), tmp_path)
    assert code == 1 and rows[ours]["parity"] == "red" and rows[ours]["median_ms"] is None
    assert rows[REFERENCE]["parity"] == "green"


def test_cases_are_distinct():
    for table in ops.TABLES.values():
        assert len({str(case) for case in table}) == len(table)


def refused(capsys, call) -> str:
    with pytest.raises(typer.Exit) as exit_:
        call()
    assert exit_.value.exit_code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_usage_errors_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    assert "no CUDA device" in refused(capsys, lambda: command.available("cuda"))
    assert "regular expression" in refused(capsys, lambda: ops.main(only="("))
    assert "matches none" in refused(capsys, lambda: ops.main(only="no such case"))
    assert "contenders, such as 'eager'" in refused(capsys, lambda: model.main(only="no such engine"))
    assert "file" in refused(capsys, lambda: command.writable(tmp_path / "file" / "below.json"))
    assert "does not exist" in refused(capsys, lambda: model.main(checkpoint=str(tmp_path / "none.safetensors")))


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda document: document.name)
def test_documents_show_the_committed_results(document):
    text = document.read_text()
    assert readme.MARK.search(text)
    assert readme.filled(text) == text, "run python -m benchmarks.report"


def test_comparison_has_a_row_per_case(tmp_path, monkeypatch):
    times = {"case a": {"eager": 12.0, "ours": 1.5, "peer": 3.0}, "case b": {"eager": 2000.0}, "other": {"eager": 1.0}}
    rows = [
        unjudged(case, name, time / 1e3) | {"ratio_to_reference": contenders["eager"] / time}
        for case, contenders in times.items()
        for name, time in contenders.items()
    ]
    (tmp_path / "some.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    head = ["| ms (x eager) | **ours** | peer | eager |", "| --- | --- | --- | --- |"]
    lines = ["| case a | 1.5 (8.0) | 3 (4.0) | 12 |", "| case b |  |  | 2,000 |", "| other |  |  | 1 |"]
    for mark, shown in (("some.json: ^case [ms]", lines[:2]), ("some.json [ms]", lines)):
        expected = [f"<!-- comparison {mark} -->", *head, *shown, "<!-- end -->"]
        assert readme.filled(f"<!-- comparison {mark} -->\n<!-- end -->") == "\n".join(expected)


def test_readme_cannot_ask_for_what_was_not_measured():
    for mark, message in (
        ("<!-- table nowhere.json: case -->\n<!-- end -->", "nowhere.json, which does not exist"),
        ("<!-- table cpu-model.json: no such case -->\n<!-- end -->", "has no case 'no such case'"),
        ("<!-- comparison cpu-model.json: no such case [ms] -->\n<!-- end -->", "has no case 'no such case'"),
        (
            "<!-- table cpu-model.json: detector, uint8 -> logits, 8x3x256x256 [ms, hours] -->\n<!-- end -->",
            "unknown column 'hours'",
        ),
        ("<!-- comparison cpu-model.json [ms] {^theirs} -->\n<!-- end -->", "no contender like '^theirs'"),
    ):
        with pytest.raises(readme.UnknownTable, match=re.escape(message)):
            readme.filled(mark)


def test_the_kernels_are_timed_without_what_decodes_images():
    """A machine rented for its GPU may have torch and little else."""
    code = "import sys; sys.modules |= dict.fromkeys(('PIL', 'simplejpeg', 'pyarrow', 'sklearn', 'safetensors'))\n"
    code += "import benchmarks.device, benchmarks.kernels, benchmarks.ops"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_plot_of_a_result_file(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    rows = [
        {"case": "a case", "contender": name, "median_ms": time}
        for name, time in (("ours", 1.0), ("eager", 12.5), ("failed", None))
    ]
    (tmp_path / "some.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    (axes,) = readme.draw(readme.load("some.json")).axes
    assert axes.get_title(loc="left") == "a case"
    assert [text.get_text() for text in axes.texts] == [" 1 ms", " 12.5 ms"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "eager"]
    assert readme.plot("some.json").read_bytes().startswith(b"\x89PNG")


def test_scaling_recovers_a_line():
    megapixels = [0.1, 0.5, 2.0, 8.0]
    line = scaling.fit(megapixels, [0.003 + 0.02 * size for size in megapixels])
    assert (line.call, line.megapixel) == pytest.approx((0.003, 0.02))
    assert scaling.fit(megapixels, [0.02 * size for size in megapixels]).call == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cores", [2, 7, 16])
@pytest.mark.parametrize("decode", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("network_cores", [0, 2])
def test_simulated_runs_take_what_they_must(cores, decode, network_cores):
    nothing = scaling.Line(0, 0)
    fitted = scaling.Model(scaling.Line(0, decode), nothing, nothing, scaling.Line(0, 0.4), network_cores)
    paper, simulated = (cost(fitted, 256, cores) for cost in (scaling.seconds_an_image, scaling.simulate))
    assert 0.98 * paper < simulated < 1.15 * paper


def test_scaling_report_holds_parts_runs_and_costs():
    times = {("decode", 1, 256): 0.001}
    for batch in (8, 16):
        times |= {("stem", batch, 256): 0.00025 * batch, ("network", batch, 256): 0.01 * batch}
    threads = torch.get_num_threads()
    fitted = scaling.fit_model(times, threads)
    rows = scaling.rows_of(times, {(256, 0): 0.0125}, fitted)
    assert fitted.trunk(8 * 256**2 / 1e6) == pytest.approx(0.078)
    assert [row["predicted_ms"] for row in rows[:5]] == pytest.approx([1, 2, 80, 4, 160])
    whole = next(row for row in rows if row["contender"] == f"{OURS}, 256x256")
    assert whole["median_ms"] == 12.5 and whole["predicted_ms"] == pytest.approx(1 / threads + 10)
    billion = [row for row in rows if "days" in row]
    assert len(billion) == len(scaling.MACHINES) * len(scaling.FILES) and min(row["days"] for row in billion) > 0
