"""Find the parts of an account that have a limit of their own: a method, a path, or the paths below one.

An account that is used up refuses every request. If the attempts of one part are refused again and again while attempts
of other parts pass, sent between the refused ones, the limit is that of the part. Chance, a bucket and a maximum in
flight also refuse some attempts and let others pass, but they do not choose by method and path. After a refused attempt
of a part, N others that pass and then another refused one of that part have at most the probability
N**N / (N + 1)**(N + 1), whatever the share of the part is. The retry of a refused call shows nothing: it comes a fixed
wait later, when a window that others use up may be used up again. The part is split off when the product of these
probabilities is small. If the part and the rest of the account are then refused together, they share a limit after all,
and the part is merged again, unless none of its attempts passes.

Everything here is pure arithmetic on JSON values, without a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final

from lamella.throttle.estimate import SLOW_START, Permit, RateEstimate

_PROOF: Final = 1e-4  # a part is split off when its refusals are a coincidence with at most this probability
_LIKELY: Final = 0.02  # with at most this one, a refusal of the part says nothing about the rest
_ALONE: Final = 0.25  # ... or with this one, if the attempt was alone and nothing is known about the account
_DOUBT: Final = 16.0  # an attempt of the part that passes multiplies this probability by this much
_SAME: Final = 0.7  # an attempt shows nothing about one with more others in flight: a smaller share than this
_SUSPECTS: Final = 64  # maximum number of suspected parts
_RECENT: Final = 64  # attempts that passed to remember
_FORGET: Final = 1000  # attempts that pass without a refusal end all suspicion
_TOGETHER: Final = 2  # consecutive refusals of a part and of the rest, with no success between, that merge them


@dataclass(eq=False, repr=False, slots=True)
class Suspect:
    """A part whose attempts have been refused."""

    sent_at: float = -1.0  # when its last refused attempt was sent. Negative: an attempt of the part has passed since
    at: float = -1.0  # when its last refusal came. Attempts sent before may have reached the server in any order
    chance: float = 1.0  # the probability that its refusals are a coincidence
    refused: int = 0  # those since `PartEvidence.before`


@dataclass(eq=False, repr=False, slots=True)
class Split:
    """A part that has been split off."""

    refused_at: float = -1.0  # when its last refused attempt was sent. Negative: the rest has passed since then
    together: int = 0  # consecutive refusals of the part and the rest, with no success of the rest between
    is_counted: bool = False  # whether the current refusals are counted
    has_passed: bool = False  # whether an attempt of the part has passed since the last ones that were counted


@dataclass(eq=False, repr=False, slots=True)
class PartEvidence:
    """The evidence of an account that was refused. Times are those when attempts were sent."""

    before: RateEstimate = field(default_factory=RateEstimate)  # the estimate before refusals that one part explains
    refusals: int = 0  # since then
    suspects: dict[str, Suspect] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)
    passed: list[tuple[float, int]] = field(default_factory=list)  # when sent, and the number in flight with it
    passes: int = 0  # since the last refusal
    refused_at: float = -1.0  # when the last refused attempt of the rest was sent. Negative: the rest has passed since

    def has_passed(self, parts: Sequence[str], permit: Permit) -> None:
        """Note an attempt of the rest that has passed."""
        self.passed.append((permit.at, permit.among))
        del self.passed[:-_RECENT]
        self.passes += 1
        for part in parts:
            suspect = self.suspects.get(part)
            if suspect is None or permit.at < suspect.sent_at:
                continue
            suspect.sent_at, suspect.chance = -1.0, min(suspect.chance * _DOUBT, 1.0)
        if self.passes > _FORGET:
            self._forget()
        if self.refused_at < permit.at:
            self.refused_at = -1.0
        for split in self.splits.values():
            if 0 <= split.refused_at < permit.at:
                split.together = split.together if split.is_counted else 0
                split.refused_at, split.is_counted = -1.0, False

    def was_refused(
        self, parts: Sequence[str], now: float, permit: Permit, estimate: RateEstimate, *, is_first: bool, alone: bool
    ) -> tuple[str, bool] | None:
        """Note a refused attempt of the rest. Return a part, and whether it is proven that it has a limit of its own.

        *estimate* is that of the account. *is_first*: the call was not refused before. *alone*: no other attempt was in
        flight. None: the refusal may be the account's.
        """
        if not any(part in self.suspects and self.suspects[part].refused == self.refusals for part in parts):
            self.before, self.refusals = copied(estimate), 0
            for suspect in self.suspects.values():
                suspect.refused = 0
        self.refusals += 1
        self.passes = 0
        for part in parts:
            suspect = self.suspects.pop(part) if part in self.suspects else Suspect()
            if is_first or suspect.sent_at < 0:
                if suspect.sent_at >= 0:
                    number = self._passed_between(max(suspect.at, suspect.sent_at), permit)
                    suspect.chance *= number**number / (number + 1) ** (number + 1)
                suspect.sent_at, suspect.at = max(suspect.sent_at, permit.at), now
            suspect.refused += 1
            self.suspects[part] = suspect
        for part in list(self.suspects)[:-_SUSPECTS]:
            del self.suspects[part]
        self.refused_at = max(self.refused_at, permit.at)
        found = min(parts, key=lambda part: self.suspects[part].chance)
        chance = self.suspects[found].chance
        return (found, chance <= _PROOF) if chance <= (_ALONE if alone and self.before.untouched else _LIKELY) else None

    def suspicion(self, parts: Sequence[str]) -> int:
        """Return how many parts of a request were refused twice. A request with fewer tests better what is refused."""
        found = [self.suspects[part] for part in parts if part in self.suspects]
        return sum(suspect.sent_at >= 0 and suspect.refused > 1 for suspect in found)

    def split(self, part: str) -> bool:
        """Split off *part*. Return whether it explains all refusals."""
        explains = self.suspects[part].refused == self.refusals
        self.splits[part] = Split()
        self._forget()
        return explains

    def restore(self, estimate: RateEstimate) -> None:
        """Undo in *estimate* what was learned since `before`, but not the attempts that were sent."""
        for each in fields(estimate):
            if each.name not in {"log", "sent_at", "fastest", "generation"}:
                setattr(estimate, each.name, getattr(self.before, each.name))
        # The rest may have a limit that was never reached, so its attempts increase slowly again.
        estimate.max_in_flight = min(estimate.max_in_flight, SLOW_START)

    def part_has_passed(self, part: str) -> None:
        """Note an attempt of a part that has passed. One that never passes does not share the limit of the rest."""
        if part in self.splits:
            self.splits[part].has_passed = True

    def to_merge(self, part: str, permit: Permit) -> list[str]:
        """Note a refusal of *part*. Empty: of the rest. Return the parts that share the limit of the rest."""
        for name, split in self.splits.items():
            if part == name:
                split.refused_at = permit.at
            together = part in {"", name} and min(self.refused_at, split.refused_at) >= 0
            if together and split.has_passed and not split.is_counted:
                split.together += 1
                split.is_counted, split.has_passed = True, False
        merged = [name for name, split in self.splits.items() if split.together >= _TOGETHER]
        for name in merged:
            del self.splits[name]
        return merged

    def _forget(self) -> None:
        self.suspects.clear()
        self.passed.clear()
        self.refusals, self.passes, self.refused_at = 0, 0, -1.0

    def _passed_between(self, began: float, permit: Permit) -> int:
        return sum(began < at < permit.at and among >= _SAME * permit.among for at, among in self.passed)


def copied(estimate: RateEstimate) -> RateEstimate:
    """Return a copy for :meth:`PartEvidence.restore`."""
    return replace(estimate, log=[], stated={name: list(values) for name, values in estimate.stated.items()})
