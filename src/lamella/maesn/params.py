"""Parameters of lists: ``fiscalYear=2026``, or of one list ``openItems:fiscalYear=2026``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from lamella.maesn.sources import checked_params, checked_resource, operation_of
from lamella.redaction import redact_text

_PARAM: Final = re.compile(r"(?:(?P<of>[^:=\s]+):)?(?P<name>[A-Za-z]+)=(?P<value>.+)")


def params_of_lists(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the parameters by their lists, from texts such as ``openItems:fiscalYear=2026``.

    Raises:
        ValueError: A text is not like that, or names no list or no parameter.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        of, name, value = _parts(text)
        if of is None:
            raise ValueError(f"{redact_text(repr(text))} is not like openItems:fiscalYear=2026")
        found.setdefault(of, {})[name] = value
    return found


def params_for(texts: Sequence[str], resources: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """Return the parameters by their lists. One that names no list is for each of *resources* that has it.

    Raises:
        ValueError: A text is not like ``fiscalYear=2026``, or no list has the parameter.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        of, name, value = _parts(text)
        if of is not None and of not in resources:
            raise ValueError(f"{redact_text(of)} is none of the lists that are read: {', '.join(resources)}")
        takers = [each for each in resources if _takes(each, name)] if of is None else [of]
        if not takers:
            raise ValueError(
                f"none of {', '.join(resources)} has a parameter {name!r}, by what is published: "
                f"name the list that has it, as in {resources[0]}:{name}=…"
            )
        for each in takers:
            found.setdefault(each, {})[name] = value
    return found


def _parts(text: str) -> tuple[str | None, str, str]:
    parts = _PARAM.fullmatch(text.strip())
    if parts is None:
        raise ValueError(f"{redact_text(repr(text))} is not like fiscalYear=2026 or openItems:fiscalYear=2026")
    [(name, value)] = checked_params({parts["name"]: parts["value"]}).items()
    return None if parts["of"] is None else checked_resource(parts["of"]), name, value


def _takes(resource: str, name: str) -> bool:
    operation = operation_of(resource)
    return operation is None or name in operation.query
