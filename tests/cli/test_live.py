"""The live display: what is on it, and that it fits the terminal, whatever there is to show."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from tests.cli.progress import Story, api_error, story

from lamella.cli.display import Screen, on_screen
from lamella.sync import Part

DOWN = api_error(503)


def console(width: int, height: int, *, color: bool = False) -> Console:
    return Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
        markup=False,
        highlight=False,
        _environ={},
    )


def drawn(made: Story, width: int, height: int, note: str = "") -> list[str]:
    screen = Screen(made.watch().look, made.clock)
    screen.note(note)
    paper = console(width, height)
    with paper.capture() as captured:
        paper.print(screen)
    return captured.get().splitlines()


def busy() -> Story:
    """One account of each kind."""
    made = story(
        [
            Part("Ahornhof", "invoices", None, pages=3, total_pages=3, records=255, done=True),
            Part("Berger & Söhne", "invoices", None, pages=6, total_pages=20, records=512, running=4),
            Part("Café Zentral", "invoices", None, error=api_error(401)),
            Part("Delta", "invoices", None, pages=2, total_pages=8, records=200, running=1),
            Part("Eisen", "invoices", None),
        ]
    )
    made.closed = {"Delta": 93.0}
    return made


def test_the_display_fits_80_columns() -> None:
    assert drawn(busy(), 80, 24) == [
        "11 of ~41 pages   1 of 5 parts done   1 failed   967 records",
        "━━━━━───────────────  26%   – pages/s   – left   0 s elapsed",
        "",
        "✗ Café Zentral                 0 failed: 401: The end user has to authenticate …",
        "‖ Delta          ━━╸───────  2/8 queued until 09:31:33",
        "▸ Berger & Söhne ━━━─────── 6/20 4 pages in flight",
        "· Eisen                      0/? waiting",
        "✓ Ahornhof                   3/3 done",
    ]


def test_the_display_fits_200_columns() -> None:
    made = busy()
    made.outage = DOWN
    watch = made.watch()
    watch.look()
    made.now += 5
    paper = console(200, 50)
    with paper.capture() as captured:
        paper.print(Screen(watch.look, made.clock))
    assert captured.get().splitlines() == [
        "11 of ~41 pages   1 of 5 parts done   1 failed   967 records",
        "━━━━━━━━━━╸─────────────────────────────  26%   0.0 pages/s   – left   5 s elapsed",
        "OUTAGE for 5 s: 503 Service Unavailable. Pages wait until the API is back.",
        "",
        f"✗ Café Zentral {' ' * 32}    0   0 records failed: 401: The end user has to authenticate again",
        "‖ Delta          ━━━━━━━╸──────────────────────  2/8 200 records queued until 09:31:38",
        "▸ Berger & Söhne ━━━━━━━━━───────────────────── 6/20 512 records 4 pages in flight",
        "· Eisen                                          0/?   0 records waiting",
        "✓ Ahornhof                                       3/3 255 records done",
    ]


def test_any_account_names_keep_the_columns_aligned() -> None:
    names = ("a", "漢字" * 20, "b" * 70, "e\u0301clair" * 9)
    lines = drawn(story(Part(name, "x", None, pages=1, total_pages=2, running=1) for name in names), 80, 24)[3:]
    assert {cell_len(line.partition("━")[0]) for line in lines} == {2 + 24 + 1}
    assert all("…" in line for line in lines[1:])


def test_hidden_accounts_are_counted() -> None:
    made = story(Part(f"done {number}", "x", None, pages=1, total_pages=1, done=True) for number in range(300))
    made.take(*(Part(f"waiting {number}", "x", None) for number in range(180)))
    made.take(*(Part(f"running {number}", "x", None, running=1) for number in range(15)))
    made.take(*(Part(f"queued {number}", "x", None, running=1) for number in range(3)))
    made.take(Part("failed 1", "x", None, error=DOWN), Part("failed 2", "x", None, error=DOWN))
    made.closed = {f"queued {number}": 60.0 for number in range(3)}
    lines = drawn(made, 80, 12)
    assert len(lines) == 11
    assert [line.split()[1] for line in lines[3:-1]] == ["failed"] * 2 + ["queued"] * 3 + ["running"] * 2
    assert lines[-1] == "… and 493 more: 13 running, 180 waiting, 300 done"
    # And where there is room for all but one, for that one, too.
    few = story(Part(f"waiting {number}", "x", None) for number in range(8))
    assert [line.split()[2] for line in drawn(few, 80, 12)[3:]] == list("01234567")


def test_failed_accounts_leave_room_for_running_ones() -> None:
    made = story(Part(f"failed {number}", "x", None, error=DOWN) for number in range(50))
    made.take(*(Part(f"running {number}", "x", None, running=1) for number in range(50)))
    kinds = [line.split()[1] for line in drawn(made, 80, 24)[3:-1]]
    assert (kinds.count("failed"), kinds.count("running")) == (10, 9)
    assert drawn(made, 80, 24)[-1] == "… and 81 more: 40 failed, 41 running"
    # But where nothing goes on, all of it.
    made.take(*(Part(f"running {number}", "x", None, running=0, error=DOWN) for number in range(50)))
    kinds = [line.split()[1] for line in drawn(made, 80, 24)[4:-1]]
    assert kinds == ["failed"] * 18


def test_the_display_shows_failed_parts_of_an_account() -> None:
    parts = [Part("a", resource, None, running=1) for resource in ("x", "y", "z")]
    one = replace(parts[1], error=api_error(404))
    for failed, told in (
        ([one], "failed (y): 404: Check the path and the id"),
        ([one, replace(parts[2], error=DOWN)], "failed (2 of 3): 404: Check the path and the id"),
        ([replace(part, error=ValueError("k3y")) for part in parts], "failed: ValueError"),
    ):
        made = story(parts)
        made.take(*failed)
        assert drawn(made, 120, 24)[3].endswith(f" {told}")


def test_the_display_shows_the_beginning_and_the_end() -> None:
    paper = console(80, 24)
    with paper.capture() as captured:
        paper.print(Screen(lambda: None))
    assert captured.get() == "Opening the journal …\n"
    done = story([Part("a", "x", None, pages=1, done=True)])
    assert drawn(done, 80, 24)[2] == "All pages are read; writing the output …"
    assert drawn(done, 80, 24, "Ending: it has 10 s.")[2] == "Ending: it has 10 s."


NAMES = st.text(st.sampled_from("aß漢字👩‍👩‍👧é\u0301 \u202e"), min_size=1, max_size=90)
PARTS = st.builds(
    Part,
    NAMES,
    st.sampled_from(["x", "y"]),
    st.none(),
    pages=st.integers(0, 10**7),
    total_pages=st.none() | st.integers(0, 10**7),
    records=st.integers(0, 10**10),
    running=st.integers(0, 4),
    done=st.booleans(),
    error=st.sampled_from([None, DOWN, api_error(401), RuntimeError("\x1b[2J")]),
)


@given(
    parts=st.lists(PARTS, max_size=30),
    width=st.integers(4, 250),
    height=st.integers(1, 60),
    down=st.booleans(),
    noted=st.booleans(),
    queued=st.booleans(),
)
def test_the_display_never_exceeds_the_terminal(
    parts: list[Part], width: int, height: int, down: bool, noted: bool, queued: bool
) -> None:
    made = story(parts)
    made.outage = DOWN if down else None
    made.closed = {part.account: 4000.0 for part in parts} if queued else {}
    lines = drawn(made, width, height, "Stopping: requests in flight have 10 s to end." if noted else "")
    assert len(lines) <= max(height - 1, 1)
    assert max(map(cell_len, lines)) <= width
    text = "".join(lines)
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("how", ["well", "error", "interrupted"])
def test_the_display_restores_the_terminal(how: str) -> None:
    paper = console(80, 24, color=True)
    ends = {"well": None, "error": ValueError, "interrupted": KeyboardInterrupt}[how]
    try:
        with on_screen(paper, busy().watch().look) as display:
            display.draw()
            display.note("Ending.")
            if ends is not None:
                raise ends
    except (ValueError, KeyboardInterrupt) as exc:
        assert type(exc) is ends  # noqa: PT017 - it went on
    file = paper.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h"), "the cursor"
    assert "Ending." in text
    # All that was drawn is taken away again.
    assert text.rstrip("\x1b[?25h").endswith("\x1b[2K")
