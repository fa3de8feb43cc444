"""The sandbox: it checks keys and limits, applies scripts and chances, and passes other requests to the API."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal, get_args

from aiohttp import web
from multidict import CIMultiDict

from lamella.checks import check_seconds, check_whole
from lamella.maesn.published.operations import needs_account, template_of
from lamella.maesn.published.systems import SYSTEMS, Quota
from lamella.maesn.sandbox import choices
from lamella.maesn.sandbox.api import RESOURCES, Api, Traits, check_traits
from lamella.maesn.sandbox.limits import Limits, Where
from lamella.maesn.sandbox.listener import Listener
from lamella.maesn.sandbox.records import EVEN, Odd, Record
from lamella.maesn.sandbox.replies import BODILESS, Reply, failure
from lamella.maesn.sandbox.requests import Chances, Received, Script, Step, check_step
from lamella.testing.faults import Fault
from lamella.testing.limits import Limit, RetryAfter

AccountState = Literal["active", "expired", "inactive"]


@dataclass(frozen=True, slots=True)
class Account:
    """One end user. `limit` and `records` None: the values of the sandbox.

    State "expired" gets 401, "inactive" gets 403. Raises ValueError for an invalid argument.
    """

    key: str = field(repr=False)
    state: AccountState = "active"
    limit: Limit | None = None
    records: int | None = None

    def __post_init__(self) -> None:
        if not self.key or not self.key.isascii() or not self.key.isprintable() or self.key != self.key.strip():
            raise ValueError(f"key must be printable ASCII without surrounding spaces, got {self.key!r}")
        if self.state not in get_args(AccountState):
            raise ValueError(f"state must be one of {get_args(AccountState)}, got {self.state!r}")
        if self.records is not None:
            check_whole("records", self.records, 0)
        _check_limit(self.limit)


class Sandbox(Listener):
    """A Maesn-like server on a real port, for tests and demonstrations: `async with Sandbox() as sandbox: ...`.

    - `accounts`: the number of active accounts, or a list of `Account`.
    - `api_key`: the only accepted X-API-KEY.
    - `records`: the number of records of an account in each list, generated from the `seed`. A list without pages has
      at most ten.
    - `limit`: the rate limit of each account. None: no limit.
    - `system`: the target system, a key of `lamella.maesn.published.SYSTEMS`. The sandbox applies its limits, required
      parameters and blocks. None: a system with all lists and no limits.
    - `quotas`: limits that apply at the same time, instead of those of the `system`.
    - `unsupported`: lists that the target system does not have, such as `"offers"`.
    - `later`: paths that answer with a task where the API allows it, such as `"journalEntries"` or `"contacts/bulk"`.
    - `odd`: how many records have no id, or the id of another record.
    - `idempotency_keys`: whether an Idempotency-Key is honoured. Maesn does not document that it does.
    - `chances`: the probability (0 to 1) of an error status (400 to 599) or a `Fault`. The draw depends on the seed and
      the number of the request.
    - `host`, `port`: where to listen. Port 0: a free port, which the sandbox keeps when it is started again.
    - `latency`: seconds by the loop's clock before each response.
    - `pause`: seconds by the loop's clock between the pieces (60 at most) of a `Fault.SLOW_BODY`.
    - `on_answer`: called with each request when its response is known.

    Each request passes, in this order, an outage, the scripts, the check of keys, the rate limit, the chances and the
    API. `close()` keeps the records. Raises ValueError for an invalid argument.
    """

    def __init__(
        self,
        *,
        accounts: int | Iterable[Account] = 1,
        api_key: str = "sandbox-api-key",
        records: int = 250,
        limit: Limit | None = None,
        system: str | None = None,
        quotas: Iterable[Quota] | None = None,
        unsupported: Iterable[str] = (),
        later: Iterable[str] = (),
        odd: Odd = EVEN,
        idempotency_keys: bool = False,
        chances: Mapping[int | Fault, float] | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0.0,
        pause: float = 1.0,
        on_answer: Callable[[Received], object] = lambda _: None,
    ) -> None:
        for name, text in (("api_key", api_key), ("host", host)):
            if not text.isprintable() or not text.strip():
                raise ValueError(f"{name} must be a non-empty line of text, got {text!r}")
        check_whole("records", records, 0)
        _check_limit(limit)
        check_whole("seed", seed, None)
        check_whole("port", port, 0, 65_535)
        check_seconds("latency", latency, zero=True)
        check_seconds("pause", pause, zero=True)

        super().__init__(host, port)
        self.api_key = api_key
        self.accounts: tuple[Account, ...] = _accounts(accounts)
        self.received: list[Received] = []
        self._by_key = {account.key: account for account in self.accounts}
        self._chances = Chances(chances or {}, seed)
        self._latency = latency
        self._pause = pause
        self._on_answer = on_answer
        self._scripts: list[Script] = []
        self._outage: Step | None = None
        self._numbers = itertools.count(1)
        traits = Traits(seed, odd, system, frozenset(unsupported), frozenset(later), idempotency_keys)
        check_traits(traits)
        behind = SYSTEMS.get(system or "")
        given = (behind.quotas if behind else ()) if quotas is None else tuple(quotas)
        limits = {account.key: account.limit or limit for account in self.accounts}
        self._limits = Limits(limits, given, behind.errors_an_hour if behind else None)
        own = {account.key: account.records for account in self.accounts}

        def size(key: str) -> int:
            found = own.get(key)
            return records if found is None else found

        self._api = Api(traits, size=size, new_account=self._new_account)

    def __repr__(self) -> str:
        state = f"on {self.url}" if self._runner else "closed"
        return f"<Sandbox {state}, accounts: {len(self.accounts)}, requests: {len(self.received)}>"

    @property
    def account_key(self) -> str:
        """The key of the first account."""
        return self.accounts[0].key

    @property
    def duplicates(self) -> int:
        """How many POSTs repeated the body of an earlier POST for the same account and resource."""
        return self._api.duplicates

    @property
    def blocks(self) -> int:
        """How often an account was blocked on a path for too many errors."""
        return self._limits.blocks

    @property
    def pending(self) -> int:
        """The number of unused steps of scripts."""
        return sum(len(script.steps) for script in self._scripts)

    def created(self, resource: str, account: Account | str | None = None) -> list[Record]:
        """Return the records that POSTs created, in order and as they were created. `account` None: of all accounts.

        Raises ValueError for an unknown list or account.
        """
        _check_resource(resource)
        return self._api.created(resource, None if account is None else self._key(account))

    def records(self, resource: str, account: Account | str | None = None) -> list[Record]:
        """Return all current records in the order of the list. `account` None: of the first account.

        Raises ValueError for an unknown list or account.
        """
        _check_resource(resource)
        return self._api.table(self._key(account or self.account_key), resource).all()

    def script(
        self, *steps: Step, method: str | None = None, path: str | None = None, account: Account | str | None = None
    ) -> None:
        """Script the next matching requests, one step each. Later requests end as usual.

        A step is 200 (as usual, but exempt from the chances), an error status (400 to 599), a `Fault` or a `Reply`.
        Steps other than 200 apply before the check of keys and do not count against a rate limit. With a status or a
        Reply nothing is carried out; with a Fault the request is carried out and its response then breaks.

        `method`, `path` (with wildcards * and ?) and `account` select the requests; None: any. If several scripts
        match, the oldest is used up first. Raises ValueError for an invalid step or an unknown account.
        """
        if not steps:
            raise ValueError("steps must contain at least one step, got none")
        for step in steps:
            check_step("a step", step)
        key = None if account is None else self._key(account)
        self._scripts.append(Script(list(steps), method and method.upper(), path, key))

    def set_outage(self, step: Step | None) -> None:
        """End every request in this way until None is set.

        A step is an error status (400 to 599), a `Fault` or a `Reply`, with the same meaning as in a script. Scripts
        are not used up meanwhile. Requests that arrived before end as usual. Raises ValueError for an invalid step.
        """
        if step == HTTPStatus.OK:
            raise ValueError(f"the step of an outage must be an error status, a Fault or a Reply, got {step!r}")
        if step is not None:
            check_step("the step of an outage", step)
        self._outage = step

    def set_limit(self, limit: Limit | None, account: Account | str | None = None) -> None:
        """Replace the rate limit (None: no limit) of one account or of all, and restart the count.

        Raises ValueError for an unknown account.
        """
        _check_limit(limit)
        self._limits.replace(limit, self._by_key if account is None else [self._key(account)])

    def _key(self, account: Account | str) -> str:
        key = account.key if isinstance(account, Account) else account
        if key not in self._by_key:
            raise ValueError(
                f"account must be one of the {len(self.accounts)} accounts of this sandbox or its key, got {account!r}"
            )
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
        where = Where(received.account if needs_account(received.method, received.path) else None, _path(received))
        fault, reply, counted = self._decide(received, where)
        try:
            if delay := self._latency + reply.delay:
                await asyncio.sleep(delay)
        finally:
            if counted:
                self._limits.end(where)
        received.outcome = fault or reply.status
        self._limits.answered(where, reply.status, asyncio.get_running_loop().time())
        self._on_answer(received)
        headers, body = CIMultiDict(reply.headers), reply.encoded()
        if reply.status not in BODILESS:
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        response = web.Response(status=reply.status, headers=headers, body=body)
        return response if fault is None else await fault.answer(request, response, pause=self._pause)

    def _decide(self, received: Received, where: Where) -> tuple[Fault | None, Reply, bool]:
        """Return the fault of the response, the response, and whether the request counts against the quotas."""
        match step := self._next_step(received):
            case Fault():
                return step, self._refusal(received) or self._api.answer(received), False
            case Reply():
                return None, step, False
            case int() if step != HTTPStatus.OK:
                return None, failure(step), False
        refusal = self._refusal(received) or self._limited(received, where)
        if refusal is not None:
            return None, refusal, False
        chance = self._chances.draw(received.number) if step is None else None
        if isinstance(chance, int):
            return None, failure(chance), True
        return chance, self._api.answer(received), True

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
        """Return the error response for missing or wrong keys; None if they are valid."""
        if received.headers.get("X-API-KEY") != self.api_key:
            return failure(choices.NO_API_KEY, "The X-API-KEY header is missing, or the key is unknown.")
        if not needs_account(received.method, received.path):
            return None
        account = self._by_key.get(received.account or "")
        if account is None:
            return failure(choices.NO_ACCOUNT_KEY, "The X-ACCOUNT-KEY header is missing, or the key is unknown.")
        if account.state == "expired":
            return failure(choices.EXPIRED, "The account key has expired; the user must log in again.")
        return failure(choices.INACTIVE, "This user is inactive.") if account.state == "inactive" else None

    def _limited(self, received: Received, where: Where) -> Reply | None:
        """Return the error response for a request above a limit; None if it is within the limits."""
        now = asyncio.get_running_loop().time()
        if self._limits.blocked(where, now):
            return failure(choices.BLOCKED, downstream=["too many errors on this endpoint: blocked for an hour"])
        refused = self._limits.admit(where, now)
        return None if refused is None else _refused(now, *refused)

    def _new_account(self) -> str:
        """Add an account and return its key."""
        account = Account(f"sandbox-account-key-{len(self.accounts) + 1}")
        self.accounts = (*self.accounts, account)
        self._by_key[account.key] = account
        return account.key


def _path(received: Received) -> str:
    return template_of(received.path) or received.path


def _refused(now: float, wait: float, form: RetryAfter) -> Reply:
    headers = {}
    if form == "date":
        headers["Retry-After"] = formatdate(math.ceil(time.time() + wait), usegmt=True)
    elif form:
        seconds = math.ceil(wait)
        # A rounding error of the clock must not add a second.
        headers["Retry-After"] = str(seconds - (now + (seconds - 1) >= now + wait))
    return failure(HTTPStatus.TOO_MANY_REQUESTS, headers=headers)


def _accounts(accounts: int | Iterable[Account]) -> tuple[Account, ...]:
    if isinstance(accounts, int):
        check_whole("accounts", accounts)
        return tuple(Account(f"sandbox-account-key-{number}") for number in range(1, accounts + 1))
    many = tuple(accounts)
    if not many or not all(isinstance(account, Account) for account in many):
        raise ValueError(f"accounts must be a whole number, 1 or more, or at least one Account, got {many!r}")
    if len({account.key for account in many}) < len(many):
        raise ValueError(f"accounts must have different keys, got {many!r}")
    return many


def _check_resource(resource: str) -> None:
    if resource not in RESOURCES:
        raise ValueError(f"unknown resource {resource!r}; expected one of: {', '.join(RESOURCES)}")


def _check_limit(limit: Limit | None) -> None:
    if limit is not None and (isinstance(limit, type) or not hasattr(limit, "limiter")):
        raise ValueError(f"limit must be a FixedWindow, SlidingWindow, TokenBucket or None, got {limit!r}")
