"""The page of `fastemo demo` in headless Chromium, by the real command: files, recordings, refusals, and its looks."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chromium import CONTRASTS, IN_CHROMIUM, TOO_WIDE, chromium, set_window
from demo_server import serving
from helpers import REPOSITORY, wait_until, write_video

import fastemo

pytestmark = IN_CHROMIUM
FIRST, PATIENCE = "No video yet.", 150
# Clicks the first visible element of a selector that shows a text.
CLICK = """
const found = [...document.querySelectorAll(arguments[0])]
  .find((it) => it.checkVisibility() && it.innerText.includes(arguments[1]));
found?.click();
return Boolean(found);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as driver:
        yield driver


@contextmanager
def demo(run: Path, folder: Path, *words: object, stop: signal.Signals = signal.SIGINT) -> Iterator[str]:
    """The page of a run; it has left nothing in the folder of temporary files."""
    environment = {"TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
    with serving(sys.executable, "-m", "fastemo.cli", "demo", run, *words, stop=stop, cwd=folder, **environment) as url:
        yield url
    assert list(folder.glob("fastemo*")) == []


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def plain(tiny_run, temporary) -> Iterator[str]:
    with demo(tiny_run, temporary, "--device", "cpu", stop=signal.SIGTERM) as url:
        yield url


def message(browser: Any) -> str:
    return browser.execute_script("return document.querySelector('.message')?.innerText ?? ''")


def open_page(browser: Any, url: str, width: int = 1400, theme: str = "light") -> None:
    set_window(browser, width, theme)
    browser.get_log("performance")  # what an earlier test has asked for
    browser.get(url)
    wait_until(lambda: message(browser) == FIRST, PATIENCE)
    wait_until(lambda: browser.find_elements("css selector", "input[type=file]"), PATIENCE)


def upload(browser: Any, path: Path) -> str:
    """The line that the page shows then."""
    browser.find_element("css selector", "input[type=file]").send_keys(str(path))
    wait_until(lambda: message(browser).startswith(path.name), PATIENCE)
    return message(browser)


def shown(browser: Any, selector: str) -> list[Any]:
    return [it for it in browser.find_elements("css selector", selector) if it.is_displayed()]


def plays(browser: Any) -> bool:
    script = "return [...document.querySelectorAll('video')].some((it) => it.readyState > 1 && it.duration > 0.3)"
    return browser.execute_script(script)


def downloaded(browser: Any, folder: Path) -> list[dict[str, str]]:
    """The rows of the table that the page's button saves."""
    saved = folder / f"{message(browser).partition(': ')[0].rpartition('.')[0]}.csv"
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    click(browser, "button", "Download the table")
    wait_until(saved.is_file, PATIENCE)
    return [*csv.DictReader(saved.read_text().splitlines())]


def check_looks(browser: Any, url: str) -> None:
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    assert browser.execute_script(TOO_WIDE) == []


def check_hosts(browser: Any, url: str) -> None:
    """Every request since the last check went to the page's own server."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    kept = {it["params"]["requestId"] for it in events if it["params"].get("blockedReason") == "csp"}
    asked = [it["params"] for it in events if it["method"] == "Network.requestWillBeSent"]
    places = {urlsplit(it["request"]["url"])[:2] for it in asked if it["requestId"] not in kept}
    assert {place for place in places if place[0] not in ("data", "blob")} == {urlsplit(url)[:2]}


def test_a_clip_has_bars_a_table_and_the_video_with_its_prediction(browser, plain, tiny_run, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 25)
    expected = fastemo.load(tiny_run, device="cpu").predict(clip)
    open_page(browser, plain)
    assert shown(browser, ".results") == []
    check_looks(browser, plain)
    assert upload(browser, clip) == f"clip.mp4: {expected.label} {100 * expected.confidence:.0f} %"
    wait_until(lambda: plays(browser), PATIENCE)
    [picture] = shown(browser, ".results svg")
    assert picture.get_attribute("aria-label").count("%") == 8
    assert [row.text for row in shown(browser, ".results tbody tr")] == [f"0.00 – 1.00 {message(browser)[10:]}"]
    [row] = downloaded(browser, tmp_path)
    assert (row["path"], row["label"]) == ("clip.mp4", expected.label)
    for name, share in expected.probabilities.items():
        assert float(row[f"probability_{name}"]) == pytest.approx(share, abs=1e-5)
    for width in (400, 1400):
        set_window(browser, width)
        check_looks(browser, plain)
    check_hosts(browser, plain)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_it_is_one_column_of_legible_text(browser, plain, theme, tmp_path):
    open_page(browser, plain, 400, theme)
    upload(browser, write_video(tmp_path / "clip.mp4"))
    check_looks(browser, plain)
    worst = [found for found in browser.execute_script(CONTRASTS) if found[0] < 4.5]
    assert worst == []
    places = browser.execute_script(
        "return ['input[type=file]', '.message', '.results'].map((it) => document.querySelector(it).parentElement)"
        ".map((it) => it.getBoundingClientRect().top)"
    )
    assert places == sorted(places)


def test_genuine_clips_are_predicted_whatever_browsers_can_play(browser, plain, clips_folder, tmp_path):
    open_page(browser, plain)
    for path in ("ravdess/Actor_01/01-01-08-01-01-02-01.mp4", "crema-d/1001_DFA_HAP_XX.flv"):
        upload(browser, clips_folder / path)
        wait_until(lambda: plays(browser), PATIENCE)
        assert downloaded(browser, tmp_path)[0]["error"] == ""
    check_hosts(browser, plain)


def test_what_is_no_video_is_one_line_and_the_page_goes_on(browser, plain, temporary, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    shutil.copy(REPOSITORY / "docs" / "assets" / "picture.jpg", tmp_path / "one.jpg")
    with (tmp_path / "big.mp4").open("wb") as file:
        file.truncate(3 * 2**30)  # sparse
    open_page(browser, plain)
    upload(browser, write_video(tmp_path / "clip.mp4"))
    assert "not a video" in upload(browser, tmp_path / "text.mp4") or "unreadable" in message(browser)
    assert shown(browser, ".results") == []
    assert upload(browser, tmp_path / "one.jpg") == "one.jpg is a picture: only videos are taken here"
    browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "big.mp4"))
    wait_until(lambda: "exceed the maximum allowed size" in browser.page_source, PATIENCE)
    check_hosts(browser, plain)
    assert all(it.stat().st_size < 2**20 for it in temporary.rglob("*"))


def test_a_recording_is_predicted(browser, plain, tmp_path):
    open_page(browser, plain)
    click(browser, "button[role=tab]", "Camera")
    click(browser, "button", "Access Webcam")
    live = "return [...document.querySelectorAll('video')].some((it) => it.srcObject && it.currentTime > 0)"
    wait_until(lambda: browser.execute_script(live), PATIENCE)
    click(browser, "button", "Record")
    browser.execute_async_script("setTimeout(arguments[0], 3000)")
    click(browser, "button", "Stop")
    wait_until(lambda: ".webm: " in message(browser), PATIENCE)
    assert message(browser).endswith("%")
    wait_until(lambda: plays(browser), PATIENCE)
    [row] = downloaded(browser, tmp_path)
    assert 1 < float(row["end"]) < 30
    check_hosts(browser, plain)


def click(browser: Any, selector: str, text: str) -> None:
    wait_until(lambda: browser.execute_script(CLICK, selector, text), PATIENCE)


def test_each_face_has_a_chart_and_all_files_go(browser, face_run, face_weights, two_faces, no_face, tmp_path):
    words = ["--faces", "all", "--faces.weights", face_weights, "--window", "2", "--hop", "1", "--device", "cpu"]
    with demo(face_run, tmp_path, *words) as url:
        [folder] = tmp_path.glob("fastemo-demo-*")
        open_page(browser, url)
        assert upload(browser, two_faces) == "two.mp4: 3 windows, 2 faces"
        assert [it.text for it in shown(browser, ".results h3")] == ["Face 1", "Face 2", "Predictions"]
        assert len(shown(browser, ".results svg")) == 2
        assert [row["face"] for row in downloaded(browser, tmp_path)] == ["1", "2"] * 3
        assert upload(browser, no_face) == "empty.mp4: no face was found"
        assert shown(browser, ".results") == []
        assert files(folder) == []
        upload(browser, two_faces)
        assert sorted(files(folder)) == ["annotated.mp4", "two.csv"]
        check_hosts(browser, url)
        browser.get("about:blank")
        wait_until(lambda: files(folder) == [], PATIENCE)
        open_page(browser, url)  # and the command ends in the middle of a prediction
        long = write_video(tmp_path / "long.mp4", 250, 640, 480)
        browser.find_element("css selector", "input[type=file]").send_keys(str(long))
        wait_until(lambda: any(folder.glob("tmp*/")), PATIENCE)


def files(folder: Path) -> list[str]:
    """But for Gradio's empty ones."""
    return [it.name for it in folder.rglob("*") if it.is_file() and it.stat().st_size]
