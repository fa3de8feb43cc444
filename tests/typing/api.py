"""The public API as its users write it. Nothing runs here: mypy --strict reads it, see tests/test_typing.py.

A ``type: ignore`` stands where a wrong use must be rejected: if it were not, mypy would call the comment unused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type

import aiohttp

import lamella
from lamella import Backoff, Failure, Outcome, Rule, RuleBook, StopReason, WaitSource, maesn, sync
from lamella.batch import Batch, ItemOutcome, Journal
from lamella.stacking import Stack

RULES = RuleBook(
    Rule(429, "Too Many Requests", hint="slow down", retry=Backoff(initial=1, maximum=30)),
    Rule(503, "Service Unavailable", hint="check the status page", retry=Backoff(initial=(0.5, 1.0))),
    Rule("4xx", "Client Error"),
    Rule(Failure.CONNECT_FAILED, "No connection", retry=None),
    Rule(None, "Anything else"),
)


async def maesn_session() -> None:
    session = maesn.session(api_key="key", account_key="account", attempts=None, deadline=900, raise_errors=False)
    assert_type(session, aiohttp.ClientSession)
    async with session:
        async with session.get("accounting/invoices", params={"limit": 100}) as response:
            assert_type(response, aiohttp.ClientResponse)
        with maesn.account("another account") as nothing:
            assert_type(nothing, None)
        async for record in maesn.records(session, "invoices", since=datetime.now(UTC)):
            assert_type(record, dict[str, Any])
        async for page in maesn.pages(session, "contacts", 50, since="2026-01-31", account="a", first=2):
            assert_type(page, sync.Page)
            assert_type(page.number, int)
            assert_type(page.total_pages, int | None)
            assert_type(page.records, list[Any])
            assert_type(page.texts, list[str])
        maesn.records(session, "invoices", parse_float=Decimal)
        maesn.pages(session, "invoices", parse_float=Decimal)
    assert_type(maesn.RULES.scaled(0.01), RuleBook)
    assert_type(maesn.layers("key"), tuple[aiohttp.ClientMiddlewareType, ...])

    maesn.session(attempts="5")  # type: ignore[arg-type]
    maesn.layers(connector_owner=True)  # type: ignore[call-arg]
    maesn.records(session, 7)  # type: ignore[arg-type]
    maesn.records(session, "invoices", parse_float="Decimal")  # type: ignore[arg-type]
    with maesn.account(None):  # type: ignore[arg-type]
        pass


async def token() -> str | None:
    return "token"


async def own(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    return await handler(request)


async def on_attempt(
    request: aiohttp.ClientRequest, result: aiohttp.ClientResponse | lamella.LamellaError, record: lamella.AttemptRecord
) -> None:
    if isinstance(result, aiohttp.ClientResponse):
        assert_type(lamella.attempts(result), tuple[lamella.AttemptRecord, ...])
    else:
        assert_type(result.stopped, StopReason | None)


async def own_session() -> None:
    auth = lamella.HeaderAuth({"X-API-KEY": "key", "X-A": lambda: "now", "X-B": token}, origin="https://example.com")
    layers = lamella.stack(RULES, lamella.Timeout(5), auth=auth, attempts=3, deadline=60.0, retry_writes=True)
    assert_type(layers, Stack)
    some = lamella.stack(RULES, lamella.Classify(RULES), lamella.At(lamella.Slot.AUTH, own))
    assert_type(some, Stack)
    aiohttp.ClientSession(middlewares=(own, some, own))
    aiohttp.ClientSession(middlewares=(own, *layers, own))
    aiohttp.ClientSession(
        middlewares=(
            lamella.RequestSpan(),
            lamella.Retry(RULES, attempts=5, random=lambda: 0.5),
            lamella.AttemptSpan(),
            lamella.Timeout(5.0),
            auth,
            lamella.Buffer(2**20, whole={"application/json": 2**26}),
            lamella.Classify(RULES),
        )
    )

    lamella.stack(on_attempt=on_attempt)
    lamella.Retry(RULES, on_attempt=lambda request, result, record: (request.url, result, record.waited))
    lamella.stack(on_attempt=own)  # type: ignore[arg-type]
    lamella.stack()
    lamella.stack(lamella.Breaker(), attempts=3)
    lamella.stack(RULES, attempt=3)  # type: ignore[call-arg]
    lamella.stack(RULES, auth="key")  # type: ignore[arg-type]
    lamella.stack(RULES, own)  # type: ignore[arg-type]
    lamella.Retry()  # type: ignore[call-arg]
    lamella.Retry(RULES, deadline="1 min")  # type: ignore[arg-type]
    lamella.HeaderAuth({"X-API-KEY": 5})  # type: ignore[dict-item]
    lamella.Timeout(None)  # type: ignore[arg-type]


def together(store: lamella.Store) -> None:
    throttle = lamella.Throttle(RULES, limits=lamella.Limit(100, per=60), key=lambda request: request.headers.get("X"))
    breaker = lamella.Breaker(failures=0.5, window=30, minimum=20, open_for=30, probes=3, store=store)
    lamella.stack(RULES, throttle, breaker, retry_budget=lamella.RetryBudget(ratio=0.1), store=lamella.MemoryStore(10))
    lamella.stack(RULES, limits=lamella.Limit(100, per=60), account=lambda _: None, retry_budget=None, throttle=False)
    maesn.session(limits=lamella.Limit(100, per=60), breaker=breaker, retry_budget=None, store=store)
    with lamella.deadline(30) as nothing:
        assert_type(nothing, None)

    lamella.Limit(0.5, per=60)  # type: ignore[arg-type]
    lamella.stack(RULES, limits=100)  # type: ignore[arg-type]
    lamella.stack(RULES, limits=[lamella.Limit(9, 60), lamella.Limit(concurrent=5), lambda headers: []])
    lamella.stack(RULES, retry_budget=0.2)  # type: ignore[arg-type]
    lamella.Throttle(RULES, key="account")  # type: ignore[arg-type]
    lamella.Throttle(RULES, store=object())  # type: ignore[arg-type]
    lamella.Breaker(0.5)  # type: ignore[call-arg]
    lamella.deadline(None)  # type: ignore[arg-type]


async def fetch(page: int) -> str:
    return str(page)


async def batches() -> None:
    async with Journal.open("night.journal", batch="invoices") as journal:
        assert_type(journal, Journal)
        async with Batch(fetch, range(10), at_once=5, journal=journal, key=str, keep=str.upper) as batch:
            assert_type(batch, Batch[int, str])
            async for outcome in batch:
                assert_type(outcome, ItemOutcome[int, str])
                assert_type(batch.outage, lamella.LamellaError | None)
                assert_type((outcome.item, outcome.value), tuple[int, str | None])
                assert_type((outcome.done, outcome.error), tuple[bool, Exception | None])
        assert_type((await journal.counts()).done, int)
        assert_type(journal.idempotency_key("7"), str)
    Batch(fetch, ["a"])  # type: ignore[arg-type]
    Batch(fetch, range(10), stop_on="401")  # type: ignore[arg-type]


async def a_sync(session: aiohttp.ClientSession) -> None:
    def see(progress: sync.Progress) -> None:
        assert_type((progress.changed, progress.outage), tuple[sync.Part | None, lamella.LamellaError | None])
        for part in progress.parts.values():
            assert_type((part.since, part.pages, part.total_pages), tuple[str | None, int, int | None])

    async with Journal.open("night", batch="production") as journal:
        report = await maesn.sync(session, {"north": "key"}, ["bills"], journal=journal, on_progress=see)
        assert_type((report.done, report.failed), tuple[bool, tuple[sync.Part, ...]])
        assert_type(report.failed[0].error, Exception | None)
        north = maesn.Account("north", "key", company_id="1")
        assert_type(await maesn.plan([north], ["bills"], journal=None, since=datetime.now(UTC)), tuple[sync.Part, ...])
        assert_type(await sync.export(journal, Path("out.jsonl")), int)
        north.name = "south"  # type: ignore[misc]
        await maesn.sync(session, ["key"], ["bills"], journal=journal)  # type: ignore[list-item]
    await maesn.sync(session, {"north": "key"}, ["bills"], journal="night")  # type: ignore[call-overload]


async def errors(session: aiohttp.ClientSession) -> None:
    try:
        await session.get("/")
    except lamella.TooManyRequests as error:
        assert_type(error.status, int)
        assert_type(error.retry_after, float | None)
    except lamella.ApiError as error:
        assert_type(error.rule, Rule)
        assert_type(error.body, bytes)
        assert_type(error.payload, Any)
        assert_type((error.error_code, error.request_id), tuple[str | None, str | None])
        assert_type(error.details, tuple[str, ...])
        assert_type(error.validation_errors, tuple[str, ...])
        assert_type(error.downstream_errors, tuple[str, ...])
        assert_type(error.attempts, tuple[lamella.AttemptRecord, ...])
        assert_type(error.stopped, StopReason | None)
        error.stopped = "deadline"  # type: ignore[assignment]
        error.payload = {}  # type: ignore[misc]
        error.status_code  # type: ignore[attr-defined]  # noqa: B018
    except lamella.RequestRejected as error:
        assert_type((error.since, error.until), tuple[datetime, datetime])
    except lamella.TransportError as error:
        assert_type(error.failure, Failure)
        assert_type(error.reason, str)
        error.status  # type: ignore[attr-defined]  # noqa: B018
    except lamella.LamellaError as error:
        assert_type(error.outcome, Outcome)
        assert_type((error.method, error.url), tuple[str, str])
        for record in error.attempts:
            assert_type((record.number, record.status, record.exception), tuple[int, int | None, str | None])
            assert_type((record.took, record.waited), tuple[float, float])
            record.took = 0.0  # type: ignore[misc]


async def of_tenant(tenant: str) -> lamella.Token:
    return lamella.Token(f"Bearer {tenant}", expires_in=3600)


async def of_all() -> lamella.Token:
    return lamella.Token("Bearer abc")


def tokens() -> None:
    lamella.HeaderAuth({"Authorization": lamella.Tokens(of_all)}, refresh_on={401, 403}, existing="keep")
    lamella.Tokens(of_tenant, key=lambda request: request.url.host, leeway=30, timeout=10)
    lamella.Tokens(of_tenant)  # type: ignore[arg-type]
    lamella.Tokens(of_all, key=lambda: "anna")  # type: ignore[arg-type]
    lamella.HeaderAuth({"Authorization": "abc"}, existing="replace")  # type: ignore[arg-type]
    client = lamella.oauth.Client("shop", "made-up", method="post")
    assert_type(lamella.oauth.client_credentials("https://api.example.com/token", client, scope="read"), lamella.Tokens)
    lamella.oauth.client_credentials("https://api.example.com/token", client, scopes="read")  # type: ignore[call-arg]
    kept = ["first"]
    lamella.oauth.refresh_token("https://api.example.com/token", client, load=lambda: kept[-1], store=kept.append)


def packages() -> None:
    assert_type(lamella.__version__, str)
    assert_type(lamella.maesn.RULES, RuleBook)
    lamella.batch.Batch(fetch, range(10))
    lamella.import_module  # type: ignore[attr-defined]  # noqa: B018


def policy() -> None:
    decision = lamella.decide(
        RULES.rule_for(Failure.CONNECTION_LOST),
        Failure.CONNECTION_LOST,
        number=1,
        attempts=None,
        method="GET",
        replayable=True,
        elapsed=0.0,
        deadline=None,
        random=lambda: 0.0,
    )
    assert_type(decision, lamella.Decision)
    assert_type((decision.rule, decision.wait), tuple[Rule, float | None])
    assert_type((decision.source, decision.stop), tuple[WaitSource | None, StopReason | None])
    assert_type(RULES.rule_for(429), Rule)
    assert_type(RULES.replace(Rule(418, "Teapot")), RuleBook)
    assert_type([rule.retryable for rule in RULES], list[bool])
    assert_type(Backoff(60).wait(1, lambda: 0.0), float)
    assert_type(lamella.parse_retry_after("120", 0.0), float | None)

    Rule("3xx", "Redirect")  # type: ignore[arg-type]
    Rule([502, 503, 504], retry=Backoff(1), attempts=3)
    Rule(403, when=lambda answer: answer.headers.get("Retry-After"), rate_limit=True, carried_out=False)
    RuleBook(Rule(429), retry_after=lambda answer: answer.json["wait"])
    assert_type(lamella.HTTP_RULES, RuleBook)
    assert_type(lamella.Answer(403, {"Retry-After": "5"}).error_code, str | None)
    Rule(429, when="yes")  # type: ignore[arg-type]
    Rule(429, "Too Many Requests", retry=60)  # type: ignore[arg-type]
    Backoff("60")  # type: ignore[arg-type]
    Backoff((15, 30, 45))  # type: ignore[arg-type]
    RULES.rule_for("429")  # type: ignore[arg-type]
    RULES.rules = ()  # type: ignore[misc]
    RuleBook([Rule(429, "Too Many Requests")])  # type: ignore[arg-type]
    decision.wait = 0.0  # type: ignore[misc]
    lamella.decide(RULES.rule_for(500), 500)  # type: ignore[call-arg]
