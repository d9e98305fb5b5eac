"""`dynorch logs`: which files a target names, their ends, and every line that follows."""

import pytest

from orchestrator.cli import logs
from orchestrator.views.tail import READ_BYTES_MAX, LogTail

WORKERS = ["agg/worker-0.0", "agg/worker-0.1", "agg/worker-1.0", "agg/worker-10.0", "agg/w-0.0"]
WORKERS += ["agg-two/worker-0.0"]


@pytest.fixture
def state(tmp_path):
    for name in WORKERS:
        path = tmp_path / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"of {name}\n")
    (tmp_path / "logs/agg/worker-0.0.log.1").write_text("old\n")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (None, WORKERS),
        ("agg", WORKERS[:5]),
        ("agg/worker", WORKERS[:4]),
        ("agg/worker-1", ["agg/worker-1.0"]),
        ("agg/worker-0", ["agg/worker-0.0", "agg/worker-0.1"]),
        ("agg/worker-0.1", ["agg/worker-0.1"]),
        ("agg/w", ["agg/w-0.0"]),
        ("agg/work", []),
        ("ag", []),
        ("agg/worker-0.2", []),
    ],
)
def test_a_target_names_the_logs_within_it(state, target, found):
    assert {source.name for source in logs.find(state, target)} == set(found)


def test_nothing_was_ever_logged(tmp_path):
    assert logs.find(tmp_path, None) == []


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 100])
def test_the_last_lines_are_those_of_the_file(tmp_path, lines):
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthree\n")
    whole = ["one", "two", "three"]
    assert logs.last_lines(path, lines) == whole[len(whole) - min(lines, 3) :]


def test_a_line_that_has_not_ended_is_shown_too(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthr")
    assert logs.last_lines(path, 2) == ["two", "thr"]
    assert logs.last_lines(path, 0) == []
    assert logs.last_lines(tmp_path / "none", 5) == []


def test_many_lines_are_found_however_far_back(tmp_path):
    path = tmp_path / "log"
    text = [f"line {number} {'x' * 200}" for number in range(2000)]
    path.write_text("\n".join(text) + "\n")
    assert path.stat().st_size > 4 * READ_BYTES_MAX
    assert logs.last_lines(path, 1500) == text[-1500:]
    assert logs.last_lines(path, 5000) == text


def test_following_loses_nothing_across_a_rotation(tmp_path):
    path = tmp_path / "log"
    path.write_text("1\n2\n3\n")
    tail = LogTail(path, 1, skips=False)
    assert list(logs.every(tail)) == ["3"]
    with path.open("a") as file:
        file.write("4\n5\n")  # written between two looks, just before the rotation
    path.rename(tmp_path / "log.1")
    path.write_text("6\n")
    assert list(logs.every(tail)) == ["4", "5", "6"]
    with path.open("a") as file:
        file.write("7\n")
    assert list(logs.every(tail)) == ["7"]


def test_following_skips_and_cuts_nothing(tmp_path):
    path = tmp_path / "log"
    path.write_text("begin\n")
    tail = LogTail(path, 10, skips=False)
    assert list(logs.every(tail)) == ["begin"]
    long = "z" * 10_000
    flood = [f"{number} {long}" for number in range(50)]
    with path.open("a") as file:
        file.write("\n".join(flood) + "\n")
    assert list(logs.every(tail)) == flood


def test_following_begins_with_the_first_line_of_a_file_that_comes_later(tmp_path):
    tail = LogTail(tmp_path / "log", 10, skips=False)
    assert list(logs.every(tail)) == []
    (tmp_path / "log").write_text("first\nsec")
    assert list(logs.every(tail)) == ["first"]
    with (tmp_path / "log").open("a") as file:
        file.write("ond\n")
    assert list(logs.every(tail)) == ["second"]


def test_no_lines_from_the_end_means_only_what_comes(tmp_path):
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = LogTail(path, 0, skips=False)
    assert list(logs.every(tail)) == []
    with path.open("a") as file:
        file.write("new\n")
    assert list(logs.every(tail)) == ["new"]
