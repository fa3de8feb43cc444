"""The page of a run, as a file: what is on it, that nothing can get out of hand, and how it is written."""

from __future__ import annotations

import os
import re
import time
from base64 import b64encode
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind
from tests.cli.conftest import lamella
from tests.cli.pages import Page
from tests.cli.serving import API_KEY, KEYS, served, write_accounts
from tests.cli.spans import a_bad_call, a_good_call, attempt, call, event, page_of, retry, text_of, traces
from typer.testing import CliRunner

from lamella.cli import report
from lamella.cli.app import app
from lamella.cli.causes import Cause
from lamella.cli.html import html_report
from lamella.cli.report import Check, Total
from lamella.cli.traces import Collector, tree
from lamella.redaction import redact_text
from lamella.telemetry.names import ATTEMPTS_LEFT, DEADLINE_LEFT, OUTCOME, STOP_EVENT

CAUSES = (Cause(2, ("Ada",), "404 Not Found", "not retryable", "no such record", "Check the path and the id"),)
CHECKS = (Check("All is well.", None), Check("Nothing is lost.", None))
TOTALS = (Total("attempts", "5", "for 2 calls"), Total("retries", "3"), Total("after 500", "1", nested=True))


def various() -> list[ReadableSpan]:
    """The spans of calls that end in every kind of answer."""
    spans = [*a_good_call(), *a_bad_call()]
    for number, status in ((30, 404), (40, 301)):
        spans += [
            call(number, number, number + 9, lamella__outcome="success"),
            attempt(number + 1, number, number + 1, number + 2, http__response__status_code=status),
        ]
    return spans


@pytest.fixture(scope="session")
def text() -> str:
    return html_report(page_of(various(), causes=CAUSES, checks=CHECKS, totals=TOTALS))


@pytest.fixture(scope="session")
def page(text: str) -> Page:
    return Page(text)


class TestWhatIsOnIt:
    def test_the_page_has_the_totals_of_the_screen(self, page: Page) -> None:
        names, values = page.texts["dt"], [value for value in page.texts["dd"] if value.strip()]
        table = text_of(report.outcome(TOTALS), 200)
        for total in TOTALS:
            assert total.name in names
            assert total.value in values
            line = next(line for line in table.splitlines() if line.strip().startswith(total.name + " "))
            assert total.value in line
            assert total.note in line

    def test_the_page_shows_every_call_and_attempt(self, page: Page) -> None:
        spans = various()
        found = traces(spans)
        assert len(page.data) == len(found)
        assert sum(len(call["attempts"]) for call in page.data) == sum(span.kind is SpanKind.CLIENT for span in spans)
        assert [call["tree"] for call in page.data] == [text_of(tree(trace), 500) for trace in found]

    def test_the_page_explains_colours_with_counts(self, page: Page) -> None:
        kinds = Counter(send["kind"] for call in page.data for send in call["attempts"])
        assert set(kinds) == {"2xx", "3xx", "4xx", "429", "5xx", "none"}
        shown = [attributes["data-kind"] for attributes in page.of("button") if "data-kind" in attributes]
        assert shown == ["2xx", "3xx", "4xx", "429", "5xx", "none"]

    def test_the_page_shows_failures_and_checks(self, page: Page) -> None:
        assert page.texts["strong"] == ["2 × 404 Not Found", "ok", "ok"]

    def test_the_page_shows_a_failed_check(self) -> None:
        broken = Page(html_report(page_of(checks=(*CHECKS, Check("x", "1 record missing")))))
        assert "FAILED" in broken.texts["strong"]
        assert "Checked: 1 of 3 failed" in broken.texts["summary"]
        assert "open" in next(attributes for attributes in broken.of("details") if attributes["id"] == "checks")

    def test_the_page_data_of_a_call_is_complete(self) -> None:
        [good, bad] = Page(html_report(page_of())).data
        assert (good["at"], good["took"], good["path"]) == (0, 2_551_000, "/accounting/invoices/7?limit=5")
        assert [(send["at"], send["took"], send["kind"], send["ended"]) for send in good["attempts"]] == [
            (1_500, 9_900, "5xx", "500"),
            (512_000, 3_000, "none", "ConnectionLost"),
            (530_000, 5_000, "429", "429"),
            (2_545_000, 5_000, "2xx", "200"),
        ]
        first, second, third, last = good["attempts"]
        assert first["decision"] == {"at": 11_500, "rule": "Server Error", "wait": 500_000, "source": "by the rule"}
        assert second["decision"]["source"] == "none: the connection may have been stale"
        assert third["decision"]["source"] == "by Retry-After"
        assert "decision" not in last
        assert bad["attempts"][0]["decision"] == {"at": 9_000, "rule": "", "stop": "unsafe method"}

    def test_the_page_shows_the_account_of_a_call(self) -> None:
        collected = Collector(account=lambda: "Ada & Söhne")
        provider = TracerProvider()
        provider.add_span_processor(collected)
        with provider.get_tracer("x").start_as_current_span("lamella GET") as span:
            span.set_attribute(OUTCOME, "success")
            with provider.get_tracer("x").start_as_current_span("GET", kind=SpanKind.CLIENT):
                pass
        [found] = Page(html_report(replace(page_of(), traces=collected.traces))).data
        assert found["account"] == "Ada & Söhne"
        assert "account Ada & Söhne" in found["tree"]
        assert not collected._accounts

    def test_the_page_shows_url_templates(self) -> None:
        for template, expected in (("/accounting/bills/{billId}", "/accounting/bills/{billId}"), ("", None)):
            spans = (call(10, 0, 10, url__template=template), attempt(11, 10, 1, 8))
            [found] = Page(html_report(page_of(spans))).data
            assert found.get("template") == expected

    def test_the_page_shows_the_remaining_time(self) -> None:
        stop = event(STOP_EVENT, 9, **{ATTEMPTS_LEFT: 3, DEADLINE_LEFT: 0.25})
        spans = (call(10, 0, 10, stop), attempt(11, 10, 1, 8, error__type="500"))
        [found] = Page(html_report(page_of(spans))).data
        decision = found["attempts"][0]["decision"]
        assert (decision["left"], decision["deadline"]) == (3, 250_000)

    def test_the_page_shows_waits_in_the_queue(self) -> None:
        spans = (call(10, 0, 10, event("lamella.queued", 1, lamella__wait=2.0)), attempt(11, 10, 3, 8))
        [found] = Page(html_report(page_of(spans))).data
        assert found["others"] == [{"at": 1_000, "wait": 2_000_000, "name": "lamella.queued"}]
        assert found["attempts"][0]["kind"] == "none"

    def test_a_truncated_response_is_not_a_response(self) -> None:
        spans = (call(10, 0, 9), attempt(11, 10, 1, 2, http__response__status_code=200, error__type="ConnectionLost"))
        [found] = Page(html_report(page_of(spans))).data
        assert found["attempts"][0]["kind"] == "none"

    def test_the_page_states_which_calls_it_shows(self) -> None:
        cause = Cause(30, tuple(f"account {number}" for number in range(22)), "401 Unauthorized", "", "", "")
        found = Page(html_report(page_of(causes=(cause,), note="2 of 30 calls.")))
        assert found.texts["h1"] == ["lamella sync"]
        assert "2 of 30 calls." in found.texts["p"]
        assert any(text.endswith("account 19 and 2 more") for text in found.texts["p"])
        assert [text.strip() for text in found.texts["li"] if text.strip()] == []
        assert found.texts["summary"] == ["Failures by cause (30)"]
        assert "checks" not in found.ids

    def test_the_page_of_a_run_without_calls_works(self) -> None:
        empty = Page(html_report(page_of(())))
        assert empty.data == []
        assert "None." in empty.texts["p"]


class TestNothingGetsOut:
    def test_the_page_loads_nothing(self, text: str, page: Page) -> None:
        names = {tag for tag, _ in page.tags}
        assert not names & {"link", "img", "iframe", "object", "embed", "base", "form", "svg", "video", "audio"}
        for tag, attributes in page.tags:
            bad = {name for name in attributes if name.startswith("on") or name in {"src", "href", "style", "srcset"}}
            assert not bad, tag
        assert not re.search(r"(?i)https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(|innerHTML", text)

    def test_the_content_security_policy_allows_only_our_script_and_style(self, page: Page) -> None:
        def of(inline: str) -> str:
            return f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'"

        [style], [_, script] = page.texts["style"], page.texts["script"]
        assert page.policy == (
            f"default-src 'none'; style-src {of(style)}; script-src {of(script)}; base-uri 'none'; form-action 'none'"
        )

    @pytest.mark.parametrize(
        "evil",
        [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            "<img src=x onerror=alert(1)>",
            "\"'`&quot;&lt;",
            "{{ 7 * 7 }}{% raw %}",
            "a\u2028b\u2029c\x00d\ud800e",
        ],
    )
    def test_external_text_on_the_page_is_escaped(self, page: Page, evil: str) -> None:
        stopped = {"lamella__stop_reason": evil, "lamella__rule": evil}
        spans = (
            call(
                10,
                0,
                9,
                retry(3, 0.1, evil, evil),
                event(evil, 4, lamella__wait=1.0),
                event("lamella.stop", 8, **stopped),
                method=evil,
                url__full=f"http://h/{evil}?q={evil}",
                lamella__outcome=evil,
            ),
            attempt(11, 10, 1, 2, evil, error__type=evil),
        )
        # As causes and checks have it: in one line, without what moves a cursor.
        shown = redact_text(evil)
        cause, check = Cause(1, (shown,), shown, shown, shown, shown), Check(shown, shown)
        hostile = Page(html_report(page_of(spans, causes=(cause,), checks=(check,), totals=TOTALS)))
        assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in page.tags}
        assert [tag for tag, _ in hostile.tags].count("script") == 2
        assert hostile.policy == page.policy
        # It is not lost either: one reads what came.
        assert shown == " ".join("".join(char if char.isprintable() else " " for char in evil).split())
        assert any(shown in said for said in hostile.texts["p"])
        [found] = hostile.data
        assert found["attempts"][0]["ended"] == shown
        assert found["attempts"][0]["decision"]["stop"] == shown


def many(calls: int) -> list[ReadableSpan]:
    """So many calls of four sends each, from one."""
    first = a_good_call()
    spans = []
    for number in range(calls):
        for span in first:
            context, later = _moved(span.get_span_context(), number), number * 3_000_000
            spans.append(
                ReadableSpan(
                    span.name,
                    context=context,
                    parent=_moved(span.parent, number),
                    resource=Resource.get_empty(),  # else each span would look for its own
                    attributes=span.attributes,
                    events=[Event(event.name, event.attributes, event.timestamp + later) for event in span.events],
                    kind=span.kind,
                    start_time=(span.start_time or 0) + later,
                    end_time=(span.end_time or 0) + later,
                )
            )
    return spans


def _moved(ids: SpanContext | None, number: int) -> SpanContext | None:
    """The ids of the same span in another call."""
    if ids is None:
        return None
    return SpanContext(number + 1, ids.span_id + 100 * number, is_remote=False, trace_flags=ids.trace_flags)


class TestTheFile:
    @pytest.mark.slow
    def test_the_page_with_5000_calls_is_small_enough(self) -> None:
        """A bound for a slow machine: it takes two seconds on a fast one."""
        page = page_of(many(5000))
        began = time.perf_counter()
        text = html_report(page)
        assert time.perf_counter() - began < 30
        assert len(text.encode()) < 8_000_000
        data = Page(text).data
        assert len(data) == 5000
        assert {len(call["attempts"]) for call in data} == {4}

    @pytest.mark.slow
    def test_the_command_writes_the_page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAESN_API_KEY", API_KEY)
        path = tmp_path / "a page.html"
        path.write_text("old")
        accounts = write_accounts(tmp_path)
        with served() as server:
            options = ("--accounts", str(accounts), "--base-url", server.url, "--journal", str(tmp_path / "journal"))
            run = lamella("sync", "--resource", "bills,items", *options, "--report", str(path))
        assert run.returncode == 1
        outcome, _, rest = run.stdout.partition("\nFailures\n")
        assert "a page.html, " in " ".join(rest.split())  # the length of the path decides where the line breaks
        text = path.read_text(encoding="utf-8")
        assert not [key for key in (API_KEY, *KEYS.values()) if key in text]
        page = Page(text)
        assert len(page.data) == len(server.received)
        totals = [value for value in page.texts["dd"] if value.strip()]
        for name in ("parts", "records", "attempts", "retries"):
            [line] = [line for line in outcome.splitlines() if line.startswith(f"{name} ")]
            assert line.removeprefix(name).split()[0] in totals
        assert sorted(os.listdir(tmp_path)) == ["a page.html", "accounts.csv", "journal"]

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("no/page.html", "No such file or directory"),
            ("file/page.html", "Not a directory"),
            ("", "it is a folder"),
            ("x" * 300, "File name too long"),
            ("circle", "Too many levels of symbolic links"),
        ],
    )
    def test_an_unusable_path_is_reported_before_the_calls(self, tmp_path: Path, name: str, why: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "circle").symlink_to("circle")
        path = tmp_path / name
        run = CliRunner().invoke(app, ["sync", "--sandbox", "--report", str(path)])
        assert run.exit_code == 2
        assert run.stdout == ""
        assert run.stderr.startswith(f"lamella: --report: cannot be written: {why}: {tmp_path}")
        assert run.stderr.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == ["circle", "file"]

    def test_a_device_is_not_replaced(self) -> None:
        run = CliRunner().invoke(app, ["sync", "--sandbox", "--report", os.devnull])
        assert (run.exit_code, run.stdout) == (2, "")
        assert run.stderr == f"lamella: --report: cannot be written: it is not a regular file: {os.devnull}\n"
        assert Path(os.devnull).is_char_device()


def test_the_page_of_a_failed_call_shows_the_failure() -> None:
    page = Page(html_report(page_of(a_bad_call())))
    assert [found["outcome"] for found in page.data] == ["failure"]
