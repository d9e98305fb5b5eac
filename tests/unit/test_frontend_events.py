"""A stream of events that isn't ours: only whole ones leave, and what happens at the bound."""

import pytest

from workers.frontend.events import EVENT_MAX, WholeEvents, is_stream

STREAM = (b"Content-Type", b"text/event-stream; charset=utf-8")


@pytest.mark.parametrize("gap", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_leaves_when_it_is_complete(gap):
    events = WholeEvents()
    assert events.take(b"data: 1" + gap + b"data: 2" + gap + b"data: 3") == (
        b"data: 1" + gap + b"data: 2" + gap
    )
    assert events.take(b" and a half") == b""
    assert events.take(gap) == b"data: 3 and a half" + gap
    assert events.rest() == b""


@pytest.mark.parametrize("gap", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_bytes_that_come_one_by_one_leave_event_by_event(gap):
    events, stream = WholeEvents(), b"".join(b"data: %d" % n + gap for n in range(3))
    left = [part for n in range(len(stream)) if (part := events.take(stream[n : n + 1]))]
    assert b"".join(left) + events.rest() == stream
    assert [part.strip() for part in left] == [b"data: 0", b"data: 1", b"data: 2"]


def test_a_stream_that_ends_without_a_blank_line_is_passed_on_to_its_last_byte():
    events = WholeEvents()
    assert events.take(b"data: 1\n\ndata: [DONE]\n") == b"data: 1\n\n"
    assert events.rest() == b"data: [DONE]\n"
    assert events.rest() == b""


def test_an_event_beyond_the_bound_leaves_in_pieces():
    events, piece = WholeEvents(), b"x" * (EVENT_MAX // 2)
    assert events.take(b"data: 1\n\n" + piece) == b"data: 1\n\n"
    assert events.take(piece) == b""
    assert events.take(b"y") == piece + piece + b"y"
    assert events.take(b"z\n\ndata: 2") == b"z\n\n"
    assert events.rest() == b"data: 2"


def test_a_stream_is_known_by_its_headers():
    assert is_stream([STREAM])
    assert is_stream([(b"content-type", b"Text/Event-Stream")])
    assert not is_stream([(b"content-type", b"application/json")])
    assert not is_stream([STREAM, (b"Content-Encoding", b"gzip")])
    assert is_stream([STREAM, (b"content-encoding", b"identity")])
