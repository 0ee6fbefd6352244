"""Debian's Chromium without a window, and what is asked of every page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install -e '.[test]' brings selenium")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IN_CHROMIUM = [
    pytest.mark.slow,
    # In CI its absence fails.
    pytest.mark.skipif(
        not ((CHROMIUM and DRIVER) or os.environ.get("CI")),
        reason="no Chromium: apt-get install chromium chromium-driver",
    ),
]
# A browser that asks the network for nothing.
_ARGUMENTS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
# Elements that reach beyond the window and do not lie in a box that scrolls by itself.
TOO_WIDE = """
const limit = document.documentElement.clientWidth + 0.5;
return [...document.body.querySelectorAll('*')]
  .filter((it) => !it.closest('.scroll > table') && !it.closest('svg > *'))
  .filter((it) => it.checkVisibility() && it.getBoundingClientRect().right > limit)
  .map((it) => it.outerHTML.slice(0, 120));
"""
# Contrast of every visible text with what lies behind it, by WCAG 2.2's formula.
CONTRASTS = """
const parts = (colour) => {
  const [r, g, b, a] = colour.match(/[\\d.]+/g).map(Number);
  return { rgb: [r, g, b], a: a ?? 1 };
};
const over = (top, below) => top.rgb.map((it, i) => it * top.a + below[i] * (1 - top.a));
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((it) => it / 255).map((it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (it) => {
  if (!it) return [255, 255, 255];
  const own = parts(getComputedStyle(it).backgroundColor);
  return own.a === 1 ? own.rgb : over(own, behind(it.parentElement));
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const it = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !it.checkVisibility() || it.closest('script') || it.matches('.in')) continue;
  const style = getComputedStyle(it);
  const below = behind(it);
  const colour = parts(it instanceof SVGElement ? style.fill : style.color);
  const [high, low] = [luminance(over(colour, below)), luminance(below)].sort((a, b) => b - a);
  found.push([(high + 0.05) / (low + 0.05), it.outerHTML.slice(0, 100)]);
}
return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
"""


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """A driver, whose logs are `browser` (the console) and `performance` (every request)."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*_ARGUMENTS, *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def set_window(browser: Any, width: int, theme: str = "light", media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
