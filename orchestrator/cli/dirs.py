"""Where the verbs look: the run and the state directory, and what they tell without a daemon."""

import os
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

    @property
    def journal(self) -> Journal:
        """What happened, to be read."""
        return Journal(StateDir(self.state).journal)

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
                reason="the daemon is gone; what runs goes on, and `dynorch up` takes it over",
                roles=[
                    RoleStatus(
                        name=role,
                        kind="unknown",
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


def dirs(*, create: bool = False) -> Dirs:
    """Find both directories; `create` makes them, or exits with the reason."""
    run_dir, state_dir = (
        RunDir(default_run_dir(os.environ)),
        StateDir(default_state_dir(os.environ)),
    )
    if create:
        try:
            run_dir.create()
            state_dir.create()
        except DirectoryError as error:
            fail(str(error))
    return Dirs(run_dir.root, state_dir.root)
