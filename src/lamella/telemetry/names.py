"""Names of spans, events and attributes, explained in docs/reference/telemetry.md.

Names under ``http.``, ``url.``, ``server.``, ``network.`` and ``error.`` are OpenTelemetry's HTTP semantic conventions;
those under ``lamella.`` are ours.
"""

from __future__ import annotations

from functools import cache
from typing import Final

ERROR_TYPE = "error.type"
METHOD = "http.request.method"
METHOD_ORIGINAL = "http.request.method_original"
PEER_ADDRESS = "network.peer.address"
PEER_PORT = "network.peer.port"
PROTOCOL_VERSION = "network.protocol.version"
REQUEST_HEADER = "http.request.header."
REQUEST_SIZE = "http.request.body.size"
RESEND_COUNT = "http.request.resend_count"
RESPONSE_HEADER = "http.response.header."
RESPONSE_SIZE = "http.response.body.size"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
STATUS = "http.response.status_code"
URL_FULL = "url.full"
URL_TEMPLATE = "url.template"

ATTEMPT = "lamella.attempt"
ATTEMPTS = "lamella.attempts"
ATTEMPTS_LEFT = "lamella.attempts_left"
DEADLINE_LEFT = "lamella.deadline_left"
OUTCOME = "lamella.outcome"
REQUEST_ID = "lamella.request_id"
RULE = "lamella.rule"
STOP_REASON = "lamella.stop_reason"
WAIT = "lamella.wait"
WAIT_SOURCE = "lamella.wait_source"

CIRCUIT_FAILURES = "lamella.circuit.failures"
CIRCUIT_OPEN_FOR = "lamella.circuit.open_for"
CIRCUIT_ATTEMPTS = "lamella.circuit.attempts"
CIRCUIT_STATE = "lamella.circuit.state"
CIRCUIT_WAS_OPEN = "lamella.circuit.was_open"
QUEUE_WAIT = "lamella.queue_wait"
ERRORS = "lamella.errors"
KEY_HASH = "lamella.key_hash"
LIMIT = "lamella.limit.requests"
LIMIT_IN_FLIGHT = "lamella.limit.in_flight"
LIMIT_KIND = "lamella.limit.kind"
LIMIT_PART = "lamella.limit.part"
LIMIT_PERIOD = "lamella.limit.period"
QUEUED = "lamella.queued_calls"
QUEUED_BY = "lamella.queued_by"
REFUSED = "lamella.refused_attempts"
RUN = "lamella.run"
SHARD = "lamella.shard"
TASK_POLLS = "lamella.task.polls"
TASK_STATUS = "lamella.task.status"
TOKEN_RESULT = "lamella.token.result"  # noqa: S105 - a name

EPISODE = "lamella rate limit"
SHARD_SPAN = "lamella shard"
SYNC_SPAN = "lamella dataset sync"
TASK_SPAN = "lamella maesn task"
CIRCUIT_CLOSE_EVENT = "lamella.circuit.close"
CIRCUIT_OPEN_EVENT = "lamella.circuit.open"
BELIEF_EVENT = "lamella.rate_limit_belief"
GUARD_EVENT = "lamella.too_many_errors"
QUEUED_EVENT = "lamella.queued"
RETRY_EVENT = "lamella.retry"
STORE_EVENT = "lamella.store_failed"
STOP_EVENT = "lamella.stop"
TOKEN_EVENT = "lamella.token"  # noqa: S105 - a name

OTHER = "_OTHER"

SCHEMA: Final = "https://opentelemetry.io/schemas/1.30.0"
"""The version of the conventions."""


@cache
def version_of_lamella() -> str:
    """Return the version of the package for tracer and meter."""
    from importlib.metadata import version  # slow to import

    return version("lamella")
