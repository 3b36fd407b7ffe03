"""A headless Chromium for tests of pages: Debian's own, with the driver that belongs to it. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver: apt install chromium chromium-driver"
)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Tests run as root in containers, which have no room for a sandbox and little shared memory.
    words = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "disable-background-networking")
    for word in words:
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, page: Path) -> list[str]:
    """Opens a file; the addresses that were asked for besides it, and what the console says."""
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(page.as_uri())
    return [address for address in requests(driver) if address != page.as_uri()] + complaints(driver)


def requests(driver: Any) -> list[str]:
    """Addresses that were asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]


def complaints(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser")]


def move(driver: Any, label: str, value: object) -> None:
    """What a hand does with the slider or number of this label, or key presses in a field: the value, then its event."""
    driver.execute_script(
        "const field = document.querySelector(`[aria-label='${arguments[0]}']`); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        label, value,
    )  # fmt: skip
    # The page draws in the next frame.
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
