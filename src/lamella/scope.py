"""Options and a total time limit for the calls made inside a block."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from math import inf
from typing import Final, NamedTuple, TypedDict, Unpack

from lamella.checks import check_kind, check_options, check_seconds, check_whole
from lamella.rules import RuleBook, check_rules


class CallOptions(TypedDict, total=False):
    """The options of :func:`options`, which explains them."""

    attempts: int
    attempt_timeout: float | None
    deadline: float | None
    buffer: int | None
    retry_writes: bool
    raise_errors: bool
    rules: RuleBook


TAKERS: Final[dict[str, tuple[object, tuple[str, ...]]]] = {
    "attempts": (1, ("Retry",)),
    "attempt_timeout": (None, ("Timeout",)),
    "deadline": (None, ("Retry",)),
    "buffer": (None, ("Buffer",)),
    "retry_writes": (False, ("Retry",)),
    "raise_errors": (False, ("Classify",)),
    "rules": (None, ("Retry", "Classify")),
}
"""For each option: the value that a session without its layer behaves by, and the layers that take the option."""


class Scope(NamedTuple):
    """The settings that calls inherit from their context."""

    options: CallOptions | None = None
    """Also apply to tasks started inside."""
    shared: float = inf
    """The deadline of calls, including those of tasks started inside, by the loop's clock. inf: no limit."""
    own: float = inf
    """The deadline for *task* only."""
    task: weakref.ref[asyncio.Task[object]] | None = None


NOTHING: Final = Scope()
"""The scope outside all blocks."""
SCOPE: Final[ContextVar[Scope]] = ContextVar("lamella_scope", default=NOTHING)


class Block:
    """A ``with`` or ``async with`` block. Use it once."""

    __slots__ = ("_options", "_seconds", "_token")

    def __init__(self, options: CallOptions, seconds: float = inf) -> None:
        self._options = options
        self._seconds = seconds
        self._token: Token[Scope] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError("this block has already been entered: create a new one for each with statement")
        outer = SCOPE.get()
        end = inf if self._seconds == inf else asyncio.get_running_loop().time() + self._seconds
        options: CallOptions = {**(outer.options or {}), **self._options}
        self._token = SCOPE.set(outer._replace(options=options or None, shared=min(end, outer.shared)))

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            leave(self._token)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


def options(**given: Unpack[CallOptions]) -> Block:
    """Return a block that changes options of the stack for calls made inside, including tasks started inside.

    ``with`` and ``async with`` both work. In nested blocks the inner value applies. A call made by a layer or a
    function of the stack during a call, such as a token request, is not affected. If a session lacks the layer of an
    option, its calls raise ValueError, unless the value matches the session's behaviour anyway, such as ``attempts=1``
    without ``Retry``.

    Args:
        attempts: Maximum number of attempts of a call. 1 means no retries.
        attempt_timeout: Maximum duration of one attempt in seconds. None means no limit.
        deadline: Maximum duration of each call in seconds. None means no limit. See :func:`deadline` for a limit on all
            calls together.
        buffer: Maximum size in bytes of a body that is read inside the attempt. None means that all bodies are streams.
        retry_writes: Whether methods that are not idempotent are retried.
        raise_errors: Whether an error status raises. If not, the last response is returned.
        rules: The meaning of each status, and the waits.

    Raises:
        TypeError: An option is unknown.
        ValueError: A value is out of range.
    """
    check_options("options", given, CallOptions.__annotations__)
    check_values(given)
    return Block(given)


def check_values(given: Mapping[str, object]) -> None:
    """Raise ValueError if a value of the options *given* to :func:`options` is out of range."""
    for name, value in given.items():
        if name == "rules":
            check_rules(value, "options(rules=")
        elif name in {"retry_writes", "raise_errors"}:
            check_kind(name, value, bool, "True or False")
        elif value is not None or name == "attempts":
            (check_whole if name in {"attempts", "buffer"} else check_seconds)(name, value)


def deadline(seconds: float) -> Block:
    """Return a block whose calls may take *seconds* in total, including all attempts and waits.

    It applies to the current task and to tasks started inside. In nested blocks, or inside a call with a deadline (for
    example in a function of :class:`lamella.HeaderAuth`), the earlier end applies. ``Retry`` enforces it: a call that
    cannot end in time fails at once with ``StopReason.DEADLINE``. ``with`` and ``async with`` both work.

    A task started inside a call, such as a token refresh shared by several calls, inherits neither the deadline of that
    call nor that of a surrounding block.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
        RuntimeError: No event loop is running when the block is entered.
    """
    check_seconds("the deadline", seconds)
    return Block({}, seconds)


@contextmanager
def inherited_deadline(moment: float | None) -> Iterator[None]:
    """Set the deadline *moment*, by the loop's clock, for calls of the current task, unless there is an earlier one.

    Tasks started inside inherit neither. None: no deadline to add.
    """
    token = enter(moment)
    try:
        yield
    finally:
        leave(token)


def enter(moment: float | None) -> Token[Scope]:
    """Begin :func:`inherited_deadline`; *leave* ends it."""
    outer, task = inherited(), asyncio.current_task()
    own = min(inf if moment is None else moment, inf if outer is None else outer)
    # A weak reference, because a task started inside may outlive this one and must not keep its result alive.
    return SCOPE.set(Scope(own=own, task=None if task is None else weakref.ref(task)))


def leave(token: Token[Scope]) -> None:
    """End :func:`inherited_deadline` after *enter*."""
    with suppress(ValueError):  # discarded in another context, where it does not matter
        SCOPE.reset(token)


def inherited() -> float | None:
    """Return the deadline of surrounding calls, by the loop's clock; None if unlimited."""
    scope = SCOPE.get()
    if scope is NOTHING:
        return None
    moment = scope.shared
    if scope.own < moment and (scope.task is None or scope.task() is asyncio.current_task()):
        moment = scope.own
    return None if moment == inf else moment
