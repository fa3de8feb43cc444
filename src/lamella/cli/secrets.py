"""The credentials of a sync, which no text may show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Secrets:
    """The API key, and the account keys by account name."""

    api_key: str = field(default="", repr=False)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def all(self) -> tuple[str, ...]:
        """All of them. To look for each in a text takes long if there are many."""
        return (self.api_key, *self.keys.values())

    def of(self, account: str) -> tuple[str, ...]:
        """Those that the requests of an account carry, so that a text about it may contain them."""
        return (self.api_key, self.keys.get(account, ""))


NO_SECRETS: Final = Secrets()
