"""The log: every byte or an honest count, in files of a bounded size."""

import os
import resource

import pytest

from orchestrator.host import log_file
from orchestrator.host.log_file import LINE_MAX, LogFile


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def everything(path):
    old = sorted(path.parent.glob(f"{path.name}.*"), key=lambda one: -int(one.suffix[1:]))
    return [one.read_bytes() for one in (*old, path)]


def feed(log, pipe, data, piece=30_000):
    for start in range(0, len(data), piece):
        os.write(pipe[1], data[start : start + piece])
        log.pump(pipe[0])


def test_an_empty_pipe_is_no_end_and_a_closed_one_is(tmp_path, pipe):
    log = LogFile(str(tmp_path / "deep" / "log"), 1000, 2)
    assert log.pump(pipe[0]) == (0, True)
    os.write(pipe[1], b"last words")
    os.close(pipe[1])
    assert log.pump(pipe[0]) == (10, False)
    assert (tmp_path / "deep" / "log").read_bytes() == b"last words"


@pytest.mark.parametrize("splices", [True, False])
def test_files_end_where_lines_end_and_nothing_is_lost(tmp_path, pipe, splices):
    log = LogFile(str(tmp_path / "log"), 10_000, 50)
    log._splices = splices
    data = b"".join(b"line %d %s\n" % (n, b"x" * (n % 90)) for n in range(3000)) + b"no newline"
    feed(log, pipe, data)
    files = everything(tmp_path / "log")
    assert b"".join(files) == data
    assert log.written_bytes == len(data)
    assert len(files) > 3
    assert all(file.endswith(b"\n") for file in files[:-1])
    if splices:
        assert all(10_000 <= len(file) < 10_200 for file in files[:-1])


def test_a_line_without_end_is_cut_in_the_end(tmp_path, pipe):
    log = LogFile(str(tmp_path / "log"), 1000, 3)
    data = b"x" * 200_000
    feed(log, pipe, data)
    files = everything(tmp_path / "log")
    assert b"".join(files) == data
    assert all(len(file) <= 1000 + 2 * LINE_MAX for file in files)


def test_only_so_many_files_are_kept(tmp_path, pipe):
    log = LogFile(str(tmp_path / "log"), 100, 2)
    feed(log, pipe, b"0123456789012345678\n" * 100, piece=100)
    assert {one.name for one in tmp_path.iterdir()} <= {"log", "log.1", "log.2"}


def test_no_backups_means_starting_again(tmp_path, pipe):
    log = LogFile(str(tmp_path / "log"), 100, 0)
    feed(log, pipe, b"0123456789012345678\n" * 100, piece=100)
    assert [one.name for one in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").stat().st_size <= 200


def test_an_earlier_life_is_continued_but_is_not_in_the_tail(tmp_path, pipe):
    (tmp_path / "log").write_bytes(b"an earlier life\n")
    log = LogFile(str(tmp_path / "log"), 1000, 2)
    feed(log, pipe, b"mine\n")
    assert log.tail(1000) == b"mine\n"
    assert (tmp_path / "log").read_bytes() == b"an earlier life\nmine\n"


def test_the_tail_reaches_over_a_rotation(tmp_path, pipe):
    log = LogFile(str(tmp_path / "log"), 100, 2)
    data = b"".join(b"%019d\n" % n for n in range(12))
    feed(log, pipe, data, piece=20)
    assert log.tail(130) == data[-130:]
    assert log.tail(10_000) in data


def test_a_full_disk_drops_and_counts_and_writing_resumes(tmp_path, pipe):
    log = LogFile(str(tmp_path / "log"), 1 << 20, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        feed(log, pipe, b"a" * 4000)
        feed(log, pipe, b"b" * 4000)
        feed(log, pipe, b"c" * 4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.dropped_bytes == 7000
    assert log.written_bytes == 5000
    feed(log, pipe, b"again\n")
    written = (tmp_path / "log").read_bytes()
    assert written.startswith(b"a" * 4000 + b"b" * 1000 + b"\n[dynorch: 7000 bytes of output are ")
    assert written.endswith(b"]\nagain\n")
    assert log.tail(6) == b"again\n"


def test_a_log_that_cannot_be_opened_costs_the_worker_nothing(tmp_path, pipe):
    (tmp_path / "file").write_bytes(b"")
    log = LogFile(str(tmp_path / "file" / "log"), 1000, 2)
    feed(log, pipe, b"x" * 5000)
    assert (log.written_bytes, log.dropped_bytes, log.tail(10)) == (0, 5000, b"")


@pytest.mark.parametrize("rotation", ["moved", "removed", "replaced", "truncated"])
def test_somebody_elses_rotation_is_followed(tmp_path, pipe, monkeypatch, rotation):
    monkeypatch.setattr(log_file, "LOOK_S", 0.0)
    path = tmp_path / "log"
    log = LogFile(str(path), 1 << 20, 2)
    feed(log, pipe, b"before\n")
    old = path.with_suffix(".old")
    match rotation:
        case "removed":
            path.unlink()
        case "truncated":
            os.truncate(path, 0)
        case _:
            path.rename(old)
    if rotation == "replaced":  # as logrotate's `create` does
        path.write_bytes(b"")
    feed(log, pipe, b"after\n")
    assert path.read_bytes() == b"after\n"
    assert rotation in {"removed", "truncated"} or old.read_bytes() == b"before\n"
    assert log.written_bytes == 13


def test_the_path_is_looked_at_twice_a_second_and_not_at_each_write(tmp_path, pipe, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_file.time, "monotonic", lambda: now[0])
    looks = []
    log = LogFile(str(tmp_path / "log"), 1 << 20, 2)
    monkeypatch.setattr(log, "_look", lambda: looks.append(now[0]))
    for _ in range(31):
        feed(log, pipe, b"x\n")
        now[0] += 0.125
    assert len(looks) == 8


def test_other_limits_count_for_the_file_as_it_is(tmp_path, pipe):
    log = LogFile(str(tmp_path / "log"), 1000, 5)
    lines = [b"%099d\n" % number for number in range(60)]
    feed(log, pipe, b"".join(lines[:45]))
    assert len(everything(tmp_path / "log")) == 5
    log.limit(200, 2)
    assert len(everything(tmp_path / "log")) == 3, "more than two older ones may not be"
    feed(log, pipe, b"".join(lines[45:]))
    files = everything(tmp_path / "log")
    assert [len(file) for file in files[:2]] == [200, 200]
    assert b"".join(files) == b"".join(lines[-len(b"".join(files)) // 100 :])
    log.limit(100_000, 2)
    feed(log, pipe, b"x" * 50_000)
    assert len((tmp_path / "log").read_bytes()) > 50_000 - 200
