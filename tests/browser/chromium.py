"""A headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@contextmanager
def chromium(home: Path) -> Iterator[Chrome]:
    """Yield a driver of a browser that keeps its files in *home*."""
    options = ChromeOptions()
    options.binary_location = os.environ["LAMELLA_CHROMIUM"]
    for flag in (*FLAGS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the path of the driver selenium looks for none, and downloads none.
    service = ChromeService(os.environ["LAMELLA_CHROMEDRIVER"], env=os.environ | {"HOME": str(home)})
    driver = Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()
