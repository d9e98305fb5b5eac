"""Ports that we choose: never the same for two, never one that somebody has."""

import os
import socket

import pytest

from orchestrator.daemon.deployments import write_atomically
from orchestrator.host import port_table
from orchestrator.host.port_table import REST_S, NoPortError, PortTable
from orchestrator.host.ports import with_holders


class Tables:
    """Tables over one span of free ports, and a clock."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.now_s = 100.0
        self.made: list[PortTable] = []
        self.widen(4)

    def widen(self, count: int) -> None:
        first = free_block(count)
        self.span = range(first, first + count)

    def make(self, name: str = "ports.json", wanted=tuple) -> PortTable:
        table = PortTable(
            self.folder / name, write_atomically, wanted, clock=lambda: self.now_s, ports=self.span
        )
        self.made.append(table)
        return table


def free_block(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(port_table.span()[0], port_table.span()[-1], count):
        held = [port_table._hold(port) for port in range(first, first + count)]
        free = all(held)
        for one in held:
            if one is not None:
                one.close()
        if free:
            return first
    raise AssertionError("no free ports here")


@pytest.fixture
def tables(tmp_path):
    made = Tables(tmp_path)
    yield made
    for table in made.made:
        table.close()


def listener(port: int, *, reuse: bool) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    try:
        made.bind(("127.0.0.1", port))
        made.listen(1)
    except OSError:
        made.close()
        raise
    return made


def test_each_owner_gets_its_own_port_and_keeps_it(tables):
    table = tables.make()
    first, second = table.take("a#1"), table.take("b#1")
    assert first != second
    assert (table.take("a#1"), table.of("b#1"), table.of("c#1")) == (first, second, None)


def test_several_in_a_row_are_one_owner_s_and_overlap_with_nobody_s(tables):
    table = tables.make()
    pair = table.take("a", 2)
    single = table.take("b")
    assert single not in {pair, pair + 1}
    assert table.take("a", 2) == table.of("a") == pair
    for port in (pair, pair + 1):
        with pytest.raises(OSError, match="in use"):
            listener(port, reuse=False)
    with pytest.raises(NoPortError, match="no 2 free ports in a row from"):
        table.take("c", 2)
    table.release("a")
    assert table.owners() == {"b"}
    tables.now_s += REST_S + 1.0
    assert table.take("c", 2) in tables.span


def test_a_row_with_one_stranger_in_it_is_passed_over_as_a_whole(tables):
    stranger = listener(tables.span[1], reuse=True)
    try:
        assert tables.make().take("a", 2) == tables.span[2]
        listener(tables.span[0], reuse=False).close()
    finally:
        stranger.close()


def test_another_number_of_ports_is_another_row(tables):
    table = tables.make()
    one = table.take("a")
    assert one not in range(table.take("a", 2), table.of("a") + 2)


def test_a_released_port_rests_for_a_minute(tables):
    table = tables.make()
    taken = [table.take(f"a#{number}") for number in range(1, 5)]
    assert sorted(taken) == list(tables.span)
    table.release("a#2")
    with pytest.raises(NoPortError, match="no free port from"):
        table.take("a#5")
    tables.now_s += REST_S + 1.0
    assert table.take("a#5") == taken[1]


def test_a_worker_s_next_life_has_the_same_ports(tables):
    table = tables.make()
    assert table.renew("a", 2) == (table.of("a"), "")
    assert table.renew("a", 2) == (table.of("a"), "")
    assert table.renew("a")[1] == "", "another number of ports is no stranger's fault"


def test_a_worker_whose_port_a_stranger_took_moves_and_is_told_who(tables):
    tables.widen(8)
    table = tables.make()
    first = table.take("a", 2)
    stranger = listener(first + 1, reuse=True)
    try:
        second, why = table.renew("a", 2)
    finally:
        stranger.close()
    assert not {second, second + 1} & {first, first + 1}
    assert why.startswith(f"port {first + 1} is in use by pid {os.getpid()} (")
    assert table.renew("a", 2) == (second, "")


def test_the_next_daemon_holds_kept_ports_again_in_spite_of_dying_connections(tables):
    table = tables.make()
    port = table.take("a")
    with (
        listener(port, reuse=True) as worker,
        socket.create_connection(("127.0.0.1", port)) as peer,
    ):
        table.close()  # the daemon dies, then its worker, who closes first: TIME_WAIT
        with worker.accept()[0]:
            pass
        assert peer.recv(1) == b""
    heir = tables.make()
    assert heir.renew("a") == (port, "")
    with pytest.raises(OSError, match="in use"):
        listener(port, reuse=False)
    listener(port, reuse=True).close()


def test_side_channels_of_any_width_never_overlap(tables):
    """seed.md 12: blocks of TP size don't overlap for 1, 2, 4."""
    tables.widen(32)
    table = tables.make()
    blocks = [
        range(start, start + width)
        for number in range(3)
        for width in (1, 2, 4)
        for start in (table.take(f"w-{number}.{width}:side-channel", width),)
    ]
    assert len({port for block in blocks for port in block}) == 21


def test_a_hundred_topologies_take_what_they_need(tmp_path):
    """issue 4: no collision; each has a dep gang's meeting and pairs of workers of TP 1 and 4."""
    table = PortTable(tmp_path / "ports.json", write_atomically)
    try:
        taken = []
        for number in range(100):
            for owner, count in (("d-0#1", 1), ("p-0.0", 1), ("p-1.0", 1), ("d-0.0", 4)):
                first = table.take(f"t{number}/{owner}", count)
                taken += range(first, first + count)
        assert len(set(taken)) == len(taken) == 700
        assert all(10_000 < port < 65_536 for port in taken)
    finally:
        table.close()


def test_a_held_port_is_its_listener_s_alone(tables):
    port = tables.make().take("a#1")
    with pytest.raises(OSError, match="in use"):
        listener(port, reuse=False)
    listener(port, reuse=True).close()


def test_a_port_that_somebody_has_is_passed_over_and_its_holder_is_named(tables):
    strangers = [listener(port, reuse=True) for port in tables.span]
    try:
        with pytest.raises(NoPortError, match=rf"is in use by pid {os.getpid()} \("):
            tables.make().take("a#1")
    finally:
        for each in strangers:
            each.close()


def test_two_daemons_never_hold_the_same_port(tables):
    one, other = tables.make("one"), tables.make("other")
    assert {one.take("a#1"), one.take("b#1"), other.take("a#1"), other.take("b#1")} == set(
        tables.span
    )


def test_ports_that_topologies_name_are_left_alone(tables):
    *named, last = tables.span
    table = tables.make(wanted=lambda: named)
    assert table.take("a#1") == last


def test_the_next_daemon_knows_what_is_taken_and_what_rests(tables):
    tables.widen(8)
    table = tables.make()
    kept, gone, rested = table.take("a#1"), table.take("b#1"), table.take("c#1")
    table.release("c#1")
    table.close()
    heir = tables.make()
    assert heir.of("a#1") == kept
    heir.keep({"a#1"})
    assert heir.take("d#1") not in {kept, gone, rested}


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot":"another","ports":{"29000":{}}}'])
def test_a_table_of_another_boot_or_of_none_is_empty(tables, content):
    (tables.folder / "ports.json").write_bytes(content)
    assert tables.make().take("a#1") in tables.span


def test_a_full_disk_costs_no_port(tables):
    def refuse(_path, _data):
        raise OSError("No space left on device")

    table = PortTable(tables.folder / "x", refuse, ports=tables.span)
    tables.made.append(table)
    assert table.take("a#1") in tables.span


def test_no_client_of_the_kernel_s_gets_one(monkeypatch, tmp_path):
    for text, span in (
        ("32768\t60999\n", range(28_672, 32_768)),
        ("1024 50000", range(50_001, 54_097)),
        ("1024 65535", range(10_000, 14_096)),
        ("", range(28_672, 32_768)),
    ):
        (tmp_path / "range").write_text(text)
        monkeypatch.setattr(port_table, "KERNEL_RANGE", tmp_path / "range")
        assert port_table.span() == span


def test_a_log_line_about_a_taken_port_says_who_has_it(tables):
    port = tables.span[0]
    line = f"bind on ('127.0.0.1', {port}): address already in use"
    assert with_holders(f"a\n{line}\nb") == f"a\n{line}\nb", "nobody has it now"
    taken = listener(port, reuse=True)
    try:
        said = with_holders(f"port {port} is fine\n{line}\nb")
    finally:
        taken.close()
    first, second, last = said.split("\n")
    assert (first, last) == (f"port {port} is fine", "b")
    assert second.startswith(f"{line}; port {port} is in use by pid {os.getpid()} (")
