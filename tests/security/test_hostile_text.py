"""What a server writes does not write our log, our spans or our terminal."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import aiohttp
import pytest
from tests.sdk import Tracing
from tests.servers import ServeRaw

from lamella import Backoff, Failure, LamellaError, Rule, RuleBook, stack

RULES = RuleBook(
    Rule(503, "Service Unavailable", retry=Backoff(initial=0.001)),
    Rule(Failure.CONNECTION_LOST, "Connection Lost", retry=Backoff(initial=0.001)),
)
FORGED = "2026-01-01 00:00:00 INFO root: admin logged in"
EVIL = f"\x1b[2J\x1b]0;title\x07\x9b31m\r\n{FORGED}\u2028\u202e\x7f\x08\t"


def _answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(head).encode() + body


ANSWERS = {
    "a reason phrase": _answer("503 \x1b[2J\x9b31m\x7f" + FORGED),
    "a body": _answer("503 Bad", body=EVIL.encode()),
    "a message": _answer("503 Bad", body=json.dumps({"errors": {"message": EVIL, "title": EVIL}}).encode()),
    "messages of the input": _answer("400 Bad", body=json.dumps({"validationErrors": [{EVIL: EVIL}]}).encode()),
    "headers": _answer("503 Bad", f"Retry-After: \x1b[2J{FORGED}", "Server: \x1b[31m", "Content-Type: \x1b[1m"),
    "no HTTP": EVIL.encode() + b"\r\n\r\n",
    "a bad header": b"HTTP/1.1 200 OK\r\n\x1b[2J" + FORGED.encode() + b"\r\n\r\n",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + EVIL.encode() + b"\r\n",
    "where it leads to": _answer("302 Found", "Location: /\x1b[2J%0d%0a" + FORGED),
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a program that logs all that it can writes to its log: tracebacks, too."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("where", ANSWERS)
async def test_every_log_record_is_one_printable_line(
    where: str, serve_raw: ServeRaw, log: io.StringIO, tracing: Tracing
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWERS[where])

    url = await serve_raw(connection)
    layers = stack(RULES, attempts=2, tracer_provider=tracing.provider, buffer=1000)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        with pytest.raises((LamellaError, aiohttp.TooManyRedirects)) as caught:
            await session.get("/", max_redirects=2)
    logging.getLogger("the user's").error("%s", caught.value)
    lines = log.getvalue().split("\n")
    assert not lines.pop()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith(FORGED[:10]) for line in lines)
    assert all(line.startswith(("DEBUG ", "INFO ", "WARNING ", "ERROR ")) for line in lines)
    assert len(lines) >= 2 - (where == "where it leads to")
    for span in tracing.spans:
        texts = [span.name, span.status.description or "", *map(str, (span.attributes or {}).values())]
        texts += [str(value) for event in span.events for value in (event.attributes or {}).values()]
        assert all(text.isprintable() for text in texts)
