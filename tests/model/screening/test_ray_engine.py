"""The engine ray on two nodes, each started by `ray start`: the rows of the engine local, whatever dies."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npr_model import cli
from npr_model.scoring.decoding import Decoded
from npr_model.scoring.items import in_memory as item
from npr_model.scoring.rows import Row, Totals
from npr_model.screening.inputs.archives import Archive
from npr_model.screening.inputs.skipped import INNER_ARCHIVE, NO_IMAGE
from npr_model.screening.inputs.sources import Sources
from npr_model.screening.outputs.finished import Finished
from tests.model.conftest import encoded, noise
from tests.model.screening.collections import tar
from tests.model.screening.outputs.folders import manifest, rows

ray = pytest.importorskip("ray", reason="needs Ray, npr-kernels[ray]")
psutil = pytest.importorskip("psutil", reason="comes with Ray")
from npr_model.screening.engines import ray as ray_engine  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")
RAY = str(Path(sys.executable).with_name("ray"))
PATIENCE = 1200  # seconds, for machines that do much else


class Cluster:
    """Processes of two nodes."""

    def __init__(self, folder: Path) -> None:
        with contextlib.ExitStack() as probes:
            port, client_port = (free_port(probes) for _ in range(2))
        self.address = f"127.0.0.1:{port}"
        self.environment = os.environ | {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}
        self.environment["RAY_health_check_period_ms"] = "1000"  # a dead node is missed in five seconds, not in fifteen
        self._logs = folder
        self._folder = tempfile.mkdtemp(prefix="npr-ray-")  # short: names of sockets are limited
        ports = [f"--port={port}", f"--ray-client-server-port={client_port}"]
        self.head = self._start("--head", *ports, f"--temp-dir={self._folder}", "--include-dashboard=false")
        self.second = self._start(f"--address={self.address}")

    def _start(self, *arguments: str) -> subprocess.Popen:
        command = [RAY, "start", "--block", "--num-cpus=2", "--num-gpus=0", "--object-store-memory=200000000"]
        log = self._logs / f"{len(list(self._logs.iterdir()))}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*command, *arguments],
                env=self.environment | {"PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while "Ray runtime started" not in (text := log.read_text()):
            assert process.poll() is None, f"a node did not start: {text[-2000:]}"
            time.sleep(0.05)
        return process

    def stop(self, node: subprocess.Popen) -> None:
        """kill -9 of all processes of a node."""
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait()

    def close(self) -> None:
        for node in (self.second, self.head):
            if node.poll() is None:
                self.stop(node)
        shutil.rmtree(self._folder, ignore_errors=True)


def free_port(probes: contextlib.ExitStack) -> int:
    """A port that nobody listens at; no other one is given out while ``probes`` are open."""
    probe = probes.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder, a tar, a zip's worth of Parquet; a few of them are no images, one tar is cut off."""
    root = tmp_path_factory.mktemp("inputs")
    pictures = {f"{i}.png": encoded(noise(16 + 8 * (i % 3), 16, seed=i)) for i in range(80)}
    odd = {"broken.png": b"x", "empty.png": b"", "notes.txt": b"not an image"}
    (root / "folder").mkdir()
    for name, data in (pictures | odd).items():
        (root / "folder" / name).write_bytes(data)
    for name in "ab":
        tar(root / f"{name}.tar", files=pictures | odd)
    whole = (root / "a.tar").read_bytes()
    (root / "cut.tar").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"image": list(pictures.values())}), root / "c.parquet")
    return root


def command(checkpoint: Path, inputs: Path, output: Path) -> list[str]:
    names = ("folder", "a.tar", "b.tar", "cut.tar", "c.parquet", "a.tar")  # one of them twice
    return ["screen", *(str(inputs / name) for name in names), "--checkpoint", str(checkpoint), "-o", f"{output}/"]


def on_cluster(cluster: Cluster, arguments: list[str]) -> subprocess.Popen:
    """`npr` in a process of its own, with small parts."""
    text = "import sys; from npr_model import cli; from npr_model.screening.outputs import sinks; "
    text += "sinks.ROWS_A_PART = 10; sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments, "--engine", "ray"],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def scores(output: Path) -> list[tuple]:
    names = ("source", "sha256", "logit", "probability", "verdict", "error_code", "error", "width", "flags", "format")
    return sorted((tuple(row[name] for name in names) for row in rows(output)), key=str)


def check_equal(found: list[tuple], expected: list[tuple]) -> None:
    assert [row[0] for row in found] == [row[0] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs[2] is None:
            assert ours == theirs
        else:  # sums in another order, as the batches differ
            assert np.allclose(ours[2:4], theirs[2:4], rtol=1e-5, atol=1e-6)
            assert ours[:2] + ours[4:] == theirs[:2] + theirs[4:]


def kill_workers(cluster: Cluster, process: subprocess.Popen) -> None:
    """kill -9 of a process that decodes and of one that scores, at least."""
    left = {"MapBatches(_decode)", "MapWorker(MapBatches(_Actor))"}
    while left:
        assert process.poll() is None, f"nothing was there to be killed of {left}"
        for found in psutil.process_iter(["name", "cmdline"]):
            kinds = {kind for kind in left if kind in " ".join(found.info["cmdline"] or [])}
            if kinds and cluster_of(found) == cluster.address:
                os.kill(found.pid, signal.SIGKILL)
                left -= kinds


def wait_for_parts(process: subprocess.Popen, output: Path, more: int) -> None:
    """Until so many new ones are there."""
    goal = more + len(list(output.glob("part-*")))
    while len(list(output.glob("part-*"))) < goal:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def cluster_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RAY_ADDRESS")
    except psutil.Error:
        return None


@pytest.mark.slow
def test_two_nodes_give_the_rows_of_one_machine_whatever_dies(cluster, inputs, checkpoint, npr, tmp_path):
    """The command is killed. The next one goes on where it stopped, to the end, although a process of each kind is
    killed, then a node."""
    code, out, err = npr(*command(checkpoint, inputs, tmp_path / "local"))
    assert code == 1, err
    assert "skipped: 4 not images\n" in out
    expected, output = scores(tmp_path / "local"), tmp_path / "scores"
    process = on_cluster(cluster, command(checkpoint, inputs, output))
    wait_for_parts(process, output, 1)
    process.kill()
    process.communicate()
    partial = scores(output)
    assert 0 < len(partial) < len(expected)
    process = on_cluster(cluster, command(checkpoint, inputs, output))
    wait_for_parts(process, output, 1)
    kill_workers(cluster, process)
    wait_for_parts(process, output, 2)
    cluster.stop(cluster.second)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    assert "Ray: 2 machines, 2 actors" in err
    assert f"{len(partial)} of the inputs already had rows from earlier runs" in out
    assert "skipped: 4 not images\n" in out
    check_equal(scores(output), expected)
    assert manifest(output)["complete"]


@pytest.fixture(scope="module")
def joined(cluster):
    """This process belongs to the cluster, so that its commands use the same workers, which take long to start."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # as the engine has it, where it joins a cluster itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


def test_standard_input(joined, npr, inputs, checkpoint, tmp_path, monkeypatch):
    """Names of standard input, relative to where the command runs."""
    monkeypatch.chdir(inputs)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"folder/1.png\nmissing.png\nfolder/2.png\n")))
    output = tmp_path / "scores.jsonl"
    code, out, err = npr("screen", "--files-from", "-", "--checkpoint", checkpoint, "-o", output, "--engine", "ray")
    assert code == 1, err
    assert "3 images" in out and "1 failed" in out


def test_wrong_usage_is_one_line(joined, npr, inputs, checkpoint):
    base = ["screen", inputs / "c.parquet", "--checkpoint", checkpoint, "--engine", "ray"]
    code, _, err = npr(*base, "--backend", "triton")  # which an actor finds out
    assert code == 2
    assert "triton" in err.splitlines()[-1] and "Traceback" not in err
    code, _, err = npr(*base, "--device", "cuda")
    assert code == 2 and "the Ray cluster has no GPU" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "Invalid value for '--engine'"),
        (["--engine", "ray", "--workers", "2"], "workers is supported by the engine local only"),
        (["--engine", "ray", "--cache", "c"], "cache is supported by the engine local only"),
        (["--actors", "2"], "actors is supported by the engine ray only"),
    ],
)
def test_options_of_the_other_engine_are_refused(inputs, checkpoint, capsys, options, message):
    assert cli.main(["screen", str(inputs / "folder"), "--checkpoint", str(checkpoint), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_units_leave_out_what_has_rows(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    tar(tmp_path / "a.tar", files={"1.png": b"x", "2.png": b"y"})
    (tmp_path / "notes.txt").write_text("")
    sources = Sources([str(tmp_path), str(tmp_path / "a.tar"), str(tmp_path / "a.tar")])
    units = list(ray_engine._units(sources, Finished((f"{tmp_path}/{i}.png", i < 3) for i in range(200))))
    files = [entry.source for unit in units if isinstance(unit.entries, list) for entry in unit.entries]
    assert files == [f"{tmp_path}/{i}.png" for i in range(200, 300)]
    assert [unit.earlier for unit in units if isinstance(unit.entries, Archive)] == [0, 1]
    counts = Totals()
    for unit in units:
        counts.include(unit.counts)
    assert counts.skipped == {INNER_ARCHIVE: 1, NO_IMAGE: 1} and (counts.kept, counts.kept_failed) == (200, 3)


def test_an_archive_listed_twice_has_as_many_rows(tmp_path):
    finished = Finished([("a", False), ("b", False), ("b", False)])
    left = [[s for s in "abc" if not take(s)] for take in (finished.matcher(), finished.matcher({"a": 1, "b": 1}))]
    assert left == [["c"], ["a", "c"]]


def test_a_name_that_is_twice_in_an_archive_listed_twice(tmp_path):
    """Four rows in all; whatever is there already, the two units together do the rest."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("x.png"))
    sources, name = Sources([str(tmp_path / "a.tar")] * 2), f"{tmp_path}/a.tar::x.png"
    for there in range(1, 5):
        finished = Finished([(name, False)] * there)
        units = [unit for unit in ray_engine._units(sources, finished) if isinstance(unit.entries, Archive)]
        left = [len(list(unit.items(finished, Totals()))) for unit in units]
        assert left == [max(0, 2 - there), min(2, 4 - there)]


def test_groups_are_bounded_in_pixels(monkeypatch):
    monkeypatch.setattr(ray_engine, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(ray_engine, "IMAGES_A_GROUP", 16)
    images = [Decoded(Row(str(side)), np.zeros((1, side, side, 3), np.uint8)) for side in (10, 10, 10, 10, 50, 2, 2)]
    images += [Decoded(Row("bad"), None)] * 40
    groups = list(ray_engine._groups(iter(images)))
    assert [len(group) for group in groups] == [4, 1, 16, 16, 10]
    assert list(itertools.chain(*groups)) == images


def test_pixels_travel_unchanged():
    from npr_model.imaging.views import View
    from npr_model.scoring.decoding import Decoder
    from npr_model.scoring.joint import _encoder_views

    views = partial(_encoder_views, 8, 4)  # one of the first image, two of the others
    decoder = Decoder(View("sample", 8, 3), "m@1", 2, views=views)
    decoded = [decoder.decode(item(str(i), encoded(noise(9 + i, 15 + i, seed=i)))) for i in range(3)]
    decoded.append(decoder.decode(item("bad", b"x")))
    table = pa.concat_tables(
        [ray_engine._packed(decoded), pa.Table.from_pylist([{"counts": b""}], ray_engine._DECODED)]
    )
    found = list(ray_engine._unpacked(table))
    assert len(found) == 4 and found[3].parts is None and found[3].row.error == decoded[3].row.error
    for ours, theirs in zip(found[:3], decoded, strict=False):
        assert ours.row.sha256 == theirs.row.sha256
        np.testing.assert_array_equal(ours.parts, theirs.parts)
        np.testing.assert_array_equal(ours.views, theirs.views)
    assert [len(one.views) for one in found[:3]] == [1, 1, 2] and found[3].views is None


def test_a_cascade_with_an_encoder_travels_whole(pair, tmp_path):
    """What the workers get of it is small, and what they return is what one machine gives."""
    import pickle

    from npr_model import checkpoints
    from npr_model.checkpoints import Metadata
    from npr_model.detectors.cascade import Cascade
    from npr_model.scoring.known import Known
    from npr_model.scoring.scorer import Scorer
    from tests.model.conftest import make_detector

    path = pair.with_name("quick.safetensors")
    checkpoints.save(path, make_detector(size="fast"), Metadata(name="quick"))
    first, second = checkpoints.load(path), checkpoints.load(pair)
    joined = Cascade(first.model, second.model, first.model_id, second.model_id, low=-1e9, high=1e9)
    checkpoints.save(pair.with_name("asked.safetensors"), joined, Metadata(name="asked", view=second.metadata.view))
    scorer = Scorer(checkpoints.load(pair.with_name("asked.safetensors")))
    assert len(pickle.dumps(scorer.decoder)) < 10_000
    items = [item(str(i), encoded(noise(40 + i, 40, seed=i))) for i in range(3)]
    table = ray_engine._packed([scorer.decoder.decode(one) for one in items])
    travelled = {row.source: row.logit for row in scorer.score_decoded(ray_engine._unpacked(table), Known())}
    assert travelled == {row.source: row.logit for row in scorer.score(items)}
    assert None not in travelled.values() and len(travelled) == 3
