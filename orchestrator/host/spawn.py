"""What is asked for when a worker is to be born.

One plain class for both ends: the daemon fills it in, zygote and shim read it. It says everything,
so that nothing of a worker depends on which daemon, zygote or shell happened to start it: the
environment is complete, not a difference. It travels over a socket and is never in argv, so `ps`
shows no secret.
"""

from orchestrator.host import title

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself would cost every shim its pages
    from typing import Any

LIFE_MAX = title.TAG_BYTES - 20
"""Longest life id in bytes: it must fit into the tag beside its nonce."""


class Spawn:
    """One worker. Either `argv` (a plain command) or `entry` ("module:function") is given.

    `life`: the life id. `nonce`: tells this run from another with the same id on this machine.
    `directory`: the life's own directory, made before. `log_path`, `log_max_bytes`, `log_backups`:
    where its output goes; 0 backups means that a full file starts again. `env`: all of it. `cwd`:
    where it starts. `blob`: what an entry function is called with. `path`: put before the entry's
    sys.path. `grace_s`: from SIGTERM to the tree kill, where a stop says nothing else. `linger_s`:
    what the rest of the tree gets after main's asked-for exit; `crash_linger_s`: after any other.
    `kill_timeout_s`: a killed tree that isn't empty by then is reported. `nofile`: soft limit of
    open files, 0 leaves it. `tree`: what holds it together (see `enclosure`); `group`: the path of
    the control group to make, for "cgroup". `lifetime_s`: the tree is killed when it has lived so
    long; 0: it may live for ever. `notify`: whose words count on the notify socket, "main" or
    "all"; empty: there is none. `cpus`: where it may run, anywhere if empty; `numa`: the node that
    its memory should be of.
    """

    __slots__ = (
        "argv", "blob", "cpus", "crash_linger_s", "cwd", "directory", "entry", "env", "grace_s",
        "group", "kill_timeout_s", "life", "lifetime_s", "linger_s", "log_backups", "log_max_bytes",
        "log_path", "nofile", "nonce", "notify", "numa", "path", "tree",
    )  # fmt: skip

    def __init__(
        self,
        *,
        life: str,
        nonce: str,
        directory: str,
        log_path: str,
        env: dict[str, str],
        argv: list[str] | None = None,
        entry: str = "",
        blob: bytes = b"",
        path: list[str] | None = None,
        cwd: str = "/",
        log_max_bytes: int = 50 << 20,
        log_backups: int = 5,
        grace_s: float = 60.0,
        linger_s: float = 2.0,
        crash_linger_s: float = 0.0,
        kill_timeout_s: float = 10.0,
        nofile: int = 0,
        tree: str = "walk",
        group: str = "",
        lifetime_s: float = 0.0,
        notify: str = "",
        cpus: list[int] | None = None,
        numa: int | None = None,
    ) -> None:
        self.life = life
        self.nonce = nonce
        self.directory = directory
        self.log_path = log_path
        self.log_max_bytes = log_max_bytes
        self.log_backups = log_backups
        self.env = env
        self.argv = argv or []
        self.entry = entry
        self.blob = blob
        self.path = path or []
        self.cwd = cwd
        self.grace_s = grace_s
        self.linger_s = linger_s
        self.crash_linger_s = crash_linger_s
        self.kill_timeout_s = kill_timeout_s
        self.nofile = nofile
        self.tree = tree
        self.group = group
        self.lifetime_s = lifetime_s
        self.notify = notify
        self.cpus = cpus or []
        self.numa = numa
        for name in (directory, log_path, cwd):
            assert name.startswith("/"), f"{life}: not an absolute path: {name}"
        assert (tree == "cgroup") == group.startswith("/"), f"{life}: a {tree} and {group!r}"
        assert bool(self.argv) != bool(self.entry), f"{life}: either argv or entry"
        assert len(life.encode()) <= LIFE_MAX, f"a life id of {len(life)} bytes"
        assert len(nonce) <= 16, f"a nonce of {len(nonce)} bytes"

    @property
    def tag(self) -> str:
        """What every process of this tree carries in its environment as DYNORCH_TREE."""
        return f"{self.life}/{self.nonce}"

    def to_fields(self) -> dict[str, object]:
        """Return all of it as plain data, for the zygote's socket."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_fields(cls, fields: "Any") -> "Spawn":
        """Read what `to_fields` wrote; TypeError when it is anything else."""
        return cls(**fields)

    def environment(self) -> dict[str, str]:
        """Return the worker's environment: what was asked for, and what every tree gets.

        SPT_NOENV keeps `setproctitle`, which vLLM calls, from writing over the tag.
        """
        forced = {title.TAG_NAME: title.padded(self.tag), "SPT_NOENV": "1"}
        return {**self.env, **forced}
