"""Following a log file across growth, rotation and floods; and rates from counters."""

import pytest

from orchestrator.views.rates import Rates
from orchestrator.views.tail import LINE_CHARS_MAX, READ_BYTES_MAX, LogTail
from tests.unit.made_up import worker


def test_first_the_end_then_the_news(tmp_path):
    path = tmp_path / "log"
    tail = LogTail(str(path), 2)
    assert tail.read() == []
    path.write_text("a\nb\nc\nhal")
    assert tail.read() == ["b", "c"]
    assert tail.read() == []
    with path.open("a") as file:
        file.write("f\nd\n")
    assert tail.read() == ["half", "d"]


def test_a_rotated_file_is_read_from_its_start(tmp_path):
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = LogTail(str(path), 10)
    assert tail.read() == ["old"]
    path.rename(tmp_path / "log.1")
    assert tail.read() == []
    path.write_text("new, and longer\n")
    assert tail.read() == ["new, and longer"]
    path.write_text("cut\n")
    assert tail.read() == ["cut"]


def test_a_flood_is_skipped_and_said(tmp_path):
    path = tmp_path / "log"
    path.write_text("begin\n")
    tail = LogTail(str(path), 10)
    assert tail.read() == ["begin"]
    with path.open("a") as file:
        file.write(f"{'x' * 99}\n" * (READ_BYTES_MAX // 50) + "end\n")
    lines = tail.read()
    assert lines[0] == f"[{READ_BYTES_MAX // 50 * 100 + 4 - READ_BYTES_MAX} bytes skipped]"
    assert lines[-1] == "end"
    assert set(lines[1:-1]) == {"x" * 99}


def test_a_line_without_an_end_stays_bounded(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"y" * (3 * READ_BYTES_MAX))
    tail = LogTail(str(path), 10)
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b"\n\xff ok\n")
    first, second = tail.read()
    assert len(first) <= LINE_CHARS_MAX
    assert second == "\ufffd ok"


def test_rates_are_measured_over_at_least_a_second():
    rates = Rates()

    def at(now_s, tokens, life="agg/worker-0.0#1"):
        one = worker(life, tokens=tokens)
        rates.take([one], now_s)
        return rates.of([one])

    assert at(10.0, 100) == 0
    assert at(10.25, 150) == 0
    assert at(11.0, 300) == pytest.approx(200)
    assert at(11.25, 310) == pytest.approx(200)
    assert at(13.0, 300) == 0
    assert at(13.5, 5, life="agg/worker-0.0#2") == 0
    assert rates.of([worker("agg/worker-0.0#1")]) == 0
