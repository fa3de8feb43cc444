"""Ends items as fast as it can, until it is killed.

Each line on stdin is an order: path, a name for the keys, how many items (0: no end), and then "die" or "wait",
with tabs in between. It is carried out by a fork, which is there at once. On stdout: "pid …"; each key, when the
journal has said that it is on disk; "gone", when the fork is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from functools import partial
from itertools import count

from lamella.batch.journal import Journal, end_of


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write, no buffer: what was told is told, whatever happens then


def end(db: sqlite3.Connection, key: str, number: int) -> None:
    """Every seventh fails; whatever happens to it, the key is in both tables or in none."""
    db.execute("INSERT INTO effects VALUES (?)", (key,))
    end_of(db, key, error="refused") if number % 7 == 0 else end_of(db, key, result=f"{key} " * 20)


async def carry_out(path: str, name: str, items: int, then: str) -> None:
    async with Journal.open(path, batch="a batch") as journal:
        if not items:
            # The WAL goes into the file again and again, so that some are killed in the middle of that.
            await journal.read(lambda db: db.execute("PRAGMA wal_autocheckpoint = 10").fetchall())
        await journal.commit(lambda db: db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY)"))
        numbers = iter(range(items)) if items else count()

        async def work() -> None:
            for number in numbers:
                key = f"{name}-{number}"
                await journal.commit(partial(end, key=key, number=number))
                tell(key)

        await asyncio.gather(*(work() for _ in range(8)))
        if then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        tell("waiting")
        await asyncio.Event().wait()


def main() -> None:
    for order in sys.stdin:
        path, name, items, then = order.rstrip("\n").split("\t")
        pid = os.fork()
        if not pid:
            asyncio.run(carry_out(path, name, int(items), then))
            os._exit(1)
        tell(f"pid {pid}")
        os.waitpid(pid, 0)
        tell("gone")


if __name__ == "__main__":
    main()
