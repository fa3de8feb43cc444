"""Draw docs/throttle.svg: how `Throttle` learns a window, a bucket, a limit in flight, and random refusals.

    python scripts/throttle_plot.py docs/throttle.svg

The estimator is run as it is, on simulated time: 60 calls that are repeated as soon as they are answered.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable

from lamella import whole_file
from lamella.rules import Backoff
from lamella.testing import FixedWindow, TokenBucket
from lamella.throttle.belief import believed
from lamella.throttle.estimate import Asked, Permit, RateEstimate
from lamella.throttle.permits import answered, next_permit, refused

PERIOD, SECONDS, LATENCY, CALLS = 1.0, 12.0, 0.02, 60
WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 110, 50, 30, 46
BIN = 0.1
PASSED, REFUSED, BELIEVED = "#009e73", "#e69f00", "#222222"  # as in the page of the report

Admits = Callable[[float, int], bool]
"""Returns whether the server admits an attempt, given the time and the number of others in flight."""


def window() -> Admits:
    limiter = FixedWindow(100, PERIOD).limiter()
    return lambda now, _: limiter.allow(now) <= 0


def bucket() -> Admits:
    limiter = TokenBucket(100, 20).limiter()
    return lambda now, _: limiter.allow(now) <= 0


def in_flight() -> Admits:
    return lambda _, others: others < 5


def chance() -> Admits:
    source = random.Random(7)
    return lambda _, __: source.random() >= 0.02


def simulate(admits: Admits) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Return the times of admitted and refused attempts, and the estimates as pairs of time and number."""
    estimate, backoff = RateEstimate(), Backoff(PERIOD, jitter=0)
    now, sent, ends = 0.0, list[float](), list[tuple[float, float, Permit, bool]]()
    returns = [0.0] * CALLS  # when each call that is not in flight may be sent again
    passed, failed, beliefs = list[float](), list[float](), list[tuple[float, float]]()
    while now < SECONDS:
        ready = sum(at <= now for at in returns)
        answer = next_permit(estimate, now, sent, PERIOD, Asked(waiting=ready)) if ready else None
        if isinstance(answer, Permit):
            returns.remove(min(returns))
            passes = admits(now, sum(each[3] for each in ends))
            heapq.heappush(ends, (now + LATENCY, answer.at, answer, passes))
            sent.append(answer.at)
            continue
        wakes = [each[0] for each in ends[:1]] + [at for at in returns if at > now]
        if answer is not None:
            wakes += [now + each for each in (answer.seconds, answer.again) if each is not None]
        now = max(min(wakes), now)
        while ends and ends[0][0] <= now:
            _, at, permit, passes = heapq.heappop(ends)
            sent.remove(at)
            (passed if passes else failed).append(now)
            if passes:
                answered(estimate, now, permit, len(sent))
            else:
                refused(estimate, now, permit, backoff, None, others=len(sent))
            returns.append(now if passes else now + PERIOD)
        belief = believed(estimate, None)
        beliefs.append((now, belief.requests or belief.in_flight or round(100 * belief.by_chance)))
    return passed, failed, beliefs


def panel(title: str, admits: Admits, top: float) -> str:
    """Return the SVG of one panel: bars for admitted attempts, dots for refused ones, a line for the estimate."""
    passed, failed, beliefs = simulate(admits)
    bins = [0] * int(SECONDS / BIN + 1)
    for at in passed:
        bins[min(int(at / BIN), len(bins) - 1)] += 1
    highest = max(*bins, 1.0)
    most = max(*(number for _, number in beliefs), 1.0)
    scale, bottom = WIDTH / SECONDS, top + HEIGHT
    parts = [f'<text x="{LEFT}" y="{top - 8:.0f}" font-weight="bold">{title}</text>']
    for index, number in enumerate(bins):
        tall = number / highest * HEIGHT * 0.85
        parts.append(
            f'<rect x="{LEFT + index * BIN * scale:.1f}" y="{bottom - tall:.1f}" width="{BIN * scale - 1:.1f}" '
            f'height="{tall:.1f}" fill="{PASSED}"/>'
        )
    parts += [
        f'<circle cx="{LEFT + at * scale:.1f}" cy="{top + 4:.0f}" r="2.5" fill="{REFUSED}"/>'
        for at in dict.fromkeys(round(at, 2) for at in failed)
    ]
    points: list[str] = []
    before = 0.0
    for moment, limit in beliefs:
        if limit != before or not points:
            x = LEFT + moment * scale
            points += [f"{x:.1f},{bottom - each / most * HEIGHT * 0.7:.1f}" for each in (before, limit)]
            before = limit
    points.append(f"{LEFT + WIDTH:.1f},{bottom - before / most * HEIGHT * 0.7:.1f}")
    parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{BELIEVED}" stroke-width="1.5"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{bottom - HEIGHT * 0.7 + 4:.0f}" text-anchor="end">{most:.0f}</text>')
    parts.append(f'<line x1="{LEFT}" y1="{bottom}" x2="{LEFT + WIDTH}" y2="{bottom}" stroke="#888"/>')
    return "\n".join(parts)


def main(path: str) -> None:
    """Write the picture to *path*."""
    panels = [
        ("Window: 100 in a period", window()),
        ("Bucket of 20, refilled with 100 in a period", bucket()),
        ("At most 5 in flight", in_flight()),
        ("2 % refused at random", chance()),
    ]
    drawn = [panel(title, admits, TOP + index * (HEIGHT + GAP)) for index, (title, admits) in enumerate(panels)]
    height = TOP + len(panels) * (HEIGHT + GAP)
    legend = f"{SECONDS:.0f} periods. Bars: passed. Dots: refused. Line: learned limit (random refusals: percent)."
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n{chr(10).join(drawn)}\n'
        f'<text x="{LEFT}" y="{height - 12}">{legend}</text>\n</svg>\n'
    )
    whole_file.write(path, text.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
