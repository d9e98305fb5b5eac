"""Where everything of a daemon lies, and what a look at it says without a daemon.

The run directory holds what is true now and means nothing after a reboot; the state directory
holds what people want to read later. All paths are made here and nowhere else. Each life has a
directory of its own, named by a short digest because sockets lie in it and the kernel allows their
paths 107 bytes; who lives there is written inside.
"""

import base64
import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from orchestrator.host import code_path, records
from orchestrator.host.identity import Identity
from orchestrator.wire.ids import LifeId, ReplicaId

SOCKET_PATH_MAX = 107
LONGEST_BELOW = len("/lives/0123456789/t/") + 36
"""The longest socket path we cause: an engine's own, named by a UUID in the life's `t`."""

PATH_MAX = SOCKET_PATH_MAX - LONGEST_BELOW
ZYGOTE_DEATH_S = 5.0


class DirectoryError(Exception):
    """This directory can't be used; the text says why and what to do."""


class FoundLife(msgspec.Struct, frozen=True):
    """A life's directory as a new daemon finds it.

    `alive`: its shim runs. `exit`: its exit record; with neither, the shim was killed.
    """

    life: LifeId
    directory: Path
    record: records.LifeRecord
    alive: bool
    exit: records.TreeEmpty | None


def default_run_dir(environ: Mapping[str, str]) -> Path:
    """Return where this user's daemon lives."""
    if "DYNORCH_RUN_DIR" in environ:
        return Path(environ["DYNORCH_RUN_DIR"]).absolute()
    if "XDG_RUNTIME_DIR" in environ:
        return Path(environ["XDG_RUNTIME_DIR"], "dynorch").absolute()
    return Path(f"/tmp/dynorch-{os.getuid()}")  # noqa: S108 - made 0700 and its owner checked


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return where this user's logs and journal lie; DirectoryError where nobody can tell."""
    if "DYNORCH_STATE_DIR" in environ:
        return Path(environ["DYNORCH_STATE_DIR"]).absolute()
    if "XDG_STATE_HOME" in environ:
        return Path(environ["XDG_STATE_HOME"], "dynorch").absolute()
    try:
        return Path("~/.local/state/dynorch").expanduser().absolute()
    except RuntimeError as error:
        raise DirectoryError(
            "no home directory is known for logs and journal; set DYNORCH_STATE_DIR"
        ) from error


class StateDir:
    """Paths of what outlives a daemon and a boot."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = root / "journal.jsonl"
        self.failures = root / "failures.jsonl"
        self.logs = root / "logs"

    def create(self) -> None:
        """Make it, for us alone. DirectoryError when it isn't ours."""
        _make_private(self.root)
        _make_private(self.logs)

    def log(self, worker: LifeId) -> Path:
        """Return the log file of a worker, the same for all its lives."""
        name = f"{worker.of.role}-{worker.of.replica}.{worker.member}.log"
        return self.logs / worker.of.topology / name

    def zygote_log(self, profile: str) -> Path:
        """Return where a zygote's own output goes: normally nothing."""
        return self.logs / f"zygote-{profile}.log"


class RunDir:
    """Paths of what is true now, and the few operations on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "daemon.lock"
        self.handover = root / "handover"
        self.control = root / "control.sock"
        self.events = root / "events.sock"
        self.gpus = root / "gpus.json"
        self.replicas = root / "replicas"
        self.topologies = root / "topologies"
        self.lives = root / "lives"
        self.probes = root / "probes"
        self.zygotes = root / "zygotes"
        self.owed = root / "owed"
        self.code = root / "code"
        self.ports = root / "ports.json"

    def create(self) -> None:
        """Make it, for us alone. DirectoryError says why that can't be."""
        length = len(os.fsencode(self.root))
        if length > PATH_MAX:
            raise DirectoryError(
                f"the run directory's path is too long: {self.root} has {length} bytes, and "
                f"socket paths leave room for {PATH_MAX}; set DYNORCH_RUN_DIR to a shorter one"
            )
        _make_private(self.root)
        for folder in (
            self.replicas,
            self.topologies,
            self.lives,
            self.probes,
            self.zygotes,
            self.owed,
        ):
            _make_private(folder)

    def check(self) -> None:
        """Look whether it is ours or not there at all; else DirectoryError."""
        try:
            found = self.root.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DirectoryError(f"cannot look at {self.root}: {error.strerror}") from error
        _check_private(self.root, found)

    def replica(self, replica: ReplicaId) -> Path:
        """Return the file of a replica's core state."""
        return self.replicas / f"{str(replica).replace('/', '~')}.json"

    def topology(self, name: str) -> Path:
        """Return the file that says that this topology is up."""
        return self.topologies / f"{name}.json"

    def life(self, life: LifeId) -> Path:
        """Return the directory of a life: always the same for the same life."""
        digest = hashlib.sha256(str(life).encode()).digest()
        return self.lives / base64.b32encode(digest)[:10].decode().lower()

    def make_code(self) -> Path:
        """Make the import path of zygotes and all that they fork. OSError when that can't be."""
        code_path.link(self.code)
        return self.code

    def remove_code(self) -> None:
        """Remove it, if nobody is left who may import from it. Only while no zygote lives."""
        if not any(self.lives.iterdir()) and not any(self.probes.iterdir()):
            code_path.remove(self.code)

    def make_life(self, life: LifeId) -> Path:
        """Make it, with its directory `t` for temporary files. FileExistsError: it was there."""
        directory = self.life(life)
        directory.mkdir(mode=0o700)
        (directory / "t").mkdir(mode=0o700)
        return directory

    def remove_life(self, directory: Path) -> None:
        """Remove a life's directory; call it when its exit record was consumed."""
        assert directory.parent == self.lives, directory
        _remove(directory)

    def make_probe(self) -> Path:
        """Make a directory for one run of a check command: a life, but nobody's worker."""
        directory = self.probes / os.urandom(5).hex()
        directory.mkdir(mode=0o700)
        return directory

    def remove_probe(self, directory: Path) -> None:
        """Remove it again; call it when nothing of that run is left."""
        assert directory.parent == self.probes, directory
        _remove(directory)

    def scan(self) -> list[FoundLife]:
        """Look at every life that ever got as far as having a shim, oldest first."""
        return self._scan(self.lives)

    def scan_probes(self) -> list[FoundLife]:
        """Likewise, check commands that a daemon left running."""
        return self._scan(self.probes)

    @staticmethod
    def _scan(folder: Path) -> list[FoundLife]:
        found = []
        for directory in folder.iterdir() if folder.is_dir() else ():
            record = records.read_life(directory)
            life = _life_of(record)
            if record is not None and life is not None:
                # In this order: a shim that ends between the two looks leaves its record first.
                alive = record.shim_identity.is_alive()
                ended = records.read_exit(directory)
                found.append(FoundLife(life, directory, record, alive and ended is None, ended))
        return sorted(found, key=lambda one: one.record.started_wall)

    def remove_rubble(self) -> None:
        """Remove directories of lives that never had a shim. Only while no zygote lives."""
        for directory in self.lives.iterdir():
            if records.read_life(directory) is None:
                self.remove_life(directory)

    def record_zygote(self, zygote: Identity) -> None:
        """Remember a zygote, so that the next daemon can end it. Those that died are forgotten."""
        self.forget_dead_zygotes()
        path = self.zygotes / f"{zygote.pid}.json"
        path.write_bytes(msgspec.json.encode(zygote))

    def kill_zygotes(self) -> list[Identity]:
        """Kill what earlier daemons started and return those that won't die within 5 s.

        Before `scan`: after this, every shim that may ever start a worker has left a record.
        """
        stubborn = []
        for path, zygote in self._zygotes():
            if zygote.kill(ZYGOTE_DEATH_S):
                path.unlink(missing_ok=True)
            else:
                stubborn.append(zygote)
        return stubborn

    def forget_dead_zygotes(self) -> None:
        """Remove the records of zygotes that are gone."""
        for path, zygote in self._zygotes():
            if not zygote.is_alive():
                path.unlink(missing_ok=True)

    def _zygotes(self) -> list[tuple[Path, Identity]]:
        found = []
        for path in self.zygotes.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append((path, msgspec.json.decode(path.read_bytes(), type=Identity)))
        return found


def _remove(directory: Path) -> None:
    """Remove a life's directory: at once where nothing unusual lies in it, as nearly always."""
    try:
        for one in directory.iterdir():
            if one.is_dir() and not one.is_symlink():
                one.rmdir()
            else:
                one.unlink()
        directory.rmdir()
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)


def _life_of(record: records.LifeRecord | None) -> LifeId | None:
    """Whose record this is; None when it is nobody's, say of another version."""
    try:
        return LifeId.parse(record.life) if record is not None else None
    except ValueError:
        return None


def _make_private(path: Path) -> None:
    """Make a directory that only we can enter, or make sure that it is one."""
    try:
        if not path.is_symlink():  # one that leads nowhere: the check below names it
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except FileExistsError:
        found = path.lstat()
    except OSError as error:
        raise DirectoryError(f"cannot make {path}: {error.strerror}") from error
    _check_private(path, found)
    if found.st_mode & 0o077:
        path.chmod(0o700)


def _check_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise DirectoryError(f"{path} is not a directory; remove it")
    if found.st_uid != os.getuid():
        raise DirectoryError(
            f"{path} belongs to uid {found.st_uid}, not to us ({os.getuid()}); "
            "set DYNORCH_RUN_DIR or DYNORCH_STATE_DIR to a directory of your own"
        )
