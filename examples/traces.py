"""Print a trace with every attempt and every decision.

    pip install 'lamella[sdk]'
    python examples/traces.py

For a real backend put `OTLPSpanExporter(endpoint="http://localhost:4318/v1/traces")` in the place of the printer.
"""

from __future__ import annotations

import asyncio

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from lamella import maesn
from lamella.maesn.sandbox import Sandbox


def line(span: ReadableSpan) -> str:
    events = [f"{event.name} {dict(event.attributes or {})}" for event in span.events]
    return "\n    ".join([f"{span.name} {span.kind.name} {dict(span.attributes or {})}", *events]) + "\n"


async def main() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
    async with Sandbox() as sandbox:
        sandbox.script(429, 500)
        async with maesn.session(
            sandbox.api_key,
            sandbox.account_key,
            sandbox.url,
            rules=maesn.RULES.scaled(0.001),
            tracer_provider=provider,
        ) as session:
            await session.get("/accounting/invoices")
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
