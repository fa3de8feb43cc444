"""A bare aiohttp client for the sandbox: nothing of lamella's between the two."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDictProxy

from lamella.maesn.sandbox import Sandbox


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    text: str

    @property
    def payload(self) -> Any:
        return json.loads(self.text)

    @property
    def data(self) -> Any:
        return self.payload["data"]

    @property
    def error(self) -> Any:
        return self.payload["errors"]


class Client:
    """Requests with the keys of one account, whole answers back."""

    def __init__(self, session: aiohttp.ClientSession, sandbox: Sandbox) -> None:
        self._session = session
        self._sandbox = sandbox

    async def __call__(
        self, method: str, path: str, *, account: str | None = None, keys: dict[str, str] | None = None, **options: Any
    ) -> Answer:
        if keys is None:
            keys = {"X-API-KEY": self._sandbox.api_key, "X-ACCOUNT-KEY": account or self._sandbox.account_key}
        headers = keys | options.pop("headers", {})
        async with self._session.request(method, self._sandbox.url + path, headers=headers, **options) as response:
            return Answer(response.status, response.headers, await response.text())


class MakeClient:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def __call__(self, sandbox: Sandbox) -> Client:
        return Client(self._session, sandbox)


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    # A connection for each request: what one test breaks must not show in the next request.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield MakeClient(session)


@pytest.fixture
async def client(make_client: MakeClient, sandbox: Sandbox) -> Client:
    return make_client(sandbox)
