"""The event stream and the journal: the same events, numbered on from daemon to daemon."""

import pytest
import zmq

from orchestrator.core.events import StartRequested
from orchestrator.core.policy import Policy
from orchestrator.core.replay import Recorder
from orchestrator.core.replica import step
from orchestrator.core.state import State
from orchestrator.daemon.publisher import Publisher, decode_decided, decode_record
from orchestrator.host.journal import Journal
from orchestrator.wire import events, routes
from orchestrator.wire.sockets import make_socket


@pytest.fixture
def context():
    one = zmq.Context()
    yield one
    one.destroy(linger=0)


@pytest.fixture
def start(context, short_path):
    """Publishers over one journal, one after the other, as daemons come and go."""
    began = []

    def begin():
        for one in began:
            one.stop()
        began[:] = [Publisher(context, f"ipc://{short_path}/e", Journal(short_path / "j", 4096))]
        began[0].start()
        return began[0]

    yield begin
    began[0].stop()


def kept(folder, count=100):
    return [decode_record(line) for line in Journal(folder / "j", 4096).last(count)]


def test_numbers_go_on_where_the_last_daemon_stopped(start, short_path):
    start().event("a", "one")
    start().event("a", "two")
    third = start()
    third.event("a", "three")
    third.event("a", "four")
    assert [(one.e.seq, one.e.what) for one in kept(short_path)] == [
        (1, "one"), (2, "two"), (3, "three"), (4, "four"),
    ]  # fmt: skip


def test_a_torn_last_line_costs_one_event_not_the_count(start, short_path):
    first = start()
    first.event("a", "one")
    first.event("a", "two")
    with (short_path / "j").open("ab") as file:
        file.write(b'{"e":{"seq":3,"wa')
    start().event("a", "three")
    lines = Journal(short_path / "j").last(9)
    assert len(lines) == 4
    assert decode_record(lines[-1]).e.seq == 3


def test_numbers_go_on_across_a_rotation(start, short_path):
    first = start()
    for number in range(100):
        first.event("a", f"event-{number}")
    assert (short_path / "j.1").exists()
    (short_path / "j").unlink()
    start().event("a", "next")
    seqs = [one.e.seq for one in kept(short_path)]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_what_the_core_saw_is_kept_for_replay_and_not_published(start, context, short_path):
    publisher = start()
    subscriber = make_socket(context, zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(f"ipc://{short_path}/e")
    table = routes.Routes(1, "agg", "sim", [], [])
    while not subscriber.poll(10):  # a subscription takes a moment to arrive
        publisher.routes(table)
    topic, payload = subscriber.recv_multipart()
    assert (topic, routes.decode(payload)) == (b"routes/agg", table)
    began = State(name="agg/worker-0")
    asked = StartRequested(1)
    after, actions = step(began, asked, 1.5, Policy())
    decision = Recorder().decision(
        began, after, event=asked, actions=actions, now=1.5, policy=Policy(), generation=0
    )
    publisher.event("agg/worker-0", "exited", phase="stopping", reason="why", core=decision)
    while topic != events.TOPIC:
        topic, payload = subscriber.recv_multipart()
    (record,) = kept(short_path)
    assert events.decode(payload) == record.e
    (line,) = Journal(short_path / "j").last(1)
    assert decode_decided(line).core == decision
    assert b"actions" not in payload
