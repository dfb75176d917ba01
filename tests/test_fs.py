"""Files survive, names lead nowhere else, trees of every kind go away."""

import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.util import fs


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_durable_write_replaces_the_old_bytes(tmp_path: Path) -> None:
    """The new bytes are there, private, and no temporary file is left."""
    path = tmp_path / "state.json"
    fs.write_durable(path, b"old")
    fs.write_durable(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert _names(tmp_path) == ["state.json"]


def test_a_failed_replacement_leaves_no_trace(tmp_path: Path) -> None:
    """When the rename is refused the temporary file goes away again."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        fs.replace(tmp_path / "taken", b"data")
    assert _names(tmp_path) == ["taken"]


def test_replacing_beside_a_directory_descriptor(tmp_path: Path) -> None:
    """Names may be relative to a descriptor."""
    with fs.opened(tmp_path) as fd:
        fs.write_durable("a", b"1", dir_fd=fd)
        assert fs.read_json("a", dir_fd=fd) == 1


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\0b", "."]
)
def test_a_path_that_is_not_plain_is_refused(path: str, tmp_path: Path) -> None:
    """Nothing is opened for a path that could lead elsewhere."""
    with fs.opened(tmp_path) as fd, pytest.raises(ValueError, match="plain"):
        fs.open_beneath(fd, path, os.O_RDONLY)


@given(st.text(alphabet="./a\0", max_size=12))
def test_a_plain_path_stays_beneath(path: str) -> None:
    """Whatever is let through normalises to itself and does not climb."""
    try:
        parts = fs.plain_parts(path)
    except ValueError:
        return
    assert os.path.normpath(path) == path
    assert not path.startswith("/")
    assert "/".join(parts) == path


def test_links_are_never_followed(tmp_path: Path) -> None:
    """A link is refused as the file and as a folder on the way."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "other").symlink_to("file")
    with fs.opened(tmp_path) as fd:
        os.close(fs.open_beneath(fd, "real/file", os.O_RDONLY))
        with pytest.raises(NotADirectoryError):
            fs.open_beneath(fd, "link/file", os.O_RDONLY)
        with pytest.raises(OSError, match="symbolic") as refused:
            fs.open_beneath(fd, "real/other", os.O_RDONLY)
        assert refused.value.errno == errno.ELOOP


def test_json_is_read_only_from_small_regular_files(tmp_path: Path) -> None:
    """FIFOs do not block, large files do not fill the memory, depth does no harm."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"[" + b"1," * 100 + b"1]")
    (tmp_path / "deep").write_bytes(b"[" * 100_000)
    (tmp_path / "no").write_bytes(b"{")
    for name, cap in {"fifo": 10, "large": 50, "deep": 1 << 20, "no": 10}.items():
        with pytest.raises(ValueError, match=r".+"):
            fs.read_json(tmp_path / name, max_bytes=cap)


def _zoo(root: Path, outside: Path) -> None:
    root.mkdir()
    (root / "file").write_text("x")
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "socket"))
    server.close()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe/\xfd")).write_text("x")
    (root / "shut" / "inner").mkdir(parents=True)
    (root / "shut" / "inner" / "file").write_text("x")
    (root / "shut" / "inner").chmod(0)
    (root / "shut").chmod(0)
    fd = os.open(root, os.O_RDONLY)
    for _ in range(4096):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_every_kind_of_tree_goes_away(tmp_path: Path) -> None:
    """Depth, modes, names, links and special files: all gone, nothing outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    _zoo(tmp_path / "tree", outside)
    assert fs.remove_tree(tmp_path / "tree")
    assert _names(tmp_path) == [".trash", "outside"]
    assert _names(tmp_path / ".trash") == []
    assert _names(outside) == ["precious"]


def test_a_link_is_removed_and_not_its_target(tmp_path: Path) -> None:
    """A link in the place of a tree is what goes away."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "precious").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert fs.remove_tree(tmp_path / "link")
    assert (tmp_path / "real" / "precious").exists()


def test_removing_nothing_is_done(tmp_path: Path) -> None:
    """A missing tree and an empty trash are no errors."""
    assert fs.remove_tree(tmp_path / "none")
    assert fs.empty_trash(tmp_path / "no-trash")


def test_a_removal_keeps_to_its_budget(tmp_path: Path) -> None:
    """The name is free at once; what is left goes with the trash, in pieces."""
    for number in range(50):
        (tmp_path / "tree" / "sub" / str(number)).mkdir(parents=True)
    ticks = iter(range(1000))
    assert not fs.remove_tree(
        tmp_path / "tree", budget_s=20, monotonic=lambda: float(next(ticks))
    )
    assert not (tmp_path / "tree").exists()
    rounds = 1
    while not fs.empty_trash(
        tmp_path / ".trash", budget_s=20, monotonic=lambda: float(next(ticks))
    ):
        rounds += 1
    assert rounds > 2
    assert _names(tmp_path / ".trash") == []


def test_what_is_no_heap_is_reported_and_left(tmp_path: Path) -> None:
    """A foreign file in the trash is not ours to delete."""
    (tmp_path / "foreign").write_text("x")
    assert not fs.empty_trash(tmp_path)
    assert (tmp_path / "foreign").exists()


def test_a_tree_that_cannot_be_moved_is_an_error(tmp_path: Path) -> None:
    """A refused rename is raised and leaves no empty heap behind."""
    trash = tmp_path / "tree" / "trash"
    (tmp_path / "tree").mkdir()
    with pytest.raises(OSError, match="Invalid"):
        fs.remove_tree(tmp_path / "tree", trash=trash)
    assert _names(trash) == []
