"""frames.py: what is written comes back, and nothing else ever does."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.util import frames

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(payloads=st.lists(JSON, max_size=4), cut=st.integers(1, 50))
def test_frames_survive_any_cutting(payloads: list[object], cut: int) -> None:
    """Frames come back whole and in order however the stream is cut."""
    sent = [{"kind": "message", "payload": payload} for payload in payloads]
    stream = b"".join(map(frames.encode, sent))
    decoder = frames.Decoder()
    received = []
    for start in range(0, len(stream), cut):
        received += decoder.feed(stream[start : start + cut])
    assert received == sent
    assert not decoder.is_inside_frame


@given(junk=st.binary(max_size=64))
def test_junk_is_a_frame_error_or_waits(junk: bytes) -> None:
    """No bytes at all make the decoder raise anything but FrameError."""
    try:
        decoded = frames.Decoder().feed(junk)
    except frames.FrameError:
        return
    assert all(isinstance(frame["kind"], str) for frame in decoded)


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), b"bytes", {("a",): 1}, "x" * frames.MAX_FRAME_BYTES],
    ids=["object", "nan", "bytes", "key", "giant"],
)
def test_what_cannot_be_said_is_refused_before_it_is_sent(value: object) -> None:
    """`encode` raises FrameError for what JSON or the cap doesn't allow."""
    with pytest.raises(frames.FrameError):
        frames.encode({"kind": "message", "payload": value})


def test_endless_nesting_is_refused() -> None:
    """Recursion in either direction is a FrameError too."""
    nested: list[object] = []
    nested.append(nested)
    with pytest.raises(frames.FrameError):
        frames.encode({"kind": "message", "payload": nested})
    with pytest.raises(frames.FrameError):
        frames.decode(b"[" * 100_000)


def test_a_huge_length_is_refused_before_its_bytes_come() -> None:
    """A broken length never becomes an allocation."""
    with pytest.raises(frames.FrameError, match="at most"):
        frames.Decoder().feed(struct.pack(">I", frames.MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"kind":1}', b"\xff", b"{"])
def test_only_objects_with_a_kind_are_frames(body: bytes) -> None:
    """Anything else is a FrameError."""
    with pytest.raises(frames.FrameError):
        frames.decode(body)


def test_a_cut_frame_shows() -> None:
    """The end of a stream inside a frame can be told from a clean one."""
    decoder = frames.Decoder()
    assert decoder.feed(frames.encode({"kind": "x"})[:-1]) == []
    assert decoder.is_inside_frame
