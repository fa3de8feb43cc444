"""All that a tool could show of an error: its texts, and the locals of the frames that it came through."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType

__all__ = ["leaks", "links"]


def links(error: BaseException) -> Iterator[BaseException]:
    """*error*, and whatever caused it or came before it, shown or not."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        link = rest.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            rest += [link.__cause__, link.__context__]
            if isinstance(link, BaseExceptionGroup):
                rest += link.exceptions


def leaks(error: BaseException, *secrets: str, apart_from: str) -> set[str]:
    """Where one of *secrets* is to be seen; the frames of the file *apart_from* are the caller's own."""
    found = set()
    for link in links(error):
        for how, text in (("str", str(link)), ("repr", repr(link)), ("args", repr(link.args))):
            if any(secret in text for secret in secrets):
                found.add(f"{how} of {type(link).__name__}")
        for frame in _frames(link):
            if frame.f_code.co_filename != apart_from:
                found |= _in_locals(frame, secrets)
    return found


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _in_locals(frame: FrameType, secrets: tuple[str, ...]) -> set[str]:
    """As rich, pytest --showlocals and the services that collect errors do it: by the repr of each."""
    return {
        f"{name} in {frame.f_code.co_qualname}"
        for name, value in frame.f_locals.items()
        if any(secret in _repr(value) for secret in secrets)
    }


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - what is half made may have none
        return ""
