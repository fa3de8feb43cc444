from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.cli.collector import collector
from tests.cli.serving import KEYS, served, write_accounts
from tests.cli.spans import a_bad_call
from typer.testing import CliRunner, Result

from lamella.cli import otlp
from lamella.cli.app import app
from lamella.testing import Fault


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, in_own_folder: None, short_waits: None) -> None:
    write_accounts(tmp_path, "Ada", "Bob")


def sync(url: str) -> Result:
    """Sync from a server that fails some of the attempts, and send the spans to *url*."""
    with served() as server:
        server.script(500, Fault.CUT_BODY, account=KEYS["Ada"], path="*/items")
        server.script(404, account=KEYS["Bob"], path="*/bills")
        arguments = ["--accounts", "accounts.csv", "--resource", "bills,items", "--base-url", server.url]
        return CliRunner().invoke(app, ["sync", *arguments, "--otlp", url], env={"COLUMNS": "200"})


def assert_only_the_server_failed(shown: Result) -> None:
    """The last word is about the sync: the spans are no reason to fail."""
    assert shown.exit_code == 1
    assert shown.stderr.startswith("lamella: 1 of 4 parts failed; continue with: ")
    assert shown.stderr.count("\n") == 1


def value(span: Span, name: str) -> object:
    [found] = [pair.value for pair in span.attributes if pair.key == name] or [None]
    return found and getattr(found, found.WhichOneof("value"))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("variable", "given"), [("OTEL_SERVICE_NAME", "books"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=books")]
)
def test_the_service_name_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, given: str
) -> None:
    monkeypatch.setenv(variable, given)
    with collector() as kept:
        shown = sync(kept.url)
    assert "spans of the service books sent to" in shown.stdout
    for request in kept.requests:
        for resource in request.resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert names["service.name"] == "books"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("path", ["", "/v1/traces"])
def test_the_spans_arrive_at_the_endpoint(path: str) -> None:
    with collector() as kept:
        shown = sync(kept.url + path)
    assert_only_the_server_failed(shown)
    assert set(kept.paths) == {"/v1/traces"}
    said = f"{len(kept.spans)} spans of the service lamella-sync sent to {kept.url}/v1/traces: all arrived."
    assert said in shown.stdout

    for request in kept.requests:
        for resource in request.resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert names["service.name"] == "lamella-sync"


def test_each_call_arrives_as_a_tree_of_spans() -> None:
    with collector() as kept:
        sync(kept.url)
    calls = {span.trace_id: span for span in kept.spans if span.kind == Span.SPAN_KIND_INTERNAL}
    sends = [span for span in kept.spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert len(calls) == 4
    assert len(calls) + len(sends) == len(kept.spans)
    for trace_id, call in calls.items():
        below = sorted(
            (send for send in sends if send.trace_id == trace_id), key=lambda send: send.start_time_unix_nano
        )
        assert not call.parent_span_id
        assert {send.parent_span_id for send in below} == {call.span_id}
        assert len(below) == value(call, "lamella.attempts")
        assert [value(send, "http.request.resend_count") for send in below] == [None, *range(1, len(below))]
        assert [event.name for event in call.events].count("lamella.retry") == len(below) - 1
        assert value(call, "lamella.outcome") == ("success" if value(below[-1], "error.type") is None else "failure")
    assert sorted(len([send for send in sends if send.trace_id == trace_id]) for trace_id in calls) == [1, 1, 1, 3]


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_the_call_on_the_screen_has_an_exported_trace() -> None:
    with collector() as kept:
        arguments = ["--sandbox", "--resource", "items", "--otlp", kept.url]
        shown = CliRunner().invoke(app, ["sync", *arguments], env={"COLUMNS": "200"})
    assert (shown.exit_code, shown.stderr) == (0, "")
    [shown_id] = re.findall(r"^trace ([0-9a-f]{32})$", shown.stdout, re.MULTILINE)
    assert bytes.fromhex(shown_id) in {span.trace_id for span in kept.spans}


@pytest.mark.slow
def test_a_closed_port_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    started = time.monotonic()
    shown = sync(url)
    assert time.monotonic() - started < 5
    assert_only_the_server_failed(shown)
    assert re.search(
        rf"^None of \d+ spans arrived at {url}/v1/traces: Connection refused\.$", shown.stdout, re.MULTILINE
    )


def test_an_endpoint_that_rejects_spans_is_reported() -> None:
    with collector(status=404) as kept:
        shown = sync(kept.url.replace("//", "//user:s3cr3t@"))
    assert_only_the_server_failed(shown)
    assert re.search(rf"^None of \d+ spans arrived at {kept.url}/v1/traces: .*404", shown.stdout, re.MULTILINE)
    assert "s3cr3t" not in shown.output
    assert len(kept.paths) == 1


@pytest.mark.parametrize(("pause", "arrived"), [(0.0, 2), (60.0, 1)])
def test_an_endpoint_that_fails_is_retried_after_a_pause(pause: float, arrived: int) -> None:
    with collector() as kept:
        outlet = otlp.Outlet(otlp.endpoint(kept.url), pause)
        spans = a_bad_call()
        outlet.export(spans[:1])
        kept.status = 404
        outlet.export(spans[:1])
        kept.status = 200
        outlet.export(spans[1:])
        outlet.shutdown()
    assert (outlet.arrived, len(kept.paths)) == (arrived, 1 + arrived)


@pytest.mark.slow
def test_an_endpoint_that_never_answers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_LONGEST_SECONDS", 0.5)
    with collector(delay=1.0) as kept:
        shown = sync(kept.url)
    assert_only_the_server_failed(shown)
    assert "spans arrived at" in shown.stdout
    assert "it took longer than 0.5 s." in shown.stdout


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/v1/traces/", "http://localhost:4318/v1/traces"),
        ("https://otlp.example/base/", "https://otlp.example/base/v1/traces"),
        ("https://otlp.example/base/v1/traces", "https://otlp.example/base/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_an_endpoint_url_is_completed(url: str, found: str) -> None:
    assert str(otlp.endpoint(url)) == found


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "url",
    ["", "localhost:4318", "ftp://localhost", "http://", "http://:4318", "http://a b", "http://a:99999", "http://[::1",
     "http://a?b=c", "4318"],
)  # fmt: skip
def test_an_invalid_endpoint_url_is_rejected(url: str) -> None:
    shown = sync(url)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr.endswith("--otlp: must be a URL such as http://localhost:4318\n")
