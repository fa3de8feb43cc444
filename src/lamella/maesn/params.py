"""Parse parameters of lists: ``fiscalYear=2026``, or for one list ``openItems:fiscalYear=2026``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from lamella.maesn.sources import checked_params, checked_resource, operation_of
from lamella.redaction import redact_text

_PARAM: Final = re.compile(r"(?:(?P<of>[^:=\s]+):)?(?P<name>[A-Za-z]+)=(?P<value>.+)")


def params_of_lists(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return parameters by list from texts such as ``openItems:fiscalYear=2026``, or raise ValueError."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        of, name, value = _parts(text)
        if of is None:
            raise ValueError(f"{redact_text(repr(text))} must be like openItems:fiscalYear=2026")
        found.setdefault(of, {})[name] = value
    return found


def params_for(texts: Sequence[str], resources: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Return parameters by list, or raise ValueError. Without a list it applies to all *resources* that have it."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        of, name, value = _parts(text)
        if of is not None and of not in resources:
            raise ValueError(f"{redact_text(of)} is not a list of this sync; expected one of: {', '.join(resources)}")
        takers = [each for each in resources if _takes(each, name)] if of is None else [of]
        if not takers:
            raise ValueError(
                f"none of {', '.join(resources)} has a published parameter {name!r}: "
                f"name the list that has it, as in {resources[0]}:{name}=…"
            )
        for each in takers:
            found.setdefault(each, {})[name] = value
    return found


def _parts(text: str) -> tuple[str | None, str, str]:
    parts = _PARAM.fullmatch(text.strip())
    if parts is None:
        raise ValueError(f"{redact_text(repr(text))} must be like fiscalYear=2026 or openItems:fiscalYear=2026")
    [(name, value)] = checked_params({parts["name"]: parts["value"]}).items()
    return None if parts["of"] is None else checked_resource(parts["of"]), name, value


def _takes(resource: str, name: str) -> bool:
    operation = operation_of(resource)
    return operation is None or name in operation.query
