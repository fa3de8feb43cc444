"""The documentation site as its readers use it: on a desktop and on a phone, in light and in dark."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tests.browser.chromium import chromium

SITE = Path(__file__).resolve().parents[2] / "build" / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if path.name != "404.html")
DESKTOP, PHONE = (1280, 900), (390, 844)
LONGEST = 20  # seconds until a page is laid out, on a slow machine
LEAST_CONTRAST = 4.5  # WCAG 2.2, level AA
ANSWERS = {
    "How do I add this to my session?": "middlewares=layers",
    "Why was my POST not retried?": "unsafe_method",
    "What do I alert on?": "lamella.outcome",
    "What happens to my sync when the machine dies?": "--resume",
    "What does it cost?": "make bench",
}
"""The question of a reader, and what the page behind its link has to say."""
CONTRAST = """
    const luminance = (text) => {
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        canvas.fillStyle = text;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((each) => {
            const part = each / 255;
            return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const code = document.querySelector("pre > code");
    const [text, back] = [getComputedStyle(code).color, getComputedStyle(code).backgroundColor].map(luminance);
    return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of the site: its search needs a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(SITE))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("home")) as driver:
        yield driver


def resize(browser: Chrome, size: tuple[int, int]) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_not_scroll_sideways_and_loads_from_no_other_host(browser: Chrome, url: str, page: str) -> None:
    browser.get(f"{url}/{page}")
    for size in (DESKTOP, PHONE):
        resize(browser, size)
        fits = f"return document.documentElement.scrollWidth <= {size[0]}"
        WebDriverWait(browser, LONGEST).until(lambda _, fits=fits: browser.execute_script(fits), f"{size}")
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [each for each in loaded if not each.startswith((url, "data:", "blob:"))] == []


@pytest.fixture(scope="module", autouse=True)
def the_site_is_there() -> None:
    """Without pages the test above would have no cases, and pass."""
    assert len(PAGES) > 30, "there is no site: make docs"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_code_can_be_read_and_copied(browser: Chrome, url: str, size: tuple[int, int], scheme: str) -> None:
    resize(browser, size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(f"{url}/how-to/any-api.html")
    assert browser.execute_script("return document.body.dataset.mdColorScheme") == (
        "slate" if scheme == "dark" else "default"
    )
    code = browser.find_element(By.CSS_SELECTOR, "pre > code")
    assert float(str(code.value_of_css_property("font-size")).removesuffix("px")) >= 12
    assert browser.execute_script(CONTRAST) >= LEAST_CONTRAST
    WebDriverWait(browser, LONGEST).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, ".md-code__button, .md-clipboard")
    )


def test_the_navigation_is_reachable_on_a_phone(browser: Chrome, url: str) -> None:
    resize(browser, PHONE)
    browser.get(f"{url}/index.html")
    browser.find_element(By.CSS_SELECTOR, "header label[for=__drawer]").click()
    drawer = browser.find_element(By.CSS_SELECTOR, ".md-sidebar--primary")
    WebDriverWait(browser, LONGEST).until(lambda _: drawer.rect["x"] >= 0)
    titles = [
        str(found.text) for found in drawer.find_elements(By.CSS_SELECTOR, ".md-nav__link") if found.is_displayed()
    ]
    assert {"Start", "Tutorial", "How-to", "Reference", "Explanation"} <= {title.strip() for title in titles}


def test_the_search_finds_a_name(browser: Chrome, url: str) -> None:
    resize(browser, DESKTOP)
    browser.get(f"{url}/index.html")
    browser.find_element(By.CSS_SELECTOR, "input.md-search__input").send_keys("RetryBudget")
    found = "a.md-search-result__link"
    WebDriverWait(browser, LONGEST).until(lambda _: browser.find_elements(By.CSS_SELECTOR, found))
    links = [str(each.get_attribute("href")) for each in browser.find_elements(By.CSS_SELECTOR, found)]
    assert any("together.html" in link or "api/stack.html" in link for link in links)


@pytest.mark.parametrize("question", ANSWERS)
def test_each_readers_question_is_one_click_from_the_start_page(browser: Chrome, url: str, question: str) -> None:
    resize(browser, DESKTOP)
    browser.get(f"{url}/index.html")
    [row] = [row for row in browser.find_elements(By.CSS_SELECTOR, "article tr") if question in str(row.text)]
    row.find_element(By.CSS_SELECTOR, "a").click()
    address = urlsplit(str(browser.current_url))
    assert not address.path.endswith("index.html")
    if address.fragment:
        assert browser.find_elements(By.ID, address.fragment), address.fragment
    assert ANSWERS[question] in str(browser.find_element(By.CSS_SELECTOR, "article").text)
