"""All the texts in a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from multidict import CIMultiDict
from yarl import URL

__all__ = ["strings_in", "texts_of"]


def texts_of(value: object) -> Iterator[str]:
    """Return all texts in a value, unescaped, and its repr."""
    if isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, Mapping | CIMultiDict):
        for key, item in value.items():
            yield from (str(key), *texts_of(item))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from texts_of(item)
    else:
        yield from (str(value), repr(value))


def strings_in(value: object) -> Iterator[str]:
    """Return all texts in *value* and in its attributes, at any depth, and its URLs unquoted."""
    match value:
        case str():
            yield value
        case bytes():
            yield value.decode("utf-8", "replace")
        case URL():
            yield from (str(value), value.human_repr())
        case Mapping():
            for item in value.items():
                yield from strings_in(item)
        case list() | tuple() | set() | frozenset():
            for item in value:
                yield from strings_in(item)
        case _ if hasattr(value, "__dict__"):
            yield from strings_in(vars(value))
        case _:
            yield repr(value)
