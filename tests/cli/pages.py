"""An HTML page, parsed."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any

__all__ = ["Page"]


VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """A parsed page. Parsing fails where a tag is not closed or an id occurs twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        assert [name for name, times in self.ids.items() if times > 1] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.tags.append((tag, attributes))
        if name := attributes.get("id"):
            self.ids[name] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> list[dict[str, Any]]:
        [data, _] = self.texts["script"]
        found = json.loads(data)
        assert isinstance(found, list)
        return found

    @property
    def policy(self) -> str:
        [policy] = [meta["content"] for meta in self.of("meta") if "http-equiv" in meta]
        return str(policy)
