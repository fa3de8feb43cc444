"""A rule's condition: what it sees, when a body is read for it, and that it breaks no call."""

from __future__ import annotations

import asyncio
import copy
import gzip
import logging
import pickle
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest
from tests.rules.answers import Reply, Serve, Server, call, client, fails
from tests.sdk import Tracing
from tests.servers import Connection

from lamella import (
    HTTP_RULES,
    Answer,
    ApiError,
    AttemptTimeout,
    Backoff,
    Breaker,
    CircuitOpen,
    Classify,
    ConnectionLost,
    Failure,
    LamellaError,
    Layer,
    Result,
    Retry,
    RetryBudget,
    Rule,
    RuleBook,
    Slot,
    StopReason,
    Throttle,
    options,
    stack,
)
from lamella.call import Call
from lamella.rules import BodyNeeded
from lamella.testing import VirtualClock

SOON = Backoff(0.01)
ServeRaw = Callable[[Connection], Any]


def raw(*parts: str | bytes | float) -> Connection:
    """Answer each request with *parts*; a number is a pause in seconds."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            if isinstance(part, str | bytes):
                writer.write(part if isinstance(part, bytes) else part.replace("\n", "\r\n").encode())
                await writer.drain()
            else:
                await asyncio.sleep(part)

    return connection


async def test_when_sees_the_whole_response(serve: Serve) -> None:
    seen: list[Answer] = []
    book = RuleBook(Rule(418, when=seen.append))
    server = Server(Reply(418, {"X-Own": "1"}, {"error": {"code": "c"}}))
    async with client(await serve(server), book) as session:
        await fails(session, "PUT", path="/a?b=c")
    [answer] = seen
    assert (answer.status, answer.method, answer.headers["x-own"]) == (418, "PUT", "1")
    assert answer.url.endswith("/a?b=c")
    assert (answer.json, answer.error_code) == ({"error": {"code": "c"}}, "c")


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_the_first_matching_rule_applies(serve: Serve, raise_errors: bool) -> None:
    def having(text: str) -> Callable[[Answer], bool]:
        return lambda a: text in a.text

    book = RuleBook(
        Rule(503, "status"),
        Rule("5xx", "class", when=having("class")),
        Rule(503, "one", when=having("one")),
        Rule([502, 503], "two", when=having("two")),
        Rule(None, "any", when=having("any")),
    )
    async with client(await serve(server := Server()), book, raise_errors=raise_errors) as session:
        for text, title in [
            ("one two", "one"),
            ("two any", "two"),
            ("any", "any"),
            ("", "status"),
            ("two class", "class"),
        ]:
            server.replies = [Reply(503, body=text)]
            if raise_errors:
                error = await fails(session)
                assert error.rule.title == title
                assert isinstance(error, ApiError)
                assert error.body == text.encode()
            else:
                assert await call(session) == (503, text)


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_no_body_is_read_unless_a_rule_asks(
    serve_raw: ServeRaw, raise_errors: bool, virtual_time: VirtualClock
) -> None:
    """A stream whose end does not come: 200 is no error, and 503 is by its headers."""
    book = RuleBook(Rule([200, 503], "x", when=lambda a: "X-Bad" in a.headers and "bad" in a.text))
    head = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nabc\n"
    layers = stack(book, raise_errors=raise_errors)
    async with aiohttp.ClientSession(await serve_raw(raw(head, 5.0)), middlewares=layers) as session:
        async with session.get("/") as response:
            assert await response.content.readany() == b"abc"
        assert virtual_time.elapsed < 1


async def test_a_body_read_by_a_rule_arrives_unchanged(serve_raw: ServeRaw) -> None:
    book = RuleBook(Rule(200, when=lambda a: "THROTTLED" in a.text))
    head = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n"
    url = await serve_raw(raw(head, "3\nabc\n", 0.1, "3\ndef\n0\n\n"))
    async with client(url, book) as session, session.get("/") as response:
        assert await response.read() == b"abcdef"


async def test_an_event_stream_is_not_read(serve_raw: ServeRaw) -> None:
    book = RuleBook(Rule(200, when=lambda a: "THROTTLED" in a.text))
    url = await serve_raw(raw("HTTP/1.1 200 OK\nContent-Type: text/event-stream\n\ndata: 1\n\n", 5.0))
    async with client(url, book) as session, session.get("/") as response:
        assert await asyncio.wait_for(response.content.readany(), 1) == b"data: 1\r\n\r\n"


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_a_missing_body_below_400_is_a_failed_attempt(
    serve_raw: ServeRaw, virtual_time: VirtualClock, raise_errors: bool
) -> None:
    book = RuleBook(Rule(200, when=lambda a: "THROTTLED" in a.text), Rule(Failure.ATTEMPT_TIMEOUT))
    half = "HTTP/1.1 200 OK\nContent-Length: 9\n\nhalf"
    given: dict[str, Any] = {"attempts": 2, "attempt_timeout": 3.0, "raise_errors": raise_errors, "buffer": None}
    async with client(await serve_raw(raw(half)), book, **given) as session:
        error = await fails(session)
        assert isinstance(error, ConnectionLost)
        assert len(error.attempts) == 2
    async with client(await serve_raw(raw(half, 100.0)), book, **given) as session:
        began = asyncio.get_running_loop().time()
        assert isinstance(await fails(session), AttemptTimeout)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize("ending", [(), (100.0,)])
async def test_a_rule_sees_the_part_of_a_broken_error_body_that_arrived(
    serve_raw: ServeRaw, virtual_time: VirtualClock, raise_errors: bool, ending: tuple[float, ...]
) -> None:
    texts: list[str] = []

    def half(answer: Answer) -> bool:
        texts.append(answer.text)
        return "half" in answer.text

    book = RuleBook(Rule(409, "Half", when=half, retry=SOON))
    url = await serve_raw(raw("HTTP/1.1 409 Conflict\nContent-Length: 9\n\nhalf", *ending))
    async with client(url, book, attempts=2, attempt_timeout=3.0, raise_errors=raise_errors) as session:
        began = asyncio.get_running_loop().time()
        if raise_errors:
            error = await fails(session)
            assert isinstance(error, ApiError)
            assert (error.rule.title, error.body, len(error.attempts)) == ("Half", b"half", 2)
        else:
            async with session.get("/") as response:
                assert response.status == 409
        assert asyncio.get_running_loop().time() - began < 6.5
    assert texts == ["half", "half"]


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_a_failing_rule_fails_no_call_and_is_logged_once(
    serve: Serve, caplog: pytest.LogCaptureFixture, raise_errors: bool
) -> None:
    def bad(answer: Answer) -> bool:
        raise KeyError(answer.headers["X-Echo"])

    book = RuleBook(
        Rule([200, 503], "Bad", when=bad),
        Rule(200, "Worse", when=lambda a: a.json["missing"]),
        Rule(503, "Good", when=lambda a: a.text == "x", retry=SOON),
    )
    server = Server(*[Reply(503, {"X-Echo": "tok-secret-99"}, "x")] * 2)
    headers = {"Authorization": "tok-secret-99"}
    async with client(await serve(server), book, raise_errors=raise_errors, retry_budget=None) as session:
        for _ in range(3):
            with caplog.at_level(logging.WARNING, "lamella"):
                assert await call(session, headers=headers) == (200, "")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("failed")[0] for line in lines] == [
        "condition (when) of rule 'Bad' ",
        "condition (when) of rule 'Worse' ",
    ]
    assert "KeyError" in lines[0]
    assert "tok-secret-99" not in "".join(lines)


def swallowing(answer: Answer) -> bool:
    try:
        return "yes" in answer.text
    except:  # noqa: E722
        return False


async def test_a_rule_that_catches_everything_gets_its_body(serve: Serve) -> None:
    book = RuleBook(Rule(200, "Yes", when=swallowing), retry_after=lambda a: 5.0 if swallowing(a) else None)
    async with client(await serve(Server(Reply(body="yes"))), book) as session:
        error = await fails(session)
    assert (error.rule.title, error.retry_after) == ("Yes", 5.0)


async def test_a_rule_sees_the_text_of_a_compressed_body(serve: Serve) -> None:
    headers = {"Content-Type": 'text/plain; charset="latin-1"', "Content-Encoding": "gzip"}
    book = RuleBook(Rule(200, "Full", when=lambda a: a.text == "gefüllt"))
    server = Server(Reply(200, headers, gzip.compress("gefüllt".encode("latin-1"))))
    async with client(await serve(server), book) as session:
        assert (await fails(session)).rule.title == "Full"


async def test_options_can_set_rules(serve: Serve) -> None:
    book = RuleBook(Rule(200, "Throttled", when=lambda a: a.text == "THROTTLED", retry=SOON))
    for raise_errors in (True, False):
        server = Server(*[Reply(body="THROTTLED")] * 2)
        async with client(await serve(server), raise_errors=raise_errors) as session:
            assert await call(session) == (200, "THROTTLED")
            with options(rules=book):
                assert await call(session) == (200, "")
        assert len(server.requests) == 3


@pytest.mark.parametrize("layers", [(Retry,), (Throttle, Retry), (Classify, Retry)])
async def test_each_layer_alone_applies_conditions(serve: Serve, layers: tuple[Any, ...]) -> None:
    book = RuleBook(Rule(200, "Throttled", when=lambda a: a.text == "THROTTLED", retry=SOON, rate_limit=True))
    made = sorted((layer(book) for layer in layers), key=lambda layer: layer.slot)
    server = Server(*[Reply(body="THROTTLED")] * 2)
    async with aiohttp.ClientSession(await serve(server), middlewares=made) as session:
        assert await call(session) == (200, "")
    assert len(server.requests) == 3


async def test_an_error_of_a_rule_with_a_condition_can_be_pickled(serve: Serve) -> None:
    book = RuleBook(Rule(200, "Throttled", when=lambda a: "x" in a.text))
    async with client(await serve(Server(Reply(body="x"))), book) as session:
        error = await fails(session)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.rule.title, again.rule.when, str(again)) == ("Throttled", None, str(error))
    assert error.rule.when is not None
    assert error.__context__ is None


async def test_a_broken_body_has_no_body_needed_in_its_context(serve_raw: ServeRaw) -> None:
    book = RuleBook(Rule(200, when=lambda a: "x" in a.text))
    url = await serve_raw(raw("HTTP/1.1 200 OK\nContent-Length: 9\n\nhalf"))
    for raise_errors in (True, False):
        async with client(url, book, attempts=1, raise_errors=raise_errors) as session:
            error: BaseException | None = await fails(session)
        while error is not None:
            assert not isinstance(error, BodyNeeded)
            error = error.__cause__ or error.__context__


async def test_a_200_that_is_an_error_is_an_error_on_its_spans(serve: Serve, tracing: Tracing) -> None:
    book = RuleBook(Rule(200, "Throttled", when=lambda a: a.text == "x", retry=SOON))
    server = Server(Reply(body="x"), Reply(body="x"), Reply())
    async with client(await serve(server), book, attempts=2, tracer_provider=tracing.provider) as session:
        await fails(session)
        await call(session)
    found = [(span.attributes or {}).get("error.type") for span in tracing.sends]
    assert found == ["ApiError", "ApiError", None]
    [ended, _] = [span.attributes or {} for span in tracing.spans if "lamella.outcome" in (span.attributes or {})]
    assert (ended["lamella.outcome"], ended["error.type"]) == ("failure", "ApiError")


class Verdict(Layer):
    """Puts a rule of its own on each error."""

    slot = Slot.THROTTLE

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def after(self, call: Call, result: Result) -> Result | None:
        if isinstance(result, LamellaError):
            result.rule = self._rule
        return None


@pytest.mark.slow
async def test_retry_respects_the_rule_that_a_layer_has_put_on_an_error(serve: Serve) -> None:
    async with client(await serve(server := Server(Reply(500))), HTTP_RULES, attempts=2) as session:
        assert (await call(session))[0] == 200
    final = Verdict(Rule(500, "Final"))
    layers = stack(HTTP_RULES, final)
    server.replies = [Reply(500)]
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        error = await fails(session)
        assert (error.rule.title, error.stopped) == ("Final", StopReason.NOT_RETRYABLE)
        server.replies = [Reply(404), Reply(404)]
    layers = stack(HTTP_RULES, Verdict(Rule(404, "Not Yet", retry=SOON, carried_out=False)))
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        assert (await call(session, "POST"))[0] == 200


async def test_rate_limit_false_makes_a_503_an_outage(serve: Serve, virtual_time: VirtualClock) -> None:
    """Its account is not queued, and the retry costs budget."""
    book = RuleBook(Rule(503, retry=Backoff(1, jitter=0), rate_limit=False))
    server = Server(Reply(503, {"Retry-After": "30"}))
    async with client(await serve(server), book, retry_budget=RetryBudget(0, 1)) as session:
        first = asyncio.create_task(call(session))
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert (await call(session))[0] == 200
        assert asyncio.get_running_loop().time() - began < 1
        assert (await first)[0] == 200
        server.replies = [Reply(503, {"Retry-After": "30"})]
        assert (await fails(session)).stopped is StopReason.RETRY_BUDGET_EMPTY


@pytest.mark.parametrize(("rate_limit", "opens"), [(None, True), (True, False), (False, True)])
async def test_the_circuit_counts_failures_that_are_not_rate_limits(
    serve: Serve, rate_limit: bool | None, opens: bool
) -> None:
    book = RuleBook(Rule(529, "Overloaded", rate_limit=rate_limit))
    server = Server(*[Reply(529)] * 3)
    layers = stack(book, Breaker(minimum=2), throttle=False)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        errors = [await fails(session) for _ in range(3)]
    assert isinstance(errors[-1], CircuitOpen) is opens


def converting(answer: Answer) -> bool:
    try:
        return "yes" in answer.text
    except BaseException as exc:
        raise ValueError("no text") from exc


async def test_body_needed_is_not_a_failure(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    book = RuleBook(Rule(200, "Yes", when=converting))
    async with client(await serve(Server(Reply(body="no"))), book) as session:
        assert await call(session) == (200, "no")
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Rule(200, "x"), "got 200: a status below 400 requires when"),
        (lambda: Rule(99, "x", when=bool), "from 100 to 599"),
        (lambda: Rule([429, 200], "x"), "got 200"),
        (lambda: Rule([], "x"), "status must be"),
        (lambda: Rule([[429]]), "got [429]"),  # type: ignore[list-item]
        (lambda: Rule(Failure.CONNECTION_LOST, when=bool), "when has no Answer"),
        (lambda: Rule(429, retry=True), "retry must be a Backoff or None, got True"),  # type: ignore[arg-type]
        (lambda: Rule(429, retry=5), "retry=Backoff"),  # type: ignore[arg-type]
        (lambda: Rule(429, Backoff(1)), "title must be a string, got Backoff"),  # type: ignore[arg-type]
        (lambda: Rule(429, when="yes"), "when must be a plain (not async) function of an Answer"),  # type: ignore[arg-type]
        (lambda: Rule(429, when=asyncio.sleep), "not async"),  # type: ignore[arg-type]
        (lambda: Rule(429, rate_limit=1), "rate_limit must be True, False or None, got 1"),  # type: ignore[arg-type]
        (lambda: Rule(429, carried_out="no"), "carried_out must be"),  # type: ignore[arg-type]
        (lambda: Rule(429, retry=SOON, attempts=0), "attempts must be a whole number, 1 or more, got 0"),
        (lambda: Rule(429, attempts=3), "no effect without retry"),
        (lambda: RuleBook([Rule(429)]), "a rule must be a Rule"),  # type: ignore[arg-type]
        (lambda: RuleBook(Rule(429), Rule([428, 429])), "two rules for status 429"),
        (lambda: RuleBook(retry_after=5), "retry_after must be a function"),  # type: ignore[arg-type]
        (lambda: stack([Rule(429)]), "rules must be a RuleBook"),  # type: ignore[arg-type]
        (lambda: stack(RuleBook(), Retry(HTTP_RULES)), "the Retry made by hand has other rules than the stack"),
        (lambda: stack(Throttle(RuleBook())), "the Throttle made by hand has other rules than the stack"),
    ],
)
def test_the_error_explains_a_mistake_in_a_rule(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=r"must|two rules|no effect|other rules") as caught:
        make()
    assert says in str(caught.value)


def test_a_rule_has_the_registered_title_by_default() -> None:
    assert Rule(429).title == "Too Many Requests"
    assert Rule(HTTPStatus.NOT_FOUND).title == "Not Found"
    assert [Rule(status).title for status in (420, 520, "4xx", "5xx", None)] == [
        "Client Error",
        "Server Error",
        "Client Error",
        "Server Error",
        "Error",
    ]
    rule = Rule([502, 503])
    assert rule.title == "Bad Gateway, Service Unavailable"
    assert rule.title_of(503) == "Service Unavailable"
    assert Rule([502, 503], "Unavailable").title_of(503) == "Unavailable"
    assert RuleBook().rule_for(404).title_of(404) == "Not Found"
    assert Rule(Failure.CONNECTION_LOST).title == "Connection Lost"
    rule = RuleBook(Rule([502, 503, 504])).replace(Rule(503)).rule_for(504)
    assert rule.title == "Bad Gateway, Gateway Timeout"
    assert rule.title_of(504) == "Gateway Timeout"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error": {"code": "lock_timeout", "type": "api_error"}}', "lock_timeout"),
        (b'{"error": {"code": 409, "status": "ABORTED"}}', "ABORTED"),
        (b'{"error": {"code": 88}}', "88"),
        (b'{"error": {"type": "overloaded_error"}, "type": "error"}', "overloaded_error"),
        (b'{"error": "slow_down", "error_description": "x"}', "slow_down"),
        (b'{"errors": [{"code": "first"}, {"code": "second"}]}', "first"),
        (b'[{"errorCode": "REQUEST_LIMIT_EXCEEDED"}]', "REQUEST_LIMIT_EXCEEDED"),
        (b'{"code": "top"}', "top"),
        (b'\xef\xbb\xbf{"code": "bom"}', "bom"),
        (b'{"error": {"code": " ", "type": "busy"}}', "busy"),
        (b'{"error": true, "code": ""}', None),
        (b'{"errors": [], "data": 1}', None),
        (b'"text"', None),
        (b"[" * 100_000, None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_error_code_is_found_in_common_places(body: bytes, code: str | None) -> None:
    assert Answer(409, body=body).error_code == code


@pytest.mark.parametrize("charset", ["none", "base64", "undefined", "utf-8\x00", '"', ""])
def test_an_invalid_charset_is_read_as_utf_8(charset: str) -> None:
    answer = Answer(200, {"content-type": f"text/plain; charset={charset}"}, body="grün".encode())
    assert answer.text == "grün"
    assert len(answer.headers) == len(list(answer.headers)) == 1


def no_wait(_: Answer) -> None:
    return None


def test_replace_narrows_a_list_and_puts_new_conditions_first() -> None:
    old = Rule(429, "Old", when=bool)
    book = RuleBook(Rule([502, 503, 504], "Down", retry=SOON, attempts=3), old, Rule(400), retry_after=no_wait)
    new = Rule(429, "New", when=bool)
    changed = book.replace(Rule(503, "Own"), new, Rule(400, "Bad"))

    assert [(rule.status, rule.title) for rule in changed] == [
        (429, "New"),
        ((502, 504), "Down"),
        (429, "Old"),
        (400, "Bad"),
        (503, "Own"),
    ]
    assert changed.retry_after is no_wait
    assert book.scaled(2).retry_after is no_wait
    assert changed != book
    for again in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):  # noqa: S301
        assert again == changed
        assert hash(again) == hash(changed)
