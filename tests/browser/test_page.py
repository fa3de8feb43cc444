"""The page of a run as its readers use it, in a headless Chromium: they look, point, click, type and print."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.browser.chromium import chromium
from tests.browser.made import recorded

from lamella.cli import html, sandboxed
from lamella.cli.html import html_report
from lamella.cli.report import Check, Synced, totals
from lamella.cli.terminal import duration
from lamella.cli.traces import Collector, Trace, path, seconds, text, tree_text
from lamella.rules import StopReason
from lamella.sync import Part
from lamella.telemetry.names import ERROR_TYPE, METHOD, RULE, STATUS, STOP_REASON, WAIT

LONGEST = 20.0
MANY = 5000
FIRST_PAINT = 10.0  # seconds, on a slow machine; a tenth of a second on a fast one
MOST_ELEMENTS = 3000  # in the page, of how many calls it may be


def report_of(kept: Collector) -> html.Page:
    """What goes on the page of these calls."""
    parts = (Part("Ada", "invoices", None, pages=300, records=5000, done=True),)
    shown = tuple(totals(Synced(1, False, parts, 9.5), kept))
    checks = (Check("All is well.", None),)
    return html.Page("run 1", "Run 1.", shown, (), checks, kept.traces, kept.note)


@pytest.fixture(scope="session")
def report() -> html.Page:
    return report_of(recorded(300))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("home")) as driver:
        yield driver


class Page:
    """An opened page."""

    def __init__(self, browser: Chrome, report: html.Page, file: Path) -> None:
        self.browser, self.report, self.found = browser, report, report.traces
        file.write_text(html_report(report), encoding="utf-8")
        browser.get(file.as_uri())

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def script(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(code, *arguments)

    def script_until_done(self, code: str) -> Any:
        """What the script gives to the function that is its argument."""
        self.browser.set_script_timeout(LONGEST)
        return self.browser.execute_async_script(code)

    def until(self, look: Callable[[], object]) -> None:
        WebDriverWait(self.browser, LONGEST, poll_frequency=0.02).until(lambda _: look())

    def row(self, place: int) -> WebElement:
        return self.one(f'.row[data-place="{place}"]')

    def cells(self, place: int) -> list[str]:
        """The texts of a row: call, how it ended, sends, time."""
        return [str(cell.text) for cell in self.row(place).find_elements(By.CSS_SELECTOR, "[role=gridcell]")][:4]

    @property
    def shown(self) -> str:
        return str(self.one("#shown").text)

    def hover(self, element: WebElement) -> dict[str, str]:
        """What the tooltip says of an element."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        time.sleep(0.1)  # scrolling hides it
        ActionChains(self.browser).move_to_element(self.one("h1")).move_to_element(element).perform()
        self.until(self.one("#tip").is_displayed)
        return self.tip()

    def tip(self) -> dict[str, str]:
        names, values = self.all("#tip dt"), self.all("#tip dd")
        said = {str(name.text): str(value.text) for name, value in zip(names, values, strict=True)}
        return {"": str(self.one("#tip b").text)} | said

    def search(self, words: str) -> None:
        field = self.one("#search")
        field.clear()
        field.send_keys(words)

    def press(self, key: str) -> None:
        ActionChains(self.browser).send_keys(key).perform()

    def log(self) -> list[Any]:
        return list(self.browser.get_log("browser"))  # type: ignore[no-untyped-call, unused-ignore]


@pytest.fixture
def page(browser: Chrome, report: html.Page, tmp_path: Path) -> Iterator[Page]:
    opened = Page(browser, report, tmp_path / "page.html")
    yield opened
    assert opened.log() == []


def row_of(trace: Trace) -> list[str]:
    """The texts that a call's row has to have."""
    ended = text(trace.attempts[-1], ERROR_TYPE) or text(trace.attempts[-1], STATUS)
    took = duration(round(seconds(trace.call.end_time, trace.call.start_time), 6))
    name = f"{text(trace.call, METHOD)}{path(trace)}"
    return [name, f"{'✓' if trace.succeeded else '✗'}{ended}", str(len(trace.attempts)), took]


def test_the_page_shows_the_totals_of_the_run(page: Page) -> None:
    for total in page.report.totals:
        found = page.one(f'#{"parts" if total.nested else "totals"} [data-name="{total.name}"]')
        assert str(found.find_element(By.TAG_NAME, "dd").text) == total.value
    assert page.shown == "300 of 300 calls"


def test_the_page_lists_the_calls_in_order(page: Page) -> None:
    for place, trace in enumerate(page.found[:8]):
        assert ["".join(cell.split()) for cell in page.cells(place)] == [
            "".join(cell.split()) for cell in row_of(trace)
        ]


def test_hovering_a_wait_shows_the_decision(page: Page) -> None:
    page.one("[data-sort=attempts]").click()
    Select(page.one("#axis")).select_by_value("fit")
    most = max(page.found, key=lambda trace: (len(trace.attempts), seconds(trace.call.end_time, trace.call.start_time)))
    first = most.retries[0].attributes or {}
    said = page.hover(page.row(0).find_elements(By.CSS_SELECTOR, ".attempt")[0])
    assert said[""] == "Attempt 1 of 5"
    assert said["came back"] == str(first[ERROR_TYPE])
    assert said["decision"] == "retry"
    assert said["rule"] == str(first[RULE])
    wait = first[WAIT]
    assert isinstance(wait, float)
    at_once = "none: the connection may have been stale"
    assert said["wait"] == at_once if wait == 0 else said["wait"].startswith(f"{duration(round(wait, 6))}, ")
    assert said["left"] == "4 attempts, no deadline"

    pauses = [page.hover(pause)[""] for pause in page.row(0).find_elements(By.CSS_SELECTOR, ".pause")]
    assert pauses == [f"Wait before attempt {number}" for number in range(2, 6)]
    ActionChains(page.browser).move_to_element(page.one("h1")).perform()
    page.until(lambda: not page.one("#tip").is_displayed())


def test_hovering_a_call_shows_why_it_stopped(page: Page) -> None:
    Select(page.one("#outcome")).select_by_value("failed")
    failed = [trace for trace in page.found if not trace.succeeded]
    assert page.shown == f"{len(failed)} of 300 calls"
    reason = StopReason(text(failed[0].call, STOP_REASON)).phrase
    said = page.hover(page.row(0).find_elements(By.CSS_SELECTOR, ".attempt")[-1])
    assert (said["decision"], said["why"]) == ("stop", reason)


def test_a_click_opens_the_call_and_another_closes_it(page: Page) -> None:
    assert not page.one("#details").is_displayed()
    page.row(2).click()
    assert page.one("#details pre").get_property("textContent") == tree_text(page.found[2])
    assert page.row(2).get_attribute("aria-selected") == "true"
    page.one("#zoom-to").click()
    assert page.row(2).find_elements(By.CSS_SELECTOR, ".attempt")
    page.row(2).click()
    assert not page.one("#details").is_displayed()


def test_the_page_filters_calls(page: Page) -> None:
    again = [trace for trace in page.found if len(trace.attempts) > 1]
    Select(page.one("#outcome")).select_by_value("retried")
    assert page.shown == f"{len(again)} of 300 calls"
    Select(page.one("#outcome")).select_by_value("")
    button = page.one('#kinds [data-kind="429"]')
    button.click()
    limited = [trace for trace in page.found if any(text(send, ERROR_TYPE) == "429" for send in trace.attempts)]
    assert page.shown == f"{len(limited)} of 300 calls"
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert page.shown == "300 of 300 calls"


def test_the_page_filters_calls_by_resource(page: Page) -> None:
    found = [trace for trace in page.found if "/contacts" in path(trace)]
    Select(page.one("#resource")).select_by_value("contacts")
    assert page.shown == f"{len(found)} of 300 calls"
    Select(page.one("#resource")).select_by_value("")
    assert page.shown == "300 of 300 calls"
    assert not page.one("#account").is_displayed(), "there is nothing to choose from"


def test_the_page_searches_calls(page: Page) -> None:
    page.search("UNICORNS get")
    found = [trace for trace in page.found if "unicorns" in path(trace)]
    assert page.shown == f"{len(found)} of 300 calls"
    assert page.cells(0)[0].endswith("/accounting/unicorns")
    page.search("nothing is like this")
    assert page.one("#nothing").is_displayed()
    assert page.all(".row") == []


def test_the_page_sorts_calls(page: Page) -> None:
    page.one("[data-sort=duration]").click()
    longest = max(page.found, key=lambda trace: seconds(trace.call.end_time, trace.call.start_time))
    assert page.cells(0)[3] == row_of(longest)[3]
    page.one("[data-sort=duration]").click()
    shortest = min(page.found, key=lambda trace: seconds(trace.call.end_time, trace.call.start_time))
    assert page.cells(0)[3] == row_of(shortest)[3]
    page.one("[data-sort=attempts]").click()
    assert page.cells(0)[2] == str(max(len(trace.attempts) for trace in page.found))
    column = "[role=columnheader]:has([data-sort=attempts])"
    assert page.one(column).get_attribute("aria-sort") == "descending"


def test_the_page_can_be_used_by_keyboard(page: Page) -> None:
    page.one("[data-sort=attempts]").click()
    page.press(Keys.TAB * 3)
    assert page.script("return document.activeElement.dataset.place") == "0"
    page.press(Keys.ARROW_DOWN)
    page.press(Keys.ARROW_RIGHT)
    assert page.tip()[""] == "Attempt 1 of 5"
    page.press(Keys.ARROW_RIGHT)
    assert page.tip()[""] == "Wait before attempt 2"
    page.press(Keys.ARROW_RIGHT)
    assert page.tip()[""] == "Attempt 2 of 5"
    page.press(Keys.ESCAPE)
    assert not page.one("#tip").is_displayed()
    page.press(Keys.ENTER)
    assert page.one("#details").is_displayed()
    page.press(Keys.ESCAPE)
    assert not page.one("#details").is_displayed()
    assert page.script("return document.activeElement.dataset.place") == "1"
    page.press(Keys.END)
    assert page.script("return document.activeElement.dataset.place") == "299"


def test_the_waterfall_can_be_zoomed(page: Page) -> None:
    bar = "return arguments[0].querySelector('.attempt').getBoundingClientRect().width"
    Select(page.one("#axis")).select_by_value("start")
    page.one("[data-sort=duration]").click()
    page.search("limit=7")
    before = page.script(bar, page.row(0))
    for _ in range(12):
        page.one("[data-zoom=in]").click()
    page.one("[data-zoom=left]").click()
    assert page.script("return document.querySelectorAll('#ticks span').length") > 1
    page.one("[data-zoom=all]").click()
    assert page.script(bar, page.row(0)) == before


@pytest.mark.parametrize("width", [1024, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_is_readable(page: Page, width: int, scheme: str) -> None:
    size = {"width": width, "height": 768, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        # At once, in the page: a change of width draws the rows anew.
        page.script("document.querySelector('.row').click()")
        assert page.script("return document.documentElement.scrollWidth") == width
        assert page.script("return document.getElementById('list').scrollWidth") <= width
        back = page.script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") is (scheme == "light")
        tools = "[...document.querySelectorAll('button, select, input')].filter(it => !it.closest('[hidden]'))"
        seen = f"return {tools}.filter(it => !it.checkVisibility())"
        assert page.script(seen) == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_can_be_printed(page: Page) -> None:
    page.script("dispatchEvent(new Event('beforeprint'))")
    assert len(page.all(".row")) == 300
    page.script("dispatchEvent(new Event('afterprint'))")
    assert len(page.all(".row")) < 100
    assert len(page.browser.print_page()) > 10_000


def test_the_page_loads_nothing_from_the_network(page: Page) -> None:
    assert page.script("return performance.getEntriesByType('resource').length") == 0
    blocked = """
        const done = arguments[0];
        addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
    """
    image = "document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }));"
    assert page.script_until_done(blocked + image) == "img-src"
    code = "Object.assign(document.createElement('script'), { textContent: 'window.evil = 1' })"
    assert page.script_until_done(f"{blocked} document.body.append({code});") == "script-src-elem"
    assert page.script("return window.evil") is None
    assert len(page.log()) == 2


def test_hostile_text_on_the_page_is_not_executed(browser: Chrome, tmp_path: Path) -> None:
    evil = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
    report = replace(report_of(recorded(300, evil)), checks=(Check("x", evil),))
    page = Page(browser, report, tmp_path / "page.html")
    page.row(0).click()
    assert str(page.one("#details pre").get_property("textContent")).startswith(evil)
    assert evil in str(page.one("#checks").get_property("textContent"))
    assert page.script("return window.evil") is None
    assert page.log() == []


def test_the_page_of_a_real_run_works(browser: Chrome, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lamella", "sync", "--sandbox", "--resource", "items", "--report", "page.html"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert (run.returncode, run.stderr) == (0, "")
    browser.get((tmp_path / "page.html").as_uri())
    attempts, calls = re.findall(r"^attempts +(\d+)  for (\d+) calls$", run.stdout, re.MULTILINE)[0]
    named = {
        name: str(browser.find_element(By.CSS_SELECTOR, f'#totals [data-name="{name}"] .value').text)
        for name in ("attempts", "parts")
    }
    assert named == {"attempts": attempts, "parts": "24"}
    assert str(browser.find_element(By.ID, "shown").text) == f"{calls} of {calls} calls"
    assert "Checked: all 3 ok" in str(browser.find_element(By.ID, "checks").text)
    accounts = {str(found.text) for found in browser.find_elements(By.CSS_SELECTOR, ".row .account")}
    assert len(accounts) > 1
    assert accounts <= set(sandboxed._NAMES)
    chosen = min(accounts)
    Select(browser.find_element(By.ID, "account")).select_by_value(chosen)
    assert {str(found.text) for found in browser.find_elements(By.CSS_SELECTOR, ".row .account")} == {chosen}
    Select(browser.find_element(By.ID, "account")).select_by_value("")
    browser.find_element(By.CSS_SELECTOR, "[data-sort=attempts]").click()
    browser.find_element(By.CSS_SELECTOR, '.row[data-place="0"]').click()
    tree = str(browser.find_element(By.CSS_SELECTOR, "#details pre").get_property("textContent"))
    assert tree.startswith("lamella GET /accounting/items\nINTERNAL  ")
    assert list(browser.get_log("browser")) == []  # type: ignore[no-untyped-call, unused-ignore]


def test_the_page_handles_many_calls(browser: Chrome, tmp_path: Path) -> None:
    report = report_of(recorded(MANY))
    began = time.perf_counter()
    page = Page(browser, report, tmp_path / "page.html")
    page.until(lambda: page.all(".row"))
    assert time.perf_counter() - began < 3 * FIRST_PAINT
    paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    page.until(lambda: page.script(paint))
    painted = page.script(paint) / 1000
    assert painted < FIRST_PAINT
    assert page.shown == f"{MANY} of {MANY} calls"
    elements = "return document.querySelectorAll('*').length"
    assert page.script(elements) < MOST_ELEMENTS

    # A page at a time through a part of it, and each is drawn within a frame or a few.
    scroll = """
        const [done] = arguments, list = document.getElementById("list");
        let steps = 0, worst = 0, before = performance.now();
        const step = (now) => {
            worst = Math.max(worst, steps > 1 ? now - before : 0);
            before = now;
            list.scrollTop += list.clientHeight;
            steps += 1;
            if (steps < 60) requestAnimationFrame(step);
            else done(worst);
        };
        requestAnimationFrame(step);
    """
    worst = page.script_until_done(scroll)
    assert worst < 1000
    assert page.script(elements) < MOST_ELEMENTS

    page.script("const list = document.getElementById('list'); list.scrollTop = list.scrollHeight")
    page.until(lambda: page.all(f'.row[data-place="{MANY - 1}"]'))
    last = page.row(MANY - 1)
    assert last.is_displayed()
    last.click()
    assert page.one("#details pre").get_property("textContent") == tree_text(page.found[-1])
    assert page.script(elements) < MOST_ELEMENTS

    page.search(path(page.found[MANY // 2]))
    assert page.shown != f"{MANY} of {MANY} calls"
    assert page.log() == []
