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
"""The value of each option that a session behaves by without its layer, and the layers that take the option."""


class Scope(NamedTuple):
    """What the calls made in a context inherit."""

    options: CallOptions | None = None
    """Hold for the tasks started inside as well."""
    shared: float = inf
    """When the calls must have ended, by the loop's clock, those of tasks started inside as well. inf: no limit."""
    own: float = inf
    """The same for *task* alone."""
    task: weakref.ref[asyncio.Task[object]] | None = None


NOTHING: Final = Scope()
"""Outside of all blocks."""
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
            raise RuntimeError("this block was entered before: make a new one for each with statement")
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
    """Return a block that changes options of the stack for the calls made inside, also by tasks started inside.

    ``with`` and ``async with`` both work. Inside another block the inner value counts. A call that a layer or a
    function of the stack makes inside a call, such as a token request, takes none of these options. A call through a
    session without the layer of an option raises ValueError, unless the option says what such a session does anyway,
    such as ``attempts=1`` without ``Retry``.

    Args:
        attempts: How many attempts a call has. 1 means no retries.
        attempt_timeout: How many seconds one attempt may take. None means no limit.
        deadline: How many seconds each call may take. None means no limit. See :func:`deadline` for all calls together.
        buffer: The number of bytes of a body that are read inside the attempt. None means that each body is a stream.
        retry_writes: Whether methods that are not idempotent are sent again.
        raise_errors: Whether an error status is raised. If not, the last answer is returned.
        rules: What each status means, and the waits.

    Raises:
        TypeError: There is no option of that name.
        ValueError: A value is out of its range.
    """
    check_options("options", given, CallOptions.__annotations__)
    check_values(given)
    return Block(given)


def check_values(given: Mapping[str, object]) -> None:
    """Check the values of the options *given*, each of :func:`options`.

    Raises:
        ValueError: One is out of its range.
    """
    for name, value in given.items():
        if name == "rules":
            check_rules(value, "options(rules=")
        elif name in {"retry_writes", "raise_errors"}:
            check_kind(name, value, bool, "True or False")
        elif value is not None or name == "attempts":
            (check_whole if name in {"attempts", "buffer"} else check_seconds)(name, value)


def deadline(seconds: float) -> Block:
    """Return a block whose calls take *seconds* altogether, with all their attempts and waits.

    It holds for the current task and for the tasks started inside. Inside another block, or inside a call that has a
    deadline (such as the one that a function of :class:`lamella.HeaderAuth` is asked for), the earlier end counts.
    ``Retry`` enforces it: a call that cannot end in time fails at once, with ``StopReason.DEADLINE``. ``with`` and
    ``async with`` both work.

    A task that is started inside a call, such as the refresh of a token that other calls wait for as well, inherits
    neither the deadline of that call nor that of a block around it.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
        RuntimeError: No event loop is running when the block is entered.
    """
    check_seconds("the deadline", seconds)
    return Block({}, seconds)


@contextmanager
def inherited_deadline(moment: float | None) -> Iterator[None]:
    """Pass *moment*, by the loop's clock, on to the calls that the current task makes, unless there is an earlier one.

    The tasks started inside inherit neither. None: there is no moment to add.
    """
    token = enter(moment)
    try:
        yield
    finally:
        leave(token)


def enter(moment: float | None) -> Token[Scope]:
    """Begin what :func:`inherited_deadline` does; *leave* ends it."""
    outer, task = inherited(), asyncio.current_task()
    own = min(inf if moment is None else moment, inf if outer is None else outer)
    # A weak reference: a task started inside may outlive this one, and must not keep its result alive.
    return SCOPE.set(Scope(own=own, task=None if task is None else weakref.ref(task)))


def leave(token: Token[Scope]) -> None:
    """End what *enter* has begun."""
    with suppress(ValueError):  # thrown away in another context, where it does not matter
        SCOPE.reset(token)


def inherited() -> float | None:
    """Return when the calls around this one must have ended, by the loop's clock. None: there is no limit."""
    scope = SCOPE.get()
    if scope is NOTHING:
        return None
    moment = scope.shared
    if scope.own < moment and (scope.task is None or scope.task() is asyncio.current_task()):
        moment = scope.own
    return None if moment == inf else moment
