"""Calls of one session, one after the other, whatever the server does: what `Retry` and the budget promise holds."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, Final

import aiohttp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.examples import examples

from lamella import ApiError, Backoff, Failure, LamellaError, RetryBudget, Rule, RuleBook, StopReason, stack
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.testing import Fault, VirtualTimeLoop

LONGEST: Final = 50.0
RULES: Final = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(initial=10, maximum=LONGEST)),
    Rule(500, "Internal Server Error", retry=Backoff(initial=(2, 4), maximum=LONGEST)),
    Rule(503, "Service Unavailable", retry=Backoff(initial=1, maximum=LONGEST)),
    Rule(400, "Bad Request"),
    *(Rule(failure, failure.value, retry=Backoff(initial=0.5, maximum=LONGEST)) for failure in Failure),
)
SHARE: Final = 0.25
RESERVE: Final = 2.0
TIMEOUT: Final = 5.0
DEADLINE: Final = 40.0
ATTEMPTS: Final = 4

WELL: Final[int] = 200
SAID = st.sampled_from([None, "0", "3", "49", "51", "9" * 30, "soon", "-1"])
STEPS = st.one_of(
    st.sampled_from([WELL, 400, 404, 500, 503]),
    st.builds(
        lambda status, after: Reply(status, {} if after is None else {"Retry-After": after}),
        st.sampled_from([429, 500, 503]),
        SAID,
    ),
    st.sampled_from([Fault.RESET_BEFORE_HEADERS, Fault.CUT_BODY, Fault.GARBAGE, Fault.SILENCE]),
)
METHODS = st.sampled_from(["GET", "PUT", "DELETE", "POST", "PATCH"])
BODIES = st.sampled_from(["none", "bytes", "stream"])
IDEMPOTENT: Final = {"GET", "PUT", "DELETE"}


def _asked(step: int | Reply | Fault) -> float | None:
    """For how many seconds it asks."""
    said = step.headers.get("Retry-After", "") if isinstance(step, Reply) else ""
    return float(said) if said.isdigit() else None


def _is_rate_limit(step: int | Reply | Fault) -> bool:
    return isinstance(step, Reply) and (step.status == 429 or (step.status == 503 and _asked(step) is not None))


async def _stream() -> Any:
    yield b"a "
    yield b"stream"


class RetryMachine(RuleBasedStateMachine):
    """`free` is how many retries the budget has left, at most: what a model of a few lines says."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.opened = AsyncExitStack()
        self.free = RESERVE

    def teardown(self) -> None:
        self.loop.run_until_complete(self.opened.aclose())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    @initialize()
    def begin(self) -> None:
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self.sandbox = await self.opened.enter_async_context(Sandbox(pause=0.01))
        layers = stack(
            RULES,
            attempts=ATTEMPTS,
            deadline=DEADLINE,
            attempt_timeout=TIMEOUT,
            retry_budget=RetryBudget(SHARE, RESERVE),
            throttle=False,
            spans=False,
        )
        self.session = await self.opened.enter_async_context(
            aiohttp.ClientSession(
                self.sandbox.url,
                middlewares=layers,
                timeout=aiohttp.ClientTimeout(),
                headers={"X-API-KEY": self.sandbox.api_key, "X-ACCOUNT-KEY": self.sandbox.account_key},
            )
        )

    @rule(
        steps=st.lists(STEPS, min_size=1, max_size=5) | STEPS.map(lambda step: [step] * ATTEMPTS),
        method=METHODS,
        body=BODIES,
        harmless=st.booleans(),
    )
    def call(self, steps: list[int | Reply | Fault], method: str, body: str, harmless: bool) -> None:
        self.loop.run_until_complete(self._call(steps, method, body, harmless=harmless))

    async def _call(self, steps: list[int | Reply | Fault], method: str, body: str, *, harmless: bool) -> None:
        seen = len(self.sandbox.received)
        self.sandbox.script(*steps)
        headers = {"Idempotency-Key": str(seen)} if harmless else {}
        data = {"none": None, "bytes": b"some bytes", "stream": _stream()}[body]
        began = self.loop.time()
        error: LamellaError | None = None
        try:
            async with self.session.request(method, "/accounting/invoices", data=data, headers=headers) as response:
                await response.read()
        except LamellaError as exc:
            error = exc
        took = self.loop.time() - began
        sends = self.sandbox.received[seen:]
        self.sandbox._scripts.clear()
        self.free = min(self.free + SHARE, RESERVE)

        # Bounded, in number and in time.
        assert 1 <= len(sends) <= ATTEMPTS
        assert took <= DEADLINE + 0.1
        # The same each time, to the letter.
        assert len({(sent.method, sent.path, sent.body) for sent in sends}) == 1
        # What was sent again could be, and as late as was asked for.
        for before, after in pairwise(sends):
            outcome = before.outcome
            status = None if isinstance(outcome, Fault) or outcome is None else outcome
            assert status in {None, 429, 500, 503}
            assert method in IDEMPOTENT or harmless or status == 429
            assert body != "stream"
            waited = after.at - before.at
            assert waited <= LONGEST + TIMEOUT
            assert waited >= {429: 10, 500: 2, 503: 1}.get(status or 0, 0) - 1e-6
        # A rate limit costs nothing; all others take from the budget, but for one on a connection closed while idle.
        outcomes = [sent.outcome for sent in sends[:-1]]
        costly = sum(not _is_rate_limit(step) for step in steps[: len(outcomes)])
        self.free -= costly - (Fault.RESET_BEFORE_HEADERS in outcomes)
        assert self.free >= -1e-6
        self._check_end(error, sends, took, body, _asked([*steps, WELL][len(sends) - 1]))

    def _check_end(
        self, error: LamellaError | None, sends: list[Any], took: float, body: str, asked: float | None
    ) -> None:
        last = sends[-1].outcome
        if error is None:
            assert isinstance(last, int)
            assert last < 400
            return
        assert len(error.attempts) == len(sends)
        assert error.stopped is not None
        waits = sum(record.took + record.waited for record in error.attempts)
        assert abs(waits - took) < 0.1
        match error.stopped:
            case StopReason.ATTEMPTS_USED_UP:
                assert len(sends) == ATTEMPTS
            case StopReason.NOT_RETRYABLE:
                # Of an answer that broke off in the middle the status is known.
                assert isinstance(error, ApiError)
                assert error.status in {400, 404, 405}
            case StopReason.BODY_NOT_REPLAYABLE:
                assert body == "stream"
            case StopReason.UNSAFE_METHOD:
                assert sends[-1].method not in IDEMPOTENT
                assert last != 429
            case StopReason.RETRY_BUDGET_EMPTY:
                assert self.free < 1 + ATTEMPTS
            case StopReason.DEADLINE:
                longest = max((record.waited for record in error.attempts), default=0.0)
                assert longest <= LONGEST
            case StopReason.WAIT_TOO_LONG:
                assert asked is not None
                assert asked > LONGEST
            case _:
                raise AssertionError(f"nothing here stops a call for {error.stopped}")

    @invariant()
    def nothing_is_left(self) -> None:
        if not hasattr(self, "session"):
            return
        connector = self.session.connector
        assert isinstance(connector, aiohttp.TCPConnector)
        assert not connector._acquired


TestRetry = RetryMachine.TestCase
TestRetry.settings = examples(40, stateful_step_count=12)
