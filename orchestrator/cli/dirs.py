"""Where the verbs look: the run and the state directory, and what they tell without a daemon."""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from orchestrator import __version__
from orchestrator.cli.main import fail
from orchestrator.host.journal import Journal
from orchestrator.host.rundir import (
    DirectoryError,
    FoundLife,
    RunDir,
    StateDir,
    default_run_dir,
    default_state_dir,
)
from orchestrator.wire.snapshot import (
    DaemonStatus,
    ReplicaStatus,
    RoleStatus,
    Snapshot,
    TopologyStatus,
    WorkerStatus,
)


class Dirs(NamedTuple):
    """Both directories of this user, or as the environment says."""

    run: Path
    state: Path

    def living(self) -> list[FoundLife]:
        """Lives whose shim runs."""
        return [life for life in RunDir(self.run).scan() if life.alive]

    def leftovers(self, topologies: Iterable[str] | None = None) -> list[str]:
        """What still runs of these topologies (None: of all), as life ids with their pid."""
        return [
            f"{life.life} (pid {life.record.main.pid if life.record.main else '?'})"
            for life in self.living()
            if topologies is None or life.life.of.topology in topologies
        ]

    def absence(self) -> str:
        """Say that there is no daemon, what still runs without it, and what to do."""
        left = len(self.living())
        if not left:
            return "no daemon runs, and nothing is left running; `dynorch up FILE` starts one"
        still = "1 worker still runs" if left == 1 else f"{left} workers still run"
        return f"daemon gone; {still}: `dynorch up FILE` takes over, `dynorch down` stops"

    @property
    def journal(self) -> Journal:
        """What happened, to be read."""
        return Journal(StateDir(self.state).journal)

    @property
    def failures(self) -> Path:
        """Where the daemon tells of each replica that it has given up."""
        return StateDir(self.state).failures

    def remains(self) -> Snapshot:
        """A snapshot without a daemon: what the shims' files say still runs."""
        grouped: dict[str, dict[str, dict[int, list[FoundLife]]]] = {}
        for life in sorted(self.living(), key=lambda found: found.life):
            of = life.life.of
            roles = grouped.setdefault(of.topology, {})
            roles.setdefault(of.role, {}).setdefault(of.replica, []).append(life)
        topologies = [
            TopologyStatus(
                name=name,
                health="unsupervised",
                reason="no daemon watches it; what runs goes on as it is",
                roles=[
                    RoleStatus(
                        name=role,
                        kind="",
                        replicas=[_remaining(members) for members in replicas.values()],
                    )
                    for role, replicas in roles.items()
                ],
            )
            for name, roles in grouped.items()
        ]
        daemon = DaemonStatus(
            pid=None, version=__version__, run_dir=str(self.run), state_dir=str(self.state)
        )
        return Snapshot(daemon=daemon, topologies=topologies)


def _remaining(members: list[FoundLife]) -> ReplicaStatus:
    """One replica of which these members still run."""
    first = members[0].life
    return ReplicaStatus(
        index=first.of.replica,
        phase="running",
        want="up",
        incarnation=first.incarnation,
        workers=[
            WorkerStatus(
                id=str(member.life),
                pid=member.record.main.pid if member.record.main else None,
                log=member.record.log,
            )
            for member in members
        ],
    )


def how_called() -> str:
    """What this user types for `dynorch`: its path, where that isn't in the shell's own."""
    mine = Path(sys.argv[0])
    if shutil.which("dynorch") or mine.name != "dynorch":
        return "dynorch"
    here = Path.cwd()
    return str(mine.relative_to(here) if mine.is_relative_to(here) else mine)


def dirs(*, create: bool = False) -> Dirs:
    """Find both directories; `create` makes them, or exits with the reason."""
    try:
        run_dir = RunDir(default_run_dir(os.environ))
        state_dir = StateDir(default_state_dir(os.environ))
        run_dir.check()
        if create:
            run_dir.create()
            state_dir.create()
    except DirectoryError as error:
        fail(str(error))
    return Dirs(run_dir.root, state_dir.root)
