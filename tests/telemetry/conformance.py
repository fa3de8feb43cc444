"""Compare what is emitted with the constants of the conventions and the tables of docs/reference/telemetry.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, UpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, Metric, Sum
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider

SCOPE: Final = "lamella"
EPISODE: Final = "lamella rate limit"
TASK: Final = "lamella maesn task"
PLACES: Final = {EPISODE: "episode", TASK: "task", "lamella dataset sync": "run", "lamella shard": "shard"}
"""The spans that are not about one call, and what the page calls them."""
PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "telemetry.md"
_TICKED = re.compile(r"`([^`]+)`")
_KEYED = "<key>"


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """The tables of a Markdown page, each as its rows by the names of their columns."""
    header: list[str] = []
    rows: list[dict[str, str]] = []
    for line in [*text.splitlines(), ""]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            if rows:
                yield rows
            header, rows = [], []
        elif not header:
            header = cells
        elif set("".join(cells)) - set("-: "):
            rows.append(dict(zip(header, cells, strict=True)))


@dataclass(frozen=True)
class Told:
    """What the page says."""

    spans: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The names by kind, as patterns."""
    attributes: dict[str, str] = field(default_factory=dict)
    """The types by name."""
    on: dict[str, set[str]] = field(default_factory=dict)
    """The attributes of ``call``, ``attempt``, each event and each metric."""
    events: set[str] = field(default_factory=set)
    metrics: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Instrument and unit by name."""
    log_fields: set[str] = field(default_factory=set)
    stop_reasons: set[str] = field(default_factory=set)

    @property
    def all(self) -> set[str]:
        """Whatever can be emitted, as :attr:`Checker.seen` names it."""
        places = {f"{place}: {name}" for place, names in self.on.items() for name in names}
        return {*self.spans, *PLACES, *self.events, *self.metrics, *places}

    @classmethod
    def by(cls, page: Path = PAGE) -> Told:
        told = cls()
        for rows in tables(page.read_text("utf-8")):
            for row in rows:
                first = next(iter(row))
                names = _TICKED.findall(row[first])
                match first:
                    case "span":
                        told.spans[row["kind"]] = (*told.spans.get(row["kind"], ()), *names)
                    case "event":
                        told.events.update(names)
                    case "log field":
                        told.log_fields.update(names)
                    case "stop reason":
                        told.stop_reasons.update(names)
                    case "metric":
                        [name] = names
                        told.metrics[name] = row["instrument"], row["unit"].strip("`")
                        told.on[name] = set(_TICKED.findall(row["attributes"]))
                    case "attribute":
                        [name] = names
                        told.attributes[name] = row["type"]
                        for place in _TICKED.findall(row["on"]):
                            told.on.setdefault(place, set()).add(name)
        return told


def published() -> frozenset[str]:
    """The names of all attributes in the constants package that ours could be among."""
    names = set()
    for module in ("error", "http", "network", "server", "url"):
        for package in ("attributes", "_incubating.attributes"):
            constants = vars(import_module(f"opentelemetry.semconv.{package}.{module}_attributes"))
            names |= {value for name, value in constants.items() if name.isupper() and isinstance(value, str)}
    return frozenset(names)


def published_metrics() -> dict[str, tuple[str, str]]:
    """Instrument and unit of each stable HTTP metric, which its constant has in the comment below it."""
    source = inspect.getsource(import_module("opentelemetry.semconv.metrics.http_metrics"))
    found = re.findall(r'= "([a-z_.]+)"\n"""\n.*\nInstrument: (\w+)\nUnit: (\S+)\n', source)
    return {name: (instrument, unit) for name, instrument, unit in found}


def type_of(value: object) -> str:
    """The name that OpenTelemetry gives to the type of an attribute."""
    if isinstance(value, str | bool | int | float):
        return {str: "string", bool: "boolean", int: "int", float: "double"}.get(type(value), type(value).__name__)
    return "|".join(sorted({f"{type_of(item)}[]" for item in value})) if isinstance(value, Sequence) else "?"


def _keyed(name: str) -> str:
    """``http.request.header.accept`` is one of ``http.request.header.<key>``."""
    return re.sub(r"^(http\.(?:request|response)\.header\.).+", rf"\g<1>{_KEYED}", name)


class Checker:
    """Finds what is emitted and not told."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.published = published()
        self.seen: set[str] = set()
        """The names of all that was emitted, and where: what a page may tell of."""
        self._good: set[object] = set()

    def span(self, span: ReadableSpan) -> list[str]:
        """What is wrong with a span."""
        given = span.attributes or {}
        place = {"INTERNAL": "call", "CLIENT": "attempt"}.get(span.kind.name, "?")
        place = PLACES.get(span.name, place)
        method = given.get("http.request.method", "?")
        shape = (span.name, span.kind, method, given.get("url.template"), _shape(given))
        faults = []
        if shape not in self._good:
            known = {"method": "HTTP" if method == "_OTHER" else method, "url.template": given.get("url.template")}
            filled = [
                "".join(str(known.get(part, part)) for part in re.split(r"[{}]", name))
                for name in self.told.spans.get(span.kind.name, ())
                if "{url.template}" not in name or known["url.template"]
            ]
            # With a template the name has it.
            names = [span.name] if span.name in PLACES else [name for name in filled if name not in PLACES][-1:]
            if span.name not in names:
                faults.append(f"the name of the {span.kind.name} span {span.name!r}, not one of {filled}")
            faults += self._attributes(place, given)
            if not faults:
                self._good.add(shape)
            self.seen.add(span.name if span.name in PLACES else span.kind.name)
        return faults + [fault for event in span.events for fault in self.event(event)]

    def event(self, event: Event) -> list[str]:
        """What is wrong with an event."""
        shape = (event.name, _shape(event.attributes or {}))
        if shape in self._good:
            return []
        faults = [] if event.name in self.told.events else [f"the event {event.name!r}"]
        faults += self._attributes(event.name, event.attributes or {})
        if not faults:
            self._good.add(shape)
        self.seen.add(event.name)
        return faults

    def metric(self, metric: Metric) -> list[str]:
        """What is wrong with a metric."""
        kind = "histogram"
        if isinstance(metric.data, Sum):
            kind = "counter" if metric.data.is_monotonic else "updowncounter"
        faults = []
        instrument, unit = self.told.metrics.get(metric.name, ("", ""))
        if (instrument.removeprefix("observable "), unit) != (kind, metric.unit):
            faults.append(f"the metric {metric.name} as {kind} in {metric.unit}")
        for point in metric.data.data_points:
            faults += self._attributes(metric.name, point.attributes or {})
        self.seen.add(metric.name)
        return faults

    def _attributes(self, place: str, given: Mapping[str, object]) -> list[str]:
        told = self.told
        faults = []
        for given_name, value in given.items():
            name = _keyed(given_name)
            type_ = type_of(value)
            if told.attributes.get(name) != type_:
                faults.append(f"{given_name} as {type_} on {place}, where {told.attributes.get(name)} is documented")
            elif name not in told.on.get(place, ()):
                faults.append(f"{given_name} on {place}")
            base = name.removesuffix(f".{_KEYED}")
            if not name.startswith("lamella.") and base not in self.published:
                faults.append(f"{given_name}, which is neither the conventions' nor under lamella.")
            if value in ("", ()):
                faults.append(f"{given_name} on {place} with an empty value")
            self.seen.add(f"{place}: {name}")
        return faults


def _shape(given: Mapping[str, object]) -> object:
    return frozenset((name, type(value), value in ("", ())) for name, value in given.items())


def _forget_series(reader: InMemoryMetricReader) -> None:
    """Drop what *reader* has collected; the SDK has no public way."""
    consumer = vars(reader)["_collect"].__self__
    vars(vars(consumer)["_reader_storages"][reader])["_instrument_view_instrument_matches"].clear()


class Recorder(SpanProcessor):
    """Sees what any provider of this process is given by lamella, from :meth:`install` on."""

    def __init__(self, checker: Checker | None = None) -> None:
        self.checker = checker or Checker(Told.by())
        self._faults: dict[str, None] = {}
        self._readers: list[InMemoryMetricReader] = []

    def install(self) -> None:
        """Be a processor, and a reader, of each provider that is made."""
        tracer_init: Any = TracerProvider.__init__
        meter_init: Any = MeterProvider.__init__
        resource = Resource.create()  # which takes a millisecond or two

        def init_tracer(provider: TracerProvider, *args: Any, **options: Any) -> None:
            tracer_init(provider, *args, **({"resource": resource} | options))
            provider.add_span_processor(self)

        def init_meter(provider: MeterProvider, metric_readers: Iterable[Any] = (), *args: Any, **options: Any) -> None:
            # Only what is new since the last look: a run of the whole suite does not pile up.
            kinds: tuple[type, ...] = (Counter, Histogram, UpDownCounter)
            delta = dict.fromkeys(kinds, AggregationTemporality.DELTA)
            self._readers.append(InMemoryMetricReader(delta))
            meter_init(provider, [*metric_readers, self._readers[-1]], *args, **({"resource": resource} | options))

        TracerProvider.__init__ = init_tracer  # type: ignore[method-assign,assignment]
        MeterProvider.__init__ = init_meter  # type: ignore[method-assign,assignment]

    def on_end(self, span: ReadableSpan) -> None:
        scope = span.instrumentation_scope
        if scope is not None and scope.name == SCOPE:
            self._faults.update(dict.fromkeys(self.checker.span(span)))

    def faults(self) -> list[str]:
        """What was wrong since the last time that somebody asked."""
        for reader in self._readers:
            if (data := reader.get_metrics_data()) is not None:
                for metrics in (one for resource in data.resource_metrics for one in resource.scope_metrics):
                    if metrics.scope.name == SCOPE:
                        for metric in metrics.metrics:
                            self._faults.update(dict.fromkeys(self.checker.metric(metric)))
        # All but the global one's are as long-lived as their test. The global one's would keep, and collect each time,
        # a series for each port of a server that there was.
        del self._readers[1:]
        for reader in self._readers:
            _forget_series(reader)
        faults, self._faults = list(self._faults), {}
        return faults
