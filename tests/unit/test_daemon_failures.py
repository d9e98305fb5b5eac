"""What `failures.jsonl` tells of GPUs: in use before the last start, and now."""

import json

import pytest

from orchestrator.daemon.failures import Failures
from tests.unit.test_daemon_gate import GIB, TWO, Room

B = "GPU-declared-1"


class Ward(Room):
    """A room whose failures are written down; a question to the driver may be kept waiting."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.troubles: list[tuple[str, str]] = []
        self.failures = self.make_failures()

    def make_failures(self) -> Failures:
        return Failures(
            self.state_dir.failures,
            self.run_dir.owed,
            self.gate.memory,
            lambda replica, why: self.troubles.append((str(replica), why)),
        )

    def changed(self, unit, before) -> None:
        super().changed(unit, before)
        self.failures.changed(unit, before)

    def fails(self, name: str) -> None:
        """It can't start, and never will."""
        self.crash(name, 2)
        assert self.phase(f"two/{name}-0") == "failed"

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.state_dir.failures.read_text().splitlines()]


@pytest.fixture
def ward(short_path):
    one = Ward(short_path)
    yield one
    one.gate.close()
    one.turn()
    one.close()


def up(ward: Ward, text: str = TWO) -> None:
    ward.driver.used[B] = GIB // 4
    ward.up(text + 'ready = { notify = true }\n[processes.c]\ncommand = ["c"]\n')
    ward.after(1.0)
    for name in "abc":
        ward.born(ward.unit(f"two/{name}-0"))


def test_the_memory_before_the_start_and_at_the_end_is_told(ward):
    up(ward)
    ward.driver.used = {B: 70 * GIB}
    ward.fails("b")
    (found,) = ward.lines()
    numbers = {"before_bytes": GIB // 4, "end_bytes": 70 * GIB, "total_bytes": 80 * GIB}
    assert found["gpu_memory"] == {B: {"index": 1, **numbers}}


def test_it_is_asked_when_all_is_over_and_the_session_is_closed_again(ward):
    up(ward)
    closed = ward.driver.closed
    ward.driver.used = {B: 70 * GIB}
    ward.fails("b")
    ward.after(0.1)
    (found,) = ward.lines()
    assert found["gpu_memory"][B]["end_bytes"] == 70 * GIB
    assert ward.driver.closed == closed + 1


def test_what_was_before_is_known_to_the_next_daemon(ward):
    up(ward)
    ward.driver.used = {B: GIB}
    ward.gate = ward.make_gate()
    ward.failures = ward.make_failures()
    ward.fails("b")
    (found,) = ward.lines()
    assert (found["gpu_memory"][B]["before_bytes"], found["class"]) == (GIB // 4, "config")


def test_a_driver_that_hangs_costs_nothing_but_the_number(ward):
    up(ward)
    ward.driver.hangs = True
    ward.fails("b")
    (found,) = ward.lines()
    assert found["gpu_memory"][B]["end_bytes"] is None
    assert "hasn't answered" in found["gpu_memory"][B]["trouble"]


def test_without_gpus_or_where_nobody_looks_there_is_nothing_to_tell(ward):
    up(ward)
    ward.driver.judges = False
    ward.crash("c", 2)
    ward.fails("b")
    assert {found["gpu_memory"] for found in ward.lines()} <= {None}


def test_a_daemon_that_ends_waits_for_the_answer(ward):
    up(ward)
    asked = ward.loop.create_future()

    async def memory(unit):
        return await asked

    ward.failures = Failures(ward.state_dir.failures, ward.run_dir.owed, memory, lambda *_: None)
    ward.fails("b")
    assert not ward.state_dir.failures.exists()
    closing = ward.loop.create_task(ward.failures.close())
    ward.turn()
    assert not closing.done()
    asked.set_result({})
    ward.turn()
    assert closing.done()
    assert len(ward.lines()) == 1
    assert list(ward.run_dir.owed.iterdir()) == []


@pytest.mark.parametrize("written", [False, True])
def test_a_line_that_waits_for_the_driver_outlives_the_daemon(ward, written):
    """Killed before it was written, or just after, it is there once."""
    up(ward)
    ward.failures = dying = ward.make_failures()
    dying._memory = lambda _: ward.loop.create_future()  # hangs for ever
    ward.fails("b")
    (note,) = ward.run_dir.owed.iterdir()
    if written:
        dying._write(ward.unit("two/b-0").id, json.loads(note.read_text()) | {"gpu_memory": {}})
    ward.failures = ward.make_failures()
    ward.failures.begin()
    ward.failures.begin()
    (found,) = ward.lines()
    assert (found["replica"], found["class"]) == ("two/b-0", "config")
    assert found["gpu_memory"] == ({} if written else None)
    assert list(ward.run_dir.owed.iterdir()) == []


def test_a_note_that_is_torn_is_dropped_and_one_that_cannot_be_written_is_told(ward):
    up(ward)
    (ward.run_dir.owed / "1.json").write_text('{"at": 1')
    ward.failures.begin()
    assert not ward.state_dir.failures.exists()
    ward.run_dir.owed.rmdir()
    ward.fails("b")
    assert [replica for replica, _ in ward.troubles] == ["two/b-0"]
    assert len(ward.lines()) == 1, "it is written all the same"


def test_a_line_that_cannot_be_written_is_told(ward):
    up(ward)
    ward.state_dir.failures.mkdir()
    ward.fails("b")
    ((replica, why),) = ward.troubles
    assert replica == "two/b-0"
    assert "directory" in why
