"""One image at a time over HTTP: the numbers of npr screen, limits that hold, and a page that works in a browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npr_model import checkpoints, cli
from npr_model.explanation import pictures
from npr_model.scoring.items import in_memory
from npr_model.scoring.scorer import Scorer
from tests.model.conftest import encoded, noise

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from npr_model.serving.serve import SHOWN, make_app

pytestmark = pytest.mark.xdist_group("serve")  # several use the same server


@pytest.fixture(scope="module")
def served(checkpoint) -> tuple[TestClient, Scorer]:
    loaded = checkpoints.load(checkpoint)
    scorer = Scorer(loaded, dtype=torch.float32, batch_size=1, workers=1, max_pixels=10**6)
    return TestClient(make_app(scorer, max_bytes=200_000)), scorer


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,"))))


@pytest.mark.parametrize("size", [(40, 60), (SHOWN + 30, 31), (2, 2)])
def test_score(served, size):
    client, scorer = served
    data = encoded(noise(*size), "JPEG", quality=80)
    answer = client.post("/score", content=data)
    assert answer.status_code == 200
    found = answer.json()
    (row,) = scorer.score([in_memory("", data)])
    assert {**found, "milliseconds": 0} | row.as_dict() | {"milliseconds": 0} == {**found, "milliseconds": 0}
    assert found["note"].startswith("not calibrated") and found["jpeg_quality"] == 80
    shape = tuple(min(side, SHOWN) // 2 * 2 for side in size)
    assert found["part"] == f"{shape[1]}x{shape[0]}"
    assert decoded(found["npr"]).size == decoded(found["activation"]).size == shape[::-1]


def test_a_pair_shows_the_maps_of_its_npr_network(pair):
    scorer = Scorer(checkpoints.load(pair), dtype=torch.float32, batch_size=1, workers=1)
    data = encoded(noise(40, 60))
    answer = TestClient(make_app(scorer, max_bytes=200_000)).post("/score", content=data).json()
    assert answer["error"] is None and answer["logit_npr"] is not None and answer["logit_clip"] is not None
    alone = Scorer(checkpoints.load(pair.with_name("traces.safetensors")), dtype=torch.float32)
    maps = TestClient(make_app(alone, max_bytes=200_000)).post("/score", content=data).json()
    assert answer["npr"] == maps["npr"] and answer["activation"] == maps["activation"]


def test_what_cannot_be_scored(served):
    client, _ = served
    for data, status, code in (
        (b"", 422, "empty"),
        (b"text", 422, "not_an_image"),
        (encoded(noise(1, 9)), 422, "too_small"),
        (encoded(np.zeros((1001, 1000, 3), np.uint8)), 422, "too_large"),
        (bytes(200_001), 413, "too_large"),
    ):
        answer = client.post("/score", content=data)
        assert (answer.status_code, answer.json()["error_code"]) == (status, code) and answer.json()["error"]
    assert client.get("/score").status_code == 405 and client.get("/docs").status_code == 404


PNG = encoded(noise(24, 26))


def form(*parts: tuple[str, bytes], boundary: str = "x-y", end: bytes = b"--\r\n") -> bytes:
    """A form with fields, each given by the rest of its header and its content."""
    header = 'Content-Disposition: form-data; name="field"'
    fields = [f"--{boundary}\r\n{header}{more}\r\n\r\n".encode() + content + b"\r\n" for more, content in parts]
    return b"".join(fields) + f"--{boundary}".encode() + end


FILE = '; filename="a.png"\r\nContent-Type: image/png'


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([(FILE, PNG)], 200),
        ([("", PNG)], 200),  # curl -F 'file=<a.png'
        ([("", b"a comment"), (FILE, PNG), ("", b"more")], 200),
        ([(FILE, PNG + b"\r\n--x\r\n\r\n")], 200),
        ([("; FILENAME*=utf-8''%c3", PNG)], 200),
        ([(FILE, b"")], 422),
        ([(FILE, PNG), (FILE, PNG)], 400),
        ([("", b"a"), ("", b"b")], 400),
        ([], 400),
        ([(FILE, bytes(200_001))], 413),
        ([(FILE, bytes(900_001))], 413),
    ],
)
def test_forms(served, parts, status):
    client, scorer = served
    answer = client.post("/score", content=form(*parts), headers={"content-type": "multipart/form-data; boundary=x-y"})
    assert answer.status_code == status
    if status == 200:
        content = next(content for _, content in parts if content.startswith(PNG))
        (row,) = scorer.score([in_memory("", content)])
        assert (answer.json()["sha256"], answer.json()["logit"]) == (row.sha256, row.logit)
    else:
        assert answer.json()["error"] and answer.json()["error_code"]


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (form((FILE, PNG), end=b""), "x-y"),
        (form((FILE, PNG))[:-30], "x-y"),
        (form((FILE, PNG)), "other"),
        (form((FILE, PNG)), ""),
        (b"--x-y\r\nno headers\r\n--x-y--\r\n", "x-y"),
        (b"", "x-y"),
    ],
)
def test_forms_that_are_not_whole(served, body, boundary):
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    answer = served[0].post("/score", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "bad_form")


def test_a_body_without_end_is_not_read_to_its_end(served):
    client, _ = served
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield bytes(100_000)

    assert client.post("/score", content=endless()).status_code == 413


def test_many_at_once(served):
    client, _ = served
    files = [encoded(noise(24, 24 + 2 * i, seed=i)) for i in range(8)]
    alone = [client.post("/score", content=data).json()["logit"] for data in files]
    together: dict[int, float] = {}

    def one(number: int) -> None:
        together[number] = client.post("/score", content=files[number]).json()["logit"]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(8)] == alone


def test_pictures():
    differences = np.zeros((3, 4, 6), np.float32)
    differences[:, 1, 2] = -pictures.FULL_SCALE
    shown = np.asarray(pictures.npr_picture(differences))
    assert shown.shape == (4, 6) and shown[1, 2] == 255 and shown.sum() == 255
    evidence = np.asarray(pictures.activation_picture(np.full((8, 16, 3), 100, np.uint8), np.array([[-1.0, 1.0]])))
    assert evidence[0, 0, 2] > evidence[0, 0, 0] and evidence[0, -1, 0] > evidence[0, -1, 2]
    flat = np.asarray(pictures.activation_picture(np.full((8, 8, 3), 100, np.uint8), np.zeros((1, 1))))
    assert (flat == flat[0, 0, 0]).all()


def test_page_loads_nothing_from_elsewhere(served):
    page = served[0].get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page.text)


@pytest.fixture(scope="module")
def server(checkpoint):
    """``npr serve`` in a process of its own, which prints no errors; gives its URL."""
    program = [sys.executable, "-m", "npr_model.cli", "serve", "--port", "0", "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(
        [*program, "--max-bytes", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().split()[0]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert errors in ("", "npr: interrupted\n")


def test_command(server):
    request = urllib.request.Request(f"{server}/score", data=encoded(noise(24, 24)), method="POST")
    with urllib.request.urlopen(request) as answer:
        assert b'"verdict":' in answer.read()


def test_curl(server, tmp_path):
    """curl -F, for those who have it."""
    if not shutil.which("curl"):
        pytest.skip("no curl")
    (tmp_path / "a.png").write_bytes(PNG)
    for arguments in (["-F", "file=@a.png"], ["--data-binary", "@a.png"]):
        answer = subprocess.run(["curl", "-s", *arguments, f"{server}/score"], cwd=tmp_path, capture_output=True)
        assert b'"verdict":' in answer.stdout


def test_a_client_that_goes_away(server):
    """Half a body, then a closed connection: nothing is printed, and the next client is served."""
    host, _, port = server.removeprefix("http://").rpartition(":")
    for sent in (b"", PNG[:99]):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + sent)
    request = urllib.request.Request(f"{server}/score", data=PNG, method="POST")
    with urllib.request.urlopen(request) as answer:
        assert b'"verdict":' in answer.read()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6(host, checkpoint, monkeypatch, capsys):
    uvicorn = pytest.importorskip("uvicorn")
    answers = []

    def run(self, sockets):
        (listening,) = sockets
        with listening, socket.create_connection(("::1", listening.getsockname()[1])):
            answers.append(listening.family)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert cli.main(["serve", "--host", host, "--port", "0", "--checkpoint", str(checkpoint)]) == 0
    assert answers == [socket.AF_INET6] and f"http://[{host.strip('[]')}]:" in capsys.readouterr().out


@pytest.mark.parametrize("host", ["no such host", "256.0.0.1", "a" * 99, "::g"])
def test_addresses_that_do_not_exist(host, checkpoint, capsys):
    assert cli.main(["serve", "--host", host, "--checkpoint", str(checkpoint)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen at {host}, port 8000: " in error and error.count("\n") == 1


def test_bad_usage(server, capsys):
    port = server.rpartition(":")[2]
    assert cli.main(["serve", "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}: " in capsys.readouterr().err
    assert cli.main(["serve", "--checkpoint", "nope"]) == 2
    assert "there is no checkpoint 'nope'" in capsys.readouterr().err


def test_page_in_a_browser(server, tmp_path, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector: str):
        return browser.find_element("css selector", selector)

    def shown(text: str) -> None:
        WebDriverWait(browser, 120).until(lambda _: find("#verdict").text in text.split("|"))

    def choose(name: str, data: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        find("#file").send_keys(str(path))

    browser.get(server)
    assert not find("#result").is_displayed()
    choose("a <b>.png", encoded(noise(48, 64)))
    shown("real|generated")
    assert re.fullmatch(r"probability 0\.\d{3}, logit -?\d+\.\d\d", find("#numbers").text)
    assert find("#facts").text.startswith("a <b>.png, 64x48, PNG, tiny, view native, random@")
    sizes = "const all = [...document.querySelectorAll('.pictures img')];"
    sizes += "return all.map((image) => [image.naturalWidth, image.naturalHeight])"
    WebDriverWait(browser, 120).until(lambda _: browser.execute_script(sizes) == [[64, 48]] * 3)
    choose("text.png", b"text")
    shown("not scored")
    assert "not an image" in find("#numbers").text and not find("#pictures").is_displayed()
    choose("large.png", bytes(100_001))
    WebDriverWait(browser, 120).until(lambda _: "larger than the limit" in find("#numbers").text)
    drop = """
        const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.jpg"));
        const event = new DragEvent("drop", { dataTransfer: transfer, cancelable: true });
        document.getElementById("drop").dispatchEvent(event);
    """
    browser.execute_script(drop, base64.b64encode(encoded(noise(700, 600), "JPEG", quality=20)).decode())
    shown("real|generated")
    assert "dropped.jpg, 600x700, JPEG, quality 20" in find("#facts").text
    assert f"(the central {SHOWN}x{SHOWN} pixels)" in find("#pictures").text
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("status of 4" in entry["message"] for entry in errors)  # the two that were refused
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert Path(tmp_path / "page.png").stat().st_size > 10_000
