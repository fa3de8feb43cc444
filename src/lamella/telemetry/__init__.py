"""Spans, events, metrics and log lines."""

__all__: list[str] = []
