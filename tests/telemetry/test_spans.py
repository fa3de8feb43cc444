"""Spans by the HTTP conventions in full, the decisions on them, and the line in the log."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.types import Attributes
from tests.sdk import Metering, Tracing, given
from tests.servers import Serve
from yarl import URL

from lamella import AttemptSpan, Backoff, Failure, HeaderAuth, LamellaError, RequestSpan, Rule, RuleBook, maesn, stack
from lamella.maesn.sandbox import Sandbox, Step
from lamella.telemetry import attempt_span
from lamella.testing import Fault, VirtualClock

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))
KNOWN = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"


def _has_ipv6() -> bool:
    with suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True
    return False


async def answer(request: web.Request) -> web.StreamResponse:
    """The status that is the path, or a redirect to what stands behind it."""
    first, _, rest = request.path.strip("/").partition("/")
    if first == "to":
        raise web.HTTPTemporaryRedirect(f"/{rest}")
    return web.Response(status=int(first or 200), headers=[("X-Two", "a"), ("X-Two", "b"), ("ETag", '"1"')])


async def send(
    serve: Serve,
    tracing: Tracing,
    path: str = "/200",
    method: str = "GET",
    *,
    layers: Sequence[object] = (),
    **options: object,
) -> int:
    """One call; returns the port of its server."""
    url = await serve(answer)
    chosen = stack(RULES, *layers, tracer_provider=tracing.provider)  # type: ignore[arg-type]
    async with aiohttp.ClientSession(url, middlewares=chosen, **options) as session:  # type: ignore[arg-type]
        with suppress(LamellaError):
            async with session.request(method, path) as response:
                await response.read()
    return int(url.rpartition(":")[2])


class TestASend:
    async def test_an_attempt_span_has_the_required_attributes(self, serve: Serve, tracing: Tracing) -> None:
        port = await send(serve, tracing, "/404?limit=5#part")
        [span] = tracing.sends
        assert given(span) == {
            "http.request.method": "GET",
            "url.full": f"http://127.0.0.1:{port}/404?limit=5",
            "server.address": "127.0.0.1",
            "server.port": port,
            "network.peer.address": "127.0.0.1",
            "network.peer.port": port,
            "network.protocol.version": "1.1",
            "http.response.status_code": 404,
            "error.type": "404",
            "lamella.rule": "Client Error",
        }
        assert (span.kind, span.name) == (SpanKind.CLIENT, "GET")
        assert span.instrumentation_scope is not None
        assert (span.instrumentation_scope.name, bool(span.instrumentation_scope.schema_url)) == ("lamella", True)

    @pytest.mark.parametrize("status", [200, 204, 304, 400, 404, 418, 499, 500, 503, 599])
    async def test_an_attempt_span_has_the_status_of_the_response(
        self, serve: Serve, tracing: Tracing, status: int
    ) -> None:
        await send(serve, tracing, f"/{status}")
        [span] = tracing.sends
        failed = status >= 400
        assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
        # What the status code says needs no words.
        assert span.status.description is None
        assert given(span).get("error.type") == (str(status) if failed else None)
        assert tracing.call.status.status_code is span.status.status_code

    @pytest.mark.parametrize(
        ("fault", "type_"),
        [
            (Fault.RESET_BEFORE_HEADERS, "ConnectionLost"),
            (Fault.GARBAGE, "ConnectionLost"),
            (Fault.SILENCE, "AttemptTimeout"),
        ],
    )
    async def test_an_attempt_span_without_response_has_the_error_type(
        self, sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock, fault: Fault, type_: str
    ) -> None:
        sandbox.script(fault)
        layers = maesn.layers(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider, attempts=1
        )
        async with aiohttp.ClientSession(sandbox.url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
            with pytest.raises(LamellaError):
                await session.get("/accounting/invoices")
        [span] = tracing.sends
        assert (given(span)["error.type"], span.status.status_code) == (type_, StatusCode.ERROR)
        assert not given(span).keys() & {"http.response.status_code", "network.protocol.version"}

    async def test_an_attempt_span_without_connection_has_the_error_type(
        self, tracing: Tracing, unused_tcp_port: int
    ) -> None:
        async with aiohttp.ClientSession(
            middlewares=stack(RULES, attempts=1, tracer_provider=tracing.provider)
        ) as session:
            with pytest.raises(LamellaError):
                await session.get(f"http://127.0.0.1:{unused_tcp_port}/")
        [span] = tracing.sends
        assert given(span)["error.type"] == given(tracing.call)["error.type"] == "ConnectFailed"
        assert "network.peer.address" not in given(span)

    async def test_each_redirect_hop_has_its_own_attempt_span(self, serve: Serve, tracing: Tracing) -> None:
        await send(serve, tracing, "/to/to/429")
        statuses = [given(span)["http.response.status_code"] for span in tracing.sends]
        assert statuses == [307, 307, 429, 429, 429, 429, 429]
        counts = [given(span).get("http.request.resend_count") for span in tracing.sends]
        assert counts == [None, 1, 2, 3, 4, 5, 6]

    async def test_the_next_call_counts_attempts_from_zero(self, serve: Serve, tracing: Tracing) -> None:
        async with aiohttp.ClientSession(
            await serve(answer), middlewares=stack(RULES, tracer_provider=tracing.provider)
        ) as session:
            for path in ("/to/200", "/200", "/200"):
                await session.get(path)
        assert [given(span).get("http.request.resend_count") for span in tracing.sends] == [None, 1, None, None]

    async def test_redirects_of_concurrent_calls_are_counted_separately(self, serve: Serve, tracing: Tracing) -> None:
        async with aiohttp.ClientSession(
            await serve(answer), middlewares=stack(RULES, tracer_provider=tracing.provider)
        ) as session:
            await asyncio.gather(*(session._request("GET", path) for path in ["/to/200", "/200"] * 5))
        counts = [given(span).get("http.request.resend_count") for span in tracing.sends]
        assert (counts.count(None), counts.count(1)) == (10, 5)

    @pytest.mark.parametrize(("version", "shown"), [("1.0", "1.0"), ("1.1", "1.1"), ("2.0", "2")])
    async def test_an_attempt_span_has_the_protocol_version(
        self, serve_raw: Callable[[object], Awaitable[str]], tracing: Tracing, version: str, shown: str
    ) -> None:
        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/{version} 200 OK\r\nContent-Length: 0\r\n\r\n".encode())

        async with aiohttp.ClientSession(middlewares=stack(RULES, tracer_provider=tracing.provider)) as session:
            await session.get(await serve_raw(connection))
        assert given(tracing.sends[0])["network.protocol.version"] == shown

    async def test_the_span_shows_a_request_changed_by_a_middleware(self, serve: Serve, tracing: Tracing) -> None:
        first, second = URL(await serve(answer)), URL(await serve(answer))

        async def elsewhere(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            request.url, request.method = second / "200", "OPTIONS"
            return await handler(request)

        of_call, of_send = [kind(tracer_provider=tracing.provider) for kind in (RequestSpan, AttemptSpan)]
        async with aiohttp.ClientSession(middlewares=(of_call, elsewhere, of_send)) as session:
            await session.get(first / "404")
        [send] = tracing.sends
        assert (send.name, tracing.call.name) == ("OPTIONS", "lamella GET")
        assert given(send)["http.request.method"] == "OPTIONS"
        assert [given(span)["server.port"] for span in (tracing.call, send)] == [first.port, second.port]
        assert given(send)["network.peer.port"] == second.port
        # Of the call what it came to in the end.
        assert given(send)["url.full"] == given(tracing.call)["url.full"] == str(second / "200")

    @pytest.mark.skipif(not _has_ipv6(), reason="it has no such network")
    async def test_an_attempt_span_shows_an_ipv6_peer(self, tracing: Tracing) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response()

        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.TCPSite(runner, "::1", 0).start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(middlewares=stack(RULES, tracer_provider=tracing.provider)) as session:
            await session.get(f"http://[::1]:{port}/")
        await runner.cleanup()
        told = given(tracing.sends[0])
        assert (told["server.address"], told["server.port"]) == ("::1", port)
        assert (told["network.peer.address"], told["network.peer.port"]) == ("::1", port)

    @pytest.mark.skipif(sys.platform == "win32", reason="it has no such sockets")
    @pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("unix", None)])
    async def test_an_attempt_span_supports_unix_sockets(self, tracing: Tracing, scheme: str, port: int | None) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response()

        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        with TemporaryDirectory() as folder:  # shorter than what pytest gives: there is a limit
            await web.UnixSite(runner, f"{folder}/socket").start()
            async with aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(f"{folder}/socket"),
                middlewares=stack(RULES, tracer_provider=tracing.provider),
            ) as session:
                await session.get(f"{scheme}://service/")
            await runner.cleanup()
        for span in tracing.spans:
            assert (given(span)["server.address"], given(span).get("server.port")) == ("service", port)
        [send] = tracing.sends
        assert given(send)["network.peer.address"] == f"{folder}/socket"
        assert "network.peer.port" not in given(send)


class TestWhatAnAttemptSays:
    @pytest.mark.parametrize(
        ("headers", "shown"),
        [
            ({}, None),
            ({"X-Request-Id": "r-7"}, "r-7"),
            ({"CF-Ray": "ray", "x-vendor-request-id": "r-8"}, "r-8"),
            ({"X-Request-Id": "r-s3cr3t-key"}, "r-REDACTED"),
            ({"X-Request-Id": "a" * 500}, "a" * 299 + "…"),
        ],
    )
    @pytest.mark.parametrize("status", [200, 404])
    async def test_an_attempt_span_has_the_request_id(
        self, serve: Serve, tracing: Tracing, headers: dict[str, str], shown: str | None, status: int
    ) -> None:
        async def named(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers=headers)

        layers = stack(RULES, auth=HeaderAuth({"X-Key": "s3cr3t-key"}), tracer_provider=tracing.provider)
        async with aiohttp.ClientSession(await serve(named), middlewares=layers) as session:
            with suppress(LamellaError):
                await session.get("/")
        assert given(tracing.sends[0]).get("lamella.request_id") == shown

    async def test_an_attempt_span_has_the_rule_and_the_error_type(
        self, sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock
    ) -> None:
        sandbox.script(429, Fault.RESET_BEFORE_HEADERS, 404)
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
        ) as session:
            with pytest.raises(LamellaError):
                await session.get("/accounting/invoices")
        kinds: list[int | Failure] = [429, Failure.CONNECTION_LOST, 404]
        assert [(given(span)["error.type"], given(span)["lamella.rule"]) for span in tracing.sends] == [
            (error, maesn.RULES.rule_for(kind).title)
            for error, kind in zip(("429", "ConnectionLost", "404"), kinds, strict=True)
        ]

    async def test_a_response_below_400_can_be_an_error_on_its_span(self, serve: Serve, tracing: Tracing) -> None:
        rules = RuleBook(Rule(200, "Throttled", when=lambda a: "X-Two" in a.headers))
        layers = stack(rules, tracer_provider=tracing.provider)
        async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
            with pytest.raises(LamellaError):
                await session.get("/200")
        [span] = tracing.sends
        assert (given(span)["error.type"], given(span)["lamella.rule"]) == ("ApiError", "Throttled")
        assert given(span)["http.response.status_code"] == 200

    @pytest.mark.parametrize(
        ("method", "body", "sizes"),
        [
            ("GET", None, (None, 9)),
            ("POST", b"12345", (5, 9)),
            ("POST", "ä", (2, 9)),
            ("HEAD", None, (None, None)),
            ("PUT", "a stream", (None, None)),
        ],
    )
    async def test_body_sizes_records_the_sizes_of_both_bodies(
        self, serve: Serve, tracing: Tracing, method: str, body: object, sizes: tuple[int | None, int | None]
    ) -> None:
        async def sized(request: web.Request) -> web.StreamResponse:
            if request.method == "PUT":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"some")
                return response
            return web.Response(body=b"nine byte")

        async def stream() -> AsyncIterator[bytes]:
            yield b"some"

        spans = AttemptSpan(body_sizes=True, tracer_provider=tracing.provider)
        layers = stack(RULES, spans, tracer_provider=tracing.provider)
        data = stream() if body == "a stream" else body
        async with aiohttp.ClientSession(await serve(sized), middlewares=layers) as session:
            async with session.request(method, "/", data=data) as response:
                await response.read()
        found = given(tracing.sends[0])
        assert (found.get("http.request.body.size"), found.get("http.response.body.size")) == sizes

    async def test_body_sizes_are_not_recorded_by_default(self, serve: Serve, tracing: Tracing) -> None:
        await send(serve, tracing)
        assert not [name for name in given(tracing.sends[0]) if ".body.size" in name]


class TestNames:
    @pytest.mark.parametrize(
        ("method", "known", "named", "original"),
        [
            ("GET", "", "GET", None),
            ("PATCH", "", "PATCH", None),
            ("PROPFIND", "", "HTTP", "PROPFIND"),
            ("PROPFIND", "GET, PROPFIND", "PROPFIND", None),
            ("POST", "GET,PROPFIND", "HTTP", "POST"),
            ("GET", " , ", "GET", None),
        ],
    )
    async def test_span_names_contain_known_methods_only(
        self,
        serve: Serve,
        tracing: Tracing,
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        known: str,
        named: str,
        original: str | None,
    ) -> None:
        monkeypatch.setenv(KNOWN, known)
        await send(serve, tracing, method=method)
        assert [span.name for span in tracing.spans] == [named, f"lamella {named}"]
        for span in tracing.spans:
            assert given(span)["http.request.method"] == (method if named != "HTTP" else "_OTHER")
            assert given(span).get("http.request.method_original") == original

    @pytest.mark.parametrize(
        ("path", "template"),
        [
            ("/accounting/invoices", "/accounting/invoices"),
            ("/accounting/invoices/", "/accounting/invoices"),
            ("/accounting/billsPayments/17-ä", "/accounting/billsPayments/{id}"),
            ("/auth/datev?x=1", "/auth/{targetSystem}"),
            ("/accounting/invoices/17/lines", None),
            ("/accounting/", None),
            ("/else", None),
        ],
    )
    async def test_span_names_contain_templates_of_maesn_paths(
        self, sandbox: Sandbox, tracing: Tracing, path: str, template: str | None
    ) -> None:
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
        ) as session:
            with suppress(LamellaError):
                await session.get(path)
        assert {given(span).get("url.template") for span in tracing.spans} == {template}
        name = f"GET {template}" if template else "GET"
        assert [span.name for span in tracing.spans] == [name, f"lamella {name}"]

    async def test_span_names_contain_the_template_of_a_custom_function(self, serve: Serve, tracing: Tracing) -> None:
        async with aiohttp.ClientSession(
            await serve(answer),
            middlewares=stack(
                RULES,
                tracer_provider=tracing.provider,
                url_template=lambda request: "/{status}" if request.url.path == "/200" else None,
            ),
        ) as session:
            await session.get("/200")
            await session.get("/204")
        assert [span.name for span in tracing.sends] == ["GET /{status}", "GET"]


class TestHeaders:
    async def send(self, serve: Serve, tracing: Tracing) -> dict[str, object]:
        spans = AttemptSpan(
            tracer_provider=tracing.provider,
            request_headers=["X-Mine", "x-key", "Authorization", "X-Absent"],
            response_headers=["x-two", "ETAG"],
        )
        auth = (HeaderAuth({"X-KEY": "s3cr3t-key"}), HeaderAuth({"authorization": "Bearer s3cr3t-t0ken"}))
        await send(serve, tracing, layers=[spans, *auth], headers={"X-Mine": "1", "X-Other": "2"})
        return {name: value for name, value in given(tracing.sends[0]).items() if ".header." in name}

    async def test_chosen_headers_are_recorded_without_credentials(self, serve: Serve, tracing: Tracing) -> None:
        assert await self.send(serve, tracing) == {
            "http.request.header.x-mine": ("1",),
            "http.response.header.x-two": ("a", "b"),
            "http.response.header.etag": ('"1"',),
        }

    async def test_the_values_of_sensitive_headers_are_not_recorded(self, serve: Serve, tracing: Tracing) -> None:
        async def answer(_: web.Request) -> web.StreamResponse:
            headers = {"Set-Cookie": "sid=zq-1", "X-Auth-Token": "zq-2", "Location": "http://u:zq-3@h/?token=zq-4"}
            return web.Response(headers=headers)

        names = ["set-cookie", "x-auth-token", "location", "referer", "x-key"]
        spans = AttemptSpan(tracer_provider=tracing.provider, request_headers=names, response_headers=names)
        async with aiohttp.ClientSession(await serve(answer), middlewares=[spans]) as session:
            await session.get("/", headers={"Referer": "http://h/?token=zq-5", "X-Key": "zq"})
        found = {name: value for name, value in given(tracing.sends[0]).items() if ".header." in name}
        assert found == {
            "http.request.header.referer": ("http://h/?token=REDACTED",),
            "http.request.header.x-key": ("REDACTED",),
            "http.response.header.set-cookie": ("REDACTED",),
            "http.response.header.x-auth-token": ("REDACTED",),
            "http.response.header.location": ("http://h/?token=REDACTED",),
        }

    async def test_no_headers_are_recorded_by_default(self, serve: Serve, tracing: Tracing) -> None:
        await send(serve, tracing, headers={"X-Mine": "1"})
        assert not [name for name in given(tracing.sends[0]) if ".header." in name]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/200?token=abc&limit=5", "/200?token=REDACTED&limit=5"),
        ("/200?a=b#token", "/200?a=b"),
        ("/200?X-Amz-Signature=abc&sig=def", "/200?X-Amz-Signature=REDACTED&sig=REDACTED"),
    ],
)
async def test_the_url_on_a_span_has_no_secrets(serve: Serve, tracing: Tracing, before: str, after: str) -> None:
    port = await send(serve, tracing, before)
    for span in tracing.spans:
        assert given(span)["url.full"] == f"http://127.0.0.1:{port}{after}"


class Seeing(Sampler):
    """Samples all, and keeps the URLs that it was shown."""

    def __init__(self) -> None:
        self.urls: list[object] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        *_: object,
        **__: object,
    ) -> SamplingResult:
        self.urls.append((attributes or {}).get("url.full"))
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes)

    def get_description(self) -> str:
        return "Seeing"


async def test_samplers_see_a_redacted_url_and_spans_end_with_the_final_one(serve: Serve) -> None:
    """At the start nobody knows which credential an auth layer will set, and whether it is in the path as well."""
    sampler, exporter = Seeing(), InMemorySpanExporter()
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    url = await serve(answer)
    layers = stack(RULES, auth=HeaderAuth({"X-Key": "s3cr3t-key"}), tracer_provider=provider)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/200?token=abc&limit=5#part")
        await session.get("/200/s3cr3t-key")
    first, second = f"{url}/200?token=REDACTED&limit=5", f"{url}/200/s3cr3t-key"
    assert sampler.urls == [first, first, second, second]
    hidden = f"{url}/200/REDACTED"
    assert [given(span)["url.full"] for span in exporter.get_finished_spans()] == [first, first, hidden, hidden]


class TestACall:
    @pytest.mark.parametrize(
        ("steps", "outcome", "attempts", "stop", "type_"),
        [
            ((), "success", 1, None, None),
            ((429, 500), "success", 3, None, None),
            ((403,), "failure", 1, "not_retryable", "403"),
            ((500,) * 5, "failure", 5, "attempts_used_up", "500"),
            ((Fault.RESET_BEFORE_HEADERS,) * 5, "failure", 5, "attempts_used_up", "ConnectionLost"),
        ],
    )
    async def test_the_call_span_ends_with_the_outcome(
        self,
        sandbox: Sandbox,
        tracing: Tracing,
        virtual_time: VirtualClock,
        steps: tuple[Step, ...],
        outcome: str,
        attempts: int,
        stop: str | None,
        type_: str | None,
    ) -> None:
        if steps:
            sandbox.script(*steps)
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
        ) as session:
            with suppress(LamellaError):
                await session.get("/accounting/invoices")
        call = given(tracing.call)
        assert (call["lamella.outcome"], call["lamella.attempts"]) == (outcome, attempts)
        assert (call.get("lamella.stop_reason"), call.get("error.type")) == (stop, type_)
        assert call["lamella.wait"] == pytest.approx(virtual_time.elapsed, abs=0.1)
        assert len(tracing.sends) == attempts
        assert tracing.call.status.status_code is (StatusCode.ERROR if type_ else StatusCode.UNSET)
        names = [event.name for event in tracing.call.events]
        assert names == ["lamella.retry"] * (attempts - 1) + ["lamella.stop"] * bool(stop)
        assert [given(event)["lamella.attempt"] for event in tracing.call.events] == [*range(1, len(names) + 1)]
        assert [given(event)["lamella.attempts_left"] for event in tracing.call.events] == [
            *range(4, 4 - len(names), -1)
        ]

    async def test_a_call_cancelled_during_a_wait_ends_its_span(
        self, sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        sandbox.script(429)
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
        ) as session:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session._request("GET", "/accounting/invoices"), 20)
        assert (
            given(tracing.call).items()
            >= {
                "lamella.outcome": "cancelled",
                "lamella.stop_reason": "cancelled",
                "lamella.attempts": 1,
                "lamella.wait": pytest.approx(20, abs=0.1),
            }.items()
        )
        assert tracing.call.status.is_unset
        assert "error.type" not in given(tracing.call)
        assert not [record for record in caplog.records if record.name == "lamella"]

    async def test_a_call_discarded_during_a_wait_ends_its_span(self, tracing: Tracing) -> None:
        """As an event loop does with what is left when it is closed."""

        async def never(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            await asyncio.get_running_loop().create_future()
            return await handler(request)

        layers = (*stack(RULES, tracer_provider=tracing.provider), never)
        async with aiohttp.ClientSession(middlewares=layers) as session:
            call = session._request("GET", "http://127.0.0.1/")
            call.send(None)
            call.close()
        assert [given(tracing.call)[f"lamella.{name}"] for name in ("outcome", "stop_reason")] == ["cancelled"] * 2
        for span in tracing.spans:
            assert span.status.is_unset
            assert "error.type" not in given(span)
        assert len(tracing.sends) == 1

    async def test_a_call_sent_twice_by_a_middleware_has_two_attempt_spans(
        self, serve: Serve, tracing: Tracing
    ) -> None:
        async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            (await handler(request)).release()
            return await handler(request)

        of_call, of_send = [kind(tracer_provider=tracing.provider) for kind in (RequestSpan, AttemptSpan)]
        async with aiohttp.ClientSession(await serve(answer), middlewares=(of_call, twice, of_send)) as session:
            await session.get("/to/200")
        # Each hop is a call of its own, and their sends are counted together.
        calls = [span for span in tracing.spans if span.kind is SpanKind.INTERNAL]
        assert [given(span)["lamella.attempts"] for span in calls] == [2, 2]
        assert [given(span).get("http.request.resend_count") for span in tracing.sends] == [None, 1, 2, 3]


class TestTheLog:
    async def test_a_failed_call_logs_one_line(
        self, sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        sandbox.script(*[500] * 5)
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
        ) as session:
            with pytest.raises(LamellaError) as caught:
                await session.get("/accounting/invoices")
        [line] = caplog.records
        assert (line.name, line.levelno, line.getMessage()) == ("lamella", logging.WARNING, str(caught.value))
        context = tracing.call.context
        assert (
            vars(line).items()
            >= {
                "lamella.method": "GET",
                "lamella.url": given(tracing.call)["url.full"],
                "lamella.outcome": "500",
                "lamella.attempts": 5,
                "lamella.wait": given(tracing.call)["lamella.wait"],
                "lamella.stop_reason": "attempts_used_up",
                "trace_id": trace.format_trace_id(context.trace_id),
                "span_id": trace.format_span_id(context.span_id),
            }.items()
        )

    async def test_a_successful_call_logs_nothing(
        self, sandbox: Sandbox, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        sandbox.script(429, 500)
        async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
            await session.get("/accounting/invoices")
        assert not caplog.records


class TestNobodyRecords:
    """Sampled out, or without an SDK: nothing is computed for a span."""

    @pytest.mark.parametrize(
        "provider",
        [TracerProvider(ALWAYS_OFF, shutdown_on_exit=False), trace.NoOpTracerProvider()],
        ids=["out", "none"],
    )
    async def test_no_attributes_are_computed_if_nothing_is_recorded(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, provider: trace.TracerProvider
    ) -> None:
        def fail(*_: object) -> dict[str, str]:
            raise AssertionError

        for name in ("peer_attributes", "header_attributes", "shown_url"):
            monkeypatch.setattr(attempt_span, name, fail)
        spans = AttemptSpan(tracer_provider=provider, request_headers=["Accept"], response_headers=["ETag"])
        async with aiohttp.ClientSession(
            await serve(answer), middlewares=stack(RULES, spans, tracer_provider=provider)
        ) as session:
            await session.get("/200")

    async def test_spans_and_metrics_work_without_each_other(
        self, serve: Serve, tracing: Tracing, metering: Metering
    ) -> None:
        spans: list[ReadableSpan] = []
        for tracer, meter in (
            (tracing.provider, metering.provider),
            (tracing.provider, NoOpMeterProvider()),
            (trace.NoOpTracerProvider(), metering.provider),
        ):
            layers = stack(RULES, tracer_provider=tracer, meter_provider=meter)
            async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
                with pytest.raises(LamellaError):
                    await session.get("/404")
            spans += tracing.spans
            tracing.exporter.clear()
        (send, call), others = spans[:2], spans[2:]
        assert [given(span).keys() for span in others] == [given(send).keys(), given(call).keys()]
        assert [span.status.status_code for span in others] == [StatusCode.ERROR] * 2
        assert metering.count("lamella.call.duration") == metering.value("lamella.call.stops") == 2
        assert metering.value("lamella.attempts.active") == 0
        points = metering.metrics["http.client.request.duration"].data.data_points
        assert sum(point.count for point in points if isinstance(point, HistogramDataPoint)) == 2

    async def test_attempts_are_counted_without_spans(self, serve: Serve, tracing: Tracing) -> None:
        nobody = AttemptSpan(tracer_provider=trace.NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
        await send(serve, tracing, "/429", layers=[nobody])
        assert not tracing.sends
        assert given(tracing.call)["lamella.attempts"] == 5
        tracing.exporter.clear()
        layers = (RequestSpan(tracer_provider=tracing.provider), nobody)
        async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
            await session.get("/200")
        assert given(tracing.call)["lamella.attempts"] == 1

    async def test_each_span_layer_works_without_the_other(self, serve: Serve, tracing: Tracing) -> None:
        off = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
        spans: list[ReadableSpan] = []
        for layers in (
            (RequestSpan(tracer_provider=off), AttemptSpan(tracer_provider=tracing.provider)),
            (RequestSpan(tracer_provider=tracing.provider), AttemptSpan(tracer_provider=off)),
        ):
            async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
                await session.get("/200")
            spans += tracing.spans
            tracing.exporter.clear()
        # A parent that is sampled out has no children that are not; the other way round it may be.
        assert [span.kind for span in spans] == [SpanKind.INTERNAL]
