"""A file that is written whole or not at all, whatever happens in the middle."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamella import whole_file
from lamella.whole_file import PRIVATE, PUBLIC, replacing

Locking = Callable[[int, int], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with something in it, alone in its folder."""
    path = tmp_path / "report"
    path.write_text("old")
    return path


@pytest.fixture(params=["fsync fails", "cancelled", "a fault"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Something to call in the block, for it to go wrong."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def cancelled() -> None:
        raise asyncio.CancelledError

    def fault() -> None:
        raise ZeroDivisionError

    if request.param == "fsync fails":
        return lambda: monkeypatch.setattr(os, "fsync", full)
    return cancelled if request.param == "cancelled" else fault


def test_a_written_file_leaves_no_other_files(path: Path) -> None:
    for content in (b"new", b""):
        whole_file.write(path, content)
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == ["report"]


def test_checking_a_path_changes_nothing(path: Path) -> None:
    whole_file.check(path)
    assert path.read_text() == "old"
    whole_file.check(path.with_name("other"))
    assert os.listdir(path.parent) == ["report"]


def test_the_old_file_stays_until_the_end_of_the_block(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "half"


def test_a_failing_block_keeps_the_old_file(path: Path, failing: Callable[[], None]) -> None:
    with pytest.raises((OSError, asyncio.CancelledError, ZeroDivisionError)) as raised:  # noqa: PT012 - the block fails
        with replacing(path) as temporary:
            temporary.write_text("half")
            failing()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["report"]
    if isinstance(raised.value, OSError):
        assert str(raised.value) == f"[Errno 28] No space left on device: {str(path)!r}"


def test_the_content_is_synced_before_the_replacement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.pread(file, 100, 0) + path.read_bytes()))
    whole_file.write(path, b"new")
    assert synced == [b"newold"]


def test_an_error_names_the_file_that_was_asked_for(path: Path) -> None:
    missing = path.with_name("no") / "report"
    with pytest.raises(FileNotFoundError) as raised:
        whole_file.check(missing)
    assert raised.value.filename == str(missing)
    with pytest.raises(FileNotFoundError) as raised:
        whole_file.write(missing, b"")
    assert raised.value.filename == str(missing)
    with pytest.raises(FileNotFoundError) as raised, replacing(path) as temporary:
        temporary.unlink()
    assert raised.value.filename == str(path)


def test_an_unrelated_error_passes_unchanged(path: Path) -> None:
    for error in (OSError(errno.EIO, "broken", "another"), TimeoutError("too late")):
        with pytest.raises(OSError) as raised, replacing(path):  # noqa: PT011 - it is compared below
            raise error
        assert raised.value is error


def test_a_link_stays_a_link(path: Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir()
    link = folder / "link"
    link.symlink_to(path)
    with replacing(link) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"


@pytest.mark.parametrize("attempt", [whole_file.check, lambda path: whole_file.write(path, b"")])
def test_no_folder_and_no_device_is_replaced(tmp_path: Path, attempt: Callable[[Path], None]) -> None:
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        attempt(tmp_path)
    with pytest.raises(OSError, match="it is not a regular file"):
        attempt(Path(os.devnull))
    assert os.listdir(tmp_path) == []


# Who may read it


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("wanted", "given"), [(PUBLIC, 0o640), (PRIVATE, 0o600)])
def test_a_new_file_has_the_given_mode(tmp_path: Path, wanted: int, given: int) -> None:
    with replacing(tmp_path / "report", mode=wanted) as temporary:
        assert mode(temporary) == given
    assert mode(tmp_path / "report") == given


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("wanted", [PUBLIC, PRIVATE])
@pytest.mark.parametrize("before", [0o400, 0o604, 0o666])
def test_an_existing_file_keeps_its_mode(path: Path, before: int, wanted: int) -> None:
    path.chmod(before)
    with replacing(path, mode=wanted) as temporary:
        assert mode(temporary) == PRIVATE
    assert mode(path) == before


@pytest.mark.parametrize("may", [True, False])
def test_files_are_not_readable_by_other_groups(path: Path, monkeypatch: pytest.MonkeyPatch, may: bool) -> None:
    """The file's group is another than ours; sometimes we may give ours to it, sometimes we may not."""
    path.chmod(0o664)
    found = list(path.stat())
    found[5] += 1
    given: list[tuple[int, int, int]] = []

    def chown(path: Path, uid: int, gid: int) -> None:
        if not may:
            raise PermissionError(errno.EPERM, "no")
        given.append((mode(path), uid, gid))

    monkeypatch.setattr(os, "chown", chown)
    whole_file._make_alike(path, os.stat_result(found))
    assert given == ([(0o664, -1, found[5])] if may else [])
    assert mode(path) == (0o664 if may else 0o604)


# What is left by those who were killed

KILLED = """
import os, signal, sys
from lamella.whole_file import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> str:
    """Let a process be killed while it writes; the name of what it leaves."""
    before = set(os.listdir(path.parent))
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)  # noqa: S603
    assert run.returncode == -signal.SIGKILL
    [left] = set(os.listdir(path.parent)) - before
    return left


def test_the_next_write_removes_files_of_killed_processes(path: Path) -> None:
    left = killed(path)
    assert path.read_text() == "old"
    whole_file.check(path)
    assert left in os.listdir(path.parent)
    whole_file.write(path.with_name("another"), b"")
    assert sorted(os.listdir(path.parent)) == ["another", "report"]


def test_only_files_of_killed_processes_are_removed(path: Path) -> None:
    folder = path.parent
    for name in (".lamella-.tmp", ".lamella-0123456789ab.tmp.txt", "x.lamella-0123456789ab.tmp"):
        (folder / name).touch()
    (folder / ".lamella-00000000000a.tmp").symlink_to("report")
    (folder / ".lamella-00000000000b.tmp").mkdir()
    before = sorted(os.listdir(folder))
    os.mkfifo(folder / ".lamella-00000000000c.tmp")  # to open one may wait for ever
    whole_file.write(folder / "new", b"")
    assert sorted(os.listdir(folder)) == sorted([*before, "new"])
    assert path.read_text() == "old"


def test_two_writers_do_not_remove_each_others_files(path: Path) -> None:
    with replacing(path) as first:
        with replacing(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["report"]


@pytest.mark.slow
def test_many_writers_can_replace_a_file_concurrently(path: Path) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            whole_file.write(path, bytes([number]) * 10_000)

    def look() -> None:
        while not ended.is_set():
            content = path.read_bytes()
            assert content == b"old" or (len(content) == 10_000 and len(set(content)) == 1)

    ended = threading.Event()
    with ThreadPoolExecutor(9) as threads:
        looking = threads.submit(look)
        try:
            for each in [threads.submit(work, number) for number in range(8)]:
                each.result()
        finally:
            ended.set()
        looking.result()
    assert os.listdir(path.parent) == ["report"]


def before_the_lock(do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let somebody else *do* something when a file was made and not locked yet; once."""
    flock, once = fcntl.flock, [do]

    def locked(file: int, how: int) -> None:
        if how & fcntl.LOCK_EX and once:
            once.pop()()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", locked)


@pytest.mark.parametrize("is_still_at_it", [True, False])
def test_a_file_removed_before_it_is_locked_is_created_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_still_at_it: bool
) -> None:
    sweeping: list[int] = []

    def sweep() -> None:
        [name] = set(os.listdir(path.parent)) - {"report"}
        if is_still_at_it:
            sweeping.append(os.open(path.parent / name, os.O_RDONLY))
            fcntl.flock(sweeping[0], fcntl.LOCK_SH)
        else:
            whole_file._sweep(path.parent)
            assert os.listdir(path.parent) == ["report"]

    before_the_lock(sweep, monkeypatch)
    whole_file.write(path, b"new")
    for file in sweeping:
        os.close(file)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["report"]


def test_without_locks_no_file_is_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = killed(path)
    monkeypatch.setattr(fcntl, "flock", none)
    with replacing(path):
        whole_file.write(path, b"new")
    assert sorted(os.listdir(path.parent)) == [left, "report"]
