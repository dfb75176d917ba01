"""One daemon per workspace root; earlier roots are named durably and locked too."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aitbc_aps_miner.roots import Roots


@pytest.fixture
def open_roots() -> Iterator[Callable[[Path], Roots]]:
    """Give daemons' roots, whose locks end with the test."""
    opened: list[Roots] = []

    def make(root: Path) -> Roots:
        opened.append(Roots(root))
        return opened[-1]

    yield make
    for roots in opened:
        release(roots)


def release(roots: Roots) -> None:
    """Let go of every lock, as the end of a process does."""
    for fd in roots._locks.values():
        os.close(fd)
    roots._locks.clear()


OpenRoots = Callable[[Path], Roots]


def test_a_root_has_one_daemon(tmp_path: Path, open_roots: OpenRoots) -> None:
    """The lock names its process, and is free when that is gone."""
    first, second = open_roots(tmp_path / "a"), open_roots(tmp_path / "a")
    assert first.take()
    assert (tmp_path / "a" / ".daemon.lock").read_text() == f"{os.getpid()}\n"
    assert not second.take()
    release(first)
    assert second.take()
    assert second.all() == [str(tmp_path / "a")]


def test_a_root_that_can_not_be_made_is_an_error(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """The command line says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        open_roots(tmp_path / "file" / "a").take()


def test_an_earlier_root_is_remembered_across_a_restart(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """Locked as well; one that is gone, or locked by another daemon, is left out."""
    a, b, c = (tmp_path / name for name in "abc")
    roots = open_roots(a)
    assert roots.take()
    assert roots.move_to(b) is None
    assert roots.move_to(c) is None
    assert roots.all() == [str(c), str(a), str(b)]
    release(roots)
    b.rename(tmp_path / "gone")
    again = open_roots(c)
    assert again.take()
    assert again.all() == [str(c), str(a)]
    assert not open_roots(a).take()


def test_moving_back_takes_the_former_root_again(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """Its lock was kept."""
    a, b = tmp_path / "a", tmp_path / "b"
    roots = open_roots(a)
    roots.take()
    roots.move_to(b)
    assert roots.move_to(a) is None
    assert roots.all() == [str(a), str(b)]


def test_a_root_that_can_not_be_had_leaves_things_as_they_are(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """Another daemon's, or no directory; the reason is given."""
    mine, other = open_roots(tmp_path / "a"), open_roots(tmp_path / "b")
    mine.take()
    other.take()
    (tmp_path / "file").write_text("")
    assert mine.move_to(tmp_path / "b") == "another daemon holds it"
    assert "Not a directory" in str(mine.move_to(tmp_path / "file" / "c"))
    assert mine.all() == [str(tmp_path / "a")]


def test_a_root_that_was_removed_is_locked_again(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """Else a second daemon could start there; the earlier roots are named anew."""
    a, b = tmp_path / "a", tmp_path / "b"
    roots = open_roots(a)
    roots.take()
    roots.move_to(b)
    assert roots.keep(b) is None
    shutil.rmtree(b)
    assert roots.keep(b) is None
    assert not open_roots(b).take()
    release(roots)
    again = open_roots(b)
    assert again.take()
    assert again.all() == [str(b), str(a)]


def test_a_removed_root_that_another_daemon_took_is_not_ours(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """Said until it is free again."""
    roots, other = open_roots(tmp_path / "a"), open_roots(tmp_path / "a")
    roots.take()
    shutil.rmtree(tmp_path / "a")
    assert other.take()
    assert roots.keep(tmp_path / "a") == "another daemon holds it"
    assert roots.keep(tmp_path / "a") == "another daemon holds it"
    release(other)
    assert roots.keep(tmp_path / "a") is None
    assert not open_roots(tmp_path / "a").take()


def test_a_wanted_root_is_taken_as_soon_as_it_is_free(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """Until then the former one stays in force, also when somebody removes it."""
    a, b = tmp_path / "a", tmp_path / "b"
    roots, other = open_roots(a), open_roots(b)
    roots.take()
    other.take()
    assert roots.keep(b) == "another daemon holds it"
    shutil.rmtree(a)
    assert roots.keep(b) == "another daemon holds it"
    assert roots.all() == [str(a)]
    assert not open_roots(a).take()
    release(other)
    assert roots.keep(b) is None
    assert roots.all() == [str(b), str(a)]


def test_an_earlier_root_that_was_removed_is_forgotten(
    tmp_path: Path, open_roots: OpenRoots
) -> None:
    """One that somebody made anew is locked anew, unless it is another daemon's."""
    a, b, c, d = (tmp_path / name for name in "abcd")
    roots = open_roots(a)
    roots.take()
    for root in (b, c, d):
        roots.move_to(root)
    for root in (a, b, c):
        shutil.rmtree(root)
    b.mkdir()
    other = open_roots(c)
    other.take()
    assert roots.keep(d) is None
    assert roots.all() == [str(d), str(b)]
    assert not open_roots(b).take()


def test_a_lock_that_can_not_be_seen_is_still_held(
    tmp_path: Path, open_roots: OpenRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer is no reason to let go."""
    roots = open_roots(tmp_path / "a")
    roots.take()

    def broken(_path: Path) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", broken)
        assert roots.keep(tmp_path / "a") is None
    assert not open_roots(tmp_path / "a").take()


@pytest.mark.parametrize("content", ["", "{", "{}", json.dumps([1, None])])
def test_a_damaged_list_of_earlier_roots_names_none(
    tmp_path: Path, open_roots: OpenRoots, content: str
) -> None:
    """The daemon starts nevertheless."""
    (tmp_path / ".earlier-roots.json").write_text(content)
    roots = open_roots(tmp_path)
    assert roots.take()
    assert roots.all() == [str(tmp_path)]
