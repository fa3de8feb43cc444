from __future__ import annotations

import pytest

from lamella.cli.terminal import between, count, duration
from lamella.redaction import redact_text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.00004, "0 ms"),
        (0.0032, "3.2 ms"),
        (0.0412, "41 ms"),
        (0.5, "500 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.234, "1.23 s"),
        (15, "15 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (66, "1 min 6 s"),
        (480, "8 min"),
        (3600, "1 h"),
        (3661, "1 h 1 min 1 s"),
        (7200.4, "2 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_range_of_seconds_is_formatted() -> None:
    assert between(60, 66) == "1 min – 1 min 6 s"
    assert between(60, 60.2) == "1 min"


def test_count() -> None:
    assert [count(number, "call") for number in (0, 1, 2)] == ["0 calls", "1 call", "2 calls"]


def test_plain_text_cannot_move_the_cursor() -> None:
    assert redact_text("a\x1b[2J\r\nb\x9b1m\u202e[red]") == "a [2J b 1m [red]"
