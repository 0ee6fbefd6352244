"""The page in headless Chromium: no error, no missing picture, nothing too wide, both themes legible, tables that sort.

`.ci/run` installs Debian's chromium and chromium-driver; elsewhere these tests are skipped without them and say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CONTRASTS, IN_CHROMIUM, TOO_WIDE, chromium, set_window
from study_folder import QUIET

from fastemo.report.page import write_page

pytestmark = IN_CHROMIUM
MISSING_PICTURES = "return [...document.images].filter((it) => !it.complete || !it.naturalWidth).map((it) => it.alt);"


@pytest.fixture(scope="module")
def page(made_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's page, all models open, as a browser would show it after some clicks."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_page([made_study], out, QUIET)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def show(browser: Any, page: Path, width: int = 1400, theme: str = "light", media: str = "screen") -> None:
    set_window(browser, width, theme, media)
    browser.get(page.as_uri())


def click(browser: Any, element: Any) -> None:
    """By the mouse, as a reader does it; the page scrolls smoothly, which would move it away meanwhile."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def open_all(browser: Any) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach((it) => { it.open = true; })")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wrong_and_every_text_is_legible(browser, page, width, theme):
    show(browser, page, width, theme)
    open_all(browser)
    assert browser.execute_script("return innerWidth") == width
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    assert browser.execute_script(TOO_WIDE) == []
    assert browser.execute_script("return document.images.length") > 20
    assert browser.execute_script(MISSING_PICTURES) == []
    worst = browser.execute_script(CONTRASTS)
    assert worst[0][0] >= 4.5, worst
    assert browser.get_log("browser") == []


def test_the_themes_differ(browser, page):
    colours = []
    for theme in ("light", "dark"):
        show(browser, page, theme=theme)
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_tables_sort(browser, page):
    show(browser, page)
    tables = browser.find_elements("css selector", "table.sortable")
    assert len(tables) > 5
    for table in tables:
        buttons = table.find_elements("css selector", "thead button")
        if not buttons:
            assert len(table.find_elements("css selector", "tbody tr")) < 2
            continue
        for column, button in enumerate(buttons):
            if not button.is_displayed():
                continue
            for _ in range(2):
                browser.execute_script("arguments[0].click()", button)
                order = browser.execute_script("return arguments[0].closest('th').ariaSort", button)
                cells = browser.execute_script(
                    "return [...arguments[0].tBodies[0].rows].map((row) => row.cells[arguments[1]])"
                    ".map((it) => [it.dataset.order ?? null, it.textContent])",
                    table,
                    column,
                )
                numbers = [float(number) for number, _ in cells if number is not None]
                assert numbers == sorted(numbers, reverse=order == "descending")
                # Cells without a value stay at the end.
                if numbers:
                    assert all(number is not None for number, _ in cells[: len(numbers)])
            others = [it for it in buttons if it != button]
            assert {browser.execute_script("return arguments[0].closest('th').ariaSort", it) for it in others} <= {
                "none"
            }
    assert browser.get_log("browser") == []


def test_a_click_sorts(browser, page):
    show(browser, page)
    head = browser.find_element("css selector", "#results table.sortable thead th:nth-child(2) button")
    click(browser, head)
    assert head.find_element("xpath", "..").get_attribute("aria-sort") == "descending"


def test_a_legend_toggles_its_run(browser, page):
    show(browser, page)
    section = browser.find_element("css selector", "#curves .curves")
    lines = "[...arguments[0].querySelectorAll('svg [data-series=\"1\"]')]"
    shown = f"return {lines}.filter((it) => getComputedStyle(it).display !== 'none').length"
    button = section.find_element("css selector", ".legend li:nth-child(2) button")
    counts = [browser.execute_script(shown, section)]
    for _ in range(2):
        click(browser, button)
        counts.append(browser.execute_script(shown, section))
    assert counts == [4, 0, 4]
    assert button.get_attribute("aria-pressed") == "true"


def test_two_confusion_matrices_stand_side_by_side(browser, page):
    show(browser, page)
    one, other = browser.find_elements("css selector", ".compare .charts > div")
    assert one.rect["y"] == other.rect["y"]
    open_all(browser)
    own = browser.find_elements("css selector", "#models > details [data-figure=confusion_matrix] svg")
    for panel, chosen in ((one, 0), (other, 1), (other, 4)):
        select = panel.find_element("css selector", "select")
        assert len(select.find_elements("css selector", "option")) == len(own) == 5
        if chosen > 1:
            click(browser, select.find_elements("css selector", "option")[chosen])
        (drawn,) = panel.find_elements("css selector", "svg")
        assert drawn.get_attribute("outerHTML") == own[chosen].get_attribute("outerHTML")


def test_a_click_shows_frames_large(browser, page):
    show(browser, page)
    open_all(browser)
    button = browser.find_element("css selector", ".clips .wrong button")
    click(browser, button)
    dialog = browser.find_element("css selector", "dialog")
    assert dialog.is_displayed()
    small, large = (it.find_elements("css selector", "img") for it in (button, dialog))
    assert [it.get_attribute("src") for it in large] == [it.get_attribute("src") for it in small]
    assert large[0].rect["width"] > 2 * small[0].rect["width"]
    assert "predicted as" in dialog.text
    click(browser, dialog.find_element("css selector", "button"))
    assert not dialog.is_displayed()
    assert browser.get_log("browser") == []


def test_readable_without_scripts(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, page)
        assert "Results" in browser.find_element("css selector", "h2").text
        assert not browser.find_elements("css selector", "th button")
        assert len(browser.find_elements("css selector", "tbody tr")) > 20
        assert len(browser.find_elements("css selector", ".legend li")) == 6
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_paper_shows_what_the_screen_folds(browser, page):
    show(browser, page, media="print")
    hidden = browser.execute_script(
        "return [...document.querySelectorAll('details .inside > *')].filter((it) => !it.checkVisibility()).length"
    )
    assert hidden == 0
    # Dark paper would waste ink.
    show(browser, page, media="print", theme="dark")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert len(pdf) > 50_000


def test_nothing_foreign_would_be_loaded(browser, page, tmp_path):
    """Even where a page were tampered with: the policy in its head forbids scripts and pictures from elsewhere."""
    spoilt = tmp_path / "spoilt.html"
    inserted = "<script>document.title = 'bad'</script><img alt='x' src='file:///nowhere.png'>"
    spoilt.write_text(page.read_text().replace("<main>", f"<main>{inserted}"))
    show(browser, spoilt)
    assert browser.title != "bad"
    said = json.dumps(browser.get_log("browser"))
    assert said.count("Content Security Policy") >= 2
