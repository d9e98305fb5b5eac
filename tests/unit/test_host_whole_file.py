"""Files that are replaced whole, also where there is no room for a second one."""

import errno
import itertools
import json
import os

import pytest

from orchestrator.host.whole_file import PAGE, append, bring_up_to_date, write_new, write_whole


def full(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_made_and_replaced_for_our_eyes_only(tmp_path):
    path = tmp_path / "record.json"
    for text in (b"{}", b"[1, 2, 3]", b"[]"):
        write_whole(str(path), text)
        assert path.read_bytes() == text
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]


def test_on_a_full_disk_the_old_blocks_are_written_over(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_whole(str(path), b'{"phase": "starting"}')
    monkeypatch.setattr(os, "replace", full)
    for record in ({"phase": "ready"}, {"phase": "waiting", "for": "a while"}):
        write_whole(str(path), json.dumps(record).encode())
        assert json.loads(path.read_bytes()) == record
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]


def test_what_has_no_room_leaves_the_old_content(tmp_path, monkeypatch):
    path, other = tmp_path / "record.json", tmp_path / "other.json"
    write_whole(str(path), b"{}")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(str(path), b"x" * (1 << 20))
    with pytest.raises(OSError, match="No space"):
        write_whole(str(other), b"{}")
    assert path.read_bytes() == b"{}"
    assert not other.exists()


def test_another_error_is_not_got_around(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_whole(str(path), b"{}")

    def refuse(*_args):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_whole(str(path), b"[]")
    assert path.read_bytes() == b"{}"


def test_what_only_the_next_process_reads_is_written_over_in_one_go(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    bring_up_to_date(str(path), b'{"phase": "starting"}')
    inode, writes = path.stat().st_ino, []
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: writes.append(at) or pwrite(fd, data, at)
    )
    drafted = []
    for record in ({"phase": "ready"}, {"phase": "waiting", "for": "x" * 2000}, {}):
        bring_up_to_date(str(path), json.dumps(record).encode(), lambda: drafted.append(1))
        assert json.loads(path.read_bytes()) == record
    assert path.stat().st_ino == inode
    assert (writes, len(drafted)) == ([0, 0, 0], 3)


def test_what_is_longer_than_a_page_is_replaced_also_by_something_short(tmp_path):
    path = tmp_path / "state.json"
    inodes = []
    for record in ({}, {"for": "x" * PAGE}, {"for": "y" * PAGE}, {}):
        bring_up_to_date(str(path), json.dumps(record).encode())
        assert json.loads(path.read_bytes()) == record
        inodes.append(path.stat().st_ino)
    assert path.stat().st_size == 2
    assert all(before != after for before, after in itertools.pairwise(inodes))


def test_a_new_file_that_has_no_room_isn_t_there(tmp_path, monkeypatch):
    path = tmp_path / "exit.json"
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    with pytest.raises(OSError, match="No space"):
        write_new(str(path), b'{"status": 0}')
    assert not path.exists()
    monkeypatch.undo()
    write_new(str(path), b'{"status": 0}')
    append(str(path), b"more")
    assert path.read_bytes() == b'{"status": 0}more'
