"""Every private attribute of aiohttp that lamella uses, each with a fallback for versions that lack it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from io import IOBase
from typing import Any

import aiohttp
from aiohttp import helpers, payload


def forget_answer(request: aiohttp.ClientRequest) -> None:
    """Forget the response to the last attempt, so that :func:`is_unsent` describes the next one."""
    if hasattr(request, "response"):
        request.response = None


def is_unsent(request: aiohttp.ClientRequest) -> bool:
    """Return whether writing of *request* has not begun; aiohttp creates the response at that point. Fallback: it has
    begun."""
    return getattr(request, "response", request) is None


def is_begun(request: aiohttp.ClientRequest) -> bool:
    """Return whether the body of *request*, if it waits for 100-continue, has begun. Fallback: True."""
    wait = getattr(request, "_continue", None)
    # aiohttp cancels the wait when a final response arrives.
    return wait is None or (wait.done() and not wait.cancelled())


def is_being_written(request: aiohttp.ClientRequest) -> bool:
    """Return whether a task writes the body of *request*; it may just have ended. Fallback: False."""
    return getattr(request, "_writer", None) is not None


def is_written(request: aiohttp.ClientRequest) -> bool:
    """Return whether the body of *request* is completely written. Fallback: True."""
    writer = getattr(request, "_writer", None)
    return writer is None or bool(writer.done())


async def prepare_again(request: aiohttp.ClientRequest) -> None:
    """Prepare *request* to be sent again: forget the last writer and wait for 100-continue again."""
    await request.close()
    request.update_expect_continue()


def has_no_total(request: aiohttp.ClientRequest) -> bool:
    """Return whether *request* was made without a total timeout. Fallback: False."""
    return isinstance(getattr(request, "_timer", None), getattr(helpers, "TimerNoop", ()))


def total_of(request: aiohttp.ClientRequest) -> float | None:
    """Return the total timeout of *request* in seconds. Fallback: None.

    Searches the timers of the loop, so call it rarely.
    """
    timer, kind = getattr(request, "_timer", None), getattr(helpers, "TimeoutHandle", ())
    for handle in getattr(request.loop, "_scheduled", ()):
        total = getattr(getattr(handle, "_callback", None), "__self__", None)
        if isinstance(total, kind):
            ends = getattr(total, "_callbacks", ())
            if any(getattr(end, "__self__", None) is timer for end, *_ in ends):
                return getattr(total, "_timeout", None)
    return None


def middlewares_of(session: aiohttp.ClientSession) -> Sequence[object]:
    """Return the middlewares of *session*. Fallback: none."""
    return getattr(session, "_middlewares", ())


def same_call(request: aiohttp.ClientRequest) -> object:
    """Return an object that all hops of a redirected call share. Fallback: None for all calls."""
    return getattr(request, "_traces", None)


def trace_states(request: aiohttp.ClientRequest) -> Sequence[tuple[Any, Any]]:
    """Return each trace configuration of *request* with its state for this call. Fallback: none."""
    traces = getattr(request, "_traces", ())
    if not traces:
        return ()
    found = [(getattr(each, "_trace_config", None), getattr(each, "_trace_config_ctx", None)) for each in traces]
    return [(config, state) for config, state in found if state is not None]


def peer_of(response: aiohttp.ClientResponse) -> object:
    """Return the peer address of *response*, which is public only while the body is read. Fallback: None."""
    transport = getattr(getattr(response, "_protocol", None), "transport", None)
    return None if transport is None else transport.get_extra_info("peername")


def arrived_bytes(content: aiohttp.StreamReader) -> tuple[deque[bytes], int] | None:
    """Return the chunks that have arrived and how much of the first one has been read. Fallback: None."""
    chunks, offset = getattr(content, "_buffer", None), getattr(content, "_buffer_offset", None)
    return (chunks, offset) if isinstance(chunks, deque) and isinstance(offset, int) else None


def put_back(content: aiohttp.StreamReader, chunks: list[bytes]) -> None:
    """Put *chunks* back into *content*, as if they had never been read."""
    with warnings.catch_warnings():
        # Deprecated since 2018 without a replacement; there is no other way to pass a stream on unchanged.
        warnings.simplefilter("ignore", DeprecationWarning)
        # One by one: joining them would hold the data twice in memory.
        for chunk in reversed(chunks):
            content.unread_data(chunk)


def body_file(body: payload.IOBasePayload) -> IOBase:
    """Return the file from which *body* is read."""
    return body._value
