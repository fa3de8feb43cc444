"""The tree of errors, what each carries, and what none of them shows."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import socket
import subprocess
import sys
import traceback
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from tests.examples import CHARACTERS
from tests.layering import in_order
from tests.servers import Serve, ServeRaw
from tests.texts import strings_in
from yarl import URL

import lamella.errors
import lamella.redaction
from lamella import (
    AnswerInvalid,
    ApiError,
    AttemptRecord,
    AttemptTimeout,
    Backoff,
    BadRequest,
    CertificateInvalid,
    CircuitOpen,
    Classify,
    ClientStatusError,
    Conflict,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    Failure,
    Forbidden,
    HeaderAuth,
    InternalServerError,
    LamellaError,
    MethodNotAllowed,
    NotFound,
    ProxyRefused,
    RateLimited,
    RequestRejected,
    Rule,
    RuleBook,
    ServerStatusError,
    ServiceUnavailable,
    StopReason,
    Timeout,
    TokenUnavailable,
    TooManyRequests,
    TransportError,
    Unauthorized,
    UnprocessableContent,
    maesn,
)
from lamella.classify.judge import api_error_class
from lamella.errors import summary_of

RULE = Rule(429, "Too Many Requests", "Too many.", "Slow down.", Backoff(60))
ATTEMPTS = (AttemptRecord(1, 500, None, 0.25, 15.0), AttemptRecord(2, None, "ConnectionLost", 1.0, 30.5))
ERRORS = [cls for cls in vars(lamella.errors).values() if isinstance(cls, type) and cls.__module__ == "lamella.errors"]
SECRET = "hunter22-ab+/cd=="
HOSTILE = "\x1b[31mred\x1b[0m\r\nSet-Cookie: a\x00\x9b2J\u202eleft\u2028\ud800"


def request_info(url: str = "https://api.example.com/v1/invoices?limit=5", **headers: str) -> aiohttp.RequestInfo:
    return aiohttp.RequestInfo(URL(url), "GET", CIMultiDictProxy(CIMultiDict(headers)), URL(url))


def api_error(status: int = 429, rule: Rule = RULE, info: aiohttp.RequestInfo | None = None, **more: Any) -> ApiError:
    return api_error_class(status)(info or request_info(), status=status, rule=rule, **more)


PAYLOAD = {"message": "wait", "list": [1, None], "validationErrors": ["limit: 5"], "downstreamErrors": ["busy"]}


def full_api_error() -> ApiError:
    error = api_error(
        headers=CIMultiDict({"Retry-After": "7", "X-Unknown": "x"}),
        body=json.dumps(PAYLOAD).encode(),
        retry_after=7.0,
    )
    error.attempts = ATTEMPTS
    error.stopped = StopReason.ATTEMPTS_USED_UP
    error.add_note("a note")
    return error


def transport_error(cls: type[TransportError] = ConnectionLost, reason: str = "reset by peer") -> TransportError:
    return cls("POST", URL("http://user:pw@h/x?token=t"), RuleBook().rule_for(cls.failure), reason)


def pool_timeout() -> ConnectTimeout:
    error = ConnectTimeout("POST", URL("http://h"), RuleBook().rule_for(Failure.CONNECT_FAILED), "too late")
    error.in_pool = True
    return error


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (LamellaError, (Exception,)),
        (ApiError, (LamellaError, aiohttp.ClientResponseError)),
        (ClientStatusError, (ApiError,)),
        (BadRequest, (ClientStatusError,)),
        (Unauthorized, (ClientStatusError,)),
        (Forbidden, (ClientStatusError,)),
        (NotFound, (ClientStatusError,)),
        (MethodNotAllowed, (ClientStatusError,)),
        (Conflict, (ClientStatusError,)),
        (UnprocessableContent, (ClientStatusError,)),
        (TooManyRequests, (ClientStatusError,)),
        (ServerStatusError, (ApiError,)),
        (InternalServerError, (ServerStatusError,)),
        (ServiceUnavailable, (ServerStatusError,)),
        (TransportError, (LamellaError, aiohttp.ClientConnectionError)),
        (ConnectFailed, (TransportError,)),
        (ConnectTimeout, (ConnectFailed, TimeoutError)),
        (ProxyRefused, (ConnectFailed,)),
        (CertificateInvalid, (TransportError,)),
        (ConnectionLost, (TransportError,)),
        (AnswerInvalid, (TransportError,)),
        (AttemptTimeout, (TransportError, TimeoutError)),
    ],
)
def test_the_error_classes_have_the_designed_bases(cls: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert cls.__bases__ == bases


@pytest.mark.parametrize("cls", ERRORS)
def test_no_error_class_makes_aiohttp_repeat_a_request(cls: type[Exception]) -> None:
    assert not issubclass(cls, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError)
    assert issubclass(cls, aiohttp.ClientError) == (cls is not LamellaError)
    assert issubclass(cls, TimeoutError) == (cls in {AttemptTimeout, ConnectTimeout})


def test_each_status_has_its_class() -> None:
    own = {
        400: BadRequest,
        401: Unauthorized,
        403: Forbidden,
        404: NotFound,
        405: MethodNotAllowed,
        409: Conflict,
        422: UnprocessableContent,
        429: TooManyRequests,
        500: InternalServerError,
        503: ServiceUnavailable,
    }
    for status in range(400, 1000):
        assert api_error_class(status) is own.get(status, ClientStatusError if status < 500 else ServerStatusError)
    # A rule may call any answer an error.
    assert {api_error_class(status) for status in (200, 302, 399)} == {ApiError}


def test_an_api_error_has_all_known_fields() -> None:
    error = full_api_error()

    assert type(error) is TooManyRequests
    assert (error.status, error.outcome, error.message, error.method) == (429, 429, RULE.title, "GET")
    assert error.url == "https://api.example.com/v1/invoices?limit=5"
    assert (error.rule, error.retry_after, error.attempts) == (RULE, 7.0, ATTEMPTS)
    assert (json.loads(error.body), error.payload) == (PAYLOAD, PAYLOAD)
    assert (error.details, error.validation_errors, error.downstream_errors) == (("wait",), ("limit: 5",), ("busy",))
    assert error.stopped is StopReason.ATTEMPTS_USED_UP
    # What code that knows aiohttp's error alone looks at.
    assert error.headers is not None
    assert (error.headers["retry-after"], error.headers["x-unknown"]) == ("7", "x")
    assert (error.request_info.method, str(error.request_info.real_url), error.history) == ("GET", error.url, ())


UNANSWERED: list[type[TransportError]] = [
    ConnectFailed,
    CertificateInvalid,
    ProxyRefused,
    ConnectionLost,
    AnswerInvalid,
    AttemptTimeout,
]


@pytest.mark.parametrize("cls", [*UNANSWERED, ConnectTimeout])
def test_a_transport_error_has_all_known_fields(cls: type[TransportError]) -> None:
    error = transport_error(cls)

    assert (error.method, error.url, error.reason) == ("POST", "http://h/x?token=REDACTED", "reset by peer")
    assert error.outcome is error.failure is error.rule.status
    assert (error.retry_after, error.attempts, error.stopped) == (None, (), None)
    unsent: list[type[TransportError]] = [CircuitOpen, RateLimited, TokenUnavailable, maesn.TooManyErrors]
    assert [each.failure for each in [*UNANSWERED, *unsent]] == list(Failure)


def test_a_connect_timeout_is_not_in_the_pool_by_default() -> None:
    assert not ConnectTimeout("GET", URL("http://h"), RULE).in_pool


def not_sent(cls: type[RequestRejected]) -> RequestRejected:
    rule = RuleBook().rule_for(cls.failure)
    url = URL(f"http://h/{SECRET}")
    return cls("GET", url, rule, since=90, until=30.5, stopped=StopReason.DEADLINE, secrets=(SECRET,))


@pytest.mark.parametrize("cls", [CircuitOpen, RateLimited, TokenUnavailable])
def test_a_rejected_request_has_start_and_end_time(
    cls: type[CircuitOpen | RateLimited | TokenUnavailable],
) -> None:
    began = datetime.now(UTC)
    error = not_sent(cls)

    assert began <= error.since + timedelta(seconds=90) <= datetime.now(UTC)
    assert error.until - error.since == timedelta(seconds=120.5)
    assert (error.since.tzinfo, error.until.tzinfo) == (UTC, UTC)
    assert (error.method, error.url) == ("GET", "http://h/REDACTED")
    assert error.outcome is error.rule.status is cls.failure
    assert (error.retry_after, error.stopped) == (30.5, StopReason.DEADLINE)
    since, until = (f"{moment:%Y-%m-%d %H:%M:%S}Z" for moment in (error.since, error.until))
    assert error.reason == f"since {since}, until {until}, which is in 30.5 s"
    assert f"{error.rule.title} ({error.reason})" in str(error)


def said_by(details: object = (), validation: object = (), downstream: object = ()) -> bytes:
    """Return a body that has these messages."""
    said = {"errors": details, "validationErrors": validation, "downstreamErrors": downstream}
    return json.dumps(said).encode()


def test_no_part_of_an_api_error_shows_a_known_secret() -> None:
    info = request_info(accept=f"a/b; {SECRET}", authorization="x")
    said = (f"no {SECRET}!",)
    error = api_error(info=info, body=said_by(said, said, said), secrets=(SECRET,))

    assert error.details == error.validation_errors == error.downstream_errors == ("no REDACTED!",)
    assert dict(error.request_info.headers) == {"accept": "a/b; REDACTED", "authorization": "REDACTED"}


def test_an_error_shows_at_most_five_messages() -> None:
    assert "[a; b; c; d; e]" in str(api_error(body=said_by(("a", "b", "c"), ("d", "e"), ("f",))))


def test_the_last_attempt_has_no_wait() -> None:
    last = AttemptRecord(2, 500, None, 0.25)
    assert last == AttemptRecord(2, 500, None, 0.25, 0.0, None, None, None, None, 0.0)


of_every_kind = pytest.mark.parametrize(
    "error",
    [
        full_api_error(),
        api_error(400),
        api_error(599),
        *(transport_error(cls) for cls in (*UNANSWERED, ConnectTimeout)),
        pool_timeout(),
        *(not_sent(cls) for cls in (CircuitOpen, RateLimited, TokenUnavailable)),
    ],
    ids=lambda error: type(error).__name__,
)


@of_every_kind
def test_an_error_survives_pickling_and_copying(error: LamellaError) -> None:
    pickles = [pickle.dumps(error, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    copies = [pickle.loads(data) for data in pickles]  # noqa: S301

    for again in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert again is not error
        assert (str(again), repr(again), again.args) == (str(error), repr(error), error.args)
        assert vars(again) == vars(error)
        assert again.outcome == error.outcome


@of_every_kind
def test_a_summary_has_the_texts_of_its_error(error: LamellaError) -> None:
    summary = summary_of(error)
    for again in (summary, copy.copy(summary), pickle.loads(pickle.dumps(summary)), summary_of(summary)):  # noqa: S301
        assert type(again) is type(error)
        assert (str(again), repr(again), again.outcome) == (str(error), repr(error), error.outcome)
        assert (again.attempts, again.rule, again.stopped) == (error.attempts, error.rule, error.stopped)
        if isinstance(error, ApiError):
            assert isinstance(again, ApiError)
            texts = attrgetter("details", "validation_errors", "downstream_errors", "error_code", "request_id")
            assert texts(again) == texts(error)
            assert (again.request_info.method, again.request_info.url) == (error.method, error.request_info.url)
            assert (again.body, again.payload, dict(again.request_info.headers)) == (b"", None, {})


def test_a_summary_takes_little_memory() -> None:
    body = json.dumps({"code": "lock", "errors": [{"message": "busy"}], "more": ["x" * 100] * 500}).encode()
    errors = [api_error(403, body=body, headers=CIMultiDict({"X-Request-Id": "7"})) for _ in range(100)]
    tracemalloc.start()
    try:
        kept = [summary_of(error) for error in errors]
        errors.clear()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()
    texts = attrgetter("error_code", "details", "request_id")
    assert set(map(texts, kept)) == {("lock", ("busy",), "7")}
    assert size < 3000


def test_changing_a_copy_of_an_error_does_not_change_the_original() -> None:
    error = full_api_error()
    again = copy.copy(error)
    again.stopped = None

    assert error.stopped is StopReason.ATTEMPTS_USED_UP


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (api_error(), "GET https://api.example.com/v1/invoices?limit=5: 429 Too Many Requests. Slow down"),
        (
            full_api_error(),
            (
                "GET https://api.example.com/v1/invoices?limit=5: 429 Too Many Requests [wait; limit: 5; busy]. "
                "Slow down (2 attempts in 46.8 s, stopped: attempts used up)"
            ),
        ),
        (api_error(418, Rule("4xx", "No")), "GET https://api.example.com/v1/invoices?limit=5: 418 No"),
        (
            transport_error(),
            (
                "POST http://h/x?token=REDACTED: Connection Lost (reset by peer). "
                "The request may have been carried out: check before you repeat a write"
            ),
        ),
    ],
)
def test_an_error_is_one_line_with_a_hint(error: LamellaError, line: str) -> None:
    assert str(error) == line
    assert repr(error) == f"<{type(error).__name__}: {line}>"


@pytest.mark.parametrize(
    ("body", "code", "shown"),
    [
        ({"message": "wait", "code": "busy", "customer": "Jane"}, "busy", "[busy: wait]"),
        ({"error": {"message": "wait", "code": "busy", "customer": {"name": "Jane"}}}, "busy", "[busy: wait]"),
        ({"errors": [{"message": "wait", "errorCode": 7}, {"code": 8}]}, "7", "[7: wait; 8]"),
        ({"code": "busy\r\nx", "customer": "Jane"}, "busy x", "[busy x]"),
        # A code that is the status says nothing new.
        ({"message": "wait", "code": 429}, None, "[wait]"),
        ({"error": "denied", "error_description": "wait", "customer": "Jane"}, "denied", "[denied; wait]"),
        ({"error": {"message": "wait", "type": "busy", "param": "x"}}, "busy", "[busy: x: wait]"),
        ([{"message": "wait", "code": "busy"}], "busy", "[busy: wait]"),
        ({"message": "wait", "customer": "Jane"}, None, "[wait]"),
    ],
    ids=str,
)
def test_an_error_line_has_only_message_and_code(body: object, code: str, shown: str) -> None:
    error = api_error(body=json.dumps(body).encode())

    assert error.error_code == code
    assert str(error) == f"GET https://api.example.com/v1/invoices?limit=5: 429 Too Many Requests {shown}. Slow down"


def test_the_body_of_an_error_is_parsed_on_first_access(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"message": "wait: Größe"}, ensure_ascii=False).encode()
    with monkeypatch.context() as patched:
        patched.setattr(json, "loads", None)
        error = api_error(body=body, secrets=(SECRET, "Bearer of news"))
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert error.body == again.body == body
    for each in (error, again, copy.copy(error)):
        assert each.payload is each.payload
        assert (each.payload, each.details) == ({"message": "wait: Größe"}, ("wait: Größe",))


@pytest.mark.parametrize(
    ("attempts", "stopped", "end"),
    [
        (ATTEMPTS[:1], None, " (1 attempt in 15.2 s)"),
        ((), StopReason.DEADLINE, " (stopped: deadline)"),
        (ATTEMPTS, StopReason.UNSAFE_METHOD, " (2 attempts in 46.8 s, stopped: unsafe method)"),
    ],
)
def test_an_error_says_the_number_of_attempts_and_why_it_stopped(
    attempts: tuple[AttemptRecord, ...], stopped: StopReason | None, end: str
) -> None:
    for error in (api_error(), transport_error()):
        before = str(error)
        error.attempts, error.stopped = attempts, stopped
        assert str(error) == before + end


@given(st.text(CHARACTERS))
@example(HOSTILE)
def test_the_servers_message_is_shown_in_one_printable_line(said: str) -> None:
    for error in (
        api_error(body=said_by((said,))),
        api_error(body=said_by((), (said, said))),
        api_error(body=said_by((), (), (said,))),
        transport_error(reason=said),
    ):
        assert str(error).isprintable()
        assert repr(error).isprintable()


@pytest.mark.parametrize("text", ["Slow\ndown.", "Slow\r\n    down.", "Slow down.\n"])
def test_an_error_is_one_line_for_any_rule_text(text: str) -> None:
    for error in (api_error(rule=Rule(429, "Limited", "", text)), api_error(rule=Rule(429, text))):
        assert str(error).isprintable()
        assert str(error).endswith(" Slow down")


def test_a_long_response_gives_a_short_message() -> None:
    error = api_error(body=said_by(("x" * 10_000,) * 3, ("y" * 10_000,) * 3))

    assert error.details
    assert len(str(error)) < 1000
    assert "Slow down" in str(error)


@pytest.mark.slow
def test_the_example_of_the_docs_runs() -> None:
    page = Path(__file__).resolve().parent.parent.joinpath("docs", "reference", "errors.md").read_text("utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    first, second = done.stdout.splitlines()
    assert first == "no_invoice r-1"
    assert "/invoices/7: 404 Not Found [no_invoice: There is no invoice 7]. Check the ID (1 attempt" in second
    for error in ERRORS:
        assert f"`{error.__name__}`" in page, error


@pytest.mark.parametrize("part", ["https", "8443", "api.example.com", "[::1]", "//"])
def test_a_secret_that_looks_like_a_part_of_the_url_does_not_break_the_error(part: str) -> None:
    for url in ("https://api.example.com:8443/x", "https://[::1]:8443/x"):
        error = api_error(info=request_info(url), secrets=(part,))
        assert error.status == 429
        assert "429" in str(error)


# What a server echoes: whatever came in, wherever.
async def echo(request: web.Request) -> web.Response:
    seen = "; ".join([request.raw_path, *(f"{name}: {value}" for name, value in request.headers.items())])
    said = {"errors": {"message": seen, "validationErrors": [seen], "downstreamErrors": [seen], "other": [seen]}}
    headers = {"X-Request-Id": request.headers.get("X-API-KEY", "-"), "X-Seen": seen}
    return web.Response(status=400, body=json.dumps(said), content_type="application/json", headers=headers)


async def failure_of(
    url: str | URL, headers: Mapping[str, str] | None = None, *, key: str = "another key", **more: Any
) -> LamellaError:
    layers = in_order(Classify(RuleBook()), HeaderAuth({"X-API-KEY": key}), Timeout(5))
    async with aiohttp.ClientSession(middlewares=layers) as session:
        with pytest.raises(LamellaError) as caught:
            await session.get(url, headers=headers, **more)
    return caught.value


# Where the secret is sent: the arguments of failure_of.
SENT: dict[str, Callable[[URL], dict[str, Any]]] = {
    "header": lambda url: {"url": url, "key": SECRET},
    "path": lambda url: {"url": url.with_path(f"/v1/{SECRET}/x"), "key": SECRET},
    "harmless query": lambda url: {"url": url.with_query(q=f"x{SECRET}y"), "key": SECRET},
    "query": lambda url: {"url": url.with_query(api_key=SECRET)},
    "userinfo": lambda url: {"url": url.with_user("user").with_password(SECRET)},
    "bearer": lambda url: {"url": url, "headers": {"Authorization": f"Bearer {SECRET}"}},
    "cookie": lambda url: {"url": url, "headers": {"Cookie": f"sid={SECRET}"}},
}


@pytest.mark.sampled
@pytest.mark.parametrize("field", ["text", "fields", "headers", "body", "payload", "traceback"])
@pytest.mark.parametrize("place", SENT)
async def test_no_secret_is_in_the_error_for_a_server_that_echoes_it(serve: Serve, place: str, field: str) -> None:
    error = await failure_of(**SENT[place](URL(await serve(echo))))
    assert isinstance(error, ApiError)
    assert error.details

    fields = {**vars(error), "pickled": pickle.dumps(error)}
    body, payload, answer = error.body, error.payload, fields.pop("headers")
    fields["looked at"] = vars(error)
    shown = {
        "text": [str(error), repr(error), str(error.args)],
        "fields": fields,
        "headers": answer,
        "body": body,
        "payload": payload,
        "traceback": traceback.format_exception(error),
    }[field]
    assert_none_shows_it(strings_in(shown))


@pytest.mark.parametrize(
    "spelled",
    [
        lambda text: text.replace("/", "\\/").encode(),
        lambda text: text.replace("=", "\\u003d").replace("+", "\\u002B").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-8-sig"),
    ],
    ids=["slashes", "escapes", "UTF-16", "UTF-8 with a mark"],
)
async def test_no_json_spelling_of_a_secret_is_in_the_payload(serve: Serve, spelled: Callable[[str], bytes]) -> None:
    async def handler(request: web.Request) -> web.Response:
        body = spelled(json.dumps({"message": SECRET, "data": [{SECRET: SECRET}]}))
        return web.Response(status=400, body=body, content_type="application/json")

    error = await failure_of(await serve(handler), key=SECRET)
    assert isinstance(error, ApiError)
    assert error.payload is None or set(error.payload) == {"message", "data"}

    assert_none_shows_it([*strings_in(error.payload), *strings_in(error.details), str(error)])
    try:
        said = json.loads(error.body)
    except ValueError:
        said = None
    assert_none_shows_it(strings_in(said))


@pytest.mark.parametrize("look", [repr, pickle.dumps, copy.deepcopy], ids=["looked at", "pickled", "copied"])
async def test_no_error_keeps_a_secret_to_search_its_body_for_later(serve: Serve, look: Callable[[Any], Any]) -> None:
    error = await failure_of(await serve(echo), {"Authorization": f"Bearer {SECRET}"}, key=SECRET)
    look(error)
    assert_none_shows_it([*strings_in(vars(error)), *strings_in(vars(copy.copy(error))), repr(pickle.dumps(error))])


async def test_an_unread_error_is_not_redacted_and_shows_no_secret(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    redacted: list[bytes] = []

    def redact_body(body: bytes, *rest: Any) -> bytes:
        redacted.append(body)
        return redact(body, *rest)

    redact = lamella.redaction.redact_body
    monkeypatch.setattr(lamella.redaction, "redact_body", redact_body)
    error = await failure_of(await serve(echo), {"Authorization": f"Bearer {SECRET}"}, key=SECRET)
    assert isinstance(error, ApiError)
    assert redacted == []
    assert_none_shows_it(strings_in([vars(error), error.args, error.message, traceback.format_tb(error.__traceback__)]))
    assert (error.status, error.method, error.outcome, error.retry_after) == (400, "GET", 400, None)

    assert error.url
    assert SECRET.encode() in redacted[0]
    assert_none_shows_it(strings_in([vars(error), error.request_info, error.headers, error.body, error.details]))
    assert len(redacted) == 1, "once for all that is shown"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = error.nothing  # type: ignore[attr-defined]


ANSWER_HEADERS = {
    "X-Customer-Id": "c-17",
    "X-RateLimit-Remaining-Tokens": "0",
    "Retry-After-Ms": "70",
    "Set-Cookie": "sid=hunter22",
    "X-Api-Key": "hunter22",
    "X-New-Session": "hunter22",
    "X-Auth-Token": "hunter22",
    "X-Echo": f"you sent {SECRET}!",
    "X-Account": "hunter22-rotated",
    "Location": "https://user:hunter22@api.example.com/a?page=2&access_token=hunter22;x=hunter22#id_token=hunter22",
    "Content-Location": "//user:hunter22@h/?%61pi_key=hunter22",
    "Link": '<https://h/?cursor=c&sig=hunter22>; rel="next", </?page=1;key=hunter22>; rel="prev"',
    "Operation-Location": "/operations/7?code=hunter22&state=hunter22",
    "Refresh": "5; url=/x?jwt=hunter22",
}


async def test_the_headers_of_the_answer_are_shown_without_secrets(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=400, headers=ANSWER_HEADERS)

    layers = in_order(Classify(RuleBook()), HeaderAuth({"X-Account": SECRET}))
    async with aiohttp.ClientSession(middlewares=layers, headers={"X-Own": "own"}) as session:
        with pytest.raises(ApiError) as caught:
            await session.get(await serve(handler))
    error = caught.value
    assert error.headers is not None
    assert {name: error.headers[name] for name in ANSWER_HEADERS} == {
        "X-Customer-Id": "c-17",
        "X-RateLimit-Remaining-Tokens": "0",
        "Retry-After-Ms": "70",
        "Set-Cookie": "REDACTED",
        "X-Api-Key": "REDACTED",
        "X-New-Session": "REDACTED",
        "X-Auth-Token": "REDACTED",
        "X-Echo": "you sent REDACTED!",
        "X-Account": "REDACTED",
        "Location": "https://api.example.com/a?page=2&access_token=REDACTED#id_token=REDACTED",
        "Content-Location": "//h/?%61pi_key=REDACTED",
        "Link": '<https://h/?cursor=c&sig=REDACTED>; rel="next", </?page=1;key=REDACTED>; rel="prev"',
        "Operation-Location": "/operations/7?code=REDACTED&state=REDACTED",
        "Refresh": "5; url=/x?jwt=REDACTED",
    }
    assert error.request_info.headers["X-Own"] == "REDACTED"
    assert_hidden(error)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        *(
            ({name: "id-7"}, "id-7")
            for name in (
                "X-Request-Id",
                "Request-Id",
                "x-amzn-RequestId",
                "x-amz-request-id",
                "X-Correlation-ID",
                "X-MS-Request-ID",
                "X-GitHub-Request-Id",
                "X-Trace-Id",
                "CF-Ray",
                "X-Vendor-Request-Id",
            )
        ),
        ({"CF-Ray": "ray", "X-Request-Id": "id-7", "X-Vendor-Request-Id": "other"}, "id-7"),
        ({"X-Request-Id": "", "CF-Ray": "ray"}, "ray"),
        ({"X-Request-Id": "\udcff\udcfe", "CF-Ray": "ray"}, "ray"),
        ({"X-Request-Id": "\udcff"}, None),
        ({"X-Request-Id": "a" * 500 + "\x1b[31m"}, "a" * 299 + "…"),
        ({"X-Other": "x"}, None),
        (None, None),
    ],
    ids=str,
)
def test_an_error_has_the_servers_request_id(headers: dict[str, str] | None, found: str | None) -> None:
    assert api_error(headers=headers and CIMultiDict(headers)).request_id == found


async def test_a_number_that_looks_like_a_secret_does_not_spoil_the_payload(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"message": "no such account", "number": 4400, "balance": 0.4400}, status=404)

    # "code" is the name of a credential in OAuth, and of an account in accounting.
    error = await failure_of(URL(await serve(handler)).with_query(code="4400"))
    assert isinstance(error, ApiError)
    assert error.details == ("no such account",)
    assert set(error.payload) == {"message", "number", "balance"}


def closed_port() -> tuple[socket.socket, str]:
    """A port that nobody listens on while the socket lives."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound, f"http://127.0.0.1:{bound.getsockname()[1]}"


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def not_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x1b[31mwhat? " + (await read_head(reader)).replace(b"\r\n", b"; ") + b"\r\n\r\n")
    await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_head(reader)


async def demand_proxy_login(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_head(reader)
    writer.write(b"HTTP/1.1 407 Who \x1b[31mare you\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


@pytest.mark.sampled
@pytest.mark.parametrize("place", SENT)
@pytest.mark.parametrize(
    ("answer", "cls"), [(not_http, ConnectionLost), (hang_up, ConnectionLost), (None, ConnectFailed)]
)
async def test_a_failed_connection_error_and_its_cause_show_no_secret(
    serve_raw: ServeRaw, answer: Any, cls: type[TransportError], place: str
) -> None:
    bound, nobody = closed_port()
    with bound:
        error = await failure_of(**SENT[place](URL(await serve_raw(answer) if answer else nobody)))

    assert type(error) is cls
    assert str(error).isprintable()
    assert_hidden(error)


@pytest.mark.parametrize(
    ("scheme", "answer"),
    [("https", demand_proxy_login), ("https", hang_up), ("http", hang_up), ("https", None), ("http", None)],
)
async def test_an_error_and_its_cause_show_no_proxy_credentials(serve_raw: ServeRaw, scheme: str, answer: Any) -> None:
    bound, nobody = closed_port()
    with bound:
        proxy = URL(await serve_raw(answer) if answer else nobody).with_user("user").with_password(SECRET)
        error = await failure_of(f"{scheme}://api.example.com/x", proxy=proxy)

    assert isinstance(error, TransportError)
    assert str(error).isprintable()
    assert_hidden(error)


def assert_none_shows_it(texts: Iterable[str]) -> None:
    for text in texts:
        assert "hunter22" not in text
        assert b64encode(f"user:{SECRET}".encode()).decode() not in text


def assert_hidden(error: LamellaError) -> None:
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__):
        chain.append(cause)
    texts = [*strings_in(vars(error)), *traceback.format_exception(error)]
    texts += [text for link in chain for text in (str(link), repr(link))]
    assert_none_shows_it(texts)
