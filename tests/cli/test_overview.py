"""What is seen of a sync at a moment: states, totals, how fast it goes, when it will end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.cli.progress import api_error, story

from lamella.cli.progress import Overview, State, Watch
from lamella.sync import Part


def look(watch: Watch) -> Overview:
    found = watch.look()
    assert found is not None
    return found


def test_there_is_no_snapshot_before_the_sync_begins() -> None:
    assert Watch(lambda _: 0.0).look() is None


def test_a_snapshot_has_the_state_of_each_account() -> None:
    refused, missing = api_error(401), api_error(404)
    made = story(
        [
            Part("failed", "a", None, error=refused),
            Part("failed", "b", None, error=refused),
            Part("half", "a", None, pages=2, total_pages=5, running=1),
            Part("half", "b", None, error=missing),
            Part("queued", "a", None, pages=1, total_pages=3, records=90, running=2),
            Part("queued", "b", None),
            Part("running", "a", None, running=1),
            Part("running", "b", None, pages=4, total_pages=4, done=True),
            Part("waiting", "a", None),
            Part("waiting", "b", None),
            Part("done", "a", None, pages=3, total_pages=3, records=7, done=True),
            Part("done", "b", None, pages=1, done=True, skipped=True),
            Part("mended", "a", None, pages=1, done=True, error=missing),
            Part("mended", "b", None, pages=1, done=True),
        ]
    )
    made.closed = {"queued": 61.5, "done": 5.0, "failed": 7.0}
    found = look(made.watch())
    seen = {account.name: account for account in found.accounts}
    assert {name: account.state for name, account in seen.items()} == {
        "failed": State.FAILED,
        "half": State.FAILED,
        "queued": State.QUEUED,
        "running": State.RUNNING,
        "waiting": State.WAITING,
        "done": State.DONE,
        "mended": State.DONE,
    }
    assert [part.resource for part in seen["half"].failed] == ["b"]
    assert (seen["queued"].closed_for, seen["done"].closed_for, seen["failed"].closed_for) == (61.5, 0.0, 0.0)
    assert (seen["queued"].pages, seen["queued"].expected, seen["queued"].running) == (1, None, 2)
    assert (seen["done"].pages, seen["done"].expected, seen["done"].records) == (4, 4, 7)
    assert (found.parts, found.done, found.skipped, found.failed) == (14, 5, 1, 3)
    assert not found.ended


def test_a_sync_has_ended_when_nothing_is_left_to_read() -> None:
    ends = [Part("a", "x", None, pages=1, done=True), Part("b", "x", None, error=api_error(403))]
    assert look(story(ends).watch()).ended
    assert not look(story([*ends, Part("c", "x", None)]).watch()).ended
    # Other pages of a part that has failed are still to come.
    assert not look(story([*ends, Part("c", "x", None, running=1, error=api_error(404))]).watch()).ended


def test_unknown_lengths_are_estimated_from_other_lists() -> None:
    known = [
        Part("a", "short", None, pages=1, total_pages=2),
        Part("b", "short", None, pages=4, total_pages=4, done=True),
        Part("a", "long", None, pages=5, total_pages=40),
    ]
    found = look(story(known).watch())
    assert (found.pages, found.expected, found.guessed) == (10, 46, False)
    unknown = [Part("c", "short", None), Part("c", "long", None), Part("c", "other", None)]
    found = look(story([*known, *unknown]).watch())
    # 3 of the short ones, 40 of the long ones, and of the third kind as many as of all in the mean.
    assert (found.expected, found.guessed) == (46 + 3 + 40 + round(46 / 3), True)
    failed = replace(unknown[1], error=api_error(404))
    assert look(story([*known, unknown[0], failed]).watch()).expected == 46 + 3


def test_there_is_no_estimate_before_the_first_data() -> None:
    found = look(story([Part("a", "x", None, running=1), Part("b", "x", None, error=api_error(401))]).watch())
    assert (found.expected, found.guessed, found.left) == (None, True, None)


def test_rate_and_remaining_time_use_different_windows() -> None:
    made = story([Part("a", "x", None, pages=500, total_pages=1100)])
    watch = made.watch()
    assert look(watch).rate is None
    pages = 500  # from an earlier run: they say nothing of how fast it goes
    for _ in range(200):
        made.now += 1
        pages += 1
        made.take(Part("a", "x", None, pages=pages, total_pages=1100))
        look(watch)
    found = look(watch)
    assert found.rate == pytest.approx(1.0)
    assert found.left == pytest.approx(400)
    assert found.elapsed == 200
    for _ in range(20):
        made.now += 1
        look(watch)
    found = look(watch)
    # Nothing has come for twenty seconds, as between two windows of a limit.
    assert found.rate == 0
    assert found.left == pytest.approx(400 / (100 / 120))


def test_the_remaining_time_includes_the_wait_of_queued_accounts() -> None:
    made = story([Part("a", "x", None, pages=1, total_pages=12), Part("b", "x", None, pages=0, total_pages=1)])
    watch = made.watch()
    look(watch)
    made.now += 10
    made.take(Part("a", "x", None, pages=11, total_pages=12))
    assert look(watch).left == pytest.approx(2)
    made.closed = {"b": 480.0}
    assert look(watch).left == 480


def test_the_remaining_time_is_that_of_the_slowest_account() -> None:
    made = story([Part("a", "x", None, pages=70, total_pages=100), Part("b", "x", None, pages=4, total_pages=24)])
    watch = made.watch()
    look(watch)
    made.take(Part("b", "x", None, pages=4, total_pages=24, running=1))
    made.now += 10
    look(watch)
    made.now += 10
    made.take(Part("a", "x", None, pages=95, total_pages=100), Part("b", "x", None, pages=9, total_pages=24, running=1))
    # All together have had 30 in 20 s, and 20 are left. But b has had 5 since it began 10 s ago, and has 15 left.
    assert look(watch).left == pytest.approx(30)
    made.closed = {"b": 31.0}
    assert look(watch).left == 31
    made.take(Part("b", "x", None, pages=24, total_pages=24, done=True))
    assert look(watch).left == pytest.approx(5 / (45 / 20))


def test_a_snapshot_has_the_duration_of_an_outage() -> None:
    made = story([Part("a", "x", None)])
    watch = made.watch()
    assert (look(watch).outage, look(watch).outage_for) == (None, 0.0)
    made.outage = api_error(503)
    look(watch)
    made.now += 42
    assert (look(watch).outage, look(watch).outage_for) == (made.outage, 42)
    made.outage = None
    assert look(watch).outage_for == 0
    made.outage = api_error(500)
    assert look(watch).outage_for == 0, "another one"
