"""A server with one list that pages, counts and answers as a test has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

__all__ = ["START", "ListServer", "Record", "numbered", "record"]

Record = dict[str, Any]
START = datetime(2026, 1, 1, tzinfo=UTC)
_MOST_REQUESTS = 200
"""A list that is asked for more pages than this will never end: all further requests are answered with 410."""


def record(number: int, updated: datetime | None = None) -> Record:
    changed = updated or START - timedelta(days=30, seconds=-number)
    return {"billId": f"b{number}", "number": number, "updatedDate": changed.isoformat()}


def numbered(many: int) -> list[Record]:
    return [record(number) for number in range(many)]


@dataclass
class ListServer:
    """Serves a list with the size of page that is asked for, or less if *cap* is."""

    records: list[Record]
    cap: int = 100
    count: Callable[[int, int], Any] = lambda total, limit: {
        "pagination": {"total": total, "totalPages": -(-total // limit)}
    }
    """Makes ``meta`` of the number of records and the size of page that was asked for."""
    instead: Callable[[ListServer, int, dict[str, Any]], dict[str, Any] | int | None] = lambda server, page, body: None
    """Given the number of the page and the body: another body, or a status. None means that body."""
    last_first: bool = False
    """Of pages that are asked for together, whether the answer to the last one comes first."""
    pages: list[int] = field(default_factory=list)
    """The pages that were asked for."""
    queries: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        page, limit = int(request.query["page"]), int(request.query["limit"])
        self.pages.append(page)
        self.queries.append(dict(request.query))
        if len(self.pages) > _MOST_REQUESTS:
            return web.json_response({}, status=410)
        since = request.query.get("lastModifiedAt")
        found = [each for each in self.records if since is None or _moment(each["updatedDate"]) >= _moment(since)]
        size = min(limit, self.cap)
        body = {"meta": self.count(len(found), limit), "data": found[(page - 1) * size : page * size]}
        other = self.instead(self, page, body)
        if self.last_first and page > 1:
            await asyncio.sleep(0.03 / page)
        if isinstance(other, int):
            return web.json_response({"message": f"no page {page}"}, status=other)
        text = json.dumps(body if other is None else other)
        date = START.strftime("%a, %d %b %Y %H:%M:%S GMT")
        return web.Response(text=text, content_type="application/json", headers={"Date": date})


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
