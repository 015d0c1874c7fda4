"""The report on a screening: right numbers from every format, in bounded memory, and a page that works in a browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from npr_model import cli
from npr_model.errors import InputError
from npr_model.scoring.rows import Row
from npr_model.screening import summary
from npr_model.screening.outputs.sinks import open_sink
from npr_model.screening.page import THUMBNAIL, fetch, thumbnail
from npr_model.screening.summary import summarise
from tests.model.conftest import encoded, noise
from tests.model.screening.collections import PICTURES, tar

HOSTILE = "</script><img src=x onerror=alert(1)>.png"
OUTPUTS = ["scores.parquet", "scores.csv", "scores.jsonl", "scores/"]


def made_rows(count: int = 300) -> list[Row]:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        logit = float(np.float32(generator.normal(0, 3)))
        source = f"photos/{'ab'[i % 2]}/{i}.png" if i % 3 else f"shard{i % 2}.tar::{i}.jpg"
        verdict = "generated" if logit > 1 else "real"
        rows.append(
            Row(source, "00", logit, 0.5, verdict, 32, 24, "JPEG" if i % 3 == 0 else "PNG", view="native", model="m")
        )
    errors = {"x.png": "damaged", "y.png": "damaged", "z\n.png": "empty", HOSTILE: "empty"}
    rows += [
        Row(name, error=f"it is {code}", error_code=code, model="m", view="native") for name, code in errors.items()
    ]
    return rows


def written(folder: Path, name: str, rows: list[Row]) -> Path:
    with open_sink(f"{folder}/{name}", {"model": "m", "view": "native", "threshold": "1"}) as sink:
        for row in rows:
            sink.write(row)
    return folder / name


@pytest.mark.parametrize("name", OUTPUTS)
def test_numbers(tmp_path, name, monkeypatch):
    monkeypatch.setattr("npr_model.screening.outputs.sinks.ROWS_A_PART", 70)
    rows = made_rows()
    found = summarise(written(tmp_path, name, rows), 60)
    scored = [row for row in rows if row.error is None]
    assert found.total == 304 and found.verdicts == Counter(row.verdict for row in scored)
    assert found.errors["damaged"] == (2, [("x.png", "it is damaged"), ("y.png", "it is damaged")])
    assert found.errors["empty"][1][0][0] == "z\n.png"
    assert max(row.logit for row in scored if row.verdict == "real") <= found.threshold
    assert found.threshold <= min(row.logit for row in scored if row.verdict == "generated")
    assert set(found.histograms) == {
        ("photos/a", "PNG"), ("photos/b", "PNG"), ("shard0.tar", "JPEG"), ("shard1.tar", "JPEG")
    }  # fmt: skip
    expected, _ = np.histogram([row.logit for row in scored if row.format == "JPEG"], summary.edges())
    np.testing.assert_array_equal(
        found.histograms["shard0.tar", "JPEG"] + found.histograms["shard1.tar", "JPEG"], expected
    )
    assert len(found.gallery) == 60 == len({row["source"] for row in found.gallery})
    by_logit = sorted((row.logit for row in scored), reverse=True)
    assert [row["logit"] for row in found.gallery if row["why"] == "highest"] == by_logit[:20]
    near = sorted(abs(row["logit"] - found.threshold) for row in found.gallery if row["why"] == "near the threshold")
    assert len(near) == 20 and near[-1] < 1
    assert sum(row["why"] == "at random" for row in found.gallery) == 20


def test_folders_of_several_runs_together_have_a_threshold(tmp_path):
    rows = made_rows()
    for rank in range(2):
        written(tmp_path, f"scores/{rank}/", rows[rank::2])
    found = summarise(tmp_path / "scores", 6)
    assert found.total == len(rows) and found.threshold is not None
    assert max(row.logit for row in rows if row.verdict == "real") <= found.threshold


def test_many_folders_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "MAX_GROUPS", 3)
    rows = [Row(f"{i}/a.png", "00", 0.0, 0.5, "real", 8, 8, "PNG", view="native", model="m") for i in range(10)]
    found = summarise(written(tmp_path, "scores.parquet", rows), 3)
    assert len(found.histograms) == 4 and found.histograms[summary.OTHERS, "PNG"].sum() == 7


def test_logits_beyond_the_histogram_count_at_its_edge(tmp_path):
    rows = [Row("a", "0", value, 0.5, "real", 8, 8, "PNG", view="n", model="m") for value in (-99.0, 99.0, 12.0)]
    (counts,) = summarise(written(tmp_path, "scores.parquet", rows), 3).histograms.values()
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)


def test_images_are_found_again_where_they_are(tmp_path):
    tar(tmp_path / "a.tar")
    (tmp_path / "b.png").write_bytes(encoded(noise(9, 9)))
    sources = {f"{tmp_path}/a.tar::{name}" for name in list(PICTURES)[:2]} | {
        f"{tmp_path}/b.png",
        f"{tmp_path}/gone.png",
    }
    found = fetch(sources)
    assert found.keys() == sources - {f"{tmp_path}/gone.png"}
    assert found[f"{tmp_path}/a.tar::{next(iter(PICTURES))}"] == next(iter(PICTURES.values()))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 500), (300, 200), (31, 33)])
def test_thumbnails(size):
    made = thumbnail(encoded(noise(*size)))
    assert made["picture"].startswith("data:image/webp;base64,") and made["npr"].startswith("data:image/webp;base64,")
    assert len(made["picture"]) < 4 * THUMBNAIL**2
    assert thumbnail(b"text")["lost"].startswith("not an image")


def screened(tmp_path: Path, checkpoint: Path) -> Path:
    """A page of real rows, of images of which one is gone, and of errors with a hostile name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(encoded(noise(40 + i, 60, seed=i)))
    (folder / HOSTILE.replace("/", "\u2215")).write_bytes(b"x")
    (folder / "[b]&lt;.jpg").write_bytes(encoded(noise(40, 40), "JPEG"))
    tar(tmp_path / "a.tar")
    command = ["screen", str(folder), f"{tmp_path}/a.tar", "--checkpoint", str(checkpoint), "-o", f"{tmp_path}/scores/"]
    assert cli.main(command) == 1
    (folder / "3.png").unlink()
    page = tmp_path / "report.html"
    assert cli.main(["report", f"{tmp_path}/scores/", "-o", str(page), "--title", "<b>Photos & more</b>"]) == 0
    return page


def test_page_needs_nothing_else(tmp_path, checkpoint):
    text = screened(tmp_path, checkpoint).read_text(encoding="utf-8")
    assert text.count("&lt;b&gt;Photos &amp; more&lt;/b&gt;") == 2 and "<b>Photos" not in text
    assert text.count("</script>") == 2 and not re.search(r"(src|href)\s*=\s*[\"']?https?:", text)
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["total"] == 15 and len(data["gallery"]) == 14 and data["threshold"] == 0
    lost = [row["source"] for row in data["gallery"] if "picture" not in row]
    assert [Path(source).name for source in lost] == ["3.png"]
    assert {row["group"] for row in data["gallery"]} == {f"{tmp_path}/photos", f"{tmp_path}/a.tar"}


def test_page_in_a_browser(tmp_path, checkpoint, browser):
    from selenium.webdriver.support.ui import Select

    page = screened(tmp_path, checkpoint)
    browser.get(page.as_uri())

    def find(selector: str):
        return browser.find_element("css selector", selector)

    def texts(selector: str) -> list[str]:
        return [found.text for found in browser.find_elements("css selector", selector)]

    def logits() -> list[float]:
        return [float(text) for text in texts("figcaption b span:last-child")]

    def set_threshold(value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(script, find("#threshold"), value)

    assert texts(".number b")[0] == "15" and "not scored" in texts(".number")[-1]
    assert find("h1").text == "<b>Photos & more</b>" and "onerror" in find("#errors").text
    before = logits()
    assert len(before) == 14 and before == sorted(before, reverse=True)
    Select(find("#sort")).select_by_value("low")
    assert logits() == before[::-1]
    Select(find("#gallery-group")).select_by_visible_text(f"{tmp_path}/a.tar")
    assert find("#shown").text == "5 of 14 shown"
    assert all("a.tar::" in text for text in texts("figcaption div:nth-child(2)"))
    Select(find("#gallery-group")).select_by_visible_text("all")
    find("#search").send_keys("7.PNG")
    assert find("#shown").text == "1 of 14 shown"
    find("#search").clear()
    find("#search").send_keys(" ")  # clear() alone fires no event
    find("#search").send_keys("\b")
    set_threshold(-12)
    assert find("#share").text.startswith("logit; 14 of 14 above the threshold, 100.0 %")
    assert set(texts("figcaption b span:first-child")) == {"generated"}
    set_threshold(12)
    assert find("#share").text.startswith("logit; 0 of 14 above") and find("#threshold-text").text == "12.00"
    Select(find("#verdict")).select_by_value("=generated")
    assert find("#shown").text == "0 of 14 shown"
    find("#reset").click()
    Select(find("#verdict")).select_by_value("")
    assert find("#threshold-text").text == "0.00" and find("#shown").text == "14 of 14 shown"
    Select(find("#histogram-format")).select_by_value("=JPEG")
    assert " of 1 above" in find("#share").text
    assert texts(".lost") == ["the image no longer exists here"]
    loaded = "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(loaded)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert len(browser.get_screenshot_as_png()) > 10_000


@pytest.mark.parametrize("dark", [False, True])
def test_page_on_a_phone(tmp_path, checkpoint, browser, dark):
    """Nothing is wider than the screen, and colours follow the device."""
    metrics = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(screened(tmp_path, checkpoint).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 150) == dark
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_bad_input(tmp_path, capsys):
    scores = written(tmp_path, "scores.parquet", made_rows(3))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.txt").write_text("x")
    empty = written(tmp_path, "empty.parquet", [])
    cases = {
        (scores, "page.pdf"): "output page.pdf must end in .html",
        (tmp_path / "gone.parquet", "page.html"): "gone.parquet does not exist",
        (
            tmp_path / "other.csv",
            "page.html",
        ): "other.csv has no column source: it is no output of this version",
        (tmp_path / "broken.parquet", "page.html"): "broken.parquet cannot be read as an output of npr screen",
        (
            tmp_path / "x.txt",
            "page.html",
        ): "x.txt is not an output of npr screen: use a folder of parts or a file in one of",
        (empty, "page.html"): "empty.parquet has no rows",
    }
    for (path, output), message in cases.items():
        assert cli.main(["report", str(path), "-o", str(tmp_path / output) if output.endswith("html") else output]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError):
        summarise(tmp_path / "x.txt", 3)
