"""What a cron job's mail has in it: enough, and never much."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from tests.cli.progress import Story, api_error, story
from yarl import URL

from lamella import CircuitOpen, ConnectFailed, Failure, StopReason, maesn
from lamella.cli.display import Lines
from lamella.sync import Part


class Mail:
    """The lines that come."""

    def __init__(self, made: Story) -> None:
        self.story = made
        self.lines: list[str] = []
        self._lines = Lines(made.watch().look, self.lines.append, made.clock)

    def draw(self, seconds: float = 1.0, *changed: Part) -> list[str]:
        """The lines that come when so many seconds have passed, and these parts have changed."""
        before = len(self.lines)
        self.story.now += seconds
        self.story.take(*changed)
        self._lines.draw()
        return self.lines[before:]


def done(name: str, pages: int = 1) -> Part:
    return Part(name, "x", None, pages=pages, total_pages=pages, records=pages * 100, done=True)


def parts(many: int) -> Iterable[Part]:
    return (Part(f"account {number}", "x", None) for number in range(many))


def test_nothing_is_printed_before_the_sync_begins() -> None:
    lines: list[str] = []
    Lines(lambda: None, lines.append).draw()
    assert lines == []


def test_a_small_sync_prints_a_line_per_account() -> None:
    mail = Mail(story([Part("Ada", "x", None), Part("Ada", "y", None), Part("Bob", "x", None), done("Eve")]))
    mail.story.resumed = True
    mail.story.take(Part("Eve", "x", None, pages=1, total_pages=1, done=True, skipped=True))
    mail.story.run = 7
    assert mail.draw() == [
        "09:30:01  run 7, resumed: 3 accounts, 3 parts to read",
        "09:30:01  Eve: done, 1 page, 0 records",
    ]
    assert mail.draw() == []
    assert mail.draw(1, done("Bob", 3)) == ["09:30:03  Bob: done, 3 pages, 300 records"]
    failed = Part("Ada", "x", None, error=api_error(404))
    assert mail.draw(1, failed) == ["09:30:04  Ada: failed (x): 404: Check the path and the id"]
    assert mail.draw(1, Part("Ada", "y", None, error=api_error(404))) == [], "once for an account"


@pytest.mark.slow
def test_totals_are_printed_less_and_less_often() -> None:
    mail = Mail(story(Part(f"account {number}", "x", None, pages=9, total_pages=99) for number in range(30)))
    moments = [second for second in range(5, 3 * 3600, 5) if mail.draw(5) and second > 5]
    assert moments[:4] == [30, 60, 90, 120]
    assert len(moments) < 30
    assert mail.lines[1] == "09:30:30  270 of 2,970 pages, 0 of 30 parts done, 0 failed, 0.0 pages/s"


def test_an_outage_gets_a_line() -> None:
    mail = Mail(story(parts(30)))
    mail.draw()
    mail.story.outage = api_error(503)
    assert mail.draw() == ["09:30:02  the API is down: 503 Service Unavailable; pages wait until it is back"]
    assert mail.draw(20) == []
    mail.story.outage = None
    assert mail.draw() == ["09:30:23  the API is back after 20 s"]


def test_an_outage_line_states_the_network_error() -> None:
    mail = Mail(story(parts(30)))
    mail.draw()
    rule = maesn.RULES.rule_for(Failure.CONNECT_FAILED)
    mail.story.outage = ConnectFailed("GET", URL("https://api.maesm.dev/"), rule, "Name or service not known")
    assert mail.draw() == [
        "09:30:02  the API is down: Connection Failed (Name or service not known); pages wait until it is back"
    ]


def test_an_outage_line_waits_for_its_cause() -> None:
    mail = Mail(story(parts(30)))
    mail.draw()
    rule = maesn.RULES.rule_for(Failure.CIRCUIT_OPEN)
    url = URL("https://api.maesn.dev/")
    mail.story.outage = CircuitOpen("GET", url, rule, since=1, until=30, stopped=StopReason.CIRCUIT_OPEN)
    assert mail.draw() == []
    mail.story.outage = api_error(503)
    assert mail.draw() == ["09:30:03  the API is down: 503 Service Unavailable; pages wait until it is back"]
    mail.story.outage = None
    assert mail.draw() == ["09:30:04  the API is back after 1 s"]
    mail.story.outage = CircuitOpen("GET", url, rule, since=1, until=30, stopped=StopReason.CIRCUIT_OPEN)
    assert mail.draw() == []
    assert mail.draw(6)[0].startswith("09:30:11  the API is down: Circuit Open")


def test_a_long_queued_account_gets_a_line() -> None:
    mail = Mail(story(parts(30)))
    mail.story.closed = {"account 1": 70.0}
    assert len(mail.draw()) == 1, "a minute is nothing"
    mail.story.closed = {"account 1": 480.0}
    assert mail.draw() == ["09:30:02  account 1: queued until 09:38:02 by its rate limit"]
    mail.story.closed = {"account 1": 400.0}
    assert mail.draw(10) == []
    mail.story.closed = {}
    mail.draw()
    mail.story.closed = {"account 1": 960.0}
    assert mail.draw() == ["09:30:14  account 1: queued until 09:46:14 by its rate limit"]


def test_successful_accounts_among_many_get_no_line() -> None:
    mail = Mail(story(parts(21)))
    mail.draw()
    assert mail.draw(1, done("account 3")) == []
    assert len(mail.draw(1, Part("account 4", "x", None, error=api_error(403)))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fail", [False, True])
def test_500_accounts_give_a_short_output_for_any_outcome(fail: bool) -> None:
    def ends(name: str) -> Part:
        return Part(name, "x", None, error=api_error(403)) if fail else done(name)

    mail = Mail(story(parts(500)))
    for number in range(0, 500, 5):
        mail.draw(100, *(ends(f"account {number + more}") for more in range(5)))
    assert len(mail.lines) < 80
    if fail:
        assert sum("failed: 403" in line for line in mail.lines) == 40
        assert sum("From here on only totals" in line for line in mail.lines) == 1


def test_an_account_name_is_printed_as_plain_text() -> None:
    mail = Mail(story([Part("\x1b[2Jx\u202e\n", "x", None, error=RuntimeError("\x1b"))]))
    assert mail.draw()[1] == "09:30:01  [2Jx : failed: RuntimeError"
