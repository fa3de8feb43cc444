"""A server on this machine that behaves as the Maesn accounting API does, and fails as one asks it to."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from fnmatch import fnmatchcase
from http import HTTPStatus
from types import TracebackType
from typing import Literal, NoReturn, Self, get_args

import anyio
from aiohttp import web
from multidict import CIMultiDict, MultiMapping

from .api import Api, Question, needs_account
from .faults import Fault, break_answer
from .limits import Limit, Limiter
from .records import RESOURCES, Record
from .replies import BODILESS, Reply, failure

__all__ = ("Account", "AccountState", "Received", "Sandbox", "Step")

AccountState = Literal["active", "expired", "inactive"]

Step = int | Fault | Reply
"""What a script does with a request: 200 to answer as usual, another status as an error, a Fault, or a Reply."""

_HIGHEST_PORT = 65_535
_TURNS_TO_ACCEPT = 3
_BACKLOG = 1024  # a storm of new connections must not lose one: the kernel would try again after a real second


@dataclass(frozen=True, slots=True)
class Account:
    """One end user. `limit` and `records` None: what the sandbox has for all.

    "expired" is answered with 401, "inactive" with 403. Raises ValueError for an empty key, an unknown state, or
    `records` below 0.
    """

    key: str = field(repr=False)
    state: AccountState = "active"
    limit: Limit | None = None
    records: int | None = None

    def __post_init__(self) -> None:
        if not self.key or not self.key.isascii() or not self.key.isprintable() or self.key != self.key.strip():
            message = f"the key of an Account must be printable ASCII without space around it, not {self.key!r}"
            raise ValueError(message)
        if self.state not in get_args(AccountState):
            message = f"the state of an Account must be one of {get_args(AccountState)}, not {self.state!r}"
            raise ValueError(message)
        if self.records is not None:
            _check_number("records of an Account", self.records, whole=True)
        _check_limit(self.limit)


@dataclass(slots=True, repr=False)
class Received:
    """A request that has come in. `at` is the loop's time (seconds), `account` the key that it named.

    `outcome` is the status or the Fault that it was answered with; None while there is none yet, or if the client
    went away before.
    """

    number: int
    at: float
    method: str
    path: str
    query: MultiMapping[str]
    headers: MultiMapping[str]
    account: str | None
    body: bytes = b""
    outcome: int | Fault | None = None

    def __repr__(self) -> str:
        return f"<Received {self.number}: {self.method} {self.path} at {self.at:.3f} s: {self.outcome!r}>"


class Sandbox:
    """A Maesn-like server on a real port, for tests and demonstrations: `async with Sandbox() as sandbox: ...`.

    - `accounts`: how many end users with access there are, or the `Account`s themselves.
    - `api_key`: the only X-API-KEY that is let in.
    - `records`: how many records an account has of each resource, made up from the `seed`.
    - `limit`: the rate limit, for each account by itself. None: no limit.
    - `chances`: how likely (0 to 1) a request ends with an error status (400 to 599) or a `Fault`. Which ones do
      depends on the seed and on the place of a request in the order of all requests.
    - `host`, `port`: where to listen. Port 0: a free one, which the sandbox keeps when it is started again.
    - `latency`: seconds by the loop's clock before each answer.
    - `pause`: seconds by the loop's clock between the at most 60 pieces of a `Fault.SLOW_BODY`.

    A request meets first an outage, then the scripts, the check of its keys, the rate limit, the chances, and at last
    the API.
    The records outlive `close()`. Raises ValueError for a bad argument.
    """

    def __init__(
        self,
        *,
        accounts: int | Iterable[Account] = 1,
        api_key: str = "sandbox-api-key",
        records: int = 250,
        limit: Limit | None = None,
        chances: Mapping[int | Fault, float] | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0.0,
        pause: float = 1.0,
    ) -> None:
        _check_text("api_key", api_key)
        _check_number("records", records, whole=True)
        _check_limit(limit)
        _check_number("seed", seed, whole=True, lowest=-math.inf)
        _check_text("host", host)
        _check_number("port", port, whole=True, highest=_HIGHEST_PORT)
        _check_number("latency", latency)
        _check_number("pause", pause)

        self.api_key = api_key
        self.accounts = _accounts(accounts)
        self.received: list[Received] = []
        self._by_key = {account.key: account for account in self.accounts}
        self._limits = {account.key: account.limit or limit for account in self.accounts}
        self._limiters: dict[str, Limiter] = {}
        self._chances = _checked_chances(chances or {})
        self._seed = seed
        self._host = host
        self._port = port
        self._latency = latency
        self._pause = pause
        self._scripts: list[_Script] = []
        self._outage: Step | None = None
        self._numbers = itertools.count(1)
        self._api = Api(seed=seed, size=lambda key: _or(self._by_key[key].records, records))
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket | None = None

    def __repr__(self) -> str:
        state = f"on {self.url}" if self._runner else "closed"
        return f"<Sandbox {state}, accounts: {len(self.accounts)}, requests: {len(self.received)}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen. After a `close()` it is the same port again, as after an outage.

        Raises OSError if the port is not free, RuntimeError if the sandbox has been started.
        """
        if self._runner is not None:
            message = "the sandbox has been started already"
            raise RuntimeError(message)
        app = web.Application()
        app.router.add_route("*", "/{path:(?s:.*)}", self._handle)
        # Only with cancellation does a silent or slow answer end together with its connection.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        self._runner, self._listener = runner, listener
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        except BaseException:
            await self.close()
            raise
        self._port = listener.getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop all connections at once, whatever they wait for. No harm if it was not started."""
        runner, listener = self._runner, self._listener
        self._runner = self._listener = None
        if runner is None or listener is None:
            return
        with anyio.CancelScope(shield=True):
            # First accept no more, then let those that were accepted become connections (which takes a few turns of
            # the loop), and only then close: asyncio loses a socket whose server closes between the two.
            with suppress(NotImplementedError):  # the proactor of Windows
                asyncio.get_running_loop().remove_reader(listener)
            for _ in range(_TURNS_TO_ACCEPT):
                await asyncio.sleep(0)
            for site in runner.sites:
                await site.stop()
            listener.close()
            while runner.server is not None and (connections := runner.server.connections):
                for connection in connections:
                    if connection.transport is not None:
                        connection.transport.abort()
                await asyncio.sleep(0)
            await runner.cleanup()

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end. Raises RuntimeError before the first start."""
        if self._port == 0:
            message = "the sandbox has no URL before its first start: its port is not known yet"
            raise RuntimeError(message)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def account_key(self) -> str:
        """The key of the first account."""
        return self.accounts[0].key

    @property
    def duplicates(self) -> int:
        """How many POSTs created what another POST of the same account had created already, to the letter."""
        return self._api.duplicates

    @property
    def pending(self) -> int:
        """How many steps of scripts have not been used yet."""
        return sum(len(script.steps) for script in self._scripts)

    def created(self, resource: str, account: Account | str | None = None) -> list[Record]:
        """The records that POSTs have created, in order and as they were then. `account` None: of all accounts.

        Raises ValueError for an unknown resource or account.
        """
        _check_resource(resource)
        return self._api.created(resource, None if account is None else self._key(account))

    def records(self, resource: str, account: Account | str | None = None) -> list[Record]:
        """All records that there are now, in the order of the lists. `account` None: of the first account.

        Raises ValueError for an unknown resource or account.
        """
        _check_resource(resource)
        return self._api.table(self._key(account or self.account_key), resource).all()

    def script(
        self,
        *steps: Step,
        method: str | None = None,
        path: str | None = None,
        account: Account | str | None = None,
    ) -> None:
        """Settle how the next matching requests end: one step each, and then as usual again.

        A step is 200 (as usual, but spared the chances), another error status (400 to 599), a `Fault` or a `Reply`.
        Steps other than 200 come before the check of keys and do not count against a rate limit. With a status or
        a Reply nothing is carried out; with a Fault the request is carried out, and then its answer breaks.

        `method`, `path` (with * and ? as in file names) and `account` narrow down what matches; None: anything.
        Of several scripts that match, the first is used up first. Raises ValueError for a bad step, and for an
        unknown account.
        """
        if not steps:
            _reject("steps", steps, "at least one step")
        for step in steps:
            _check_step("a step", step)
        key = None if account is None else self._key(account)
        self._scripts.append(_Script(list(steps), method and method.upper(), path, key))

    def set_outage(self, step: Step | None) -> None:
        """From now on each request ends so, whatever it asks for and whosever it is, until None is set.

        A step is an error status (400 to 599), a `Fault` or a `Reply`, and does what it does in a script. Scripts are
        not used up meanwhile. What has arrived before ends as it would have. Raises ValueError for a bad step.
        """
        if step is not None:
            _check_step("the step of an outage", step)
            if step == HTTPStatus.OK:
                _reject("the step of an outage", step, "an error status, a Fault or a Reply")
        self._outage = step

    def set_limit(self, limit: Limit | None, account: Account | str | None = None) -> None:
        """Replace the rate limit (None: no limit) of one account, or of all, and begin to count anew.

        Raises ValueError for an unknown account.
        """
        _check_limit(limit)
        for key in self._by_key if account is None else [self._key(account)]:
            self._limits[key] = limit
            self._limiters.pop(key, None)

    def _key(self, account: Account | str) -> str:
        key = account.key if isinstance(account, Account) else account
        if key not in self._by_key:
            message = f"account must be one of the {len(self.accounts)} of this sandbox or its key, not {account!r}"
            raise ValueError(message)
        return key

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(
            number=next(self._numbers),
            at=asyncio.get_running_loop().time(),
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            account=request.headers.get("X-ACCOUNT-KEY"),
        )
        self.received.append(received)
        received.body = await request.content.read()
        fault, reply = self._decide(received)
        if delay := self._latency + reply.delay:
            await asyncio.sleep(delay)
        received.outcome = fault or reply.status
        body = reply.encoded()
        if fault is not None and request.transport is not None:
            await break_answer(
                fault,
                request.transport,
                status=reply.status,
                headers=reply.headers,
                body=body,
                pause=self._pause,
            )
            return web.Response()  # goes nowhere: the transport is closing
        headers = CIMultiDict(reply.headers)
        if reply.status not in BODILESS:
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        return web.Response(status=reply.status, headers=headers, body=body)

    def _decide(self, received: Received) -> tuple[Fault | None, Reply]:
        """The answer to a request, and how it breaks."""
        match step := self._next_step(received):
            case Fault():
                return step, self._refusal(received) or self._carry_out(received)
            case Reply():
                return None, step
            case int() if step != HTTPStatus.OK:
                return None, failure(step)
        refusal = self._refusal(received) or self._limited(received)
        if refusal is not None:
            return None, refusal
        chance = self._draw(received.number) if step is None else None
        if isinstance(chance, int):
            return None, failure(chance)
        return chance, self._carry_out(received)

    def _next_step(self, received: Received) -> Step | None:
        if self._outage is not None:
            return self._outage
        for script in self._scripts:
            if script.matches(received):
                step = script.steps.pop(0)
                if not script.steps:
                    self._scripts.remove(script)
                return step
        return None

    def _refusal(self, received: Received) -> Reply | None:
        """The answer to a request whose keys are not in order."""
        if received.headers.get("X-API-KEY") != self.api_key:
            return failure(HTTPStatus.FORBIDDEN, "The X-API-KEY header is missing, or no such key is known.")
        if not needs_account(received.path):
            return None
        account = self._by_key.get(received.account or "")
        if account is None:
            return failure(HTTPStatus.UNAUTHORIZED, "The X-ACCOUNT-KEY header is missing, or no such key is known.")
        match account.state:
            case "expired":
                return failure(HTTPStatus.UNAUTHORIZED, "The account key has expired: the user must log in again.")
            case "inactive":
                return failure(HTTPStatus.FORBIDDEN, "This user has been deactivated.")
            case "active":
                return None

    def _limited(self, received: Received) -> Reply | None:
        """The answer to a request that comes too soon."""
        key = received.account
        if key is None or not needs_account(received.path):
            return None
        limit = self._limits[key]
        if limit is None:
            return None
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = limit.limiter()
        now = asyncio.get_running_loop().time()
        wait = limiter.allow(now)
        if wait <= 0:
            return None
        match limit.retry_after:
            case "date":
                headers = {"Retry-After": formatdate(math.ceil(time.time() + wait), usegmt=True)}
            case True:
                seconds = math.ceil(wait)
                if now + (seconds - 1) >= now + wait:  # a rounding error of the clock is no second
                    seconds -= 1
                headers = {"Retry-After": str(seconds)}
            case _:
                headers = {}
        return failure(HTTPStatus.TOO_MANY_REQUESTS, headers=headers)

    def _draw(self, number: int) -> int | Fault | None:
        """What chance has for a request; of its number alone, so that it matters not what the others drew."""
        if not self._chances:
            return None
        drawn = random.Random(f"{self._seed}/{number}").random()
        for outcome, chance in self._chances.items():
            if drawn < chance:
                return outcome
            drawn -= chance
        return None

    def _carry_out(self, received: Received) -> Reply:
        return self._api.answer(
            Question(
                method=received.method,
                path=received.path,
                account=received.account or "",
                query=received.query,
                headers=received.headers,
                body=received.body,
            )
        )


@dataclass(slots=True)
class _Script:
    steps: list[Step]
    method: str | None
    path: str | None
    account: str | None

    def matches(self, received: Received) -> bool:
        return (
            (self.method is None or self.method == received.method)
            and (self.path is None or fnmatchcase(received.path, self.path))
            and (self.account is None or self.account == received.account)
        )


def _accounts(accounts: int | Iterable[Account]) -> tuple[Account, ...]:
    if isinstance(accounts, int):
        _check_number("accounts", accounts, whole=True, lowest=1)
        return tuple(Account(f"sandbox-account-key-{number}") for number in range(1, accounts + 1))
    many = tuple(accounts)
    if not many or not all(isinstance(account, Account) for account in many):
        _reject("accounts", many, "a number from 1, or at least one Account")
    if len({account.key for account in many}) < len(many):
        _reject("accounts", many, "Accounts with keys that differ")
    return many


def _checked_chances(chances: Mapping[int | Fault, float]) -> dict[int | Fault, float]:
    for outcome, chance in chances.items():
        if not isinstance(outcome, Fault):
            _check_error_status("an outcome in chances", outcome)
        _check_number(f"the chance of {outcome!r}", chance, highest=1)
    if math.fsum(chances.values()) > 1:
        _reject("chances", dict(chances), "at most 1 in sum")
    return dict(chances)


def _check_step(name: str, step: object) -> None:
    if isinstance(step, bool) or not isinstance(step, int | Fault | Reply):
        _reject(name, step, "a status, a Fault or a Reply")
    if isinstance(step, int) and step != HTTPStatus.OK:
        _check_error_status(name, step)


def _check_error_status(name: str, status: object) -> None:
    if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status <= 599:
        _reject(name, status, "a status from 400 to 599")


def _check_resource(resource: str) -> None:
    if resource not in RESOURCES:
        _reject("resource", resource, f"one of {', '.join(RESOURCES)}")


def _check_limit(limit: Limit | None) -> None:
    if limit is not None and (isinstance(limit, type) or not hasattr(limit, "limiter")):
        _reject("limit", limit, "a FixedWindow, SlidingWindow, TokenBucket or None")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        _reject(name, value, "a line of text that is not empty")


def _check_number(
    name: str, value: object, *, whole: bool = False, lowest: float = 0, highest: float = math.inf
) -> None:
    kind = int if whole else int | float
    fits = isinstance(value, kind) and not isinstance(value, bool) and lowest <= value <= highest
    if fits and value != math.inf:
        return
    allowed = "a whole number" if whole else "a finite number"
    if lowest > -math.inf:
        allowed += f" from {lowest}"
    if highest < math.inf:
        allowed += f" to {highest}"
    _reject(name, value, allowed)


def _reject(name: str, value: object, allowed: str) -> NoReturn:
    message = f"{name} must be {allowed}, not {value!r}"
    raise ValueError(message)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
