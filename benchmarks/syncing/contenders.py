"""What syncs the lists, each in a process of its own: lamella, aiohttp by hand, dlt, and a Singer tap."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from benchmarks.syncing.server import LISTS, SIZE

__all__ = ["CONTENDERS"]

AT_ONCE = 100
"""Requests at a time, where a contender can choose."""


def lamella(url: str, accounts: int, folder: Path) -> None:
    """Sync with `lamella.sync`: the records, in order and without repeats, from a journal that the next night uses."""
    import aiohttp

    from lamella import HeaderAuth, Source, stack
    from lamella import sync as syncing
    from lamella.batch import Journal

    account: ContextVar[str] = ContextVar("account")

    @contextmanager
    def within(name: str) -> Iterator[None]:
        token = account.set(name)
        yield
        account.reset(token)

    lists = {
        name: Source(name, total="total", changed="at", since="since", within=within, pages=syncing.Numbered())
        for name in LISTS
    }
    auth = HeaderAuth({"X-Account": lambda _: account.get()}, origin=url)
    names = {f"account-{number}": f"account-{number}" for number in range(accounts)}

    async def main() -> None:
        layers = stack(auth=auth, account=lambda _: account.get())
        async with (
            aiohttp.ClientSession(url, middlewares=layers, connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session,
            Journal.open(folder / "journal", batch="benchmark") as journal,
        ):
            output = folder / "records.jsonl"
            report = await syncing.run(session, lists, names, journal=journal, output=output, at_once=AT_ONCE)
        assert report.done, report.failed

    asyncio.run(main())


def by_hand(url: str, accounts: int, folder: Path) -> None:
    """Forty lines of aiohttp and aiohttp-retry: every page of every list, decoded and written."""
    import aiohttp
    from aiohttp_retry import ExponentialRetry, RetryClient

    options = ExponentialRetry(attempts=5, start_timeout=1, statuses={429, 500}, exceptions={aiohttp.ClientError})

    async def main() -> None:
        limit = asyncio.Semaphore(AT_ONCE)
        with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
            async with RetryClient(aiohttp.ClientSession(url), retry_options=options) as session:

                async def every_page(account: str, name: str) -> None:
                    number, seen = 1, 0
                    while True:
                        headers, query = {"X-Account": account}, {"page": str(number), "limit": str(SIZE)}
                        async with limit, session.get(name, params=query, headers=headers) as response:
                            response.raise_for_status()
                            body = await response.json()
                        for record in body["data"]:
                            line = {"account": account, "resource": name, "id": record["id"], "record": record}
                            file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        number, seen = number + 1, seen + len(body["data"])
                        if seen >= body["total"] or not body["data"]:
                            return

                lists = [(f"account-{number}", name) for number in range(accounts) for name in LISTS]
                await asyncio.gather(*(every_page(*each) for each in lists))

    asyncio.run(main())


def dlt(url: str, accounts: int, folder: Path) -> None:
    """Load with dlt's `rest_api` source, to files of JSON lines on this disk, without child tables."""
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"
    import dlt as library
    from dlt.sources.rest_api import rest_api_source

    def resource(account: str, name: str) -> dict[str, Any]:
        paginator = {"type": "page_number", "base_page": 1, "total_path": None, "stop_after_empty_page": True}
        endpoint = {
            "path": name,
            "headers": {"X-Account": account},
            "params": {"limit": SIZE},
            "data_selector": "data",
            "paginator": paginator,
        }
        return {"name": f"{account}_{name}", "table_name": name, "endpoint": endpoint}

    lists = [resource(f"account-{number}", name) for number in range(accounts) for name in LISTS]
    source = rest_api_source({"client": {"base_url": url}, "resources": lists}, name="books", max_table_nesting=0)
    pipeline = library.pipeline(
        "books",
        pipelines_dir=str(folder / "pipelines"),
        destination=library.destinations.filesystem(bucket_url=(folder / "out").as_uri()),
        dataset_name="books",
    )
    pipeline.run(source, loader_file_format="jsonl").raise_on_failed_jobs()


def singer(url: str, accounts: int, folder: Path) -> None:
    """Run a tap of the Singer SDK, which writes its messages to a file in place of a target."""
    from singer_sdk import RESTStream, Tap
    from singer_sdk import typing as th
    from singer_sdk.pagination import BasePageNumberPaginator

    record = th.PropertiesList(
        th.Property("id", th.StringType()),
        th.Property("number", th.IntegerType()),
        *(th.Property(f"field{number}", th.StringType()) for number in range(24)),
        *(th.Property(f"amount{number}", th.NumberType()) for number in range(24)),
        th.Property("at", th.DateTimeType()),
    ).to_dict()

    class Paginator(BasePageNumberPaginator):  # type: ignore[misc]
        def has_more(self, response: Any) -> bool:
            return bool(int(self.current_value) * SIZE < response.json()["total"])

    class List(RESTStream):  # type: ignore[misc]
        url_base = url.rstrip("/")
        records_jsonpath = "$.data[*]"
        primary_keys = ("id",)
        schema = record
        partitions = [{"account": f"account-{number}"} for number in range(accounts)]  # noqa: RUF012

        def get_new_paginator(self) -> Paginator:
            return Paginator(1)

        def get_url_params(self, context: Any, next_page_token: Any) -> dict[str, Any]:
            return {"page": next_page_token or 1, "limit": SIZE}

        def get_http_request(self, *, page: Any) -> Any:
            request = super().get_http_request(page=page)
            request.headers["X-Account"] = page.stream_context["account"]
            return request

    class Bills(List):
        name, path = "bills", "/bills"

    class Invoices(List):
        name, path = "invoices", "/invoices"

    class Books(Tap):  # type: ignore[misc]
        name = "tap-books"
        config_jsonschema = th.PropertiesList().to_dict()

        def discover_streams(self) -> list[Any]:
            return [Bills(self), Invoices(self)]

    logging.disable(logging.INFO)
    sys.stdout.flush()
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        Books(config={}).sync_all()
        sys.stdout.flush()


CONTENDERS: dict[str, tuple[tuple[str, ...], Callable[[str, int, Path], None]]] = {
    "by hand": (("aiohttp", "aiohttp-retry"), by_hand),
    "lamella": (("lamella", "aiohttp", "msgspec"), lamella),
    "dlt": (("dlt",), dlt),
    "Singer": (("singer-sdk",), singer),
}
"""By their names: the packages, and what runs it."""
