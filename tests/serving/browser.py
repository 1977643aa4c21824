"""A browser that tests drive: Debian's chromium, which asks nobody but the page's own server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 120  # seconds; a test that waits so long has failed

Answer = TypeVar("Answer")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="chromium or chromedriver is missing: apt-get install chromium chromium-driver",
)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser without a past.

    Args:
        profile: An empty folder.
    """
    selenium = pytest.importorskip("selenium.webdriver")
    os.environ |= {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(DRIVER))
    try:
        driver.set_script_timeout(PATIENCE)
        driver.set_page_load_timeout(PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """Reads and uses the page as a person would.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Loads a page; what the console said before is forgotten, and so are API keys."""
        self.driver.get(address)
        self.run("sessionStorage.clear()")
        self.driver.get(address)
        self.driver.get_log("browser")

    def run(self, script: str, *arguments: object) -> Any:
        """What a function's body returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def text(self, name: str) -> str:
        """What an element says, blanks included, shown or not."""
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    def shows(self, name: str) -> bool:
        """Whether an element can be seen."""
        return bool(self.driver.find_element("id", name).is_displayed())

    def is_busy(self) -> bool:
        """Whether something is being written: then Stop does something, and Write nothing."""
        disabled = "document.getElementById('{}').getAttribute('aria-disabled') == 'true'"
        both = ", ".join(map(disabled.format, ("write", "stop")))
        write, stop = self.run(f"return [{both}]")  # at one moment: they change together
        assert write is not stop
        return bool(write)

    def type(self, name: str, words: str) -> None:
        """Types into an empty field; `words` may hold selenium's keys."""
        field = self.driver.find_element("id", name)
        field.clear()
        field.send_keys(words)

    def press(self, name: str) -> None:
        """Presses a button."""
        self.driver.find_element("id", name).click()

    def choose(self, name: str, option: str) -> None:
        """Takes an entry of a list."""
        path = f".//option[normalize-space()='{option}']"
        self.driver.find_element("id", name).find_element("xpath", path).click()

    def wait(self, find: Callable[[], Answer]) -> Answer:
        """What `find` answers once that is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: find())

    def hosts(self) -> set[str]:
        """Whom the page has asked for anything."""
        entries = "performance.getEntriesByType('resource')"
        return set(self.run(f"return {entries}.map((one) => new URL(one.name).host)"))

    def complaints(self) -> list[str]:
        """What stands in the console as a warning or an error, once."""
        lines = self.driver.get_log("browser")
        return [line["message"] for line in lines if line["level"] in ("WARNING", "SEVERE")]
