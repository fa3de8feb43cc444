"""What the layers of one call know in common. It travels on the request, which each of them sees, and ends with it."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from yarl import URL

from lamella.policy import Rule, StopReason
from lamella.redaction import secrets_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from lamella.errors import AttemptRecord, NotSent
    from lamella.telemetry import Instruments

__all__ = ["ORDER", "Call", "Circuit", "note_redirect", "secrets_of", "sent_before"]

ORDER: Final = (
    "RequestSpan",
    "Breaker",
    "Retry",
    "Throttle",
    "AttemptSpan",
    "Timeout",
    "HeaderAuth",
    "Buffer",
    "Classify",
)
"""The layers from the outside in. The one place that knows the order."""

_REPEATABLE: Final = frozenset({"HeaderAuth"})
_KEY: Final = "_lamella_call"


class Circuit(Protocol):
    """What ``Retry`` asks and tells the ``Breaker`` that it stands inside of."""

    async def failed(self, error: BaseException) -> None:
        """A send has ended in *error*."""

    async def open_for(self) -> float:
        """For how many seconds no send can pass; 0.0 while the circuit is closed or half-open."""
        ...

    async def admit(self) -> bool:
        """Whether one more send may pass now."""
        ...


class Call:
    """One call, or one hop of a call that is redirected: aiohttp makes a new request for each."""

    __slots__ = (
        "answer",
        "auth_headers",
        "circuit",
        "deadline",
        "gate_wait",
        "inside",
        "instruments",
        "interrupted",
        "parked",
        "records",
        "refusal",
        "rule",
        "secrets",
        "sends",
        "sent_before",
        "server",
        "span",
        "stopped",
        "taken_over",
        "turn",
    )

    def __init__(self) -> None:
        self.inside = -1
        """The rank of the layer that is running now."""
        self.deadline: float | None = None
        """When the call must have ended, by the loop's clock."""
        self.circuit: Circuit | None = None
        """What the ``Breaker`` knows of the service."""
        self.parked: tuple[float, float] | None = None
        """Since when it waited at its gate, and until when that was closed, by the loop's clock. None: it did not."""
        self.gate_wait = 0.0
        """Seconds that it waited at its gate, all in all."""
        self.refusal: NotSent | None = None
        """Why it was not sent."""
        self.turn: int | None = None
        """Its place in the order in which calls came to their gate: a re-send keeps it."""
        self.taken_over: list[tuple[Any, Any]] = []
        """What another instrumentation had begun for this call, and the span it had begun."""
        self.sent_before = 0
        """How many of the sends were of earlier hops of a redirect."""
        self.sends = 0
        """How often it was sent, as far as ``AttemptSpan`` saw."""
        self.records: list[AttemptRecord] = []
        self.stopped: StopReason | None = None
        self.rule: Rule | None = None
        """The rule that applied when it stopped."""
        self.span: Span | None = None
        """The span of the whole call."""
        self.answer: aiohttp.ClientResponse | None = None
        """The answer to the send that is being made, which a layer below may have turned into an error."""
        self.server: Mapping[str, AttributeValue] = {}
        """What its metrics say of the request: method and server."""
        self.instruments: Instruments | None = None
        """Where ``RequestSpan`` counts, for what only ``Retry`` knows of."""
        self.interrupted = False
        """Whether a send ended before all of its body was written."""
        self.auth_headers: frozenset[str] = frozenset()
        """The names of the headers that an auth layer has set."""
        self.secrets: tuple[str, ...] = ()
        """The values that an auth layer has set: they are shown nowhere."""

    @staticmethod
    def of(request: aiohttp.ClientRequest) -> Call:
        """The call that *request* belongs to."""
        state = vars(request)
        call: Call | None = state.get(_KEY)
        if call is None:
            call = state[_KEY] = Call()
        return call

    def enter(self, rank: int) -> int:
        """Note that the layer of *rank* begins; returns the rank to set ``inside`` back to when it ends.

        Raises:
            ValueError: The layer stands inside one that belongs further in, or twice.
        """
        outside = self.inside
        if rank <= outside and not (rank == outside and ORDER[rank] in _REPEATABLE):
            inner, outer = ORDER[rank], ORDER[outside]
            fault = f"{inner} stands twice" if rank == outside else f"{inner} stands inside of {outer}"
            raise ValueError(
                f"the middlewares are in a wrong order: {fault}. "
                f"From the outside in, the first in the list being the outermost, it is {', '.join(ORDER)}. "
                "lamella.stack() and lamella.in_order() put them right."
            )
        self.inside = rank
        return outside


# What a redirect has to hand over to the next hop, which aiohttp makes a new request for: where it leads, how often
# the call was sent, and a list that all the requests of a call share, by which one is told from another.
_redirected: ContextVar[tuple[str, int, object] | None] = ContextVar("lamella_redirected", default=None)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def sent_before(request: aiohttp.ClientRequest) -> int:
    """How often the call was sent before *request*, the next hop of a redirect, was made."""
    redirected = _redirected.get()
    if redirected is None:
        return 0
    _redirected.set(None)
    target, sends, shared = redirected
    return sends if target == str(request.url) and shared is getattr(request, "_traces", None) else 0


def note_redirect(request: aiohttp.ClientRequest, response: aiohttp.ClientResponse, sends: int) -> None:
    """Remember how often the call was sent, for the hop that *response* may lead to."""
    if response.status in _REDIRECTS and (target := response.headers.get("Location")):
        with suppress(ValueError):
            url = response.url.join(URL(target)).with_fragment(None)
            _redirected.set((str(url), sends, getattr(request, "_traces", None)))


def secrets_of(request: aiohttp.ClientRequest) -> tuple[str, ...]:
    """Whatever in *request* may be a secret, to be taken out of every text about it."""
    return secrets_in(request.url, request.headers, Call.of(request).secrets)
